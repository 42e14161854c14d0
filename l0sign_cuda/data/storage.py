"""A directory of .npy and text files under one manifest: replaced as a whole or not at all.

The manifest, dataset.json, names every other file by its content's digest and is written last, by a rename.
New files therefore never overwrite those that a manifest refers to, and a process killed at any moment leaves
the old content or the new one. One process at a time may write to a directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MANIFEST", "read_directory", "write_directory"]

MANIFEST = "dataset.json"
_OURS = re.compile(r"[a-z]+-[0-9a-f]{16}\.(npy|json)(\.tmp)?|dataset\.json\.tmp")


def write_directory(
    directory: Path, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], texts: Mapping[str, str]
) -> None:
    """Write arrays and texts, then switch the manifest over to them and remove what it no longer names."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: expected a directory to write to, got a file")
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Any]] = {}
    for key, array in arrays.items():
        contiguous = np.ascontiguousarray(array)
        name = f"{key}-{_digest(contiguous.data)}.npy"
        _write_file(directory / name, contiguous)
        files[key] = {"file": name, "dtype": str(array.dtype), "length": len(array)}
    for key, text in texts.items():
        content = text.encode()
        name = f"{key}-{_digest(content)}.json"
        _write_file(directory / name, content)
        files[key] = {"file": name}
    for entry in files.values():
        entry["bytes"] = (directory / entry["file"]).stat().st_size
    manifest = json.dumps({**header, "files": files}, indent=2) + "\n"
    _sync(directory)
    _write_file(directory / MANIFEST, manifest.encode())
    _sync(directory)
    named = {entry["file"] for entry in files.values()}
    for path in directory.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in named:
            path.unlink(missing_ok=True)


def read_directory(
    directory: Path, expected: Mapping[str, Any], *, mmap: bool, verify: bool
) -> tuple[dict[str, Any], dict[str, NDArray[Any]], dict[str, str]]:
    """(manifest, arrays, texts) of a directory whose manifest has the `expected` entries.

    Checks every file's presence and size, and with `verify` its digest. Raises ValueError naming the file.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        files = {str(key): (entry, directory / entry["file"]) for key, entry in manifest["files"].items()}
    except FileNotFoundError:
        raise ValueError(f"{path}: missing; expected a directory that GraphDataset.save wrote") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged or not a data set's manifest: {error!r}") from error
    for key, wanted in expected.items():
        if manifest.get(key) != wanted:
            raise ValueError(f"{path}: expected {key} {wanted!r}, got {manifest.get(key)!r}")
    arrays: dict[str, NDArray[Any]] = {}
    texts: dict[str, str] = {}
    for key, (entry, file) in files.items():
        if not file.is_file():
            raise ValueError(f"{file}: missing, but {MANIFEST} names it")
        if (size := file.stat().st_size) != entry.get("bytes"):
            raise ValueError(f"{file}: truncated or changed: expected {entry.get('bytes')} bytes, got {size}")
        if file.suffix == ".npy":
            arrays[key] = _load_array(file, entry, mmap)
            digest = _digest(arrays[key].data) if verify else ""
        else:
            content = file.read_bytes()
            texts[key] = content.decode(errors="replace")
            digest = _digest(content) if verify else ""
        if f"-{digest}" not in file.name:
            raise ValueError(f"{file}: damaged: its content does not match the digest in its name")
    return manifest, arrays, texts


def _load_array(file: Path, entry: Mapping[str, Any], mmap: bool) -> NDArray[Any]:
    try:
        # An empty array cannot be mapped.
        array = np.load(file, mmap_mode="r" if mmap and entry.get("length") else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file}: not a readable .npy file: {error}") from error
    if array.shape != (entry.get("length"),) or str(array.dtype) != entry.get("dtype"):
        raise ValueError(
            f"{file}: expected {entry.get('dtype')} [{entry.get('length')}], "
            f"got {array.dtype} {list(array.shape)}"
        )
    return np.asarray(array)


def _digest(content: memoryview | bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _write_file(path: Path, content: NDArray[Any] | bytes) -> None:
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "wb") as f:
        if isinstance(content, bytes):
            f.write(content)
        else:
            np.save(f, content, allow_pickle=False)
        f.flush()
        os.fsync(f.fileno())
    os.replace(aside, path)


def _sync(directory: Path) -> None:
    """Make renames durable where the system allows syncing a directory."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
