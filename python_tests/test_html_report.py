"""`l0sign explain` and its HTML report, which is opened in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
import torch

import l0sign_cuda
from l0sign_cuda import L0SIGN, TrainConfig, data, html_report
from l0sign_cuda.cli import main
from l0sign_cuda.data import Field, GraphDataset, Vocabulary
from l0sign_cuda.figures import bar, curves, heat_map, interaction_graph
from l0sign_cuda.interactions import Interaction, by_sign
from l0sign_cuda.run_report import RunReport, Sample, read_record

HOSTILE = ["<script>window.ran = 1</script>", '"><img src=x onerror="window.ran = 2">', "&amp; </style> é 字"]


def call(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its data, and a report on it."""
    folder = tmp_path_factory.mktemp("report")
    planted = data.planted(1500, num_fields=4, cardinality=4, num_interactions=1, noise=0.3)
    planted.save(folder / "data")
    quick = ["--epochs", "3", "--batch-size", "64", "--num-threads", "1", "--weight-decay", "0"]
    assert call("train", folder / "data", "--out", folder / "run", *quick) == 0
    files = ["--html", folder / "report.html", "--json", folder / "report.json"]
    assert (
        call("explain", folder / "run", "--data", folder / "data", "--part", "test", "--limit", 3, *files)
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.started(tmp_path_factory.mktemp("profile") / "new") as started:
        yield started


# -------------------- the command


def test_the_json_explains_what_the_model_predicts(folder: Path, content: dict[str, Any]) -> None:
    model, dataset = l0sign_cuda.load_model(folder / "run"), data.open(folder / "data")
    _, _, test = dataset.split((0.7, 0.15, 0.15), seed=0)
    logits = model(dataset.batch(test[:3]).ids).logits
    assert [entry["logit"] for entry in content["explained"]] == pytest.approx(logits.tolist())
    for entry, k in zip(content["explained"], test, strict=False):
        total = entry["bias"] + sum(pair["contribution"] for pair in entry["interactions"])
        assert total == pytest.approx(entry["logit"], abs=1e-6)
        assert entry["label"] == dataset.labels[k]
    assert content["samples"] == 225 and content["min_support"] == 1
    record = json.loads((folder / "run" / "metrics.json").read_text())
    assert content["metrics"] == {part: record[part] for part in ("valid", "test")}
    assert {(pair["first"], pair["second"]) for pair in content["fields"]} == {
        (f"f{i}", f"f{j}") for i in range(4) for j in range(i + 1, 4)
    }


def test_the_text_says_the_same(folder: Path, content: dict[str, Any], capsys: Any) -> None:
    assert (
        call("explain", folder / "run", "--data", folder / "data", "--part", "test", "--top", 2, "--limit", 1)
        == 0
    )
    text = capsys.readouterr().out
    strongest = content["fields"][0]
    for expected in (
        f"{content['metrics']['test']['auc']:.4f}",
        f"{strongest['mean_strength']:.4f}",
        f"{content['features']['positive'][0]['mean_contribution']:.4f}",
        f"logit {content['explained'][0]['logit']:+.4f}",
        "means over the 225 test samples of data",
        "single predictions: the first 1 of the 225 test samples of data",
        "of pairs of different features",
    ):
        assert expected in text
    assert text.count("\nf0=") + text.count("\nf1=") + text.count("\nf2=") + text.count("\nf3=") >= 4
    assert "sample 2" not in text


def test_samples_from_another_file(
    folder: Path, content: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "two.csv").write_text("f0,f1,f2,f3\n0,1,2,3\n3,2,1,0\n")
    files = ["--samples", tmp_path / "two.csv", "--json", tmp_path / "two.json"]
    arguments = ["explain", folder / "run", *files]
    assert call(*arguments) == 0
    alone = json.loads((tmp_path / "two.json").read_text())
    # They need not be what the run was trained on.
    assert "means over all 2 samples of two.csv\n" in capsys.readouterr().out
    assert alone["samples"] == 2 and [entry["label"] for entry in alone["explained"]] == [None, None]
    assert alone["explained"][0]["nodes"] == ["f0=0", "f1=1", "f2=2", "f3=3"]
    # With DATA too, the tables are about DATA.
    assert call(*arguments, "--part", "test", "--data", folder / "data") == 0
    both = json.loads((tmp_path / "two.json").read_text())
    assert both["fields"] == content["fields"] and both["explained"] == alone["explained"]


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_a_target_that_cannot_be_is_refused_first(
    folder: Path, tmp_path: Path, capsys: Any, option: str
) -> None:
    for target, message in (
        (tmp_path / "no" / "x", f"{tmp_path / 'no' / 'x'}: there is no directory {tmp_path / 'no'}"),
        (tmp_path, f"{tmp_path}: expected a file to write, got a directory"),
    ):
        assert call("explain", folder / "run", "--data", folder / "data", option, target) == 2
        found = capsys.readouterr()
        assert message in found.err and not found.out


def test_every_output_tells_which_samples_it_is_about(
    folder: Path, content: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    assert (content["data"], content["part"], content["samples"]) == ("data", "test", 225)
    page = (folder / "report.html").read_text()
    assert "Means over the 225 test samples of data." in page
    assert "Of the first 3 of the 225 test samples of data." in page
    assert "open in at least 1 of the 225 test samples of data." in page
    # Without --part, training samples are among them.
    files = ["--html", tmp_path / "r.html", "--json", tmp_path / "r.json"]
    whole = "all 1,500 samples of data, training samples not left out"
    assert call("explain", folder / "run", "--data", folder / "data", *files) == 0
    assert f"means over {whole}" in capsys.readouterr().out
    assert f"Means over {whole}." in (tmp_path / "r.html").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["part"] is None
    (tmp_path / "two.csv").write_text("f0,f1,f2,f3\n0,1,2,3\n3,2,1,0\n")
    both = ["--data", folder / "data", "--part", "test", "--samples", tmp_path / "two.csv"]
    assert call("explain", folder / "run", *both, *files) == 0
    assert "single predictions: the first 2 of two.csv" in capsys.readouterr().out
    assert "Of the first 2 of two.csv." in (tmp_path / "r.html").read_text()


def test_pairs_of_fields_by_sign(folder: Path, content: dict[str, Any], capsys: Any) -> None:
    signed, fields = content["fields_by_sign"], content["fields"]
    means = [pair["mean_contribution"] for pair in signed["positive"] + signed["negative"][::-1]]
    assert means == sorted((pair["mean_contribution"] for pair in fields), reverse=True) and len(means) == 6
    assert all(pair in fields and pair["support"] > 0 for side in signed.values() for pair in side)
    assert all(pair["mean_contribution"] > 0 for pair in signed["positive"])
    assert call("explain", folder / "run", "--data", folder / "data", "--part", "test", "--limit", 1) == 0
    blocks = {block.split("\n")[0]: block for block in capsys.readouterr().out.split("\n\n")}
    reader = Reader()
    reader.feed((folder / "report.html").read_text())
    assert (
        reader.text.count("Raise the prediction most") == reader.text.count("Lower the prediction most") == 2
    )
    for heading, side in (("that raise the prediction", "positive"), ("that lower it", "negative")):
        told = blocks[f"pairs of fields {heading} most:"]
        for pair in signed[side]:
            assert f"{pair['mean_contribution']:.4f}" in told and pair["first"] in told
        assert ("none" in told) == (not signed[side])


def test_own_effects_are_told_to_be_elsewhere(folder: Path, content: dict[str, Any], capsys: Any) -> None:
    """No pair of a field with itself: the diagonal is blank, and the page says what would be there."""
    assert all(pair["first"] != pair["second"] for pair in content["fields"])
    assert any(pair["i"] == pair["j"] for entry in content["explained"] for pair in entry["interactions"])
    page = (folder / "report.html").read_text()
    assert "A feature's pair with itself, its own effect, counts among the edges kept" in page
    assert "Widths and bars compare within a sample, not between samples" in page


def test_weights_that_are_not_finite_make_no_report(folder: Path, tmp_path: Path, capsys: Any) -> None:
    model, dataset = l0sign_cuda.load_model(folder / "run"), data.open(folder / "data")
    model.node_embedding.weight.data[3] = torch.nan
    l0sign_cuda.save_model(model, tmp_path / "run", dataset.vocabulary, TrainConfig())
    arguments = ["--data", folder / "data", "--html", tmp_path / "r.html"]
    assert call("explain", tmp_path / "run", *arguments) == 2
    assert "got NaN or infinity in node_embedding.weight" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_refusals(folder: Path, tmp_path: Path, capsys: Any) -> None:
    def refused(*arguments: Any) -> str:
        assert call("explain", folder / "run", *arguments) == 2
        return str(capsys.readouterr().err)

    assert "expected --data DATA, --samples FILE, or both" in refused()
    assert "--part: it is a part of DATA" in refused("--samples", folder / "data", "--part", "test")
    assert "limit: expected an integer of at least 1, got 0" in refused(
        "--data", folder / "data", "--limit", 0
    )
    assert "min_support: expected an integer" in refused("--data", folder / "data", "--min-support", 0)
    assert "output: expected 0..0, got 1" in refused("--data", folder / "data", "--output", 1)
    (folder / "empty").mkdir()
    assert "error: " in refused("--data", folder / "empty")
    bad = tmp_path / "run"
    bad.mkdir()
    assert read_record(bad) == {}
    for text in (
        "{",
        "[]",
        '{"epochs": 3}',
        '{"epochs": [3]}',
        '{"epochs": [{"epoch": null}]}',
        '{"epochs": [{"epoch": 1, "auc": "x"}]}',
        '{"test": [0.5]}',
        '{"valid": {"auc": "0.5"}}',
        '{"best_epoch": "1"}',
    ):
        (bad / "metrics.json").write_text(text)
        with pytest.raises(ValueError, match="damaged, or not the metrics of a run"):
            read_record(bad)


@pytest.mark.parametrize(
    ("loss", "options", "said"),
    [
        ("bce", {"gated": False}, "probability"),
        ("mse", {"iterations": 2, "aggr": "neighbor_mean"}, "prediction"),
        ("cross_entropy", {"num_outputs": 3, "aggr": "sum"}, "logit of class 2: "),
        ("bce", {}, "and 0 open pairs"),
    ],
    ids=["ungated", "regression", "classes", "all-closed"],
)
def test_any_model(
    loss: Any, options: dict[str, Any], said: str, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    """What `save_model` wrote, with no record of training beside it."""
    dataset = data.open(folder / "data")
    model = L0SIGN(dataset.num_features, **options)
    if model.interaction.edge is not None and not options:
        torch.nn.init.constant_(model.interaction.edge.out.bias, -100)
    config = TrainConfig(loss=loss, **{k: v for k, v in options.items() if k != "num_outputs"})
    l0sign_cuda.save_model(model, tmp_path / "run", dataset.vocabulary, config)
    output = options.get("num_outputs", 1) - 1
    files = ["--html", tmp_path / "r.html", "--json", tmp_path / "r.json", "--output", output]
    assert call("explain", tmp_path / "run", "--data", folder / "data", "--limit", 2, *files) == 0
    assert said in capsys.readouterr().out
    content = json.loads((tmp_path / "r.json").read_text())
    logits = model.eval()(dataset.batch([0, 1]).ids).logits.reshape(2, -1)[:, output]
    assert [entry["logit"] for entry in content["explained"]] == pytest.approx(logits.tolist())
    reader = Reader()
    reader.feed((tmp_path / "r.html").read_text())
    if said == "and 0 open pairs":
        assert "None." in reader.text and content["features"] == {"positive": [], "negative": []}
        assert all(pair["support"] == 0 for pair in content["fields"])
    else:
        assert said in reader.text


def test_a_run_without_names(tmp_path: Path, capsys: Any) -> None:
    """Features are numbers of one field then, and there is no map to draw."""
    l0sign_cuda.save_model(L0SIGN(30), tmp_path / "run")
    (tmp_path / "data.libsvm").write_text("1 3:1 7:0.5 29:1\n0 0:1\n1\n")
    arguments = ["--data", tmp_path / "data.libsvm", "--html", tmp_path / "r.html"]
    assert call("explain", tmp_path / "run", *arguments) == 0
    text = capsys.readouterr().out
    assert "id=3" in text and "sample 3: " in text and "and 0 open pairs" in text
    assert "Pairs of fields" not in (tmp_path / "r.html").read_text()


def test_a_report_is_whole_or_not_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.html"
    target.write_text("the old one")
    monkeypatch.setattr(html_report, "page", lambda content: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("explain", folder / "run", "--data", folder / "data", "--html", target)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert target.read_text() == "the old one"


# -------------------- the page, without a browser


def hostile_report() -> RunReport:
    """A report whose names are markup, with values, many features and no record of training."""
    torch.manual_seed(0)
    vocabulary = Vocabulary([*(Field(name, values=HOSTILE) for name in HOSTILE), Field("x", "numeric")])
    model = L0SIGN(len(vocabulary), gated=False)
    ids = torch.cat([torch.arange(10), torch.randint(10, (30,))])[None]
    explained = l0sign_cuda.explain(model, ids, values=torch.randn(1, 40), vocabulary=vocabulary)
    dataset = GraphDataset.from_dense(ids.numpy(), vocabulary=vocabulary)
    positive, negative = l0sign_cuda.interactions.feature_interactions(model, dataset)
    fields = l0sign_cuda.interactions.field_interactions(model, dataset)
    return RunReport(
        name=HOSTILE[0],
        config=TrainConfig(loss="mse"),
        hyperparameters={"aggr": HOSTILE[1], "limits": (-0.1, 1.1)},
        record={},
        output=0,
        data=HOSTILE[1],
        part=None,
        samples=1,
        min_support=1,
        field_names=vocabulary.field_names,
        fields=fields,
        positive_fields=by_sign(fields)[0],
        negative_fields=by_sign(fields)[1],
        positive=positive,
        negative=negative,
        explained=[Sample(explained[0], None)],
    )


class Reader(HTMLParser):
    """Collects the tags, the attributes and the text of a page, as far as a parser sees them as such."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_are_text_and_nothing_is_loaded() -> None:
    reader = Reader()
    text = html_report.page(hostile_report())
    reader.feed(text)
    assert not {"script", "img", "iframe", "link", "object", "embed"} & set(reader.tags)
    assert not {"src", "onerror", "onload", "srcset", "data"} & reader.attributes.keys()
    assert all(target.startswith("#") for target in reader.attributes["href"])
    assert "url(" not in text and "@import" not in text
    for name in HOSTILE:
        assert name in reader.text
    assert f"Interactions of {HOSTILE[0]}" in reader.text
    assert "has no record of its metrics" in reader.text and "the 30 strongest of 820 pairs" in reader.text
    assert html_report.page(hostile_report()) == text


def test_names_that_a_terminal_or_a_page_cannot_show() -> None:
    """Escapes, directions of writing, lines, and the surrogate of a path that is no UTF-8."""
    name = "\x1b[2Ja\u202eb\nc\udcff\x00"
    shown = "\ufffd[2Ja\ufffdb c\ufffd\ufffd"
    vocabulary = Vocabulary([Field("f", values=["plain", name])])
    explanation = l0sign_cuda.explain(L0SIGN(2, gated=False), torch.tensor([[0, 1]]), vocabulary=vocabulary)[
        0
    ]
    pair = Interaction(name, name, 1.0, 1.0, 1, 1, 0.5, 0.5)
    content = replace(
        hostile_report(), name=name, fields=[pair], positive=[pair], explained=[Sample(explanation, None)]
    )
    page, text = html_report.page(content), content.text()
    for told in (page, text):
        assert shown in told and not any(c in told for c in "\x1b\u202e\udcff\x00")
    assert all(line.isprintable() for line in text.splitlines())
    reader = Reader()
    reader.feed(page)
    assert f"Interactions of {shown}" in reader.text


def test_a_path_that_is_no_text(folder: Path, tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "r\udcff.html"
    assert call("explain", folder / "run", "--data", folder / "data", "--limit", 1, "--html", target) == 0
    assert target.exists() and "r\ufffd.html: the report" in capsys.readouterr().out


LONG = "begins" + 2988 * "W" + "ends"


def long_report() -> RunReport:
    """A report of names that are very long."""
    vocabulary = Vocabulary([Field(LONG, values=["a", "b"]), Field("f", values=[LONG])])
    model, ids = L0SIGN(3, gated=False), torch.tensor([[0, 1, 2]])
    explained = l0sign_cuda.explain(model, ids, values=torch.ones(1, 3), vocabulary=vocabulary)
    pairs = [Interaction(LONG, f"f={LONG}", 1.0, 1.0, 1, 1, sign * 0.5, 0.5) for sign in (1, -1)]
    return replace(
        hostile_report(),
        field_names=vocabulary.field_names,
        fields=[Interaction(LONG, "f", 1.0, 1.0, 1, 1, 0.5, 0.5)],
        positive_fields=pairs[:1],
        negative_fields=pairs[1:],
        positive=pairs[:1],
        negative=pairs[1:],
        explained=[Sample(explained[0], None)],
    )


def test_long_names_are_shortened_and_there_is_the_whole() -> None:
    content = long_report()
    text = content.text()
    assert max(map(len, text.splitlines())) < 150 and "…" in text and "beginsWW" in text and "WWends" in text
    reader = Reader()
    reader.feed(html_report.page(content))
    assert {LONG, f"f={LONG}"} <= {*reader.attributes["title"]}
    assert content.to_json()["fields"][0]["first"] == LONG


def test_maps_tell_how_many_fields_they_show_where_there_are_more() -> None:
    content = hostile_report()
    names = tuple(f"f{k}" for k in range(31))
    for count in (30, 31):
        fields = [Interaction(*pair, 1.0, 1.0, 1, 1, 0.5, 0.5) for pair in pairwise(names[:count])]
        page = html_report.page(replace(content, field_names=names[:count], fields=fields))
        assert ("The maps show the 30 fields" in page) == (count == 31)


def test_figures_show_their_numbers() -> None:
    rows = [
        {"epoch": 1, "auc": 0.61, "edges_kept": 1.0},
        {"epoch": 2, "auc": None, "edges_kept": 0.5},
        {"epoch": 3, "auc": 0.83, "edges_kept": 0.25},
    ]
    figure = curves(rows, "auc", 3)
    first, second = (node.get("points", "").split() for node in figure.iter("polyline"))
    assert (len(first), len(second)) == (2, 3)
    heights = [float(point.split(",")[1]) for point in second]
    top, middle = heights[0], heights[1]
    bottom = top + 2 * (middle - top)
    assert heights[2] == pytest.approx(top + 0.75 * (bottom - top), abs=0.2)
    told = [node.text or "" for node in figure.iter("title")]
    assert "epoch 3: auc 0.8300" in told and "epoch 2: edges kept 50.0 %" in told and "best epoch: 3" in told
    assert {"0.6", "0.9"} <= {node.text for node in figure.iter("text")}

    cells = list(heat_map(["a", "b", "c"], {(0, 1): 1.0, (2, 2): 0.25}, "open").iter("rect"))
    assert len(cells) == 3  # (a, b), (b, a), (c, c)
    assert [cell[0].text for cell in cells][2] == "c and c: 25.0 %"
    opacity = [float(cell.get("fill-opacity", "")) for cell in cells]
    assert opacity[0] == opacity[1] == 1 and 0.04 < opacity[2] < 0.5

    entry = hostile_report().explained[0].explanation
    graph = interaction_graph(entry, "a graph")
    edges = [node for node in graph.iter("path")]
    others = [pair for pair in entry.interactions[:30] if pair.i != pair.j]
    widths = [float(edge.get("stroke-width", "")) for edge in edges]
    assert len(edges) == len(others) and widths == sorted(widths)
    assert [edge.get("class") for edge in reversed(edges)] == [
        "edge positive" if pair.contribution > 0 else "edge negative" for pair in others
    ]
    for value, left in ((2.0, 50), (-2.0, 2)):
        rectangle = bar(value, 2.0).find("rect")
        assert rectangle is not None and (rectangle.get("x"), rectangle.get("width")) == (str(left), "48.0")


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [0.0, 0.0], [1e-9, 3e-9], [-5.0, 1e6]])
def test_axes_of_any_range(values: list[float]) -> None:
    rows = [{"epoch": k, "rmse": value, "edges_kept": 0.1} for k, value in enumerate(values)]
    figure = curves(rows, "rmse")
    for dot in figure.iter("circle"):
        assert 34 <= float(dot.get("cy", "")) <= 256
    assert len([node for node in figure.iter("line") if node.get("class") == "grid"]) < 10


# -------------------- the page in a browser


def test_a_missing_browser_is_skipped_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    for required, outcome in (("0", pytest.skip.Exception), ("1", pytest.fail.Exception)):
        monkeypatch.setenv("REQUIRE_BROWSER", required)
        with pytest.raises(outcome, match="no browser"), browser.started(tmp_path):
            pass


def test_the_browser_helper_notices(chromium: browser.Browser, tmp_path: Path) -> None:
    """Requests, errors and logging of a page that is not as it should be."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<img src='http://127.0.0.1:9/x.png'><img src='gone.png'>"
        "<script>console.error('said'); undefined.field;</script>"
    )
    page = chromium.open(bad.as_uri())
    assert len(page.requests) == 3 and "http://127.0.0.1:9/x.png" in page.requests
    complaints = " ".join(page.complaints)
    assert "said" in complaints and "TypeError" in complaints and "Failed to load resource" in complaints
    with pytest.raises(AssertionError, match="ERR_FILE_NOT_FOUND"):
        chromium.open((tmp_path / "nothing.html").as_uri())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report_opens_from_disk(
    chromium: browser.Browser, folder: Path, content: dict[str, Any], tmp_path: Path, dark: bool
) -> None:
    address = (folder / "report.html").as_uri()
    page = chromium.open(address, dark=dark)
    assert page.requests == [address]
    assert page.complaints == []
    text = chromium.evaluate("document.body.innerText")
    sections = ["The run", "Training", "Pairs of fields", "Pairs of features", "Single predictions"]
    assert chromium.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)") == sections
    for expected in (
        "Interactions of run",
        f"{content['metrics']['test']['auc']:.4f}",
        f"{content['features']['positive'][0]['mean_contribution']:.4f}",
        f"logit {content['explained'][2]['logit']:+.4f}",
    ):
        assert expected in text
    count = "document.querySelectorAll('{}').length"
    assert chromium.evaluate(count.format("svg[role=img]")) == 1 + 2 + 3
    assert chromium.evaluate(count.format("polyline")) == 2
    assert chromium.evaluate(count.format("rect.heat")) == 2 * 2 * 6
    drawn = sum(pair["i"] != pair["j"] for entry in content["explained"] for pair in entry["interactions"])
    assert chromium.evaluate(count.format("path.edge")) == drawn > 0
    # Everything drawn lies within its figure and has a size.
    outside = """[...document.querySelectorAll('svg.figure :is(text, path, rect)')].filter(e => {
      const a = e.getBoundingClientRect(), b = e.closest('svg').getBoundingClientRect();
      return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
    }).map(e => e.outerHTML)"""
    assert chromium.evaluate(outside) == []
    ink, paper = (
        chromium.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
    )
    assert _contrast(ink, paper) > 7 and (_luminance(paper) < 0.2) == dark
    faint = chromium.evaluate("getComputedStyle(document.querySelector('figcaption')).color")
    assert _contrast(faint, paper) > 4.5
    chromium.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_every_figure_has_words_and_numbers(chromium: browser.Browser, folder: Path) -> None:
    chromium.open((folder / "report.html").as_uri())
    unnamed = (
        "[...document.querySelectorAll('svg')].filter(s => !s.ariaLabel && s.ariaHidden !== 'true').length"
    )
    assert chromium.evaluate(unnamed) == 0
    # Each figure with a description is followed by a table, in the same section or article.
    holders = "[...document.querySelectorAll('figure')].map(f => f.closest('article, section'))"
    assert chromium.evaluate(f"{holders}.every(holder => holder.querySelector('td'))")
    unlabelled = (
        "[...document.querySelectorAll('table')].filter(t => !t.querySelector('th[scope=col]')).length"
    )
    assert chromium.evaluate(unlabelled) == 0
    assert chromium.evaluate("document.documentElement.lang") == "en"
    targets = (
        "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.getAttribute('href')))"
    )
    assert chromium.evaluate(targets)


@pytest.mark.parametrize("width", [360, 1000])
def test_hostile_names_run_nothing_and_fit_the_window(
    chromium: browser.Browser, tmp_path: Path, width: int
) -> None:
    path = tmp_path / "hostile.html"
    html_report.write_html(hostile_report(), path)
    page = chromium.open(path.as_uri(), width=width)
    assert page.requests == [path.as_uri()] and page.complaints == []
    assert chromium.evaluate("window.ran") is None
    assert chromium.evaluate("document.title") == f"Interactions of {HOSTILE[0]}"
    assert chromium.evaluate("document.querySelectorAll('script, img').length") == 0
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width


def test_long_names_leave_the_columns_on_the_page(chromium: browser.Browser, tmp_path: Path) -> None:
    html_report.write_html(long_report(), tmp_path / "long.html")
    chromium.open((tmp_path / "long.html").as_uri())
    chromium.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    wide = "[...document.querySelectorAll('.table')].map(t => t.scrollWidth - t.clientWidth)"
    assert max(chromium.evaluate(wide)) <= 1


def _luminance(colour: str) -> float:
    """The relative luminance of "rgb(r, g, b)" (WCAG 2)."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def _contrast(first: str, second: str) -> float:
    high, low = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)
