"""Draws lines into a PNG, with Pillow, which comes with the web page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

COLOURS = ("#8a8f98", "#d9822b", "#c23b3b", "#4b7bd1", "#1b9e5a", "#7b4bd1")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 1200, 640, 90, 60, 30, 60
INK, FAINT = "#222222", "#dddddd"


def lines(path: Path, series: Mapping[str, Sequence[float]], *, title: str, across: str, up: str) -> None:
    """One line per series, over 1, 2, 3, …; the height is logarithmic, for milliseconds range far."""
    import math

    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(20), ImageFont.load_default(15)
    values = [max(value, 1.0) for line in series.values() for value in line]
    low = math.floor(math.log10(min(values)) * 2) / 2
    high = max(math.ceil(math.log10(max(values)) * 2) / 2, low + 0.5)
    count = max(len(line) for line in series.values())

    def at(turn: int, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (turn - 1) / max(1, count - 1)
        share = (math.log10(max(value, 1.0)) - low) / (high - low)
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    draw.text((LEFT, 10), title, fill=INK, font=font)
    draw.text((WIDTH - RIGHT, HEIGHT - 24), across, fill=INK, font=small, anchor="ra")
    draw.text((8, TOP - 22), up, fill=INK, font=small)
    for half in range(round(low * 2), round(high * 2) + 1):
        value = 10 ** (half / 2)
        _, y = at(1, value)
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=FAINT)
        draw.text((LEFT - 8, y), f"{value:,.0f}", fill=INK, font=small, anchor="rm")
    for turn in sorted({1, *range(0, count + 1, max(1, count // 10))} - {0}):
        draw.text((at(turn, 1)[0], HEIGHT - BOTTOM + 8), str(turn), fill=INK, font=small, anchor="ma")
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        draw.line([at(turn, value) for turn, value in enumerate(line, 1)], fill=colour, width=3)
        x = LEFT + 10 + number * (WIDTH - LEFT - RIGHT) // len(series)
        draw.text((x, 38), name, fill=colour, font=small)
    image.save(path)
