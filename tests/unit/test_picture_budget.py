"""A small file or a strange frame cannot ask for much memory or time."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from flowedge.errors import ImageError
from flowedge.manifest import Preprocessing
from flowedge.runtime.device.limits import MAX_PICTURE_SIDE, MAX_PIXELS, MAX_RATIO, size_problem
from flowedge.runtime.frames.decoders import DamagedError, RefusedError, decode
from flowedge.runtime.frames.decoders.jpeg import MAX_SCANS
from flowedge.runtime.frames.decoders.tiff_pieces import MAX_LZW
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.frames.preprocess import Preprocessor
from support.cost import peak_memory_and_seconds
from support.picture_files import (
    bmp,
    encoded,
    grey_tags,
    photograph,
    pil_pixels,
    png,
    png_chunks,
    tiff,
    tiff_of,
)
from support.tiny_bundle import tiny_manifest

SMALL = photograph(20, 30)
BIG = 20_000
"""A side in pixels whose square is more than `MAX_PIXELS`."""


def jpeg_of_scans(count: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    data = encoded(SMALL, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def large_headers() -> Iterator[tuple[str, bytes]]:
    grey = grey_tags(BIG, BIG)
    yield "tiff", tiff(grey, [b"\0"])
    yield (
        "tiff that hides its size behind a first one",
        tiff_of([(256, 4, [8]), (257, 4, [8]), *grey, (273, 4, [8]), (279, 4, [64])], bytes(64)),
    )
    yield (
        "tiff with its size twice",
        tiff_of(
            [*grey_tags(8, 8), (256, 4, [BIG]), (257, 4, [BIG]), (273, 4, [8]), (279, 4, [64])], bytes(64)
        ),
    )
    tiles = [one for one in grey_tags(8, 8) if one[0] != 278]
    yield "tiff of huge tiles", tiff([*tiles, (322, 4, [BIG]), (323, 4, [BIG])], [bytes(64)], tiled=True)
    yield "tiff of many channels", tiff(grey_tags(8, 8, t277=60000), [bytes(64)])
    yield "rle bmp", bmp(BIG, BIG, 8, b"\xff\x00" * 100 + b"\0\1", palette=bytes(1024), compression=1)
    yield "bmp", bmp(BIG, BIG, 8, b"", palette=bytes(1024))
    yield "pgm", b"P5 %d %d 255\n" % (BIG, BIG)
    yield "plain pgm", b"P2 30000 3000 255\n" + b"1 " * 17_000_000
    header = struct.pack(">IIBBBBB", BIG, BIG, 8, 0, 0, 0, 0)
    yield "png", png([(b"IHDR", header), (b"IDAT", b"x"), (b"IEND", b"")])
    webp = encoded(SMALL, "WEBP", lossless=True)
    yield "webp", webp[:21] + struct.pack("<I", (16383 - 1) | (16383 - 1) << 14) + webp[25:]
    extended = struct.pack("<4sI", b"VP8X", 10) + b"\0" * 4 + b"\xff\xff\xff" * 2
    yield "webp extended", b"RIFF" + struct.pack("<I", len(webp) - 8 + 18) + b"WEBP" + extended + webp[12:]
    yield "jpeg of many scans", jpeg_of_scans(MAX_SCANS + 1)
    yield "a thread", b"P5 %d 1 255\n" % (MAX_PICTURE_SIDE + 1) + bytes(MAX_PICTURE_SIDE + 1)
    yield "a line", b"P5 %d 1 255\n" % (MAX_RATIO + 1) + bytes(MAX_RATIO + 1)


@pytest.mark.parametrize("name", dict(large_headers()))
def test_a_file_that_asks_for_much_is_refused_at_once(name: str) -> None:
    data = dict(large_headers())[name]
    with peak_memory_and_seconds() as cost, pytest.raises((RefusedError, DamagedError)):
        decode(data)
    assert cost.megabytes < 120
    assert cost.seconds < 5


def test_a_png_that_inflates_to_much_more_than_its_size_is_refused() -> None:
    chunks = dict(png_chunks(encoded(SMALL, "PNG")))
    bomb = zlib.compress(bytes(200_000_000), 9)
    with peak_memory_and_seconds() as cost, pytest.raises(DamagedError):
        decode(png([(b"IHDR", chunks[b"IHDR"]), (b"IDAT", bomb), (b"IEND", b"")]))
    assert cost.megabytes < 20


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_bomb_beside_the_picture_of_a_png_is_refused_as_pillow_refuses_it(kind: bytes) -> None:
    chunks = png_chunks(encoded(SMALL, "PNG"))

    def beside(size: int) -> bytes:
        start = b"name\0\1\0\0\0" if kind == b"iTXt" else b"name\0\0"
        body = start + zlib.compress(bytes(size), 9)
        return png([chunks[0], (kind, body), *chunks[1:]])

    np.testing.assert_array_equal(decode(beside(1 << 20)), np.asarray(SMALL))
    bomb = beside(100_000_000)
    with pytest.raises(ValueError, match="too large"):
        pil_pixels(bomb)
    with peak_memory_and_seconds() as cost, pytest.raises(DamagedError, match="too large"):
        decode(bomb)
    assert cost.megabytes < 20


def test_a_wrong_part_beside_the_picture_of_a_png_is_refused_as_pillow_refuses_it() -> None:
    chunks = png_chunks(encoded(SMALL, "PNG"))
    for kind, body in ((b"pHYs", b"1"), (b"sRGB", b""), (b"iCCP", b"name\0\1"), (b"zTXt", b"name\0\1text")):
        for place in (1, -1):
            file = png([*chunks[:place], (kind, body), *chunks[place:]])
            with pytest.raises((ValueError, SyntaxError, OSError)):
                pil_pixels(file)
            with pytest.raises(DamagedError):
                decode(file)


def test_a_png_of_thousands_of_profiles_is_refused() -> None:
    chunks = png_chunks(encoded(SMALL, "PNG"))
    profile = (b"iCCP", b"name\0\0" + zlib.compress(bytes(1 << 20), 9))
    with pytest.raises(RefusedError, match="parts"):
        decode(png([chunks[0], *[profile] * 300, *chunks[1:]]))


def test_a_tiff_piece_that_inflates_to_much_more_than_its_size_is_refused() -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    with peak_memory_and_seconds() as cost, pytest.raises(DamagedError):
        decode(tiff(grey_tags(8, 8, t259=8), [bomb]))
    assert cost.megabytes < 20


def test_a_jpeg_of_a_dozen_scans_is_read_and_one_of_thousands_is_not() -> None:
    assert decode(jpeg_of_scans(1)).shape == (20, 30, 3)
    with pytest.raises(RefusedError, match="scans"):
        decode(jpeg_of_scans(3000))


@pytest.mark.parametrize(
    "shape",
    [(1, 10_000_000), (10_000_000, 1), (MAX_PICTURE_SIDE + 1, 64), (1, MAX_RATIO + 1), (10_001, 10_000)],
)
def test_a_frame_beyond_a_limit_is_refused_as_a_file_is(shape: tuple[int, int]) -> None:
    frame = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (*shape, 3))  # without the memory
    preprocessing = Preprocessing(resize=(64, 64), method="float_bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    manifest = tiny_manifest()
    for refuse in (Preprocessor(preprocessing), lambda one: GraphInput(manifest)([one])):
        with peak_memory_and_seconds() as cost, pytest.raises(ImageError, match=r"million|side|times"):
            refuse(frame)
        assert cost.megabytes < 20


def test_ordinary_frames_are_within_the_limits() -> None:
    for height, width in ((1, 1), (1, 512), (480, 640), (10_000, 10_000), (32_768, 2_048), (100, 16_384)):
        assert size_problem(height, width) is None
    assert size_problem(1, MAX_PIXELS + 1) is not None


def test_a_picture_of_a_pixel_is_read() -> None:
    one = Image.new("RGB", (1, 1), (3, 1, 4))
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert decode(encoded(one, kind)).tolist() == [[[3, 1, 4]]]


def deep_tiff(side: int, piece: int, samples: int = 3, bits: int = 64) -> bytes:
    """Return a TIFF file of many bytes a pixel, whose one tile is all zeros."""
    tags = [
        *[
            tag
            for tag in grey_tags(side, side, t259=8, t262=2, t322=piece, t323=piece)
            if tag[0] not in (258, 278)
        ],
        (258, 3, [bits] * samples),
        (339, 3, [3] * samples),
    ]
    tags = [(tag, kind, [samples] if tag == 277 else values) for tag, kind, values in tags]
    return tiff(tags, [zlib.compress(bytes(1000))], tiled=True)


def many_parts() -> Iterator[tuple[str, bytes]]:
    """Yield files that are made of very many parts, or of very long ones that say nothing."""
    jpeg, rgb, webp = (encoded(SMALL, kind) for kind in ("JPEG", "PNG", "WEBP"))
    for kind in (b"IDAT", b"tEXt"):
        part = struct.pack(">I4sI", 0, kind, zlib.crc32(kind))
        yield f"png {kind.decode()}", rgb[:33] + part * 300_000 + rgb[33:]
    yield "jpeg markers", jpeg[:2] + b"\xff\xd0" * 3_000_000 + jpeg[2:]
    yield "jpeg comments", jpeg[:2] + b"\xff\xfe\0\2" * 2_000_000 + jpeg[2:]
    riff = webp[:4] + struct.pack("<I", len(webp) + 8_000_000 - 8) + b"WEBP"
    yield "webp", riff + b"abcd\0\0\0\0" * 1_000_000 + webp[12:]
    yield "pnm spaces", b"P5" + b" " * 4_000_000 + b"8 8 255\n" + bytes(64)
    yield "pnm comments", b"P5" + b" #\n" * 2_000_000 + b"8 8 255\n" + bytes(64)
    yield "tiff samples", deep_tiff(5_000, 5_000)
    yield "tiff tile", deep_tiff(16, 4_096, samples=4)
    deep = struct.pack(">IIBBBBB", 7_000, 7_000, 16, 6, 0, 0, 0)
    yield "png samples", png([(b"IHDR", deep), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")])


@pytest.mark.parametrize("name", dict(many_parts()))
def test_what_a_file_is_made_of_is_bounded_too(name: str) -> None:
    data = dict(many_parts())[name]
    with peak_memory_and_seconds() as cost, pytest.raises((RefusedError, DamagedError)) as caught:
        decode(data)
    assert "parts" in str(caught.value) or "MB" in str(caught.value) or "header" in str(caught.value)
    assert cost.megabytes < 60
    assert cost.seconds < 5


def test_a_jpeg_may_have_any_number_of_fill_bytes() -> None:
    jpeg = encoded(SMALL, "JPEG")
    filled = jpeg[:2] + b"\xff" * 20_000_000 + jpeg[2:]
    with peak_memory_and_seconds() as cost:
        pixels = decode(filled)
    np.testing.assert_array_equal(pixels, pil_pixels(jpeg))
    assert cost.seconds < 5


def test_digits_of_a_plain_bitmap_cost_little() -> None:
    with peak_memory_and_seconds() as cost:
        decode(b"P1 1000 1000\n" + b"0 " * 1_000_000)
    assert cost.megabytes < 20


def test_lzw_data_that_would_take_long_are_refused_in_one_piece_or_in_many() -> None:
    for pieces in (1, 40):
        each = bytes(MAX_LZW // pieces + 1)
        tags = grey_tags(pieces, 8, t259=5, t278=1)
        with peak_memory_and_seconds() as cost, pytest.raises(RefusedError, match="LZW"):
            decode(tiff(tags, [each] * pieces))
        assert cost.seconds < 5
