"""A run's report as one HTML page: opens from disk, loads nothing, runs no script.

The page is built as elements: whatever a feature or a file is called, it is text there. Its policy forbids it
to load or to run anything but its own style sheet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

from ._version import __version__
from .checkpoint import written_aside
from .figures import bar, curves, element, heat_map, interaction_graph, strongest
from .interactions import Interaction
from .report import LONGEST, cell, shortened, title
from .run_report import FEATURE_COLUMNS, FIELD_COLUMNS, RunReport, Sample, second_name, told_label

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_MAP_FIELDS = 30  # a larger map cannot be read
_TABLE_FIELDS = 100
_EPOCH_COLUMNS = ("epoch", "loss", "auc", "accuracy", "rmse", "logloss", "edges_kept")

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b2330; --muted: #5b6675; --line: #d5dae2;
  --panel: #f5f7fa; --blue: #1f5fa8; --orange: #b4470b; --on-heat: #ffffff; --on-mid: #1b2330; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181f; --ink: #e6eaf0; --muted: #9aa6b5; --line: #36404d; --panel: #1d232c;
    --blue: #7db5f2; --orange: #f2a05c; --on-heat: #10151c; --on-mid: #10151c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .4rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .3rem; overflow-wrap: anywhere; }
p, figcaption { max-width: 46rem; }
.muted, figcaption { color: var(--muted); }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; margin: .8rem 0; }
a { color: var(--blue); }
figure { margin: .8rem 0; }
figcaption { font-size: .9rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: .3rem; }
th, td { text-align: right; padding: .25rem .7rem; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 6rem; max-width: 20rem; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 400; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--blue); }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; padding: 0; margin: 1rem 0; }
.tiles div { padding: .6rem 1rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--panel); }
.tiles dt { color: var(--muted); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
.maps { display: flex; flex-wrap: wrap; gap: 1rem; }
.maps figure { flex: 1 1 24rem; min-width: 0; }
svg.figure { display: block; width: 100%; height: auto; font-size: 13px; }
svg text { fill: var(--ink); }
svg text.muted { fill: var(--muted); }
.end { text-anchor: end; }
.middle { text-anchor: middle; }
.start { text-anchor: start; }
.grid { stroke: var(--line); stroke-width: 1; }
.best { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 3; }
.curve { fill: none; stroke-width: 2; }
.curve.first { stroke: var(--blue); }
.curve.second { stroke: var(--orange); stroke-dasharray: 6 4; }
.dot.first { fill: var(--blue); }
.dot.second { fill: var(--orange); }
.heat { fill: var(--blue); }
svg text.value { font-size: 11px; }
svg text.on-heat { fill: var(--on-heat); }
svg text.on-mid { fill: var(--on-mid); }
.edge { fill: none; stroke-linecap: round; opacity: .8; }
.positive { color: var(--blue); }
.negative { color: var(--orange); }
.edge, .ring { stroke: currentColor; }
.edge.negative { stroke-dasharray: 9 7; }
.ring { fill: var(--paper); }
.ring.negative { stroke-dasharray: 5 4; }
.node { fill: var(--ink); }
svg text.name { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.bar { width: 6.5rem; height: .9rem; display: block; }
.bar rect { fill: currentColor; }
.key { display: inline-block; width: 1.8rem; border-top: 4px solid currentColor; vertical-align: middle; }
.key.negative { border-top-style: dashed; }
"""


def write_html(content: RunReport, path: str | Path) -> None:
    """Write the page aside and rename it."""
    with written_aside(path) as aside:
        aside.write_text(page(content), encoding="utf-8")


def page(content: RunReport) -> str:
    """The whole page."""
    sections = [
        section
        for section in (
            _summary(content),
            _training(content),
            _fields(content),
            _features(content),
            _predictions(content),
        )
        if section is not None
    ]
    links = [
        element("li", element("a", section[0].text, href=f"#{section.get('id')}")) for section in sections
    ]
    name = f"Interactions of {content.name}"
    style = Element("style")
    style.text = _STYLE  # as it is, in lines
    html = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("title", name),
            style,
        ),
        element(
            "body",
            element(
                "header",
                element("h1", name),
                element(
                    "p",
                    f"What an L0-SIGN model (l0sign_cuda {__version__}) found in its data: the pairs of"
                    " features it keeps, what they add to a prediction, and how single predictions come"
                    " about.",
                    class_="muted",
                ),
                element("nav", element("ul", *links), aria_label="Sections"),
            ),
            element("main", *sections),
        ),
        lang="en",
    )
    return "<!DOCTYPE html>\n" + tostring(html, encoding="unicode", method="html") + "\n"


# ----------------------------------------------------------------------------------------------- sections


def _summary(content: RunReport) -> Element:
    section = _section("The run", "run")
    if content.metrics:
        test = content.metrics[-1]
        tiles = [
            element("div", element("dt", f"{title(name)}, {test['part']}"), element("dd", cell(name, value)))
            for name, value in test.items()
            if name != "part"
        ]
        section.append(element("dl", *tiles, class_="tiles"))
        section.append(_table("Metrics of the best epoch", content.metrics, list(test)))
    else:
        section.append(element("p", "The run has no record of its metrics (metrics.json)."))
    hyperparameters = [
        {
            "option": name,
            "value": ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value),
        }
        for name, value in {**content.hyperparameters, **content.config.to_dict()}.items()
    ]
    section.append(_details("Settings", _table("Model and training", hyperparameters, ["option", "value"])))
    return section


def _training(content: RunReport) -> Element | None:
    rows = content.record.get("epochs")
    if not rows:
        return None
    # Without validation samples there is only the loss to show.
    metric = content.config.monitored if content.config.monitored in rows[0] else "loss"
    section = _section("Training", "training")
    columns = [name for name in _EPOCH_COLUMNS if name in rows[0]]
    what = "the training loss" if metric == "loss" else f"{title(metric)} on the validation samples"
    best = content.record.get("best_epoch")
    kept = "" if best is None else f" The model of epoch {best} (dotted line) was kept."
    section.append(
        _figure(
            curves(rows, metric, best),
            f"After each epoch: {what}, and the share of all pairs of features whose edge is open.{kept}",
        )
    )
    section.append(_details("The numbers", _table("One row an epoch", rows, columns)))
    return section


def _fields(content: RunReport) -> Element | None:
    pairs = content.fields
    names = _shown_fields(content)
    if len(names) < 2:
        return None
    section = _section("Pairs of fields", "fields")
    section.append(
        element(
            "p",
            f"Means over {content.over}. An edge that is open is not yet strong: the strength of a pair is"
            " the mean of what it adds to or takes from the logit, whatever the sign; it is 0 where the edge"
            " is closed.",
        )
    )
    section.append(
        element(
            "p",
            "All pairs are of different features. A feature's pair with itself, its own effect, counts among"
            " the edges kept, but is shown with the single predictions only; the diagonal of the maps is for"
            " two features of one field, and blank where no sample has them.",
        )
    )
    place = {name: k for k, name in enumerate(names)}
    largest = max(pair.mean_strength for pair in pairs) or 1.0
    maps = element("div", class_="maps")
    for label, values in (
        ("How often the edge is open, in %", [pair.open_share for pair in pairs]),
        ("Strength, in % of the strongest pair's", [pair.mean_strength / largest for pair in pairs]),
    ):
        shares = {
            (min(at), max(at)): value
            for pair, value in zip(pairs, values, strict=True)
            if pair.first in place and pair.second in place
            for at in [(place[pair.first], place[pair.second])]
        }
        maps.append(_figure(heat_map(names, shares, label), label))
    section.append(maps)
    if len(names) < len({name for pair in pairs for name in (pair.first, pair.second)}):
        section.append(element("p", f"The maps show the {_MAP_FIELDS} fields of the strongest pairs."))
    ranked = sorted(pairs, key=lambda pair: -pair.mean_strength)[:_TABLE_FIELDS]
    table = _interactions("Pairs of fields, strongest first", ranked, FIELD_COLUMNS)
    section.append(_details(f"The numbers ({len(ranked)} pairs)", table, is_open=len(ranked) <= 12))
    _add_by_sign(section, content.positive_fields, content.negative_fields, FIELD_COLUMNS)
    return section


def _features(content: RunReport) -> Element:
    section = _section("Pairs of features", "features")
    section.append(
        element(
            "p",
            "What two different features together add to the logit, in the mean of the samples that have"
            f" both; pairs that are open in at least {content.min_support:,} of {content.over}.",
        )
    )
    _add_by_sign(section, content.positive, content.negative, FEATURE_COLUMNS)
    return section


def _add_by_sign(
    section: Element,
    positive: Sequence[Interaction],
    negative: Sequence[Interaction],
    columns: Sequence[str],
) -> None:
    for heading, pairs in (("Raise the prediction most", positive), ("Lower the prediction most", negative)):
        section.append(element("h3", heading))
        section.append(_interactions("", pairs, columns) if pairs else element("p", "None."))


def _predictions(content: RunReport) -> Element | None:
    if not content.explained:
        return None
    section = _section("Single predictions", "predictions")
    section.append(
        element(
            "p",
            f"Of {content.explained_of}. Each prediction is exactly the bias plus the contributions of its"
            " open pairs. ",
            element("span", class_="key positive"),
            " raises it, ",
            element("span", class_="key negative"),
            " lowers it; a wider line contributes more. The ring around a feature is its own effect. Widths"
            " and bars compare within a sample, not between samples: the widest of each is its strongest"
            " pair.",
        )
    )
    for number, sample in enumerate(content.explained, 1):
        section.append(_prediction(content, number, sample))
    return section


def _prediction(content: RunReport, number: int, sample: Sample) -> Element:
    entry = sample.explanation
    pairs, shown = entry.interactions, strongest(entry)
    total = sum(pair.contribution for pair in pairs)
    equation = f"Bias {entry.bias:+.4f}, {len(pairs)} open pairs together {total:+.4f}."
    name = f"Sample {number}: {content.prediction(entry)}{told_label(sample.label)}"
    article = element("article", element("h3", name), element("p", equation, class_="muted"))
    if not pairs:
        return article
    caption = "" if len(pairs) == len(shown) else f" (the {len(shown)} strongest of {len(pairs)} pairs)"
    article.append(_figure(interaction_graph(entry, name), f"Interactions of sample {number}{caption}"))
    largest = abs(pairs[0].contribution)
    rows = [
        [
            _name_cell(pair.names[0], "th"),
            _name_cell(second_name(pair.i == pair.j, pair.names[1])),
            element("td", f"{pair.gate:.4f}"),
            element("td", f"{pair.contribution:+.4f}"),
            element("td", bar(pair.contribution, largest)),
        ]
        for pair in shown
    ]
    if len(pairs) > len(shown):
        rest = sum(pair.contribution for pair in pairs[len(shown) :])
        rows.append(
            [
                _name_cell(f"{len(pairs) - len(shown)} more pairs", "th"),
                *(element("td", text) for text in ("", "", f"{rest:+.4f}", "")),
            ]
        )
    head = ["first", "second", "gate", "contribution", ""]
    article.append(_details("The numbers", _grid(f"Open pairs of sample {number}", head, rows)))
    if entry.values is not None:
        values = [{"feature": n, "value": v} for n, v in zip(entry.nodes, entry.values, strict=True)]
        article.append(_details("Values", _table("Values of the features", values, ["feature", "value"])))
    return article


# ------------------------------------------------------------------------------------------------- pieces


def _section(heading: str, identifier: str) -> Element:
    return element("section", element("h2", heading), id=identifier)


def _figure(figure: Element, caption: str) -> Element:
    return element("figure", figure, element("figcaption", caption))


def _details(summary: str, content: Element, *, is_open: bool = False) -> Element:
    return element("details", element("summary", summary), content, **({"open": "open"} if is_open else {}))


def _interactions(caption: str, pairs: Sequence[Interaction], columns: Sequence[str]) -> Element:
    largest = max(abs(pair.mean_contribution) for pair in pairs)
    rows = [
        [
            _name_cell(pair.first, "th"),
            _name_cell(pair.second),
            *(element("td", cell(name, getattr(pair, name))) for name in columns),
            element("td", bar(pair.mean_contribution, largest)),
        ]
        for pair in pairs
    ]
    return _grid(caption, ["first", "second", *map(title, columns), ""], rows)


def _table(caption: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Element:
    made = []
    for row in rows:
        first, *others = columns
        cells = [_name_cell(cell(first, row.get(first)), "th")]
        for name in others:
            value = row.get(name)
            text = cell(name, value)
            cells.append(_name_cell(text) if isinstance(value, str) else element("td", text))
        made.append(cells)
    return _grid(caption, [title(name) for name in columns], made)


def _grid(caption: str, head: Sequence[str], rows: Sequence[Sequence[Element]]) -> Element:
    """A table whose cells are given; a column's heading is aligned as its first cell is."""
    heads = []
    for at, text in enumerate(head):
        flush = {"class_": "text"} if rows and rows[0][at].get("class") == "text" else {}
        heads.append(element("th", text, scope="col", **flush) if text else element("td"))
    table = element(
        "table",
        element("caption", caption) if caption else None,
        element("thead", element("tr", *heads)),
        element("tbody", *(element("tr", *row) for row in rows)),
    )
    return element("div", table, class_="table", tabindex="0", role="region", aria_label=caption or "Table")


def _name_cell(text: str, tag: str = "td") -> Element:
    """A name, and where it is shortened the whole of it for who points at it."""
    short = shortened(text, LONGEST)
    whole = {} if short == text else {"title": text}
    return element(tag, short, class_="text", **whole, **({"scope": "row"} if tag == "th" else {}))


def _shown_fields(content: RunReport) -> list[str]:
    """The fields that the maps show: those of the strongest pairs, in the order of the vocabulary."""
    names: dict[str, None] = {}
    for pair in sorted(content.fields, key=lambda pair: -pair.mean_strength):
        names |= {pair.first: None, pair.second: None}
    chosen = set(list(names)[:_MAP_FIELDS])
    return [name for name in content.field_names if name in chosen]
