"""Draw the findings in a frame, and write pictures.

Images are ``(H, W, 3)`` uint8 RGB, and masks are ``(H, W)`` uint8.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias, TypeVar, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.files import write_whole_file
from flowedge.manifest import Threshold
from flowedge.runtime.captions import BACKGROUND, colour_bar, heading
from flowedge.runtime.colours import Painted, PaintedValues, heatmap, painted_values
from flowedge.runtime.lettering import Colour
from flowedge.runtime.regions import Region
from flowedge.text import printable

Style: TypeAlias = Literal["overlay", "side-by-side", "mask"]

RED: Final[Colour] = (255, 32, 32)
_WHITE: Final[Colour] = (255, 255, 255)
_BLACK: Final[Colour] = (0, 0, 0)
_GREY: Final[Colour] = (150, 150, 150)
_OPACITY: Final = 0.6
_BOXES: Final = 20
"""The most boxes in a picture, around the surest regions."""
_SMALLEST_SIDE: Final = 512
"""The longer side in pixels to which smaller frames are enlarged."""
_SMALLEST_LETTER: Final = 13
_LONGEST_OF_JPEG: Final = 65_535
_LARGEST_LETTER: Final = 120
_LETTERS_IN_A_LINE: Final = 19
"""The least width of a picture, in heights of letters."""
_Kind = TypeVar("_Kind", bound=np.generic)


class Findings(Painted, Protocol):
    """The parts of a result that a picture shows. `flowedge.runtime.result.Result` describes them."""

    @property
    def frame(self) -> NDArray[np.uint8]: ...
    @property
    def verdict(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def image_threshold(self) -> Threshold | None: ...
    @property
    def problem(self) -> str: ...
    @property
    def log_nfa(self) -> float | None: ...
    @cached_property
    def mask(self) -> NDArray[np.bool_] | None: ...
    @cached_property
    def regions(self) -> tuple[Region, ...]: ...


def check_style(style: str) -> None:
    """Check the name of a style.

    Raises:
        ValueError: The name is another one than those of ``Style``.
    """
    if style not in get_args(Style):
        raise ValueError(f"style must be one of {', '.join(get_args(Style))}, got {style!r}")


def draw(
    result: Findings,
    *,
    frame: NDArray[np.uint8] | None = None,
    style: Style = "overlay",
    captions: bool = True,
) -> NDArray[np.uint8]:
    """Draw the findings of a result, with the verdict and the score above the frame and the colour bar below it.

    Pixels above the threshold are painted on the scale that the calibration fixed, outlined, and boxed region by
    region. A frame with verdict ``ok`` stays unpainted. Pixels that were not inspected are hatched. A small frame is
    enlarged by a whole factor, and no other frame is resized.

    Args:
        result: The result of a detector.
        frame: ``(H, W, 3)`` uint8 RGB or ``(H, W)`` uint8 grey, to draw on. By default the frame that was judged.
        style: ``overlay`` paints the frame. ``side-by-side`` puts the bare frame to the left of it. ``mask`` shows the
            anomalous pixels in white.
        captions: False leaves out the heading and the colour bar, and enlarges nothing, for a page that has words of
            its own.

    Returns:
        ``(H', W', 3)`` uint8 RGB, larger than the frame. Without captions an overlay and a mask have the frame's size.

    Raises:
        ValueError: The style is unknown, or the frame has another size or type than the judged one.
        TypeError: The frame is no array.
    """
    check_style(style)
    bare = _as_rgb(result.frame if frame is None else frame)
    _check_same_size(bare, result.anomaly_map)
    factor = -(-_SMALLEST_SIDE // max(bare.shape[:2])) if captions else 1
    panel = _Panel(bare, factor)
    unseen = np.isnan(result.anomaly_map) | (result.verdict == "not_inspected")
    has_findings = result.verdict in ("anomalous", "unknown")
    painted = painted_values(result)
    if style == "mask":
        panel.pixels[:] = 0
        if result.mask is not None and has_findings:
            panel.fill(result.mask, _WHITE)
    elif has_findings:
        inside = ~unseen if result.mask is None else result.mask
        panel.paint(inside, painted)
        if result.mask is not None:
            panel.outline(result.mask)
            panel.boxes(result.regions[:_BOXES])
    panel.hatch(unseen)
    panels = [panel]
    if style == "side-by-side":
        left = _Panel(bare, factor)
        left.hatch(unseen)
        panels.insert(0, left)
    row = _side_by_side(panels)
    if not captions:
        return row
    notes = ["hatched: not inspected"] if unseen.any() else []
    return _captioned(result, painted if style != "mask" else None, row, panel.letter, notes)


def _side_by_side(panels: Sequence[_Panel]) -> NDArray[np.uint8]:
    """Put panels of one height side by side."""
    gap = np.full((panels[0].pixels.shape[0], panels[0].letter // 2, 3), BACKGROUND, np.uint8)
    return np.concatenate([piece for panel in panels for piece in (gap, panel.pixels)][1:], axis=1)


def _captioned(
    result: Findings, painted: PaintedValues | None, row: NDArray[np.uint8], letter: int, notes: list[str]
) -> NDArray[np.uint8]:
    """Put a heading above a picture and the colour bar of painted values below it.

    A picture that is too narrow for words gets a wider background.
    """
    missing = max(0, _LETTERS_IN_A_LINE * letter - row.shape[1])
    left = np.full((row.shape[0], missing // 2, 3), BACKGROUND, np.uint8)
    right = np.full((row.shape[0], missing - missing // 2, 3), BACKGROUND, np.uint8)
    row = np.concatenate([left, row, right], axis=1)
    parts = [heading(row.shape[1], letter, result.verdict, _facts(result)), row]
    if painted is not None and result.verdict != "not_inspected":
        parts.append(colour_bar(row.shape[1], letter, painted, notes))
    return np.concatenate(parts, axis=0)


def _facts(result: Findings) -> list[str]:
    """Return the texts beside the verdict."""
    if result.verdict == "not_inspected":
        return [printable(result.problem)]
    facts = []
    if result.nfa is not None and result.log_nfa is not None:
        facts.append(f"log NFA {result.log_nfa:.3g}, limit {result.nfa.log_nfa:.3g}")
    else:
        limit = "" if result.image_threshold is None else f", threshold {result.image_threshold.value:.3g}"
        facts.append(f"score {result.score:.3g}{limit}")
    count = len(result.regions)
    if count and result.verdict == "ok":
        facts.append(f"{_counted(count)} above the pixel threshold, not painted")
    elif count > _BOXES:
        facts.append(f"{_counted(count)}, boxes around the {_BOXES} surest")
    elif count:
        facts.append(_counted(count))
    return facts


def _counted(count: int) -> str:
    return f"{count} region{'' if count == 1 else 's'}"


class _Panel:
    """A frame, enlarged by a whole factor, into which findings are drawn.

    Attributes:
        pixels: ``(h, w, 3)`` uint8 RGB.
        letter: The height of letters in pixels.
    """

    def __init__(self, frame: NDArray[np.uint8], factor: int) -> None:
        self.pixels = self._enlarged(frame, factor) if factor > 1 else frame.copy()
        self._factor = factor
        height, width = self.pixels.shape[:2]
        mean_side = math.sqrt(height * width)
        self.letter = min(max(round(mean_side / 30), _SMALLEST_LETTER), _LARGEST_LETTER)
        self._line = max(1, round(mean_side / 250))

    @staticmethod
    def _enlarged(image: NDArray[_Kind], factor: int) -> NDArray[_Kind]:
        return image.repeat(factor, axis=0).repeat(factor, axis=1)

    def fill(self, mask: NDArray[np.bool_], colour: Colour) -> None:
        """Give the pixels of a mask one colour."""
        self.pixels[self._enlarged(mask, self._factor)] = colour

    def paint(self, mask: NDArray[np.bool_], painted: PaintedValues) -> None:
        """Mix the colours of the values into the pixels of a mask."""
        if not mask.any():
            return
        inside = self._enlarged(mask, self._factor)
        values = (
            painted.values[mask]
            if self._factor == 1
            else self._enlarged(painted.values, self._factor)[inside]
        )
        colours = heatmap(values, painted.low, painted.high)
        self.pixels[inside] = cv2.addWeighted(self.pixels[inside], 1 - _OPACITY, colours, _OPACITY, 0)

    def outline(self, mask: NDArray[np.bool_]) -> None:
        """Draw the borders of a mask, holes included, in red between white, which is seen on every colour."""
        enlarged = self._enlarged(mask, self._factor).astype(np.uint8)
        contours, _ = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(self.pixels, contours, -1, _WHITE, 2 * self._line)
        cv2.drawContours(self.pixels, contours, -1, RED, self._line)

    def boxes(self, regions: Sequence[Region]) -> None:
        """Draw a box around each region, in white between black."""
        away = 3 * self._line
        height, width = self.pixels.shape[:2]
        corners = [
            (
                (max(region.left * self._factor - away, 0), max(region.top * self._factor - away, 0)),
                (
                    min((region.left + region.width_px) * self._factor - 1 + away, width - 1),
                    min((region.top + region.height_px) * self._factor - 1 + away, height - 1),
                ),
            )
            for region in regions
        ]
        thin = max(1, self._line // 2)
        for colour, thick in ((_BLACK, 3 * thin), (_WHITE, thin)):
            for first, last in corners:
                cv2.rectangle(self.pixels, first, last, colour, thick)

    def hatch(self, mask: NDArray[np.bool_]) -> None:
        """Darken the pixels of a mask, and draw slanted lines over them."""
        if not mask.any():
            return
        inside = self._enlarged(mask, self._factor)
        rows, columns = np.ogrid[: inside.shape[0], : inside.shape[1]]
        lines = (rows + columns) % self.letter < max(1, self.letter // 8)
        self.pixels[inside] //= 2
        self.pixels[inside & lines] = _GREY


def _as_rgb(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a frame as RGB.

    Raises:
        TypeError: The frame is no array.
        ValueError: The frame has another type or shape.
    """
    if not isinstance(frame, np.ndarray):
        raise TypeError(
            f"a frame to draw on is an array (H, W, 3) uint8 RGB or (H, W) uint8 grey, got {type(frame).__name__}"
        )
    if frame.dtype == np.uint8 and frame.ndim == 2:
        return np.repeat(frame[..., None], 3, axis=2)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(
            f"a frame to draw on is (H, W, 3) uint8 RGB or (H, W) uint8 grey, got {frame.shape} {frame.dtype}"
        )
    return frame


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a picture so that a reader sees all of it or nothing.

    Args:
        path: The file, whose folder must exist. A file that is there is replaced.
        image: ``(H, W, 3)`` uint8 RGB or ``(H, W)`` uint8 grey.

    Raises:
        ImageError: The file cannot be written.
    """
    write_content(path, encoded(image, ".png"))


def write_jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a picture as a JPEG of quality 95, so that a reader sees all of it or nothing.

    Args:
        path: The file, whose folder must exist. A file that is there is replaced.
        image: ``(H, W, 3)`` uint8 RGB or ``(H, W)`` uint8 grey.

    Raises:
        ImageError: The file cannot be written, or the picture is larger than a JPEG may be.
    """
    if max(image.shape) > _LONGEST_OF_JPEG:
        raise ImageError(
            f"{path} would have {image.shape[1]}x{image.shape[0]} pixels. The longest side of a JPEG may be "
            f"{_LONGEST_OF_JPEG}. Save a PNG."
        )
    write_content(path, encoded(image, ".jpg", jpeg_quality=95))


def write_content(path: Path, content: bytes) -> None:
    """Write a file that a user named, so that a reader sees all of it or nothing.

    Raises:
        ImageError: The file cannot be written.
    """
    try:
        write_whole_file(path, content)
    except OSError as error:
        raise ImageError(
            f"{path} cannot be written: {error.strerror}. Check that its folder exists, is writable and has space."
        ) from error


def data_address(image: NDArray[np.uint8], *, jpeg_quality: int | None = None) -> str:
    """Encode a picture as a ``data:`` address, so that a page holds it.

    Args:
        image: ``(H, W, 3)`` uint8 RGB or ``(H, W)`` uint8 grey.
        jpeg_quality: The quality of a JPEG, 0 to 100. Without it the picture is a PNG, which loses nothing.
    """
    kind = "png" if jpeg_quality is None else "jpeg"
    data = encoded(image, f".{kind}", jpeg_quality=jpeg_quality)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def encoded(image: NDArray[np.uint8], suffix: str, *, jpeg_quality: int | None = None) -> bytes:
    """Return the content of a picture's file.

    Args:
        image: ``(H, W, 3)`` uint8 RGB or ``(H, W)`` uint8 grey.
        suffix: The end of a file's name, ``.png`` or ``.jpg``.
        jpeg_quality: The quality of a JPEG, 0 to 100, 95 by default.
    """
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    options = [] if jpeg_quality is None else [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
    encoded, data = cv2.imencode(suffix, bgr, options)
    assert encoded, f"OpenCV cannot encode {image.shape} {image.dtype}"
    return data.tobytes()


def _check_same_size(frame: NDArray[np.uint8], layer: NDArray[np.generic]) -> None:
    if frame.shape[:2] != layer.shape:
        raise ValueError(
            f"a frame to draw on has the size of the judged frame, {layer.shape}, got {frame.shape[:2]}"
        )
