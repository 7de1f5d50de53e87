"""Draws lines into a PNG, with Pillow, which comes with the web page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#8a8f98", "#d9822b", "#c23b3b", "#4b7bd1", "#1b9e5a", "#7b4bd1", "#c8489a")
FINE = 2
"""Pixels drawn for each pixel of width and height: lines are smooth, and sharp on fine screens."""
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = (FINE * size for size in (1000, 560, 64, 84, 24, 52))
INK, DIM, FAINT = "#222222", "#666666", "#e4e4e4"


def lines(path: Path, series: Mapping[str, Sequence[float]], *, title: str, across: str, up: str) -> None:
    """One line per series, over 1, 2, 3, …; the height is logarithmic, for milliseconds range far."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(18 * FINE), ImageFont.load_default(13 * FINE)
    ticks = _ticks([max(value, 1.0) for line in series.values() for value in line])
    low, high = math.log10(ticks[0]), math.log10(ticks[-1])
    count = max(len(line) for line in series.values())

    def at(turn: int, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (turn - 1) / max(1, count - 1)
        share = (math.log10(max(value, ticks[0])) - low) / (high - low)
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    draw.text((LEFT, 10 * FINE), f"{title} ({up})", fill=INK, font=font)
    for value in ticks:
        _, y = at(1, value)
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=FAINT, width=FINE)
        draw.text((LEFT - 8 * FINE, y), f"{value:,.0f}", fill=DIM, font=small, anchor="rm")
    for turn in sorted({1, *range(0, count + 1, max(1, count // 10))} - {0}):
        draw.text((at(turn, 1)[0], HEIGHT - BOTTOM + 8 * FINE), str(turn), fill=DIM, font=small, anchor="ma")
    draw.text((WIDTH - RIGHT, HEIGHT - 8 * FINE), across, fill=DIM, font=small, anchor="rs")
    x = float(LEFT)
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [at(turn, value) for turn, value in enumerate(line, 1)]
        draw.line(points, fill=colour, width=2 * FINE, joint="curve")
        x = _legend(draw, x, name, colour, small)
    image.save(path)


def _ticks(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10, … around all values."""
    steps = [digit * 10.0**power for power in range(8) for digit in (1, 2, 5)]
    first = max((i for i, step in enumerate(steps) if step <= min(values)), default=0)
    last = next((i for i, step in enumerate(steps) if step >= max(values)), len(steps) - 1)
    return steps[first : max(last, first + 1) + 1]


def _legend(draw: Any, x: float, name: str, colour: str, font: Any) -> float:
    """A name with its colour; returns where the next one begins."""
    y = 54 * FINE
    draw.line([(x, y), (x + 18 * FINE, y)], fill=colour, width=4 * FINE)
    draw.text((x + 24 * FINE, y), name, fill=INK, font=font, anchor="lm")
    return float(x + 40 * FINE + draw.textlength(name, font=font))
