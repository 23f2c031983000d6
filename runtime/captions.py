"""Write the heading of a picture, with verdict and score, and its colour bar."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.colours import PaintedValues, heatmap
from flowedge.runtime.lettering import Colour, Strip, text_width, wrapped

BACKGROUND: Final[Colour] = (24, 24, 24)
TEXT: Final[Colour] = (240, 240, 240)
QUIET: Final[Colour] = (176, 176, 176)
_UNPAINTED: Final[Colour] = (84, 84, 84)
# Colours of Okabe and Ito, which people with any colour vision tell apart, each with the colour of its text.
VERDICTS: Final[dict[str, tuple[Colour, Colour]]] = {
    "ok": ((0, 158, 115), (0, 0, 0)),
    "anomalous": ((213, 94, 0), (0, 0, 0)),
    "unknown": ((176, 176, 176), (0, 0, 0)),
    "not_inspected": ((240, 228, 66), (0, 0, 0)),
}


def heading(width: int, size: int, verdict: str, facts: list[str]) -> NDArray[np.uint8]:
    """Write the verdict in a field of its own colour, and facts beside it, each unbroken as far as it fits.

    Args:
        width: The width of the picture in pixels.
        size: The height of the letters in pixels.
        verdict: The verdict.
        facts: The texts after the verdict.

    Returns:
        ``(h, width, 3)`` uint8 RGB.
    """
    margin, field, line_height = size // 2, verdict.replace("_", " "), round(1.5 * size)
    lines: list[list[tuple[float, str]]] = [[]]
    x = 2 * margin + text_width(field, size) + size
    for fact in facts:
        if x > 2 * margin and x + text_width(fact, size) > width - margin:
            lines.append([])
            x = margin
        pieces = wrapped(fact, size, width - 2 * margin)
        for n, piece in enumerate(pieces):
            if n:
                lines.append([])
                x = margin
            lines[-1].append((x, piece))
            x += text_width(piece, size) + size
    strip = Strip(width, line_height * len(lines) + margin, BACKGROUND)
    colour, text_colour = VERDICTS[verdict]
    middle = margin / 2 + line_height / 2
    strip.box(
        margin,
        middle - 0.65 * size,
        2 * margin + text_width(field, size) + margin,
        middle + 0.65 * size,
        colour,
    )
    strip.text(2 * margin, middle, field, size, text_colour)
    for n, line in enumerate(lines):
        for x, piece in line:
            strip.text(x, middle + n * line_height, piece, size, TEXT)
    return strip.pixels()


def colour_bar(width: int, size: int, painted: PaintedValues, notes: list[str]) -> NDArray[np.uint8]:
    """Draw the colour scale, with numbers, the threshold, and a triangle at the largest value of the picture.

    The part below the threshold is grey, because values there are not painted.

    Args:
        width: The width of the picture in pixels.
        size: The height of the letters in pixels.
        painted: The painted values.
        notes: Texts below the bar.

    Returns:
        ``(h, width, 3)`` uint8 RGB.
    """
    margin, line_height = size // 2, round(1.4 * size)
    below = [line for note in notes for line in wrapped(note, size, width - 2 * margin)]
    titles = wrapped(painted.title, size, width - 2 * margin)
    strip = Strip(width, line_height * (len(titles) + len(below) + 1) + 2 * size + margin, BACKGROUND)
    for n, title in enumerate(titles):
        strip.text(margin, line_height * (n + 0.5), title, size, QUIET)
    length = width - 2 * margin
    top = line_height * len(titles) + size // 2
    bottom = top + size
    values = np.linspace(painted.low, painted.high, length)
    colours = heatmap(values, painted.low, painted.high)
    if painted.threshold is not None:
        colours[values <= painted.threshold] = _UNPAINTED
    strip.put(margin, top, np.repeat(colours[None], size, axis=0))

    def place(value: float) -> float:
        share = (value - painted.low) / (painted.high - painted.low)
        return margin + min(max(share, 0.0), 1.0) * (length - 1)

    if np.isfinite(painted.values).any():
        peak = place(float(np.nanmax(painted.values)))
        half = 0.35 * size
        strip.polygon([(peak - half, top - half - 1), (peak + half, top - half - 1), (peak, top - 1)], TEXT)
    middle = bottom + 0.2 * size + line_height / 2
    free_left, free_right = float(margin), float(width - margin)
    if painted.threshold is not None:
        at = place(painted.threshold)
        thick = max(1, size // 12)
        strip.box(at - thick / 2, top - size // 4, at + thick / 2, bottom + size // 4, TEXT)
        text = f"threshold {painted.text(painted.threshold)}"
        left = min(max(at - text_width(text, size) / 2, margin), width - margin - text_width(text, size))
        strip.text(left, middle, text, size, TEXT)
        free_left, free_right = left - size, left + text_width(text, size) + size
    for text, left in (
        (painted.text(painted.low), float(margin)),
        (painted.text(painted.high), width - margin - text_width(painted.text(painted.high), size)),
    ):
        is_free = (
            painted.threshold is None or left + text_width(text, size) <= free_left or left >= free_right
        )
        if is_free:
            strip.text(left, middle, text, size, QUIET)
    if painted.threshold is None:
        text = "no threshold"
        strip.text((width - text_width(text, size)) / 2, middle, text, size, TEXT)
    for n, line in enumerate(below):
        strip.text(margin, middle + (n + 1) * line_height, line, size, QUIET)
    return strip.pixels()
