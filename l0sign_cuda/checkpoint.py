"""Saving and loading: safetensors files that are complete or absent, whatever interrupts the writer.

A model directory holds `model.safetensors` (the weights, and in its header everything needed to rebuild the
model), `config.json` (the same settings, for people) and a vocabulary where there is one. One file is the
sole truth, so that no two can disagree: a vocabulary is written first, under a name made from its contents,
and the header of `model.safetensors` refers to it. A run adds `state.safetensors`, from which training
continues.

Each file is written aside, flushed to the disk and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._extras import require
from ._version import __version__
from .config import TrainConfig
from .data import Vocabulary
from .model import L0SIGN

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
STATE_FILE = "state.safetensors"

_FORMAT = 1
_HEADER = "l0sign_cuda"


def check_target(path: str | Path) -> None:
    """Check that a file can lie there, as far as that can be seen."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file to write, got a directory")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no directory {path.parent}")


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """A path to write to: renamed to `path` when the block ends well, removed when it does not."""
    check_target(path)
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        _flush_directory(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _flush_directory(path: Path) -> None:
    if os.name == "posix":  # elsewhere a directory cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON aside and rename it. NaN and infinities, which JSON has no word for, become null."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header into one safetensors file, with a checksum of the tensors."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**header, "checksum": _checksum(stored)})
    with written_aside(path) as aside:
        # safetensors makes files that only their owner reads; this one is to be like any other.
        aside.unlink(missing_ok=True)
        aside.touch()
        mode = aside.stat().st_mode
        save = require("safetensors.torch", "train").save_file
        save(stored, aside, metadata={"format": "pt", _HEADER: text})
        aside.chmod(mode)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header that `write_tensors` wrote; ValueError where the file is damaged."""
    with _opened(path) as file:
        header = _header(path, file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if header.pop("checksum", None) != _checksum(tensors):
        raise ValueError(f"{path}: damaged: the tensors do not match their checksum")
    return tensors, header


def read_header(path: str | Path) -> dict[str, Any]:
    """The header alone, without reading the tensors."""
    with _opened(path) as file:
        return _header(path, file)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    safetensors = require("safetensors", "train")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from None


def _header(path: str | Path, file: Any) -> dict[str, Any]:
    text = (file.metadata() or {}).get(_HEADER)
    if text is None:
        raise ValueError(f"{path}: a safetensors file, but not one that l0sign_cuda wrote")
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: damaged header ({error})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: damaged header")
    return header


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return value


def save_model(
    model: L0SIGN,
    path: str | Path,
    vocabulary: Vocabulary | None = None,
    config: TrainConfig | None = None,
) -> None:
    """Save a model into the directory `path`, with its vocabulary and the settings it was trained with.

    A model that is already there is replaced at one instant: a reader finds the old one or the new one.
    """
    write_model(path, model.state_dict(), model.hyperparameters, vocabulary, config)


def write_model(
    path: str | Path,
    weights: Mapping[str, Tensor],
    hyperparameters: Mapping[str, Any],
    vocabulary: Vocabulary | None,
    config: TrainConfig | None,
) -> None:
    """`save_model` for weights that are in no model at the moment."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    header = {
        "format": _FORMAT,
        "l0sign_cuda": __version__,
        "model": dict(hyperparameters),
        "training": None if config is None else config.to_dict(),
        "vocabulary": None if vocabulary is None else _save_vocabulary(vocabulary, path),
    }
    write_tensors(path / MODEL_FILE, weights, header)
    write_json(path / CONFIG_FILE, header)
    for stale in path.glob("vocabulary-*.json"):
        if stale.name != header["vocabulary"]:
            stale.unlink(missing_ok=True)


def _save_vocabulary(vocabulary: Vocabulary, path: Path) -> str:
    text = vocabulary.dumps()
    target = path / f"vocabulary-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.json"
    # The name says what is in it, so a file of that name needs no second writing.
    if not target.exists():
        with written_aside(target) as aside:
            aside.write_text(text, encoding="utf-8")
    return target.name


def load_model(path: str | Path, device: str | torch.device = "cpu") -> L0SIGN:
    """The model that `save_model` or `fit` left in the directory `path`, in evaluation mode."""
    file = Path(path) / MODEL_FILE
    tensors, header = read_tensors(file)
    _check_format(file, header)
    try:
        model = L0SIGN(**header["model"] | {"limits": tuple(header["model"]["limits"])})
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file}: the weights do not fit the settings in its header: {error}") from None
    return model.to(device).eval()


def load_vocabulary(path: str | Path) -> Vocabulary | None:
    """The vocabulary that was saved with the model in the directory `path`, if there was one."""
    name = read_header(Path(path) / MODEL_FILE).get("vocabulary")
    return None if name is None else Vocabulary.load(Path(path) / name)


def load_config(path: str | Path) -> TrainConfig | None:
    """How the model in the directory `path` was trained, if that was saved with it."""
    file = Path(path) / MODEL_FILE
    training = read_header(file).get("training")
    return None if training is None else TrainConfig.from_stored(training, source=str(file))


def _check_format(file: Path, header: Mapping[str, Any]) -> None:
    if header.get("format") != _FORMAT:
        raise ValueError(f"{file}: format {header.get('format')!r}, but this version reads format {_FORMAT}")
