"""Figures as inline SVG: curves of a training run (Fig. 4), a heat map, the graph of one prediction (Fig. 6).

Every figure describes itself to screen readers; colours are CSS variables of the page, so that
they suit a light and a dark one. Markup is built as elements, whose serialiser escapes every text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from .explanation import Explanation, OpenPair
from .report import cell, printable, shortened, title

#: The graph of a prediction shows this many pairs, and names are cut to this many characters.
GRAPH_PAIRS = 30
_NAME = 22
_UPRIGHT = 16  # more names than this around a circle get into each other's way
_FIELD_NAME = 14


def element(tag: str, *children: Element | str | None, **attributes: Any) -> Element:
    """An element with printable texts.

    In the names of attributes "_" is "-", and one at the end is dropped (class_).
    """
    node = Element(tag, {name.rstrip("_").replace("_", "-"): _text(v) for name, v in attributes.items()})
    for child in children:
        if isinstance(child, str):
            child = printable(child)
            if len(node):
                node[-1].tail = (node[-1].tail or "") + child
            else:
                node.text = (node.text or "") + child
        elif child is not None:
            node.append(child)
    return node


def curves(rows: Sequence[Mapping[str, Any]], metric: str, best_epoch: int | None = None) -> Element:
    """A metric (left axis) and the share of open edges (right axis) by epoch.

    Args:
        rows: one an epoch, with the keys epoch, edges_kept and `metric`; None or NaN is left out.
        metric: the key of the left axis.
        best_epoch: marked by a line.
    """
    width, height, left, right, top, bottom = 680, 300, 64, 64, 34, 44
    figure = _figure(
        width,
        height,
        f"{title(metric)} and share of open edges while training",
        f"Two curves over {len(rows)} epochs: {title(metric)} on the left axis, the share of edges that are"
        " open on the right. The table below holds the numbers.",
    )
    epochs = [int(row["epoch"]) for row in rows]
    first, last = min(epochs), max(epochs)

    def x(epoch: float) -> float:
        return left + (width - left - right) * (0.5 if first == last else (epoch - first) / (last - first))

    def y(share: float) -> float:
        return height - bottom - (height - top - bottom) * share

    values = [value for row in rows if (value := _number(row.get(metric))) is not None]
    ticks = _ticks(min(values), max(values)) if values else [0.0, 1.0]
    low, high = ticks[0], ticks[-1]
    for tick in ticks:
        at = y((tick - low) / (high - low))
        figure.append(element("line", x1=left, x2=width - right, y1=at, y2=at, class_="grid"))
        figure.append(element("text", f"{tick:.4g}", x=left - 8, y=at + 4, class_="end"))
    for share in (0, 25, 50, 75, 100):
        figure.append(element("text", f"{share} %", x=width - right + 8, y=y(share / 100) + 4))
    step = max(1, math.ceil((last - first + 1) / 15))
    for epoch in range(first, last + 1, step):
        figure.append(element("text", str(epoch), x=x(epoch), y=height - bottom + 18, class_="middle"))
    figure.append(element("text", "epoch", x=(left + width - right) / 2, y=height - 6, class_="middle muted"))
    if best_epoch is not None and first <= best_epoch <= last:
        line = element("line", x1=x(best_epoch), x2=x(best_epoch), y1=top, y2=height - bottom, class_="best")
        line.append(element("title", f"best epoch: {best_epoch}"))
        figure.append(line)
    scale: dict[str, Callable[[float], float]] = {
        metric: lambda value: y((value - low) / (high - low)),
        "edges_kept": y,
    }
    for at, (name, style) in enumerate(((metric, "first"), ("edges_kept", "second"))):
        points = [(row["epoch"], value) for row in rows if (value := _number(row.get(name))) is not None]
        path = " ".join(f"{x(epoch):.1f},{scale[name](value):.1f}" for epoch, value in points)
        figure.append(element("polyline", points=path, class_=f"curve {style}"))
        for epoch, value in points:
            figure.append(
                element(
                    "circle",
                    element("title", f"epoch {epoch}: {title(name)} {cell(name, value)}"),
                    cx=x(epoch),
                    cy=scale[name](value),
                    r=3,
                    class_=f"dot {style}",
                )
            )
        legend = left + at * 200
        figure.append(element("line", x1=legend, x2=legend + 26, y1=14, y2=14, class_=f"curve {style}"))
        axis = "left" if at == 0 else "right"
        figure.append(element("text", f"{title(name)} ({axis} axis)", x=legend + 34, y=18))
    return figure


def heat_map(names: Sequence[str], share: Mapping[tuple[int, int], float], label: str) -> Element:
    """A symmetric map of names against names.

    Args:
        names: of rows and columns.
        share: from positions (i, j), i <= j, to 0..1; a missing pair is left blank.
        label: what is shown, for the title.
    """
    size = len(names)
    margin = 18 + 7.5 * max((min(len(name), _FIELD_NAME) for name in names), default=0)
    step = max(18, min(46, 460 // max(size, 1)))
    width = height = margin + size * step + 8
    figure = _figure(
        width,
        height,
        label,
        f"A map of {size} fields against {size} fields: the darker, the larger. The table below holds the"
        " numbers.",
    )
    for k, name in enumerate(names):
        at = margin + (k + 0.5) * step + 4
        row = {"x": margin - 8, "y": at, "class_": "end"}
        column = {"transform": f"translate({at:.1f} {margin - 8}) rotate(-90)"}
        for place in (row, column):
            figure.append(element("text", element("title", name), shortened(name, _FIELD_NAME), **place))
    for (i, j), value in sorted(share.items()):
        for row_at, column_at in {(i, j), (j, i)}:
            left, top = margin + column_at * step, margin + row_at * step
            square = element(
                "rect",
                element("title", f"{names[row_at]} and {names[column_at]}: {100 * value:.1f} %"),
                x=left + 1,
                y=top + 1,
                width=step - 2,
                height=step - 2,
                rx=2,
                class_="heat",
                fill_opacity=f"{0.04 + 0.96 * value:.3f}",
            )
            figure.append(square)
            if step >= 30:
                figure.append(
                    element(
                        "text",
                        f"{100 * value:.0f}",
                        x=left + step / 2,
                        y=top + step / 2 + 4,
                        class_="middle value"
                        + (" on-heat" if value > 0.72 else " on-mid" if value > 0.5 else ""),
                    )
                )
    return figure


def interaction_graph(entry: Explanation, label: str) -> Element:
    """One prediction's strongest pairs: features on a circle, width and colour by contribution (Fig. 6).

    A pair that lowers the logit is dashed too, so that colour is not needed to tell. The ring around a
    feature is its pair with itself. With many features only those of the strongest pairs are shown.
    """
    shown = strongest(entry)
    if len(entry.nodes) > 24:
        nodes = sorted({k for pair in shown for k in (pair.i, pair.j)})
    else:
        nodes = list(range(len(entry.nodes)))
    crowded = len(nodes) > _UPRIGHT  # then names stand like spokes, and need room above and below
    width, height, radius = (680, 600, 130) if crowded else (680, 390, 140)
    figure = _figure(
        width,
        height,
        label,
        f"{len(nodes)} features on a circle and their {len(shown)} strongest pairs. Solid lines raise the"
        " prediction, dashed lines lower it; the wider, the more. The table below holds the numbers.",
    )
    largest = max((abs(pair.contribution) for pair in shown), default=0.0) or 1.0
    place = {}
    for at, node in enumerate(nodes):
        angle = 2 * math.pi * at / len(nodes) - math.pi / 2
        place[node] = (
            width / 2 + radius * math.cos(angle),
            height / 2 + radius * math.sin(angle),
            angle,
        )
    own = {pair.i: pair for pair in shown if pair.i == pair.j}
    # The strongest last, on top.
    for pair in reversed([pair for pair in shown if pair.i != pair.j]):
        (x1, y1, _), (x2, y2, _) = place[pair.i], place[pair.j]
        # Bent towards the middle, so that lines of neighbours keep clear of the circle.
        bend_x, bend_y = ((x1 + x2) / 2 * 0.8 + width * 0.1, (y1 + y2) / 2 * 0.8 + height * 0.1)
        figure.append(
            element(
                "path",
                element("title", _told(pair)),
                d=f"M{x1:.1f} {y1:.1f}Q{bend_x:.1f} {bend_y:.1f} {x2:.1f} {y2:.1f}",
                class_=f"edge {_sign(pair.contribution)}",
                stroke_width=f"{1 + 7 * abs(pair.contribution) / largest:.2f}",
            )
        )
    for node, (x, y, angle) in place.items():
        group = element("g", element("title", entry.nodes[node]))
        if node in own:
            pair = own[node]
            group[0].text = printable(_told(pair))
            group.append(
                element(
                    "circle",
                    cx=f"{x:.1f}",
                    cy=f"{y:.1f}",
                    r=f"{9 + 2.5 * abs(pair.contribution) / largest:.2f}",
                    class_=f"ring {_sign(pair.contribution)}",
                    stroke_width=f"{1 + 5 * abs(pair.contribution) / largest:.2f}",
                )
            )
        group.append(element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=6, class_="node"))
        name = shortened(entry.nodes[node], _NAME)
        group.append(element("text", name, **_label(x, y, angle, turned=crowded)))
        figure.append(group)
    return figure


def _label(x: float, y: float, angle: float, *, turned: bool) -> dict[str, Any]:
    """Where the name of the node at (x, y) goes: outside the circle, upright or along the radius."""
    side, down = math.cos(angle), math.sin(angle)
    anchor = "start" if side >= 0 else "end"
    if turned:
        turn = math.degrees(angle) + (0 if side >= 0 else 180)
        place = f"translate({x + 16 * side:.1f} {y + 16 * down:.1f}) rotate({turn:.1f})"
        return {"transform": place, "dy": 4, "class_": f"{anchor} name"}
    if abs(side) < 0.2:
        anchor = "middle"
    drop = 22 if anchor == "middle" else 18
    return {"x": f"{x + 18 * side:.1f}", "y": f"{y + 4 + drop * down:.1f}", "class_": f"{anchor} name"}


def bar(value: float, largest: float) -> Element:
    """A small bar from the middle to the left (below 0) or to the right; the number stands beside it."""
    length = 48 * abs(value) / largest if largest and math.isfinite(value / largest) else 0.0
    return element(
        "svg",
        element("line", x1=50, x2=50, y1=0, y2=14, class_="grid"),
        element("rect", x=50 if value > 0 else 50 - length, y=3, width=f"{length:.1f}", height=8, rx=1),
        viewBox="0 0 100 14",
        class_=f"bar {_sign(value)}",
        aria_hidden="true",
    )


def strongest(entry: Explanation) -> list[OpenPair]:
    """The pairs that the graph of a prediction shows."""
    return entry.interactions[:GRAPH_PAIRS]


def _figure(width: float, height: float, name: str, description: str) -> Element:
    return element(
        "svg",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=f"{name}. {description}",
        class_="figure",
        style=f"max-width:{width:g}px",
    )


def _told(pair: OpenPair) -> str:
    first, second = pair.names
    who = first if pair.i == pair.j else f"{first} and {second}"
    return f"{who}: {pair.contribution:+.4f}, gate {pair.gate:.3f}"


def _sign(value: float) -> str:
    return "positive" if value > 0 else "negative"


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _text(value: Any) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else printable(str(value))


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose low and high."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= span / 4)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [step * k for k in range(first, last + 1)]
