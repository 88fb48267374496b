"""Small plots as SVG text: points or lines over two axes. Equal values give equal files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 34, 48
COLOURS = ("#1f5fa8", "#c2571a", "#2d7d46", "#8e3a8e", "#7a6a1c", "#555555")
TICKS = 5
ROUND = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
NAMED = 8
"""Series whose names there is room for."""


@dataclass(frozen=True, slots=True)
class Series:
    """Values of one name. line: joined by a line; otherwise points."""

    name: str
    points: tuple[tuple[float, float], ...]
    line: bool = True


@dataclass(frozen=True, slots=True)
class Plot:
    """title: also the text for people who cannot see the picture."""

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    level: float | None = None
    """A dashed line across, at this height."""
    mark: float | None = None
    """A dashed line from top to bottom, at this place."""


def svg(plot: Plot) -> str:
    values = [point for series in plot.series for point in series.points]
    most_x = _rounded_up(max([x for x, _ in values] + [plot.mark or 0.0], default=1.0))
    most_y = _rounded_up(max([y for _, y in values] + [plot.level or 0.0], default=1.0))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / most_x
        return round(across, 1), round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / most_y, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12"><title>{escape(plot.title)}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-weight="bold">{escape(plot.title)}</text>',
    ]
    for tick in range(TICKS + 1):
        x, y = most_x * tick / TICKS, most_y * tick / TICKS
        (across, floor), (wall, up) = place(x, 0), place(0, y)
        parts.append(_line(wall, up, WIDTH - RIGHT, up, "#dddddd"))
        parts.append(f'<text x="{wall - 6}" y="{up + 4}" text-anchor="end">{y:g}</text>')
        parts.append(f'<text x="{across}" y="{floor + 16}" text-anchor="middle">{x:g}</text>')
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(plot.x)}</text>'
        f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(plot.y)}</text>"
    )
    if plot.level is not None:
        (left, up), (right, _) = place(0, plot.level), place(most_x, plot.level)
        parts.append(_line(left, up, right, up, "#888888", dashed=True))
    if plot.mark is not None:
        (across, low), (_, high) = place(plot.mark, 0), place(plot.mark, most_y)
        parts.append(_line(across, low, across, high, "#888888", dashed=True))
    for number, series in enumerate(plot.series):
        colour = COLOURS[number % len(COLOURS)]
        parts += _drawn(series, [place(x, y) for x, y in series.points], colour)
    names = [
        f'<tspan dx="10" fill="{COLOURS[number % len(COLOURS)]}">{escape(series.name)}</tspan>'
        for number, series in enumerate(plot.series[:NAMED])
    ]
    parts.append(f'<text x="{WIDTH - RIGHT}" y="18" text-anchor="end">{"".join(names)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(series: Series, places: Sequence[tuple[float, float]], colour: str) -> list[str]:
    if series.line:
        path = " ".join(f"{x},{y}" for x, y in places)
        return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    return [f'<circle cx="{x}" cy="{y}" r="2" fill="{colour}" fill-opacity="0.6"/>' for x, y in places]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"{dashes}/>'


def _rounded_up(value: float) -> float:
    """The next round number."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in ROUND if step * power >= value * 0.9999)
