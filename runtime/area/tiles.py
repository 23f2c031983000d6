"""Cut a large frame into overlapping tiles, and put their maps together without seams.

The tiles of a row or column are spread evenly, so that the last one ends where the frame ends and every tile has its
full size. A map of the frame is the mean of the tiles' maps, weighted so that neighbours fade into each other in the
middle half of their overlap. The outer quarter of the overlap counts nothing, because the padding of a network's
convolutions shows at the border of its input. The weights are products of one for the row and one for the column.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError, SettingsError
from flowedge.framing import Size
from flowedge.geometry import map_to_frame
from flowedge.manifest import Preprocessing
from flowedge.runtime.area.area import Area

Number = TypeVar("Number", bound=np.generic)

MOST_TILES: Final = 4096
"""The most tiles of one frame."""


class Tile(NamedTuple):
    """One tile of a grid.

    Attributes:
        rows: The rows of the frame that the tile covers.
        columns: The columns of the frame that the tile covers.
        row_weights: ``(height, 1)`` float32, the tile's share of each row of the frame's map.
        column_weights: ``(width,)`` float32, the tile's share of each column of the frame's map.
        part: The area inside of the tile.
    """

    rows: slice
    columns: slice
    row_weights: NDArray[np.float32]
    column_weights: NDArray[np.float32]
    part: Area

    def cut(self, frame: NDArray[Number]) -> NDArray[Number]:
        """Return the pixels of the tile, a view of the frame or of a map over it."""
        return frame[self.rows, self.columns]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """The tiles of frames of one size that hold a part of the area.

    Attributes:
        tile_size: Height and width of each tile in pixels of the frame.
        tiles: The tiles, row by row.
        preprocessing: The steps from a tile to the network's input.
        seen: The rows and the columns of a tile that the network sees. A crop cuts the others off.
    """

    tile_size: Size
    tiles: tuple[Tile, ...]
    preprocessing: Preprocessing
    seen: tuple[slice, slice]

    def in_chunks(self, count: int) -> Iterator[tuple[Tile, ...]]:
        """Give the tiles in groups of at most ``count``."""
        tiles = iter(self.tiles)
        while chunk := tuple(itertools.islice(tiles, count)):
            yield chunk

    def add_map(self, stitched: NDArray[np.float32], tile: Tile, network_map: NDArray[np.float32]) -> None:
        """Add the share of one tile to the map of the frame.

        Args:
            stitched: ``(H, W)``, which begins with zeros and is modified.
            tile: The tile.
            network_map: ``(h, w)``, a map over the network's input.
        """
        rows, columns = self.seen
        over_tile = map_to_frame(network_map, self.preprocessing, self.tile_size)[rows, columns]
        over_tile *= tile.row_weights[rows]
        over_tile *= tile.column_weights[columns]
        there = tile.cut(stitched)[rows, columns]
        there += over_tile

    def keep_lowest(
        self, stitched: NDArray[np.float32], tile: Tile, network_map: NDArray[np.float32]
    ) -> None:
        """Lower the map of the frame where one tile has lower values. A NaN stays.

        Args:
            stitched: ``(H, W)``, which begins with infinity and is modified.
            tile: The tile.
            network_map: ``(h, w)``, a map over the network's input.
        """
        rows, columns = self.seen
        over_tile = map_to_frame(network_map, self.preprocessing, self.tile_size)[rows, columns]
        there = tile.cut(stitched)[rows, columns]
        np.minimum(there, over_tile, out=there)


def grid_of(area: Area, tile_size: Size, overlap: int, preprocessing: Preprocessing) -> Grid:
    """Spread tiles over an area.

    Args:
        area: The judged pixels of the frame.
        tile_size: Height and width of a tile in pixels.
        overlap: The pixels that neighbours share at least, fewer than a tile has along either side.
        preprocessing: The steps from a tile to the network's input.

    Raises:
        ImageError: The frame is smaller than a tile, or would have more than ``MOST_TILES``.
        SettingsError: A crop of the bundle leaves pixels of the area between or around the tiles unseen.
    """
    frame = area.frame_size
    if any(whole < part for whole, part in zip(frame, tile_size, strict=True)):
        raise ImageError(
            f"the frame is {frame[0]}x{frame[1]} pixels, smaller than a tile of {tile_size[0]}x{tile_size[1]} (height "
            "x width). Give larger frames, or make [area.tiles] size smaller."
        )
    starts = [_starts(whole, part, overlap) for whole, part in zip(frame, tile_size, strict=True)]
    if (count := len(starts[0]) * len(starts[1])) > MOST_TILES:
        raise ImageError(
            f"the frame of {frame[0]}x{frame[1]} pixels would have {count} tiles, and {MOST_TILES} are allowed. Make "
            "[area.tiles] size larger or overlap smaller."
        )
    seen_pixels = np.isfinite(map_to_frame(np.zeros((1, 1), np.float32), preprocessing, tile_size))
    seen: list[NDArray[np.bool_]] = [np.asarray(seen_pixels.any(axis=axis)) for axis in (1, 0)]
    weights = [
        _weights(whole, part, overlap, first, visible)
        for whole, part, first, visible in zip(frame, tile_size, starts, seen, strict=True)
    ]
    covered = np.outer(*(total > 0 for _, total in weights))
    if missing := int((area.inside & ~covered).sum()):
        raise SettingsError(
            f"the tiles leave {missing} pixels of the area unseen, because the bundle's preprocessing cuts the borders "
            "of each tile off. Make [area.tiles] overlap larger, and keep the area away from the frame's border."
        )
    shares = [
        [
            one / np.where(total > 0, total, 1)[start : start + len(one)]
            for start, one in zip(first, each, strict=True)
        ]
        for first, (each, total) in zip(starts, weights, strict=True)
    ]
    height, width = tile_size
    tiles = [
        Tile(
            rows=(rows := slice(top, top + height)),
            columns=(columns := slice(left, left + width)),
            row_weights=row_weights[:, None].astype(np.float32),
            column_weights=column_weights.astype(np.float32),
            part=Area(area.inside[rows, columns]),
        )
        for top, row_weights in zip(starts[0], shares[0], strict=True)
        for left, column_weights in zip(starts[1], shares[1], strict=True)
    ]
    return Grid(
        tile_size=tile_size,
        tiles=tuple(tile for tile in tiles if tile.part.inside.any()),
        preprocessing=preprocessing,
        seen=(_range_of(seen[0]), _range_of(seen[1])),
    )


def _starts(whole: int, part: int, overlap: int) -> list[int]:
    """Return the first pixels of tiles that cover an axis, spread evenly."""
    count = 1 + max(0, -(-(whole - part) // (part - overlap)))
    return [round(number * (whole - part) / max(count - 1, 1)) for number in range(count)]


def _weights(
    whole: int, part: int, overlap: int, starts: list[int], seen: NDArray[np.bool_]
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the weights of each tile along an axis, and their sum for each pixel of the frame."""
    ramp = np.ones(part)
    if overlap:
        ramp = np.clip((np.arange(part) + 0.5 - overlap / 4) / (overlap / 2), 0, 1)
    total = np.zeros(whole)
    weights = []
    for start in starts:
        one = seen.astype(np.float64)
        # At the border of the frame no neighbour takes over.
        one *= ramp if start > 0 else 1
        one *= ramp[::-1] if start + part < whole else 1
        weights.append(one)
        total[start : start + part] += one
    return weights, total


def _range_of(flags: NDArray[np.bool_]) -> slice:
    places = np.flatnonzero(flags)
    return slice(int(places[0]), int(places[-1]) + 1)
