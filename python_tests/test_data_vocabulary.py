"""Vocabulary: names of ids, lookups, and exact persistence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l0sign_cuda.data import Field, Vocabulary


def example() -> Vocabulary:
    return Vocabulary(
        [
            Field("user", values=["ann", "bob"]),
            Field("price", "numeric"),
            Field("app", values=["21", "7", "99"]),
        ]
    )


def test_ids_are_the_fields_offset_plus_the_position_in_the_field() -> None:
    v = example()
    assert len(v) == 6
    assert v.offsets.tolist() == [0, 2, 3, 6]
    assert v.field_names == ("user", "price", "app")
    assert [v.name(k) for k in range(6)] == ["user=ann", "user=bob", "price", "app=21", "app=7", "app=99"]
    assert [v.pair(k) for k in (1, 2, 4)] == [("user", "bob"), ("price", ""), ("app", "7")]
    assert (v.id("user", "bob"), v.id("price"), v.id("app", 99)) == (1, 2, 5)
    assert v.offset("app") == 3
    assert v.field_of(np.array([[0, 2], [3, 5]])).tolist() == [[0, 1], [2, 2]]
    assert repr(v) == "Vocabulary(6 features: user 2, price 1, app 3)"


def test_empty_fields_take_no_ids() -> None:
    v = Vocabulary([Field("a"), Field("b", values=["x"]), Field("c")])
    assert len(v) == 1 and v.name(0) == "b=x" and v.field_of([0]).tolist() == [1]


def test_raw_ids() -> None:
    v = Vocabulary.from_ids(np.array([3, 10, 2**62]))
    assert not v.is_tabular and example().is_tabular
    assert [v.name(k) for k in range(3)] == ["id=3", "id=10", f"id={2**62}"]
    assert v.id("id", 10) == 1
    assert v.fields[0].find_ids(np.array([10, 4, 2**62, 2**63 - 1])).tolist() == [1, -1, 2, -1]
    assert v.fields[0].find(["10", "x", "", "-3", "²", str(2**63), "9" * 30]).tolist() == [1] + [-1] * 6
    dense = Vocabulary.from_ids(np.arange(4))
    assert dense.fields[0].find_ids(np.array([0, 3, 4, 2**40])).tolist() == [0, 3, -1, -1]


def test_unknown_names_and_ids() -> None:
    v = example()
    with pytest.raises(KeyError, match="no field 'x'; the fields are user, price, app"):
        v.id("x", "1")
    with pytest.raises(KeyError, match="field 'user' has no value 'eve'"):
        v.id("user", "eve")
    for bad in (-1, 6):
        with pytest.raises(IndexError, match=f"expected ids from 0 to 5, got {bad} to {bad}"):
            v.name(bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Field("f", values=["a", "a"]), "field 'f': expected distinct values, got repeated ones"),
        (lambda: Field("f", "ids", [2, 1]), "field 'f': expected raw ids in one strictly increasing row"),
        (lambda: Field("f", "ids", [1, 1]), "field 'f': expected raw ids in one strictly increasing row"),
        (lambda: Field("f", "numeric", ["a"]), "field 'f': a numeric field has no values, got 1"),
        (lambda: Field("f", "text"), "field 'f': kind must be categorical, numeric or ids, got 'text'"),
        (lambda: Vocabulary([Field("a"), Field("a")]), "expected distinct field names, got ['a', 'a']"),
    ],
)  # fmt: skip
def test_refusals(make: object, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()  # type: ignore[operator]
    assert str(error.value) == message


def test_readable_names_are_shown_and_change_no_id() -> None:
    v = example().with_names("app", {"21": "Gmail", "1": "never seen"})
    assert v.name(3) == "app=Gmail" and v.name(4) == "app=7"
    assert v.pair(3) == ("app", "21") and v.id("app", "21") == 3
    assert Vocabulary.loads(v.dumps()).name(3) == "app=Gmail"
    assert v != example()


TEXT = st.text(st.characters(codec="utf-8"), max_size=6)


@given(st.lists(st.lists(TEXT, unique=True, max_size=5), max_size=4), st.sets(st.integers(0, 2**63 - 1)))
@settings(max_examples=30, deadline=None)
def test_a_round_trip_is_exact(values: list[list[str]], raw: set[int]) -> None:
    fields = [Field(f"f{k}", values=v, names=dict.fromkeys(v, "Ω")) for k, v in enumerate(values)]
    v = Vocabulary([*fields, Field("n", "numeric"), Field("id", "ids", sorted(raw))])
    again = Vocabulary.loads(v.dumps())
    assert again == v
    assert [again.name(k) for k in range(len(v))] == [v.name(k) for k in range(len(v))]
    for k in range(len(v)):
        field, value = v.pair(k)
        assert again.id(field, value) == k


def test_save_and_load(tmp_path: Path) -> None:
    example().save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json") == example()
    assert [p.name for p in tmp_path.iterdir()] == ["v.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a vocabulary in JSON"),
        ("[1]", 'expected a vocabulary ("format": "l0sign_cuda.Vocabulary")'),
        ('{"format": "other"}', 'expected a vocabulary ("format": "l0sign_cuda.Vocabulary")'),
        ('{"format": "l0sign_cuda.Vocabulary", "version": 9}', "expected vocabulary version 1, got 9"),
        ('{"format": "l0sign_cuda.Vocabulary", "version": 1}', "damaged vocabulary: 'fields'"),
        (
            json.dumps(
                {"format": "l0sign_cuda.Vocabulary", "version": 1, "fields": [{"name": "a", "kind": "b"}]}
            ),
            "damaged vocabulary: field 'a': kind must be categorical, numeric or ids, got 'b'",
        ),
    ],
)
def test_damaged_files_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        Vocabulary.load(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent.json: cannot read the vocabulary"):
        Vocabulary.load(tmp_path / "absent.json")


def test_many_values_are_exact(tmp_path: Path) -> None:
    v = Vocabulary([Field("x", values=[f"value {k}" for k in range(300_000)])])
    v.save(tmp_path / "v.json")
    again = Vocabulary.load(tmp_path / "v.json")
    assert len(again) == 300_000
    assert again.name(299_999) == "x=value 299999" and again.id("x", "value 123456") == 123_456
