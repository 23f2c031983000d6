"""Inspect an area of each frame: regions of interest without what is to be ignored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError, SettingsError
from flowedge.framing import Size
from flowedge.geometry import map_to_frame
from flowedge.manifest import Preprocessing
from flowedge.runtime.area.area import Area, area_of, check_drawn_size, drawn_size
from flowedge.runtime.area.inside import InsideEngine, open_inside
from flowedge.runtime.area.result import in_area
from flowedge.runtime.area.score import is_largest_value, score_inside
from flowedge.runtime.area.settings import AreaSettings, TileSettings
from flowedge.runtime.area.tiles import Grid, Tile, grid_of
from flowedge.runtime.decide import Decided
from flowedge.runtime.detector import Detector
from flowedge.runtime.device.forks import keep_in_children
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.frames.pixels import Color, Given
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.result import Result
from flowedge.runtime.settings import checked


class AreaDetector(Detector):
    """A detector that judges an area of each frame and nothing outside of it.

    The score is the family's own score of the cells inside, see `flowedge.runtime.area.score`, on the scale of
    the threshold. The results are `flowedge.runtime.area.result.AreaResult`.

    With tiles, each tile is a frame of its own for the network. `TileSettings.decide` says which score is compared with
    the threshold. A number of false alarms of the frame is the lowest of its tiles, times the number of tiles where the
    frame decides.

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
            EngineWrongError: With ``only_inside``, the answers inside of the area differ from those of the whole frame.
            EngineUnavailableError: With ``only_inside``, the engine cannot run the graph of the area.
        """
        super().__init__(
            detector.bundle,
            detector.engine,
            source_scale=detector.source_scale,
            min_region_px=detector.min_region_px,
        )
        self.settings = settings = checked(settings)
        self._scoring = self.bundle.manifest.graph(self.precision).scoring
        self._tiles = None if settings.tiles is None else self._checked(settings.tiles)
        self._of = lru_cache(maxsize=4)(self._find)
        self._drawn = drawn_size(settings)
        if self._drawn is None and self._tiles is None:
            self._drawn = self.bundle.manifest.frame_size
        if self._drawn is not None:
            try:
                self._of(self._drawn)
            except ImageError as error:
                raise SettingsError(f"the area does not suit {self.bundle.path}: {error}") from error
        self._inside: InsideEngine | None = None
        if settings.only_inside:
            self.engine, self._inside = self._open_inside(detector)
            self._input = GraphInput(self.bundle.manifest)  # the engine of the area takes no frames
            keep_in_children(self.engine.engine)

    def area(self, frame_size: Size) -> Area:
        """Find the judged pixels of frames of a size.

        Args:
            frame_size: ``(height, width)`` of the frames in pixels.

        Raises:
            ImageError: The area was drawn on frames of another size.
            SettingsError: The area does not lie in such a frame, or is empty.
        """
        return self._of(frame_size).area

    def warm_up(self, frame_size: Size | None = None, *, batch: int = 1) -> None:
        """Inspect black frames, see `flowedge.Detector.warm_up`. By default they have the size of the area's frames."""
        super().warm_up(frame_size or self._drawn or self._tile_size, batch=batch)

    def prepare(
        self, frames: Sequence[Given] | NDArray[Any], color: Color = "rgb"
    ) -> tuple[list[NDArray[np.uint8]], Any]:
        """Return the frames as 8-bit RGB, and what `infer` takes. Tiles are prepared later, a few at a time.

        Raises:
            ImageError: A frame has another size than those that the area was drawn on, is of another type or shape,
                cannot be read, or does not become the graph's input. Or the frames of a batch differ in size.
        """
        pixels = self._pixels(frames, color)
        sizes = sorted({_size(frame) for frame in pixels})
        if len(sizes) > 1:
            raise ImageError(f"the frames of a batch must have one size, got {sizes}. Give them one by one.")
        if self._drawn is None:
            try:
                self._of(sizes[0])
            except SettingsError as error:
                raise ImageError(f"the frame does not suit the area: {error}") from error
        else:
            check_drawn_size(self._drawn, sizes[0])
        return pixels, pixels if self._tiles is not None else self._input(pixels)

    def infer(self, image: Any) -> dict[str, NDArray[np.float32]]:
        """Run the engine on what `prepare` returned.

        Returns:
            The outputs of the graph by name. For tiles: ``score`` ``(N, T)``, the scores of the tiles, and
            ``anomaly_map`` ``(N, 1, H, W)``, the map put together, and ``log_nfa`` likewise where this number decides.

        Raises:
            EngineUnavailableError: The device stopped.
            ValueError: The detector was closed.
        """
        if self._inside is not None:
            self.check_usable()
            return self._inside.infer(image)
        if self._tiles is None:
            return super().infer(image)
        found = [self._infer_tiles(frame, self._tiles) for frame in image]
        return {name: np.stack([one[name] for one in found]) for name in found[0]}

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
            outputs: The outputs that `infer` returned.
            preprocess_ms: The time of preparing one frame, in ms.
            infer_ms: The time of the engine for one frame, in ms.
        """
        found = self._of(_size(pixels[0]))
        results = super().judge(pixels, outputs, preprocess_ms=preprocess_ms, infer_ms=infer_ms)
        return [in_area(result, found.area, found.cells, is_stitched=bool(found.grid)) for result in results]

    def __enter__(self) -> AreaDetector:
        return self

    @property
    def _tile_size(self) -> Size | None:
        """The height and the width of a tile in pixels of the frame, where there are tiles."""
        if self._tiles is None:
            return None
        return self._tiles.size or self.bundle.manifest.frame_size or self.image_size

    def _infer_tiles(self, frame: NDArray[np.uint8], tiles: TileSettings) -> dict[str, NDArray[np.float32]]:
        """Run the engine on the tiles of one frame, a few at a time, and put their maps together."""
        found = self._of(_size(frame))
        assert found.grid is not None
        smallest, largest = self.engine.batches or (1, tiles.at_once)
        stitched = np.zeros((1, *_size(frame)), np.float32)
        lowest = np.full_like(stitched, np.inf) if self.thresholds.nfa is not None else None
        scores: list[np.float32] = []
        for chunk in found.grid.in_chunks(min(max(tiles.at_once, smallest), largest)):
            cut = [tile.cut(frame) for tile in chunk]
            outputs = super().infer(self._input(cut + cut[-1:] * (smallest - len(cut))))
            log_nfas = self._decider.log_nfas(outputs)
            for number, tile in enumerate(chunk):
                scores.append(self._score_of_tile(tile, outputs, number))
                found.grid.add_map(stitched[0], tile, outputs["anomaly_map"][number, 0])
                if lowest is not None:
                    log_nfa = log_nfas[number]
                    one = np.full((1, 1), np.nan) if log_nfa is None else log_nfa
                    found.grid.keep_lowest(lowest[0], tile, one.astype(np.float32))
        given = {"score": np.array(scores, np.float32), "anomaly_map": stitched}
        return given if lowest is None else {**given, "log_nfa": lowest}

    def _score_of_tile(
        self, tile: Tile, outputs: Mapping[str, NDArray[np.float32]], number: int
    ) -> np.float32:
        """Compute the score of the area inside of one tile."""
        if tile.part.inside.all():
            return np.float32(outputs["score"][number])
        manifest = self.bundle.manifest
        cells, *level_cells = (
            tile.part.cells(manifest.preprocessing, size)
            for size in (self.image_size, *((one.height, one.width) for one in manifest.levels))
        )
        of_tile = {name: value[number : number + 1] for name, value in outputs.items()}
        return np.float32(score_inside(of_tile, self._scoring, manifest.family, cells, level_cells)[0])

    def _decide(
        self, pixels: Sequence[NDArray[np.uint8]], outputs: Mapping[str, NDArray[np.float32]]
    ) -> list[Decided]:
        found = self._of(_size(pixels[0]))
        if found.grid is None or self._tiles is None:
            family = self.bundle.manifest.family
            score = score_inside(outputs, self._scoring, family, found.cells, found.level_cells)
            return self._decider({**outputs, "score": score}, found.cells)
        maps = outputs["anomaly_map"]
        of_area = maps[:, 0, found.cells]
        by_tile = self._tiles.decide == "tile"
        scores = outputs["score"].max(axis=1) if by_tile else of_area.max(axis=1)
        # Outside of the area only some of the tiles were computed, or none.
        maps = np.where(found.cells, maps, of_area.min(axis=1)[:, None, None, None])
        log_nfas: list[NDArray[np.float64] | None] = [None] * len(maps)
        if "log_nfa" in outputs:
            # The expected number of false alarms in a frame is the sum over its tiles.
            more = 0.0 if by_tile else math.log10(len(found.grid.tiles))
            log_nfas = [_finite(one[0].astype(np.float64) + more, found.cells) for one in outputs["log_nfa"]]
        return self._decider.decide(scores, maps, log_nfas, found.cells)

    def _compare(self, frame: NDArray[np.uint8]) -> tuple[str, NDArray[np.float64] | None]:
        found = self._of(_size(frame))
        if found.grid is None:
            return super()._compare(frame)
        for tile in found.grid.tiles:
            problem, _ = super()._compare(tile.cut(frame))
            if problem:
                return f"the tile at x {tile.columns.start}, y {tile.rows.start}: {problem}", None
        return "", None

    def _checked(self, tiles: TileSettings) -> TileSettings:
        """Check that the bundle can inspect tiles.

        Raises:
            SettingsError: The bundle cannot inspect tiles, or the tiles have no size that suits it.
        """
        manifest = self.bundle.manifest
        size = tiles.size or manifest.frame_size or manifest.image_size
        if self._scoring.normalisation == "per_image":
            raise SettingsError(
                f"{self.bundle.path} normalises each image by its own maximum, so the tiles of a frame share no scale. "
                "Run flowedge calibrate on good tiles first."
            )
        if tiles.overlap >= min(size):
            raise SettingsError(
                f"[area.tiles] overlap is {tiles.overlap} pixels, and a tile has {size[0]}x{size[1]} (height x width). "
                "Make overlap smaller than both sides."
            )
        if (
            tiles.decide == "frame"
            and self.thresholds.nfa is None
            and not is_largest_value(self._scoring, manifest.family)
        ):
            raise SettingsError(
                '[area.tiles] decide = "frame" compares the largest value of the frame\'s map with the image '
                f'threshold, and the score of {self.bundle.path} is no largest value. Use decide = "tile".'
            )
        try:
            self._input([np.zeros((*size, 3), np.uint8)])
        except ImageError as error:
            raise SettingsError(
                f"a tile of {size[0]}x{size[1]} pixels does not suit {self.bundle.path}: {error}"
            ) from error
        return tiles

    def _open_inside(self, detector: Detector) -> tuple[Opened, InsideEngine]:
        """Open an engine that computes the area alone.

        Raises:
            SettingsError: The area is not known beforehand, or there are tiles.
        """
        if self._tiles is not None or self._drawn is None:
            raise SettingsError(
                "[area] only_inside needs inspect, ignore or a mask, and no tiles. Tiles without a judged pixel are "
                "never computed. Leave the key out."
            )
        found = self._of(self._drawn)
        return open_inside(detector, found.cells, found.level_cells)

    def _find(self, frame_size: Size) -> _Found:
        """Find the area of frames of a size, and check that the network sees it.

        Raises:
            ImageError: The area was drawn on frames of another size, or such frames do not become the graph's input.
            SettingsError: The area does not lie in such a frame, is empty, or the network does not see all of it.
        """
        area = area_of(self.settings, frame_size)
        preprocessing, levels = self.bundle.manifest.preprocessing, self.bundle.manifest.levels
        if self._tiles is not None and self._tile_size is not None:
            grid = grid_of(area, self._tile_size, self._tiles.overlap, preprocessing)
            return _Found(area, area.inside, [], grid)
        is_named = bool(self.settings.inspect) or self.settings.mask is not None
        if is_named and (problem := _unseen_problem(area, preprocessing)):
            raise SettingsError(problem)
        cells = area.cells(preprocessing, self.image_size)
        if not cells.any():
            raise SettingsError("the area is empty: the network's input leaves all of its pixels out.")
        return _Found(
            area, cells, [area.cells(preprocessing, (one.height, one.width)) for one in levels], None
        )


class _Found(NamedTuple):
    """The area of frames of one size, its cells in the map and in each level, and its tiles where there are some."""

    area: Area
    cells: NDArray[np.bool_]
    level_cells: list[NDArray[np.bool_]]
    grid: Grid | None


def _finite(log_nfa: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Return a map with its largest value outside of the area, or None where it is not finite inside."""
    values = log_nfa[inside]
    if np.isnan(values).any():
        return None
    return np.where(inside, log_nfa, values.max())


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
