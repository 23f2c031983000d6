"""Every variant of every picture format is read as PIL reads it, or refused by name."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from flowedge.runtime.frames.decoders import DamagedError, RefusedError, decode
from support.picture_files import bmp, encoded, grey_tags, photograph, pil_pixels, raw_png, tiff

RGB = photograph(37, 53)
HEIGHT, WIDTH = 37, 53
PIXELS = np.asarray(RGB)
GREY = np.asarray(RGB.convert("L"))
RNG = np.random.default_rng(7)


def packed(levels: np.ndarray, bits: int) -> bytes:
    """Return rows of levels of fewer than 8 bits, each row in whole bytes."""
    shifts = np.arange(bits - 1, -1, -1)
    unpacked = (levels[..., None] >> shifts & 1).reshape(len(levels), -1).astype(np.uint8)
    return np.packbits(unpacked, axis=1).tobytes()


def in_tiles(pixels: np.ndarray, side: int = 16) -> list[bytes]:
    height, width = pixels.shape[:2]
    padded = np.pad(
        pixels, [(0, -height % side), (0, -width % side), *[(0, 0)] * (pixels.ndim - 2)], constant_values=9
    )
    return [
        padded[top : top + side, left : left + side].tobytes()
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def of_tiff() -> Iterator[tuple[str, bytes]]:
    for order, orientation in itertools.product("<>", range(1, 9)):
        tags = [*grey_tags(HEIGHT, WIDTH), (274, 3, [orientation])]
        yield f"orientation {orientation}{order}", tiff(tags, [GREY.tobytes()], order=order)
    for order, bits, photometric in itertools.product("<>", (1, 2, 4, 8), (0, 1)):
        rows = packed(GREY >> (8 - bits), bits)
        tags = grey_tags(HEIGHT, WIDTH, t258=bits, t262=photometric)
        yield f"grey {bits} bits photometric {photometric}{order}", tiff(tags, [rows], order=order)
    for bits in (1, 2, 4, 8):
        colours = RNG.integers(0, 65536, 3 << bits).tolist()
        tags = [*grey_tags(HEIGHT, WIDTH, t258=bits, t262=3), (320, 3, colours)]
        yield f"palette of {bits} bits", tiff(tags, [packed(GREY >> (8 - bits), bits)])
    for order, planes, tiled, extra in itertools.product("<>", (1, 2), (False, True), (None, 0, 2)):
        pixels = PIXELS if extra is None else np.dstack([PIXELS, 255 - GREY])
        channels = pixels.shape[2]
        tags = grey_tags(HEIGHT, WIDTH, t262=2, t277=channels, t284=planes)
        tags = [one for one in tags if one[0] != 258] + [(258, 3, [8] * channels)]
        tags += [(338, 3, [extra])] if extra is not None else []
        if tiled:
            tags = [one for one in tags if one[0] != 278] + [(322, 4, [16]), (323, 4, [16])]
        parts = [pixels] if planes == 1 else [pixels[..., n] for n in range(channels)]
        pieces = [piece for part in parts for piece in (in_tiles(part) if tiled else [part.tobytes()])]
        name = f"rgb{order} planes {planes} {'tiles' if tiled else 'strip'} extra {extra}"
        yield name, tiff(tags, pieces, order=order, tiled=tiled)
    strips = [GREY[top : top + 5].tobytes() for top in range(0, HEIGHT, 5)]
    yield "strips of 5 rows", tiff(grey_tags(HEIGHT, WIDTH, t278=5), strips)
    for mode, compression in itertools.product(
        ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"),
        (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"),
    ):
        yield f"{mode} {compression}", encoded(RGB.convert(mode), "TIFF", compression=compression)
    for mode, compression in {"1": "group4", "L": "jpeg", "RGB": "jpeg"}.items():
        yield f"{mode} {compression}", encoded(RGB.convert(mode), "TIFF", compression=compression)
    for photometric, channels, extras, planes in itertools.product(
        (0, 1, 2, 3, 5), range(2, 7), (None, [0], [2], [2, 0]), (1, 2)
    ):
        tags = [
            one
            for one in grey_tags(HEIGHT, WIDTH, t262=photometric, t277=channels, t284=planes)
            if one[0] != 258
        ]
        tags += [(258, 3, [8] * channels), *([(338, 3, extras)] if extras else [])]
        tags += [(320, 3, list(range(768)))] if photometric == 3 else []
        levels = [np.roll(GREY, n, axis=1) for n in range(channels)]
        pieces = [np.dstack(levels).tobytes()] if planes == 1 else [level.tobytes() for level in levels]
        yield (
            f"photometric {photometric} channels {channels} extra {extras} planes {planes}",
            tiff(tags, pieces),
        )
    yield "lab", encoded(Image.frombytes("LAB", RGB.size, RGB.tobytes()), "TIFF")
    yield "predictor", encoded(RGB, "TIFF", compression="tiff_lzw", tiffinfo={317: 2})
    yield (
        "premultiplied",
        tiff([*grey_tags(HEIGHT, WIDTH, t277=2), (338, 3, [1])], [np.dstack([GREY, GREY]).tobytes()]),
    )
    yield "reversed bits", tiff(grey_tags(HEIGHT, WIDTH, t266=2), [GREY.tobytes()])
    yield "big", b"II+\x00" + bytes(60)


def of_png() -> Iterator[tuple[str, bytes]]:
    for colours, depths in {0: (1, 2, 4, 8), 2: (8,), 3: (1, 2, 4, 8), 4: (8,), 6: (8,)}.items():
        for depth in depths:
            channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
            if depth < 8:
                rows = packed(GREY >> (8 - depth), depth)
            else:
                rows = np.dstack([PIXELS, GREY])[..., :channels].tobytes()
            palette = [(b"PLTE", RNG.bytes(3 << depth))] if colours == 3 else []
            seen = {0: b"\0\1", 2: b"\0\1\0\2\0\3", 3: bytes([0, 128])}.get(colours)
            for transparent in (False, True)[: 1 + (seen is not None)]:
                before = [*palette, *([(b"tRNS", seen)] if transparent and seen else [])]
                before += [(b"gAMA", struct.pack(">I", 20000))] if transparent else []
                yield (
                    f"type {colours} depth {depth} tRNS {transparent}",
                    raw_png(
                        WIDTH,
                        HEIGHT,
                        depth,
                        colours,
                        rows,
                        before=sorted(before, key=lambda c: c[0] != b"gAMA"),
                    ),
                )
    yield "apng", encoded(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180)])
    rotated = Image.Exif()
    rotated[0x112] = 6
    yield "turned", encoded(RGB, "PNG", exif=rotated)


def of_bmp() -> Iterator[tuple[str, bytes]]:
    def rows(levels: bytes, height: int = HEIGHT) -> bytes:
        row = len(levels) // height
        return b"".join(
            levels[n * row : (n + 1) * row].ljust((row + 3) // 4 * 4, b"\0") for n in range(height)
        )

    for bits in (1, 4, 8):
        palette = RNG.bytes(4 << bits)
        yield (
            f"palette of {bits} bits",
            bmp(WIDTH, HEIGHT, bits, rows(packed(GREY >> (8 - bits), bits)), palette=palette),
        )
    deep = RNG.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16).tobytes()
    yield "16 bits", bmp(WIDTH, HEIGHT, 16, rows(deep))
    yield "24 bits top down", bmp(WIDTH, -HEIGHT, 24, rows(PIXELS.tobytes()))
    yield "32 bits", bmp(WIDTH, HEIGHT, 32, np.dstack([PIXELS, GREY]).tobytes())
    for name, masks in {
        "5-6-5": (0xF800, 0x7E0, 0x1F),
        "5-5-5": (0x7C00, 0x3E0, 0x1F),
        "4-4-4": (0xF00, 0xF0, 0xF),
    }.items():
        yield name, bmp(WIDTH, HEIGHT, 16, rows(deep), compression=3, masks=struct.pack("<III", *masks))
    for name, masks in {"bgrx": (0xFF0000, 0xFF00, 0xFF), "rgbx": (0xFF, 0xFF00, 0xFF0000)}.items():
        every = np.dstack([PIXELS, GREY]).tobytes()
        yield name, bmp(WIDTH, HEIGHT, 32, every, compression=3, masks=struct.pack("<III", *masks))
    yield "rle8", bmp(WIDTH, HEIGHT, 8, b"\x05\x01\x00\x01", palette=RNG.bytes(1024), compression=1)
    yield "rle4", bmp(WIDTH, HEIGHT, 4, b"\x05\x11\x00\x01", palette=RNG.bytes(64), compression=2)
    yield "jpeg inside", bmp(WIDTH, HEIGHT, 24, encoded(RGB, "JPEG"), compression=4)
    yield (
        "old header",
        struct.pack("<2sIHHIIHHHH", b"BM", 26, 0, 0, 26, 12, WIDTH, HEIGHT, 1, 24) + rows(PIXELS.tobytes()),
    )


def of_jpeg() -> Iterator[tuple[str, bytes]]:
    for quality, sampling, progressive in itertools.product((30, 90, 100), (0, 1, 2, "4:1:1"), (False, True)):
        options = {"quality": quality, "subsampling": sampling, "progressive": progressive}
        yield f"{quality} {sampling} {progressive}", encoded(RGB, "JPEG", **options)
    whole = encoded(RGB, "JPEG", subsampling=0)
    frame = whole.index(b"\xff\xc0")
    for first in (
        0x12,
        0x14,
        0x41,
        0x44,
    ):  # Other sampling factors need other data, but not in a grey file.
        grey = bytearray(encoded(RGB.convert("L"), "JPEG"))
        grey[grey.index(b"\xff\xc0") + 11] = first
        yield f"grey sampled {first:02x}", bytes(grey)
    yield "adobe rgb", encoded(RGB, "JPEG", keep_rgb=True)
    yield "restart markers", encoded(RGB, "JPEG", restart_marker_blocks=3)
    yield "optimised", encoded(RGB, "JPEG", optimize=True)
    yield "grey", encoded(RGB.convert("L"), "JPEG")
    yield "cmyk", encoded(RGB.convert("CMYK"), "JPEG")
    rotated = Image.Exif()
    rotated[0x112] = 6
    yield "turned", encoded(RGB, "JPEG", exif=rotated)
    for name, kind in {"lossless": 0xC3, "arithmetic": 0xC9, "hierarchical": 0xC5}.items():
        yield name, whole[: frame + 1] + bytes([kind]) + whole[frame + 2 :]
    yield "12 bits", whole[: frame + 4] + b"\x0c" + whole[frame + 5 :]
    yield "two pictures", whole + whole


def of_webp() -> Iterator[tuple[str, bytes]]:
    translucent = RGB.copy()
    translucent.putalpha(Image.fromarray(255 - GREY))
    for name, image in {"rgb": RGB, "rgba": translucent}.items():
        for options in ({}, {"lossless": True}, {"lossless": True, "exact": True}, {"quality": 20}):
            yield f"{name} {options}", encoded(image, "WEBP", **options)
    yield "animated", encoded(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)])


def of_pnm() -> Iterator[tuple[str, bytes]]:
    head = f"{WIDTH} # a comment\n{HEIGHT}\n".encode()
    bits = GREY >> 7
    words = " ".join(map(str, GREY.flat)).encode()
    yield "pbm", b"P4\n" + head + packed(bits, 1)
    yield "plain pbm", b"P1\n" + head + b"".join(b"%d" % bit for bit in bits.flat)
    yield "plain pgm", b"P2\n" + head + b"255\n" + words
    yield "plain ppm", b"P3\n" + head + b"255\n" + " ".join(map(str, PIXELS.flat)).encode()
    for maximum in (1, 7, 100, 254, 255):
        levels = (GREY.astype(int) * maximum // 255).astype(np.uint8).tobytes()
        yield f"pgm of {maximum}", b"P5\n" + head + b"%d\n" % maximum + levels
    yield "ppm", b"P6 " + head + b"255\n" + PIXELS.tobytes()


CASES = {
    f"{make.__name__[3:]} {name}": data
    for make in (of_tiff, of_png, of_bmp, of_jpeg, of_webp, of_pnm)
    for name, data in make()
}
REFUSED = {
    *(f"tiff {kind}" for kind in ("lab", "premultiplied", "reversed bits", "big", "RGB jpeg", "1 group4")),
    *("png apng", "bmp rle8", "bmp rle4", "bmp jpeg inside", "bmp 4-4-4", "bmp rgbx"),
    *(f"jpeg {kind}" for kind in ("lossless", "arithmetic", "hierarchical", "12 bits", "two pictures")),
    "webp animated",
}


@pytest.mark.parametrize("name", CASES)
def test_a_variant_is_read_as_pil_reads_it_or_refused_by_name(name: str) -> None:
    try:
        pixels = decode(CASES[name])
    except RefusedError:
        assert name in REFUSED or name.startswith("tiff ")
        return
    except DamagedError:
        assert name.startswith("tiff photometric")  # fewer channels than the colours need
        return
    assert name not in REFUSED
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, pil_pixels(CASES[name]))


def test_of_the_tiff_files_that_pillow_writes_only_rare_ones_are_refused() -> None:
    for mode, compression in itertools.product(
        ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK"), ("None", "tiff_lzw", "tiff_adobe_deflate", "packbits")
    ):
        assert decode(CASES[f"tiff {mode} {compression}"]).shape == PIXELS.shape
    for name in CASES:
        if name.startswith(("tiff orientation", "tiff grey", "tiff palette", "tiff strips")):
            assert decode(CASES[name]).shape in (PIXELS.shape, (WIDTH, HEIGHT, 3))


def test_the_matrix_holds_what_it_should() -> None:
    assert len(CASES) > 150
    for name in REFUSED:
        assert name in CASES


@pytest.mark.parametrize(
    ("tag", "value"), [(262, 99), (259, 99), (258, 12), (284, 3), (274, 9), (277, 0), (339, 4)]
)
def test_a_tiff_of_a_value_that_nobody_knows_is_refused(tag: int, value: int) -> None:
    with pytest.raises((RefusedError, DamagedError)):
        decode(tiff(grey_tags(HEIGHT, WIDTH, **{f"t{tag}": value}), [GREY.tobytes()]))
