"""Vocabulary: from the values of a data set's fields to global feature ids 0..J-1, and back to names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Field", "FieldKind", "Vocabulary"]

FieldKind = Literal["categorical", "numeric", "ids"]
_FORMAT = "l0sign_cuda.Vocabulary"
_VERSION = 1


class Field:
    """One field (a column) and its values; the position of a value is its id within the field.

    kind "categorical": `values` is a list of distinct strings, in order of first appearance.
    kind "ids": `values` is a sorted int64 array of the raw integer ids of a file that has no columns.
    kind "numeric": one feature only, whose value is the number in the cell; `values` is empty.

    `names` maps a value to a readable name, for display only.
    """

    __slots__ = ("_positions", "kind", "name", "names", "values")

    def __init__(
        self,
        name: str,
        kind: FieldKind = "categorical",
        values: Sequence[str] | NDArray[np.int64] = (),
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.kind: FieldKind = kind
        self.names = dict(names or {})
        self.values: list[str] | NDArray[np.int64]
        self._positions: dict[str, int] | None = None
        if kind == "ids":
            self.values = np.ascontiguousarray(values, dtype=np.int64)
            if self.values.ndim != 1 or np.any(self.values[1:] <= self.values[:-1]):
                raise ValueError(f"field {name!r}: expected raw ids in one strictly increasing row")
        elif kind == "categorical":
            self.values = list(map(str, values))
            if len(set(self.values)) != len(self.values):
                raise ValueError(f"field {name!r}: expected distinct values, got repeated ones")
        elif kind == "numeric":
            if len(values):
                raise ValueError(f"field {name!r}: a numeric field has no values, got {len(values)}")
            self.values = []
        else:
            raise ValueError(f"field {name!r}: kind must be categorical, numeric or ids, got {kind!r}")

    def __len__(self) -> int:
        return 1 if self.kind == "numeric" else len(self.values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Field):
            return NotImplemented
        same = (self.name, self.kind, self.names) == (other.name, other.kind, other.names)
        return (
            same
            and len(self) == len(other)
            and all(a == b for a, b in zip(self.values, other.values, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Field({self.name!r}, {self.kind}, {len(self)} features)"

    def value(self, position: int) -> str:
        """The value at a position, as a string; "" for a numeric field."""
        return "" if self.kind == "numeric" else str(self.values[position])

    def find(self, values: Iterable[str]) -> NDArray[np.int64]:
        """Positions of string values, -1 where one is not known: [k]."""
        if self.kind == "ids":
            return self.find_ids(np.fromiter((_raw_id(v) for v in values), np.int64))
        if self._positions is None:
            # Built on first use: a vocabulary that only names features never pays for it.
            self._positions = {v: k for k, v in enumerate(self.values)}
        get = self._positions.get
        return np.fromiter((get(v, -1) for v in values), np.int64)

    def find_ids(self, raw: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of raw integer ids, -1 where one is not known: [k] -> [k]."""
        known = np.asarray(self.values, dtype=np.int64)
        if not len(known):
            return np.full(len(raw), -1, np.int64)
        if known[0] == 0 and known[-1] == len(known) - 1:
            return np.where((raw >= 0) & (raw < len(known)), raw, -1)
        at = np.minimum(np.searchsorted(known, raw), len(known) - 1)
        return np.where(known[at] == raw, at, -1)

    def to_json(self) -> dict[str, Any]:
        """The arguments that make this field, for `json.dump`."""
        entry: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.kind != "numeric":
            entry["values"] = self.values.tolist() if isinstance(self.values, np.ndarray) else self.values
        if self.names:
            entry["names"] = self.names
        return entry


class Vocabulary:
    """Fields that share the global ids 0..J-1: a feature's id is its field's offset plus its position there.

    >>> v = Vocabulary([Field("user", values=["ann", "bob"]), Field("price", "numeric")])
    >>> len(v), v.id("user", "bob"), v.name(1), v.name(2)
    (3, 1, 'user=bob', 'price')
    """

    def __init__(self, fields: Iterable[Field]) -> None:
        self.fields: tuple[Field, ...] = tuple(fields)
        self._index = {f.name: k for k, f in enumerate(self.fields)}
        if len(self._index) != len(self.fields):
            raise ValueError(f"expected distinct field names, got {[f.name for f in self.fields]}")
        self.offsets: NDArray[np.int64] = np.cumsum(
            [0, *map(len, self.fields)], dtype=np.int64
        )  # [fields + 1]

    @classmethod
    def from_ids(cls, raw_ids: NDArray[np.int64], field: str = "id") -> Vocabulary:
        """One field for data that has integer ids and no columns; feature k is the k-th smallest raw id."""
        return cls([Field(field, "ids", raw_ids)])

    def __len__(self) -> int:
        """J, the number of features."""
        return int(self.offsets[-1])

    def __eq__(self, other: object) -> bool:
        return self.fields == other.fields if isinstance(other, Vocabulary) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} features: {', '.join(f'{f.name} {len(f)}' for f in self.fields)})"

    @property
    def field_names(self) -> tuple[str, ...]:
        """Names of the fields, in order."""
        return tuple(self._index)

    @property
    def is_tabular(self) -> bool:
        """True where the fields are columns, False for raw ids."""
        return not any(f.kind == "ids" for f in self.fields)

    def field(self, name: str) -> Field:
        """The field with a name."""
        return self.fields[self._field_index(name)]

    def offset(self, name: str) -> int:
        """The first id of a field."""
        return int(self.offsets[self._field_index(name)])

    def field_of(self, ids: NDArray[np.integer[Any]] | Sequence[int]) -> NDArray[np.int64]:
        """The index of every id's field, e.g. to count gates by pairs of fields; the shape stays."""
        array = np.asarray(ids)
        if array.size and (array.min() < 0 or array.max() >= len(self)):
            raise IndexError(f"expected ids from 0 to {len(self) - 1}, got {array.min()} to {array.max()}")
        return np.searchsorted(self.offsets, array, side="right") - 1

    def pair(self, id: int) -> tuple[str, str]:
        """(field, value) of a feature; the value of a numeric field is ""."""
        k = int(self.field_of([id])[0])
        return self.fields[k].name, self.fields[k].value(int(id) - int(self.offsets[k]))

    def name(self, id: int) -> str:
        """'field=value', by the value's readable name where one was attached; 'field' for a numeric one."""
        field, value = self.pair(id)
        if self.field(field).kind == "numeric":
            return field
        return f"{field}={self.field(field).names.get(value, value)}"

    def id(self, field: str, value: str | int = "") -> int:
        """The id of a value. Raises KeyError for an unknown field or value."""
        k = self._field_index(field)
        position = 0 if self.fields[k].kind == "numeric" else int(self.fields[k].find([str(value)])[0])
        if position < 0:
            raise KeyError(f"field {field!r} has no value {str(value)!r}")
        return int(self.offsets[k]) + position

    def with_names(self, field: str, names: Mapping[str, str]) -> Vocabulary:
        """The same vocabulary, ids included, with readable names for one field's values (value -> name)."""
        target = self.field(field)
        known = {v: names[v] for v in map(str, target.values) if v in names}
        return Vocabulary(Field(f.name, f.kind, f.values, known) if f is target else f for f in self.fields)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, aside and then renamed."""
        target = Path(path)
        aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        aside.write_text(self.dumps(), encoding="utf-8")
        os.replace(aside, target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read what `save` wrote. Raises ValueError naming the file if it is not a vocabulary."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot read the vocabulary: {error}") from error
        return cls.loads(text, source=str(path))

    def dumps(self) -> str:
        """The vocabulary as JSON text."""
        content = {"format": _FORMAT, "version": _VERSION, "fields": [f.to_json() for f in self.fields]}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str, source: str = "vocabulary") -> Vocabulary:
        """The inverse of `dumps`; `source` is named in errors."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}: expected a vocabulary in JSON: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f'{source}: expected a vocabulary ("format": "{_FORMAT}")')
        if content.get("version") != _VERSION:
            raise ValueError(
                f"{source}: expected vocabulary version {_VERSION}, got {content.get('version')!r}"
            )
        try:
            return cls(
                Field(f["name"], f["kind"], f.get("values", ()), f.get("names")) for f in content["fields"]
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{source}: damaged vocabulary: {error}") from error

    def _field_index(self, name: str) -> int:
        try:
            return self._index[name]
        except KeyError:
            raise KeyError(f"no field {name!r}; the fields are {', '.join(self._index)}") from None


def _raw_id(text: str) -> int:
    """A raw id from its name; -1 (never a raw id) where the text is no id."""
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else -1
    return value if value <= np.iinfo(np.int64).max else -1
