"""The drawings of the report as inline SVG: curves, intervals, shares. Colours come from the style sheet by class."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from rankwright.evaluation import PairedTest, verdict
from rankwright.reporting.markup import Html, escape, join, quoted, signed, tag, tone

Point = tuple[float, float]


class _Curve(NamedTuple):
    title: str
    meaning: str
    keys: re.Pattern[str]
    """Which keys of metrics.jsonl belong to it."""


_CURVES = (
    _Curve(
        "Reward",
        "mean reward of the sampled rankings, and of what they are measured against",
        re.compile(r"(train[/_])?(reference_|no_document_)?reward"),
    ),
    _Curve(
        "Dev",
        "scores on development questions while training",
        re.compile(
            r"(eval|dev)[/_](\w+[/_])?(F1|EM|sub-EM|hit@\d+|nDCG@\d+|RR@\d+|recall@\d+|reward|holdout)", re.IGNORECASE
        ),
    ),
    _Curve("KL", "distance of the policy from its reference", re.compile(r"(train[/_])?kl(_\w+)?")),
    _Curve("Entropy", "how undecided the policy is", re.compile(r"(train[/_])?entropy")),
    _Curve(
        "Spread", "standard deviation of the scores of a question", re.compile(r"(train[/_])?(score_|reward_)?spread")
    ),
    _Curve("Loss", "training loss", re.compile(r"(train[/_])?loss")),
)

_CURVE_POINTS = 400
_SMOOTH_FROM = 30
"""Curves of more points get a running mean drawn over them."""


def _svg(width: int, height: int, name: str, *children: Html, **attributes: str) -> Html:
    view = Html(f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"')
    extra = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"{view}{extra}>{tag('title', name)}{join(children)}</svg>")


def _segment(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return tag("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=class_)


def _circle(x: float, y: float, radius: float, class_: str, *children: Html) -> Html:
    return tag("circle", *children, cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{radius:g}", class_=class_)


def interval(test: PairedTest, reach: float) -> Html:
    """The interval of a difference on a scale from minus `reach` to `reach`, 0 in the middle."""
    width, middle = 170, 10.0

    def x(value: float) -> float:
        return width / 2 + value / reach * (width / 2 - 6)

    name = f"{signed(test.delta)}, interval {signed(test.ci_low)} to {signed(test.ci_high)}"
    drawn = tag(
        "g",
        _segment(x(test.ci_low), middle, x(test.ci_high), middle, "whisker"),
        _circle(x(test.delta), middle, 4.5, "point"),
        class_=tone(verdict(test)),
    )
    return _svg(width, 20, name, _segment(x(0), 1, x(0), 19, "zero"), drawn)


def curves(metrics: Sequence[Mapping[str, Any]]) -> Html:
    """One figure for each known quantity that the lines of metrics.jsonl hold; empty without any."""
    keys = list(dict.fromkeys(key for line in metrics for key in line))
    figures = []
    for curve in _CURVES:
        series = {key: _points(metrics, key) for key in keys if curve.keys.fullmatch(key)}
        drawn = [(key, points) for key, points in series.items() if points]
        if drawn:
            # Four colours can be told apart; the keys beyond them stay in metrics.jsonl.
            figures.append(_figure(curve, dict(drawn[:4])))
    return tag("div", *figures, class_="curves") if figures else join([])


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """(step, value) in the order logged, without what is not a finite number."""
    found = [(line.get("step"), line.get(key)) for line in metrics]
    return [(step, value) for step, value in found if _finite(step) and _finite(value)]


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _figure(curve: _Curve, series: Mapping[str, list[Point]]) -> Html:
    smoothed = any(len(points) > _SMOOTH_FROM for points in series.values())
    meaning = curve.meaning + ("; the bold line is a running mean" if smoothed else "")
    legend = [
        tag("span", tag("i", class_=f"key s{i}"), quoted(key), class_="legend")
        for i, key in enumerate(series)
        if len(series) > 1
    ]
    caption = tag("figcaption", tag("b", curve.title), meaning + ". ", *legend)
    return tag("figure", caption, _line_chart(curve.title, series))


def _line_chart(title: str, series: Mapping[str, list[Point]]) -> Html:
    width, height, left, right, top, bottom = 360, 210, 48, 44, 10, 36
    everything = [point for points in series.values() for point in points]
    x_ticks = ticks(min(x for x, _ in everything), max(x for x, _ in everything), 5)
    y_ticks = ticks(min(y for _, y in everything), max(y for _, y in everything), 5)

    def place(point: Point) -> Point:
        x = left + (point[0] - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (width - left - right)
        y = height - bottom - (point[1] - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (height - top - bottom)
        return x, y

    drawn: list[Html] = []
    for value in y_ticks:
        y = place((x_ticks[0], value))[1]
        drawn.append(_segment(left, y, width - right, y, "grid"))
        drawn.append(_label(left - 6, y + 4, _tick(value, y_ticks), "end"))
    for value in x_ticks:
        x = place((value, y_ticks[0]))[0]
        drawn.append(_segment(x, height - bottom, x, height - bottom + 4, "axis"))
        drawn.append(_label(x, height - bottom + 16, _tick(value, x_ticks), "middle"))
    drawn.append(_segment(left, height - bottom, width - right, height - bottom, "axis"))
    drawn.append(_label((left + width - right) / 2, height - 3, "step", "middle"))
    for i, points in enumerate(series.values()):
        drawn += _line(points, i, place)
    last = ", ".join(f"{key} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for key, points in series.items())
    return _svg(width, height, f"{title} over training steps: {last}", *drawn)


def _line(points: list[Point], index: int, place: Callable[[Point], Point]) -> list[Html]:
    thinned = points[:: max(1, math.ceil(len(points) / _CURVE_POINTS))]
    if thinned[-1] != points[-1]:
        thinned.append(points[-1])
    lines = [(thinned, f"line s{index}")]
    if len(thinned) > _SMOOTH_FROM:
        lines = [(thinned, f"line raw s{index}"), (_running_mean(thinned), f"line s{index}")]
    drawn = [
        tag("polyline", points=" ".join("{:.1f},{:.1f}".format(*place(point)) for point in line), class_=class_)
        for line, class_ in lines
    ]
    end = place(lines[-1][0][-1])
    drawn.append(
        _circle(end[0], end[1], 3, f"dot s{index}", tag("title", f"{points[-1][1]:.4g} at step {points[-1][0]:g}"))
    )
    drawn.append(_label(end[0] + 6, end[1] + 4, _end_value(lines[-1][0][-1][1]), "start"))
    return drawn


def _end_value(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= abs(value) < 10 else f"{value:.2g}"


def _running_mean(points: list[Point]) -> list[Point]:
    """Each value averaged with those up to a twentieth of the curve to both sides."""
    reach = max(1, len(points) // 20)
    windows = [points[max(0, i - reach) : i + reach + 1] for i in range(len(points))]
    return [(x, sum(y for _, y in window) / len(window)) for (x, _), window in zip(points, windows, strict=True)]


def _label(x: float, y: float, text: str, anchor: str) -> Html:
    return Html(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose low and high, about `wanted` of them."""
    if high - low <= 1e-12 * max(1.0, abs(low), abs(high)):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / max(1, wanted - 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _tick(value: float, all_ticks: Sequence[float]) -> str:
    step = all_ticks[1] - all_ticks[0]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    written = f"{value:,.{decimals}f}" if decimals <= 5 else f"{value:.1e}"
    return written.replace("-", "\u2212")


def share_bar(shares: tuple[int, int, int], middle: str = "tied") -> Html:
    """Questions won, tied (or however the middle is called) and lost as one bar with its figures."""
    names, total = ("won", middle, "lost"), max(1, sum(shares))
    widths = [1000 * share / total for share in shares]
    bars = [
        tag("rect", x=f"{sum(widths[:i]):.1f}", y="0", width=f"{widths[i]:.1f}", height="14", class_=class_)
        for i, class_ in enumerate(("won", "tied", "lost"))
    ]
    words = [f"{name} {share:,} ({share / total:.0%})" for name, share in zip(names, shares, strict=True)]
    bar = _svg(1000, 14, ", ".join(words), *bars, preserveAspectRatio="none")
    return tag("div", bar, tag("p", *(tag("span", word) for word in words)), class_="share")
