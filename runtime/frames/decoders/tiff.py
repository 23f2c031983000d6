"""Decode TIFF files (revision 6.0): the directory, the pieces of the picture, and the colours of their samples.

Pillow leaves compressed pieces to libtiff, which fills what is missing and writes to stderr. The pieces are therefore
read here, one by one and to the last byte. A refusal names the rare variant.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowedge.runtime.frames.decoders.faults import (
    DamagedError,
    RefusedError,
    check_picture_size,
    check_sample_bytes,
    several_pictures,
)
from flowedge.runtime.frames.decoders.tiff_pieces import COMPRESSIONS, LZW, MAX_LZW, Buffer, unpacked

SIGNATURE: Final = rb"II[*+]\x00|MM\x00[*+]"

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_COUNTS = 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_LENGTH = 284, 317, 320, 322, 323
_TILE_OFFSETS, _TILE_COUNTS, _EXTRA, _FORMAT, _XMP = 324, 325, 338, 339, 700
_READ: Final = frozenset(
    {
        *(
            _WIDTH,
            _LENGTH,
            _BITS,
            _COMPRESSION,
            _PHOTOMETRIC,
            _FILL_ORDER,
            _STRIP_OFFSETS,
            _ORIENTATION,
            _SAMPLES,
        ),
        *(_ROWS_PER_STRIP, _STRIP_COUNTS, _PLANAR, _PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_LENGTH),
        *(_TILE_OFFSETS, _TILE_COUNTS, _EXTRA, _FORMAT),
    }
)
_TYPES: Final = {3: "H", 4: "I"}  # SHORT and LONG: Pillow takes the BYTEs of these tags for text
_MAX_VALUES: Final = 1 << 20  # the most values of one tag, each of which becomes a Python object
# Pillow turns a picture by its XMP packet, of the types BYTE or UNDEFINED, where it has no tag for the orientation.
_XMP_TYPES: Final = {1: "B", 7: "B"}
_XMP_ORIENTATION: Final = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_MEDIA_PHOTO: Final = 0xBC01  # the tag of a pixel format of JPEG XR
_PREDICTED: Final = (LZW, 8, 32946)  # LZW and Deflate: libtiff knows no predictor in other compressions
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK = 0, 1, 2, 3, 5
_COLOURS: Final = {4: "transparency masks", 6: "YCbCr colours", 8: "LAB colours", 9: "LAB colours"}
_CHANNELS: Final = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4}
_UNSPECIFIED, _PREMULTIPLIED, _ALPHA = 0, 1, 2  # of ExtraSamples
_KINDS: Final = {1: "u", 2: "i", 3: "f"}  # by SampleFormat
_DEEP: Final = frozenset({"u2", "i2", "u4", "i4", "f2", "f4", "f8"})
_MAX_SAMPLES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """The layout of the samples in the file.

    Attributes:
        height: The height of the picture in pixels.
        width: The width of the picture in pixels.
        bits: The number of bits of a sample.
        samples: The number of samples of a pixel, with alpha.
        planes: 1 where a pixel's samples lie together, else ``samples``.
        piece_height: The height of a strip or a tile in pixels.
        piece_width: The width of a strip or a tile in pixels.
        compression: A key of `COMPRESSIONS`.
        predictor: The number 1 for samples as they are, 2 for differences along a row.
        dtype: The type of a sample of 8 or more bits, in the file's byte order.
    """

    height: int
    width: int
    bits: int
    samples: int
    planes: int
    piece_height: int
    piece_width: int
    compression: int
    predictor: int
    dtype: np.dtype[Any]


def decode(data: bytes) -> NDArray[Any]:
    """Decode a TIFF file of one picture, turned as its orientation says.

    Returns:
        ``(H, W, 3)`` uint8, RGB, the pixels that PIL gives. A grey or RGB file of more than 8 bits gives ``(H, W)`` or
        ``(H, W, 3)`` in its own type.

    Raises:
        DamagedError: A piece is missing, short or too long, or the directory contradicts itself.
        RefusedError: The file is of a rare variant, too large, or holds several pictures.
    """
    if data[2:3] == b"+" or data[3:4] == b"+":
        raise RefusedError("is a BigTIFF file. Save it as a TIFF of less than 4 GB or a PNG.")
    order = "<" if data[:2] == b"II" else ">"
    tags = _directory(data, order)
    layout = _layout(tags, order)
    samples = _samples(data, tags, layout)
    orientation = _one(tags, _ORIENTATION, _one(tags, _XMP, 1))
    return np.ascontiguousarray(_turned(_colours(samples, tags, layout), orientation))


def _directory(data: bytes, order: str) -> dict[int, tuple[int, ...]]:
    """Return the values of the first directory's tags. The value of the XMP packet is its orientation.

    Raises:
        DamagedError: A tag is there twice, of a wrong type, or beyond the end of the file.
        RefusedError: There is a second directory, or a tag has too many values.
    """
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    tags: dict[int, tuple[int, ...]] = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", data, entry)
        if tag == _MEDIA_PHOTO:
            raise RefusedError(
                "is a Windows Media Photo in the frame of a TIFF file. Save it as a TIFF or a PNG."
            )
        if tag not in _READ and tag != _XMP:
            continue
        if tag in tags:
            raise DamagedError(f"its tag {tag} is there twice")
        kinds = _XMP_TYPES if tag == _XMP else _TYPES
        if kind not in kinds:
            raise DamagedError(f"its tag {tag} has the wrong type {kind}")
        size = length * struct.calcsize(kinds[kind])
        (where,) = (entry + 8,) if size <= 4 else struct.unpack_from(f"{order}I", data, entry + 8)
        if where + size > len(data):
            raise DamagedError(f"the values of its tag {tag} lie beyond its end")
        if tag == _XMP:
            said = _XMP_ORIENTATION.search(data, where, where + size)
            tags[tag] = (int(said[1]) if said and said[1] in b"12345678" else 1,)
            continue
        if length > _MAX_VALUES:
            raise RefusedError(
                f"is a TIFF file whose tag {tag} has {length} values, more than {_MAX_VALUES}. "
                "Save it in larger strips."
            )
        tags[tag] = struct.unpack_from(f"{order}{length}{kinds[kind]}", data, where)
    (following,) = struct.unpack_from(f"{order}I", data, at + 2 + 12 * count)
    if following:
        raise several_pictures("a TIFF file")
    return tags


def _one(tags: dict[int, tuple[int, ...]], tag: int, default: int | None = None) -> int:
    """Return the one value of a tag."""
    values = tags.get(tag)
    if values is None and default is not None:
        return default
    if values is None or len(values) != 1:
        raise DamagedError(f"its tag {tag} is missing or has another number of values than one")
    return values[0]


def _equal(tags: dict[int, tuple[int, ...]], tag: int, default: int, samples: int) -> int:
    """Return the value that a tag gives to all samples alike."""
    values = tags.get(tag, (default,) * samples)
    if len(values) not in (1, samples) or len(set(values)) != 1:
        raise RefusedError("is a TIFF file whose channels differ in depth. Save it as RGB or grey.")
    return values[0]


def _is_tiled(tags: dict[int, tuple[int, ...]]) -> bool:
    """Tell whether the picture is cut into tiles. One side of a tile is enough, as for libtiff."""
    return _TILE_WIDTH in tags or _TILE_LENGTH in tags


def _layout(tags: dict[int, tuple[int, ...]], order: str) -> _Layout:
    height, width = _one(tags, _LENGTH), _one(tags, _WIDTH)
    check_picture_size(height, width)
    samples = _one(tags, _SAMPLES, 1)
    if not 1 <= samples <= _MAX_SAMPLES:
        raise RefusedError(f"is a TIFF file of {samples} channels. Save it as RGB or grey.")
    bits = _equal(tags, _BITS, 1, samples)
    kind = _KINDS.get(_equal(tags, _FORMAT, 1, samples))
    # Samples of 16 bits or more are read where NumPy has their type. Shorter samples are read where they are unsigned,
    # and below 8 bits only in one channel.
    name = f"{kind}{bits // 8}"
    if not (name in _DEEP or (kind == "u" and bits in (1, 2, 4, 8))) or (bits < 8 and samples > 1):
        raise RefusedError(
            f"is a TIFF file of {samples} channels of {bits} bits. Save it with 8 or 16 bits per channel."
        )
    compression = _one(tags, _COMPRESSION, 1)
    if compression not in COMPRESSIONS:
        raise RefusedError(
            f"is a TIFF file of compression {compression}. Save it uncompressed, with Deflate or LZW."
        )
    # Predictor 2 stores differences along a row, which are read for integers of whole bytes.
    predictor = _one(tags, _PREDICTOR, 1)
    if predictor not in (1, 2) or (predictor == 2 and (bits < 8 or kind == "f")):
        raise RefusedError(f"is a TIFF file of predictor {predictor}. Save it without.")
    if _one(tags, _FILL_ORDER, 1) != 1:
        raise RefusedError("is a TIFF file with its bits in reverse. Save it with fill order 1.")
    planar = _one(tags, _PLANAR, 1)
    if planar not in (1, 2):
        raise DamagedError(f"its planar configuration is {planar}")
    is_plain = bits == 8 and _one(tags, _PHOTOMETRIC) != _WHITE_IS_ZERO
    if planar == 2 and samples == 1 and compression == 1 and not is_plain:
        # Pillow takes these samples for bytes, and white for black.
        raise RefusedError("is a TIFF file of one channel in planes. Save it with planar configuration 1.")
    if _is_tiled(tags):
        piece = _one(tags, _TILE_LENGTH), _one(tags, _TILE_WIDTH)
        # A tile is whole also where it sticks out of the picture, so that a huge one would cost its whole size.
        if not (0 < piece[0] < height + 4096 and 0 < piece[1] < width + 4096):
            raise DamagedError(f"its tiles are {piece[1]}x{piece[0]} pixels")
    else:
        piece = min(_one(tags, _ROWS_PER_STRIP, height), height), width
        if piece[0] < 1:
            raise DamagedError("its strips have no rows")
    check_sample_bytes(max(height * width, piece[0] * piece[1]) * samples * bits // 8)
    return _Layout(
        height=height,
        width=width,
        bits=bits,
        samples=samples,
        planes=samples if planar == 2 else 1,
        piece_height=piece[0],
        piece_width=piece[1],
        compression=compression,
        predictor=predictor if compression in _PREDICTED else 1,
        dtype=np.dtype(f"{order}{name}") if bits > 8 else np.dtype(np.uint8),
    )


def _samples(data: bytes, tags: dict[int, tuple[int, ...]], layout: _Layout) -> NDArray[Any]:
    """Put the pieces together to an array ``(H, W, samples)`` in the file's own type."""
    tiled = _is_tiled(tags)
    # Where a file lists both strips and tiles, readers may choose differently: libtiff takes the later listing.
    if tags.keys() & ({_STRIP_OFFSETS, _STRIP_COUNTS} if tiled else {_TILE_OFFSETS, _TILE_COUNTS}):
        raise DamagedError("it lists both strips and tiles")
    offsets = tags.get(_TILE_OFFSETS if tiled else _STRIP_OFFSETS, ())
    counts = tags.get(_TILE_COUNTS if tiled else _STRIP_COUNTS, ())
    down = -(-layout.height // layout.piece_height)
    across = -(-layout.width // layout.piece_width)
    if not len(offsets) == len(counts) == down * across * layout.planes:
        raise DamagedError(
            f"it lists {len(offsets)} pieces and the sizes of {len(counts)}; its picture is made of "
            f"{down * across * layout.planes}"
        )
    if sum(counts) > len(data):
        raise DamagedError("its pieces together are larger than the file")
    if layout.compression == LZW and sum(counts) > MAX_LZW:
        raise RefusedError(
            f"is a TIFF file of {sum(counts) / 1e6:.0f} MB of LZW data, more than {MAX_LZW / 1e6:.0f}. Save it with "
            "Deflate."
        )
    # Each plane has all pieces of the picture, from left to right and then from top to bottom.
    together = layout.samples // layout.planes
    picture = np.empty((layout.height, layout.width, layout.samples), layout.dtype)
    for index, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        plane, place = divmod(index, down * across)
        top = place // across * layout.piece_height
        left = place % across * layout.piece_width
        height = layout.piece_height if tiled else min(layout.piece_height, layout.height - top)
        if offset < 8 or count < 1 or offset + count > len(data):
            raise DamagedError(f"its piece {index + 1} of {len(offsets)} is missing")
        row = (layout.piece_width * together * layout.bits + 7) // 8
        packed = memoryview(data)[offset : offset + count]
        try:
            raw = unpacked(packed, layout.compression, row, height)
        except DamagedError as error:
            raise DamagedError(f"its piece {index + 1} of {len(offsets)}: {error}") from error
        piece = _unpack(raw, layout, (height, layout.piece_width, together), row)
        inside = piece[: layout.height - top, : layout.width - left]
        channels = slice(plane, plane + 1) if layout.planes > 1 else slice(None)
        picture[top : top + inside.shape[0], left : left + inside.shape[1], channels] = inside
    return picture


def _unpack(raw: Buffer, layout: _Layout, shape: tuple[int, int, int], row: int) -> NDArray[Any]:
    """Return a piece's samples ``(height, width, channels)``, each as a number of its own."""
    if layout.bits < 8:
        bits = np.unpackbits(np.frombuffer(raw, np.uint8).reshape(shape[0], row), axis=1)
        digits = bits.reshape(shape[0], -1, layout.bits)[:, : shape[1]]
        weights = 1 << np.arange(layout.bits - 1, -1, -1, dtype=np.uint8)
        numbers: NDArray[np.uint8] = (digits * weights).sum(axis=2, dtype=np.uint8)
        return numbers[..., None]
    samples = np.frombuffer(raw, layout.dtype).reshape(shape)
    if layout.predictor == 2:
        return np.cumsum(samples, axis=1, dtype=layout.dtype.newbyteorder("="))
    return samples


def _colours(samples: NDArray[Any], tags: dict[int, tuple[int, ...]], layout: _Layout) -> NDArray[Any]:
    """Convert samples to grey or RGB. Samples of 8 bits or less become RGB in uint8."""
    photometric = _one(tags, _PHOTOMETRIC)
    if photometric not in _CHANNELS:
        named = _COLOURS.get(photometric, f"the colours {photometric}")
        raise RefusedError(f"is a TIFF file with {named}. Convert it to RGB or grey.")
    wanted = _CHANNELS[photometric]
    extra = tags.get(_EXTRA, ())
    if layout.samples < wanted or len(extra) > layout.samples - wanted:
        raise DamagedError(f"it has {layout.samples} channels, its colours need {wanted}")
    if _PREMULTIPLIED in extra:
        raise RefusedError("is a TIFF file whose colours are multiplied by their alpha. Save it without.")
    if not set(extra) <= {_UNSPECIFIED, _ALPHA}:
        raise RefusedError(
            f"is a TIFF file with extra channels of the kinds {extra}. Save it as RGB or grey."
        )
    if layout.samples > wanted and not _is_read_with_alpha(photometric, extra, layout):
        raise RefusedError(f"is a TIFF file of {layout.samples} channels. Save it as RGB or grey.")
    samples = samples[..., :wanted]
    if layout.bits > 8:
        if photometric not in (_BLACK_IS_ZERO, _RGB):
            raise RefusedError(
                f"is a TIFF file of {layout.bits} bits in rare colours. Save it as RGB or grey."
            )
        deep = samples.astype(layout.dtype.newbyteorder("="), copy=False)
        return deep if photometric == _RGB else deep[..., 0]
    if photometric == _RGB:
        return samples
    if photometric == _CMYK:
        inks = Image.frombytes("CMYK", (layout.width, layout.height), samples.tobytes())
        return np.array(inks.convert("RGB"))
    largest = (1 << layout.bits) - 1
    if photometric == _PALETTE:
        colours = tags.get(_COLOUR_MAP, ())
        if _BITS not in tags or len(colours) != 3 * (largest + 1):
            raise DamagedError("its palette is missing, has another length, or no depth")
        table = np.array(colours, np.uint16).reshape(3, -1).T >> 8
    else:
        grey = np.arange(largest + 1) * (255 // largest)
        table = np.repeat((grey if photometric == _BLACK_IS_ZERO else 255 - grey)[:, None], 3, axis=1)
    rgb: NDArray[np.uint8] = table.astype(np.uint8)[samples[..., 0]]
    return rgb


def _is_read_with_alpha(photometric: int, extra: tuple[int, ...], layout: _Layout) -> bool:
    """Tell whether PIL reads these colours with one more channel, which it drops."""
    if layout.samples > _CHANNELS[photometric] + 1:
        return False
    if photometric == _RGB:
        return layout.planes == 1 or extra == (_ALPHA,)
    if photometric == _PALETTE:
        return layout.planes == 1 and extra in ((_UNSPECIFIED,), (_ALPHA,))
    return photometric == _BLACK_IS_ZERO and layout.planes == 1 and extra == (_ALPHA,)


def _turned(picture: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn a picture so that its first row is the top and its first column the left (TIFF 6.0, section 8)."""
    if not 1 <= orientation <= 8:
        raise DamagedError(f"its orientation is {orientation}")
    if orientation in (3, 4, 6, 7):
        picture = picture[::-1]
    if orientation in (2, 3, 7, 8):
        picture = picture[:, ::-1]
    return picture.swapaxes(0, 1) if orientation > 4 else picture
