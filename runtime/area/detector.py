"""Inspect an area of each frame: regions of interest without what is to be ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError, SettingsError
from flowedge.framing import Size
from flowedge.geometry import map_to_frame
from flowedge.manifest import Preprocessing
from flowedge.runtime.area.area import Area, area_of, drawn_size
from flowedge.runtime.area.result import in_area
from flowedge.runtime.area.score import score_inside
from flowedge.runtime.area.settings import AreaSettings
from flowedge.runtime.decide import Decided
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.pixels import Color, Given
from flowedge.runtime.result import Result


class AreaDetector(Detector):
    """A detector that judges an area of each frame and nothing outside of it.

    The score is the family's own score of the cells inside, see `flowedge.runtime.area.score`. It is on the scale of
    the threshold. The results are `flowedge.runtime.area.result.AreaResult`.

    The detector that is given belongs to this one, which closes its engine.

    Examples:
        >>> import numpy as np
        >>> import flowedge
        >>> from flowedge.runtime.area.detector import AreaDetector
        >>> from flowedge.runtime.area.settings import AreaSettings
        >>> left_half = AreaSettings(frame_size=(480, 640), inspect=(((0, 0), (320, 0), (320, 480), (0, 480)),))
        >>> with AreaDetector(flowedge.load("bottle.flowedge"), left_half) as detector:
        ...     result = detector(np.zeros((480, 640, 3), dtype=np.uint8))
        >>> np.isnan(result.anomaly_map[:, 320:]).all()
        np.True_
    """

    def __init__(self, detector: Detector, settings: AreaSettings) -> None:
        """Take a detector over and restrict it to an area.

        Args:
            detector: A detector of the whole frame.
            settings: The area.

        Raises:
            SettingsError: The area does not lie in the frame, is empty, holds pixels that the network does not see, or
                does not suit the bundle.
        """
        super().__init__(
            detector.bundle,
            detector.engine,
            source_scale=detector.source_scale,
            min_region_px=detector.min_region_px,
        )
        self.settings = settings
        self._scoring = self.bundle.manifest.graph(self.precision).scoring
        self._of = lru_cache(maxsize=4)(self._find)
        frame_size = drawn_size(settings) or self.bundle.manifest.frame_size
        if frame_size is not None:
            try:
                self._of(frame_size)
            except ImageError as error:
                raise SettingsError(f"the area does not suit {self.bundle.path}: {error}") from error

    def area(self, frame_size: Size) -> Area:
        """Find the judged pixels of frames of a size.

        Args:
            frame_size: ``(height, width)`` of the frames in pixels.

        Raises:
            ImageError: The area was drawn on frames of another size.
            SettingsError: The area does not lie in such a frame, or is empty.
        """
        return self._of(frame_size).area

    def prepare(
        self, frames: Sequence[Given] | NDArray[Any], color: Color = "rgb"
    ) -> tuple[list[NDArray[np.uint8]], NDArray[Any]]:
        """Return the frames as 8-bit RGB, and the engine's input that is made of them.

        Raises:
            ImageError: A frame has another size than those that the area was drawn on, is of another type or shape,
                cannot be read, or does not become the graph's input.
        """
        pixels = self._pixels(frames, color)
        sizes = {_size(frame) for frame in pixels}
        if len(sizes) > 1:
            raise ImageError(
                f"the frames of a batch must have one size, got {sorted(sizes)}. Give them one by one."
            )
        for size in sizes:
            self._of(size)
        return pixels, self._input(pixels)

    def judge(
        self,
        pixels: Sequence[NDArray[np.uint8]],
        outputs: Mapping[str, NDArray[np.float32]],
        *,
        preprocess_ms: float,
        infer_ms: float,
    ) -> list[Result]:
        """Decide on the area of each frame.

        Args:
            pixels: The frames as 8-bit RGB.
            outputs: The outputs of the engine by name, for as many images as there are frames.
            preprocess_ms: The time of preparing one frame, in ms.
            infer_ms: The time of the engine for one frame, in ms.
        """
        found = self._of(_size(pixels[0]))
        results = super().judge(pixels, outputs, preprocess_ms=preprocess_ms, infer_ms=infer_ms)
        return [in_area(result, found.area, found.cells) for result in results]

    def __enter__(self) -> AreaDetector:
        return self

    def _decide(
        self, pixels: Sequence[NDArray[np.uint8]], outputs: Mapping[str, NDArray[np.float32]]
    ) -> list[Decided]:
        found = self._of(_size(pixels[0]))
        score = score_inside(
            outputs, self._scoring, self.bundle.manifest.family, found.cells, found.level_cells
        )
        return self._decider({**outputs, "score": score}, found.cells)

    def _find(self, frame_size: Size) -> _Found:
        """Find the area of frames of a size, and check that the network sees it.

        Raises:
            ImageError: The area was drawn on frames of another size, or such frames do not become the graph's input.
            SettingsError: The area does not lie in such a frame, is empty, or the network does not see all of it.
        """
        area = area_of(self.settings, frame_size)
        preprocessing, levels = self.bundle.manifest.preprocessing, self.bundle.manifest.levels
        is_named = bool(self.settings.inspect) or self.settings.mask is not None
        if is_named and (problem := _unseen_problem(area, preprocessing)):
            raise SettingsError(problem)
        cells = area.cells(preprocessing, self.image_size)
        if not cells.any():
            raise SettingsError("the area is empty: the network's input leaves all of its pixels out.")
        return _Found(area, cells, [area.cells(preprocessing, (one.height, one.width)) for one in levels])


class _Found(NamedTuple):
    """The area of frames of one size, and its cells in the anomaly map and in each level."""

    area: Area
    cells: NDArray[np.bool_]
    level_cells: list[NDArray[np.bool_]]


def _unseen_problem(area: Area, preprocessing: Preprocessing) -> str:
    """Say which pixels of an area the network does not see. The text is empty where it sees all of them."""
    seen = np.isfinite(map_to_frame(np.zeros((1, 1), np.float32), preprocessing, area.frame_size))
    if not (area.inside & ~seen).any():
        return ""
    rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    return (
        f"the area holds {int((area.inside & ~seen).sum())} pixels that the network does not see, because the "
        f"bundle's preprocessing cuts the borders of a frame off. Of a frame of {area.frame_size[0]}x"
        f"{area.frame_size[1]} it sees x from {columns[0]} to {columns[-1] + 1} and y from {rows[0]} to "
        f"{rows[-1] + 1}. Keep the area inside, or turn the camera."
    )


def _size(frame: NDArray[np.uint8]) -> Size:
    height, width = frame.shape[:2]
    return height, width
