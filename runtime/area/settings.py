"""Define the settings of an area: which pixels of a frame are judged, and how a large frame is cut into tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from flowedge.runtime.device.limits import MAX_PICTURE_SIDE
from flowedge.runtime.settings import Settings

MOST_POLYGONS: Final = 100
MOST_CORNERS: Final = 1000
"""The limits of an area, in a file and on a station's page alike."""

Coordinate: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=MAX_PICTURE_SIDE)]
Side: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_PICTURE_SIDE)]
Polygon: TypeAlias = Annotated[
    tuple[tuple[Coordinate, Coordinate], ...], msgspec.Meta(min_length=3, max_length=MOST_CORNERS)
]
"""The corners ``[x, y]`` of a polygon in pixels of the frame. Pixel (row r, column c) covers x from c to c + 1 and y
from r to r + 1, as in `flowedge.runtime.regions.Region.contour`. The last corner joins the first."""

Polygons: TypeAlias = Annotated[tuple[Polygon, ...], msgspec.Meta(max_length=MOST_POLYGONS)]


class TileSettings(Settings, frozen=True, kw_only=True):
    """The tiles that a large frame is cut into. Each tile is inspected as a frame of its own.

    Attributes:
        size: Height and width of a tile in pixels of the frame. By default a tile is as large as the network's input.
        overlap: The pixels that neighbouring tiles share at least. In the overlap the maps fade into each other.
        at_once: The number of tiles of one run of the engine, which bounds the memory.
        decide: Which score is compared with the image threshold. ``tile`` takes the largest score of a tile, so one
            anomalous tile makes the frame anomalous. ``frame`` takes the largest value of the frame's map, where the
            family's score is the largest value of its map.
    """

    size: tuple[Side, Side] | None = None
    overlap: Annotated[int, msgspec.Meta(ge=0, le=MAX_PICTURE_SIDE)] = 32
    at_once: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 8
    decide: Literal["tile", "frame"] = "tile"


class AreaSettings(Settings, frozen=True, kw_only=True):
    """The area of a frame that is judged. Without polygons and mask it is the whole frame.

    Attributes:
        frame_size: Height and width in pixels of the frames on which the polygons were drawn. Frames of another size
            are refused. A mask has its own size.
        inspect: Polygons of which each pixel is judged. Without polygons every pixel is judged.
        ignore: Polygons of which no pixel is judged.
        mask: A picture of the size of the frames. Pixels of grey level 128 and above are judged, the darker ones not.
        only_inside: Compute only the part of the network that the area needs. The bundle is refused where the answer
            inside of the area would not be that of the whole frame.
        tiles: The tiles that a large frame is cut into. By default the frame is inspected as a whole.
    """

    frame_size: tuple[Side, Side] | None = None
    inspect: Polygons = ()
    ignore: Polygons = ()
    mask: Path | None = None
    only_inside: bool = False
    tiles: TileSettings | None = None
