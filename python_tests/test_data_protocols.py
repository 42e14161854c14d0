"""The paper's protocols: what must hold of every negative, on made-up logs and on real ones where present."""

from __future__ import annotations

import lzma
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from l0sign_cuda import data
from l0sign_cuda.data import GraphDataset

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
HEADER = [
    "user",
    "item",
    "cnt",
    "daytime",
    "weekday",
    "isweekend",
    "homework",
    "cost",
    "weather",
    "country",
    "city",
]


def frappe_logs(path: Path, rows: int = 300, users: int = 12, items: int = 90, seed: int = 0) -> Path:
    """Logs of few users in few contexts, so that contexts repeat and items run short."""
    rng = np.random.default_rng(seed)
    lines = ["\t".join(HEADER)]
    for _ in range(rows):
        user, item = rng.integers(users), min(int(rng.exponential(items / 4)), items - 1)
        context = (
            f"day{rng.integers(2)}",
            "monday",
            "workday",
            "unknown",
            "free",
            "sunny",
            "Spain",
            str(user % 3),
        )
        lines.append("\t".join([f"u{user}", f"i{item}", str(rng.integers(9)), *context]))
    path.write_text("\n".join(lines) + "\n")
    return path


def check_protocol(d: GraphDataset, item: int, owner: list[int], context: list[int]) -> None:
    """The properties of the protocol, in plain Python. Columns: the item's, the owner's, the context's."""
    graphs = d.ids.reshape(-1, 3, d.graph_size or 0)
    assert d.labels is not None and d.labels.reshape(-1, 3).tolist() == [[1, 0, 0]] * len(graphs)
    used = {(*g[0, owner].tolist(), int(g[0, item])) for g in graphs}
    taken: set[tuple[int, ...]] = set()
    for g in graphs:
        for negative in g[1:]:
            assert np.delete(negative, item).tolist() == np.delete(g[0], item).tolist()
            assert (*negative[owner].tolist(), int(negative[item])) not in used
            key = (*negative[context].tolist(), int(negative[item]))
            assert key not in taken
            taken.add(key)


def test_frappe_on_made_up_logs(tmp_path: Path) -> None:
    path = frappe_logs(tmp_path / "logs.csv")
    d = data.prepare_frappe(path)
    assert d.vocabulary is not None and len(d) == 900 and d.graph_size == 10
    assert d.vocabulary.field_names == tuple(n for n in HEADER if n != "cnt")
    assert d.num_features == len(d.vocabulary)
    check_protocol(d, item=1, owner=[0], context=[0, *range(2, 10)])
    lines = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    for k, line in enumerate(lines):
        wanted = [f"{n}={v}" for n, v in zip(HEADER, line, strict=True) if n != "cnt"]
        assert [d.vocabulary.name(i) for i in d.batch([3 * k]).ids[0].tolist()] == wanted
    for k, name in enumerate(d.vocabulary.field_names):
        column = HEADER.index(name)
        firsts = list(dict.fromkeys(line[column] for line in lines))
        assert d.vocabulary.fields[k].values == firsts  # order of first appearance


def test_the_draw_is_seeded(tmp_path: Path) -> None:
    path = frappe_logs(tmp_path / "logs.csv")
    first, again, other = (data.prepare_frappe(path, seed=s) for s in (1, 1, 2))
    assert (first.ids == again.ids).all() and (first.ids != other.ids).any()


def test_negatives_are_uniform_over_what_a_user_never_used(tmp_path: Path) -> None:
    # One user with item 0 in 3,000 contexts of a city each; the other 19 items come from another user.
    rows = [["u", "i0", "1", *["c"] * 7, f"city{k}"] for k in range(3000)]
    rows += [["v", f"i{k}", "1", *["c"] * 7, "x"] for k in range(1, 20)]
    path = tmp_path / "logs.csv"
    path.write_text("\n".join(["\t".join(HEADER), *("\t".join(r) for r in rows[:3000])]) + "\n")
    with pytest.raises(ValueError, match=r"expected at least 2 items without a positive .*, got 0"):
        data.prepare_frappe(path)
    path.write_text("\n".join(["\t".join(HEADER), *("\t".join(r) for r in rows)]) + "\n")
    with pytest.raises(ValueError, match=r"expected at least 38 items without a positive .*, got 1"):
        data.prepare_frappe(path)  # v used all but one item
    rows = rows[:3000] + [["w", f"i{k}", "1", *["c"] * 7, f"y{k}"] for k in range(1, 20, 2)]
    rows += [["v", f"i{k}", "1", *["c"] * 7, f"x{k}"] for k in range(2, 20, 2)]
    path.write_text("\n".join(["\t".join(HEADER), *("\t".join(r) for r in rows)]) + "\n")
    d = data.prepare_frappe(path)
    assert d.vocabulary is not None
    negatives = d.ids.reshape(-1, 3, 10)[:3000, 1:, 1] - d.vocabulary.offset("item")
    counts = np.bincount(negatives.reshape(-1), minlength=20)
    assert counts[0] == 0
    # 6,000 draws over 19 items: a chi-square of 18 degrees of freedom exceeds 42 once in a thousand seeds.
    assert ((counts[1:] - 6000 / 19) ** 2 / (6000 / 19)).sum() < 42


def test_popular_apps_are_drawn_as_often_as_they_are_used(tmp_path: Path) -> None:
    # User u has item 0 in 4,000 contexts; the other four items have 100, 200, 300 and 400 logs of v.
    rows = [["u", "i0", "1", *["c"] * 7, f"city{k}"] for k in range(4000)]
    rows += [["v", f"i{i}", "1", *["c"] * 7, f"x{i}-{k}"] for i in range(1, 5) for k in range(100 * i)]
    path = tmp_path / "logs.csv"
    path.write_text("\n".join(["\t".join(HEADER), *("\t".join(r) for r in rows)]) + "\n")
    for power in (1.0, 0.5):
        d = data.prepare_frappe(path, negatives=1, popularity=power)
        assert d.vocabulary is not None
        drawn = d.ids.reshape(-1, 2, 10)[:4000, 1, 1] - d.vocabulary.offset("item")
        counts, weights = np.bincount(drawn, minlength=5), np.arange(1, 5) ** power
        assert counts[0] == 0
        expected = 4000 * weights / weights.sum()
        # A chi-square of 3 degrees of freedom exceeds 16.3 once in a thousand seeds.
        assert ((counts[1:] - expected) ** 2 / expected).sum() < 16.3
    # Item 0 has nearly all weight, and of what u may have item 4 does.
    extreme = data.prepare_frappe(path, negatives=1, popularity=300.0)
    assert extreme.vocabulary is not None
    drawn = extreme.ids.reshape(-1, 2, 10)[:, 1, 1] - extreme.vocabulary.offset("item")
    assert (drawn[:4000] == 4).all() and (drawn[4000:] == 0).all()
    for wrong in (-1.0, float("nan"), float("inf"), "1", None, True):
        with pytest.raises(ValueError, match="popularity: expected a finite number of at least 0"):
            data.prepare_frappe(path, popularity=wrong)  # type: ignore[arg-type]


def test_how_many_negatives(tmp_path: Path) -> None:
    path = frappe_logs(tmp_path / "logs.csv", rows=50)
    assert len(data.prepare_frappe(path, negatives=0)) == 50
    d = data.prepare_frappe(path, negatives=3)
    assert d.labels is not None and d.labels.reshape(-1, 4).sum(axis=0).tolist() == [50, 0, 0, 0]
    with pytest.raises(ValueError, match="negatives: expected at least 0, got -1"):
        data.prepare_frappe(path, negatives=-1)
    with pytest.raises(ValueError, match=r"expected at least \d+ items without a positive"):
        data.prepare_frappe(path, negatives=60)


def test_malformed_frappe_logs(tmp_path: Path) -> None:
    path = frappe_logs(tmp_path / "logs.csv", rows=50)
    good = path.read_text()
    path.write_text(good + "u0\ti0\t1\n")
    with pytest.raises(ValueError, match=r"logs.csv:52: expected 11 cells, got 3"):
        data.prepare_frappe(path)
    d = data.prepare_frappe(path, skip_bad_lines=True)
    assert len(d) == 150 and d.report.bad_lines == 1
    path.write_text(good + "\t".join(["u0", "", *["1"] * 9]) + "\n")
    with pytest.raises(ValueError, match=r"logs.csv:52: column 'item': expected a value, got an empty cell"):
        data.prepare_frappe(path)
    path.write_text(good.replace("\t", ","))
    with pytest.raises(ValueError, match=r"logs.csv: no column 'user'"):
        data.prepare_frappe(path)


@pytest.mark.parametrize("separator", ["::", ";"])
def test_movielens_tag_on_made_up_tags(separator: str, tmp_path: Path) -> None:
    tags = ["sci-fi", "a;b", "a::b", "Ünïcode", '"quoted', " spaced ", "Sci-Fi", "x;", "last"]
    rng = np.random.default_rng(0)
    rows = [(str(rng.integers(5)), str(rng.integers(4)), tags[rng.integers(9)]) for _ in range(40)]
    rows = [r for r in rows if r[:2] != ("4", "3")] + [("4", "3", "sci-fi")] * 2
    path = tmp_path / "tags.dat"
    path.write_text("".join(separator.join([*r, "1215184630"]) + "\n" for r in rows), encoding="utf-8")
    counts = Counter(r[:2] for r in set(rows))
    if max(counts.values()) > 3:  # 9 tags: 3 used leave 6 for 2 negatives each
        rows = [r for r in rows if counts[r[:2]] <= 3]
        path.write_text("".join(separator.join([*r, "1"]) + "\n" for r in rows), encoding="utf-8")
    present = {r[2] for r in rows}
    assert {"a;b", "a::b"} <= present and len(present) >= 8
    d = data.prepare_movielens_tag(path)
    assert d.vocabulary is not None and d.graph_size == 3
    distinct = list(dict.fromkeys(rows))
    assert len(d) == 3 * len(distinct)
    for k, row in enumerate(distinct):
        pairs = [d.vocabulary.pair(i)[1] for i in d.batch([3 * k]).ids[0].tolist()]
        assert tuple(pairs) == row
    check_protocol(d, item=2, owner=[0, 1], context=[0, 1])
    same = data.prepare_movielens_tag(path)
    assert (same.ids == d.ids).all()
    assert (data.prepare_movielens_tag(path, seed=5).ids != d.ids).any()


def test_malformed_tags(tmp_path: Path) -> None:
    path = tmp_path / "tags.dat.xz"
    good = b"".join(b"%d::%d::tag%d::1\n" % (k % 3, k % 2, k % 5) for k in range(30))
    path.write_bytes(lzma.compress(good + b"\n1::2::x\n1::2::\xff::3\n"))
    with pytest.raises(ValueError) as error:
        data.prepare_movielens_tag(path)
    assert str(error.value) == f"{path}:32: expected 'user::movie::tag::timestamp', got '1::2::x'"
    with pytest.raises(ValueError, match="items without a positive"):
        data.prepare_movielens_tag(path, skip_bad_lines=True)  # every tag is used by every user and movie
    more = b"".join(b"9::9::only%d::1\r\n" % k for k in range(12))
    path.write_bytes(lzma.compress(good + b"\n1::2::x\n1::2::\xff::3\n" + more))
    with pytest.raises(ValueError, match="expected at least 24 items"):
        data.prepare_movielens_tag(path, skip_bad_lines=True)
    path.write_bytes(lzma.compress(good + b"\n1::2::x\n1::2::\xff::3\n" + more[: 5 * 16] * 2))
    d = data.prepare_movielens_tag(path, negatives=1, skip_bad_lines=True)
    assert d.report.bad_lines == 2 and len(d) == 2 * 35
    assert d.report.examples[1] == f"{path}:33: expected UTF-8 text, got b'1::2::\\xff::3'"


def test_protocols_by_name() -> None:
    assert sorted(data.PROTOCOLS) == ["frappe", "movielens-tag"]
    assert data.PROTOCOLS["frappe"] is data.prepare_frappe
    assert data.PROTOCOLS["movielens-tag"] is data.prepare_movielens_tag


# -- the real logs -------------------------------------------------------------------------------------------


def shared(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(f"needs {name}, which is not ours to redistribute, in {SHARED}")
    return SHARED / name


def test_the_real_frappe() -> None:
    d = data.prepare_frappe(shared("frappe/frappe.csv.xz"))
    assert len(d) == 288_609 and d.num_features == 5_382 and d.graph_size == 10
    assert d.vocabulary is not None and d.values is None
    assert d.vocabulary.offsets.tolist() == [0, 957, 5039, 5046, 5053, 5055, 5058, 5060, 5069, 5149, 5382]
    assert d.labels is not None and d.labels.sum() == 96_203
    graphs = d.ids.reshape(-1, 3, 10)
    pairs = graphs[:, :, 0].astype(np.int64) * 10_000 + graphs[:, :, 1]
    assert not np.isin(pairs[:, 1:], pairs[:, 0]).any()
    negatives = graphs[:, 1:].reshape(-1, 10)
    assert len(np.unique(negatives, axis=0)) == len(negatives)
    counts = np.bincount(graphs[:, 1:, 1].reshape(-1) - 957, minlength=4082)
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum() / 4081
    assert chi_square < 1.3  # near 1 for a uniform draw; 163 for one that follows popularity
    names = data.read_names(shared("frappe/apps.csv.xz"), key="item", name="name")
    assert d.vocabulary.with_names("item", names).name(d.vocabulary.id("item", 21)) == "item=Gmail"


def test_the_real_movielens_tags() -> None:
    d = data.prepare_movielens_tag(shared("ml-10m/tags.dat.xz"))
    assert len(d) == 3 * 95_580 and d.graph_size == 3
    assert d.vocabulary is not None and [len(f) for f in d.vocabulary.fields] == [4009, 7601, 16529]


@pytest.mark.parametrize(
    ("name", "graphs", "features", "positives"),
    [("twitter/twitter.data.xz", 144_033, 1_323, 67_987), ("dblp/DBLP_v1.data.xz", 19_456, 41_325, 9_530)],
)
def test_the_real_graph_files(name: str, graphs: int, features: int, positives: int) -> None:
    d = data.read(shared(name), format="graph")
    assert (len(d), d.num_features) == (graphs, features)
    assert d.labels is not None and d.labels.sum() == positives
    again = data.read(shared(name), format="graph", duplicates="keep")
    assert len(again.ids) >= len(d.ids)


def test_frappe_logs_without_logs_or_without_a_value(tmp_path: Path) -> None:
    logs = tmp_path / "frappe.csv"
    header = "\t".join(HEADER) + "\n"
    logs.write_text(header)
    assert len(data.prepare_frappe(logs)) == 0
    logs.write_text(header + "\t".join(["u", "", *HEADER[2:]]) + "\n")
    with pytest.raises(
        ValueError, match=r"frappe\.csv:2: column 'item': expected a value, got an empty cell"
    ):
        data.prepare_frappe(logs)
