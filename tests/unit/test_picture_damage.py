"""A damaged picture is refused, wherever it was cut and whatever fills the gap."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowedge.runtime.frames.decoders import DamagedError, RefusedError, decode
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

RGB = photograph()
GREY = np.asarray(RGB.convert("L"))
HEIGHT, WIDTH = GREY.shape
JPEGS = {
    "baseline": encoded(RGB, "JPEG", quality=95),
    "optimised": encoded(RGB, "JPEG", quality=95, optimize=True),
    "poor": encoded(RGB, "JPEG", quality=75),
    "grey": encoded(RGB.convert("L"), "JPEG", quality=90),
    "progressive": encoded(RGB, "JPEG", quality=90, progressive=True),
    "restarts": encoded(RGB, "JPEG", quality=90, restart_marker_blocks=3),
    "cmyk": encoded(RGB.convert("CMYK"), "JPEG", quality=90),
}
WHOLE = {
    **{f"jpeg {name}": data for name, data in JPEGS.items()},
    "png": encoded(RGB, "PNG"),
    "png interlaced": png(
        [
            (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 1)),
            (b"IDAT", zlib.compress(b"\0\7")),
            (b"IEND", b""),
        ]
    ),
    "bmp": encoded(RGB, "BMP"),
    "tiff": encoded(RGB, "TIFF"),
    "tiff lzw": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "tiff deflate": encoded(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "tiff packbits": encoded(RGB, "TIFF", compression="packbits"),
    "webp": encoded(RGB, "WEBP"),
    "webp lossless": encoded(RGB, "WEBP", lossless=True),
    "pgm": b"P5\n%d %d\n255\n" % (WIDTH, HEIGHT) + GREY.tobytes(),
    "plain pgm": b"P2\n%d %d\n255\n" % (WIDTH, HEIGHT) + " ".join(map(str, GREY.flat)).encode() + b"\n",
    "pbm": b"P4\n%d %d\n" % (WIDTH, HEIGHT) + np.packbits(GREY > 99, axis=1).tobytes(),
}
UNSEEN_AT_THE_END = 2
"""A file may lack its last bytes where these are padding, or the end of its directory that nothing needs."""


def test_all_of_them_are_read_whole() -> None:
    for name, data in WHOLE.items():
        assert decode(data).dtype == np.uint8, name


@settings(max_examples=200)
@given(name=st.sampled_from(sorted(WHOLE)), share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_anywhere_is_refused(name: str, share: float) -> None:
    data = WHOLE[name]
    cut = data[: min(int(len(data) * share), len(data) - 1 - UNSEEN_AT_THE_END)]
    with pytest.raises((DamagedError, RefusedError)):
        decode(cut)


@settings(max_examples=150)
@given(name=st.sampled_from(sorted(JPEGS)), share=st.floats(0, 1, exclude_max=True))
def test_a_jpeg_whose_data_break_off_before_its_end_marker_is_refused(name: str, share: float) -> None:
    data = JPEGS[name]
    start = data.index(b"\xff\xda") + 14
    cut = data[: start + int((len(data) - 2 - start) * share)] + b"\xff\xd9"
    if cut != data and cut[-3:-2] != b"\xff":
        with pytest.raises(DamagedError):
            decode(cut)


@settings(max_examples=150)
@given(
    name=st.sampled_from([name for name in JPEGS if name != "progressive"]),
    share=st.floats(0, 1, exclude_max=True),
    length=st.integers(12, 4096),
    fill=st.sampled_from([0, 255]),
)
def test_a_hole_in_the_data_of_a_jpeg_is_refused(name: str, share: float, length: int, fill: int) -> None:
    data = bytearray(JPEGS[name])
    start = data.index(b"\xff\xda") + 14
    at = start + int((len(data) - 2 - 12 - start) * share)
    end = min(at + length, len(data) - 2)
    data[at:end] = bytes([fill]) * (end - at)
    with pytest.raises(DamagedError):
        decode(bytes(data))


def test_a_hole_of_a_disk_block_in_a_progressive_jpeg_is_refused() -> None:
    data = bytearray(encoded(photograph(400, 500), "JPEG", quality=95, progressive=True))
    for at in range(4096, len(data) - 8192, 4096):
        holed = data.copy()
        holed[at : at + 4096] = bytes(4096)
        with pytest.raises(DamagedError):
            decode(bytes(holed))


def test_a_smooth_jpeg_with_long_runs_of_zeros_is_no_hole() -> None:
    flat = Image.new("RGB", (800, 600), (0, 0, 0))
    ramp = Image.fromarray(np.repeat(np.arange(768)[None] // 3, 512, axis=0).astype(np.uint8))
    for image in (flat, flat.convert("L"), ramp, ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        for options in ({}, {"optimize": True}, {"progressive": True}):
            data = encoded(image, "JPEG", **options)
            assert decode(data).shape == (image.height, image.width, 3)
    assert bytes(64) in encoded(flat, "JPEG", optimize=True)


def scans_of(data: bytes) -> list[int]:
    """Return where the scans begin, with the Huffman tables before each, and where the last one ends."""
    places, at = [], data.index(b"\xff\xda")
    head = data.rindex(b"\xff\xc4", 0, at)
    while at >= 0:
        places.append(head)
        following = data.find(b"\xff\xc4", at)
        at = data.find(b"\xff\xda", at + 2)
        head = following if 0 <= following < at else at
    return [*places, len(data) - 2]


def test_a_progressive_jpeg_without_one_of_its_scans_is_refused() -> None:
    data = JPEGS["progressive"]
    scans = scans_of(data)
    assert len(scans) > 8
    for number in range(1, len(scans)):
        with pytest.raises(DamagedError, match="scans are missing"):
            decode(data[: scans[number - 1]] + data[-2:] if number > 1 else data[: scans[1]] + data[-2:])


def test_a_jpeg_without_a_restart_interval_is_refused() -> None:
    data = JPEGS["restarts"]
    first, second = data.index(b"\xff\xd1"), data.index(b"\xff\xd2")
    for broken in (
        data[:first] + data[second:],
        data[: first + 2] + data[second:],
        data[:first] + data[first + 2 :],
    ):
        with pytest.raises(DamagedError):
            decode(broken)


def test_a_jpeg_with_bytes_between_its_parts_is_refused() -> None:
    data = JPEGS["baseline"]
    for marker in (b"\xff\xdb", b"\xff\xc0", b"\xff\xda"):
        at = data.index(marker)
        with pytest.raises(DamagedError):
            decode(data[:at] + b"garbage" + data[at:])


@settings(max_examples=150)
@given(share=st.floats(0, 1, exclude_max=True), length=st.integers(1, 300), fill=st.integers(0, 255))
def test_a_hole_in_a_png_is_refused(share: float, length: int, fill: int) -> None:
    data = WHOLE["png"]
    at = int(share * (len(data) - length))
    holed = data[:at] + bytes([fill]) * length + data[at + length :]
    if holed != data:
        with pytest.raises((DamagedError, RefusedError)):
            decode(holed)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.3, 0.5, 0.99, -1])
def test_a_png_whose_data_end_early_is_refused_though_all_checksums_fit(keep: float) -> None:
    chunks = dict(png_chunks(WHOLE["png"]))
    rows = zlib.decompress(chunks[b"IDAT"])
    for whole in (rows, zlib.compress(rows)):
        length = int(len(whole) * keep) if 0 < keep < 1 else int(keep)
        data = zlib.compress(rows[:length]) if whole is rows else whole[:length]
        with pytest.raises(DamagedError):
            decode(png([(b"IHDR", chunks[b"IHDR"]), (b"IDAT", data), (b"IEND", b"")]))


def test_a_png_of_16_bits_whose_data_end_early_is_refused() -> None:
    data = encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG")
    chunks = dict(png_chunks(data))
    rows = zlib.decompress(chunks[b"IDAT"])
    with pytest.raises(DamagedError):
        decode(png([(b"IHDR", chunks[b"IHDR"]), (b"IDAT", zlib.compress(rows[:-9])), (b"IEND", b"")]))


def test_a_png_without_one_of_its_parts_is_refused() -> None:
    chunks = png_chunks(encoded(RGB.quantize(9), "PNG"))
    for number in range(len(chunks)):
        with pytest.raises(DamagedError):
            decode(png([*chunks[:number], *chunks[number + 1 :]]))


def test_a_tiff_without_one_of_its_strips_is_refused() -> None:
    strips = [GREY[top : top + 10].tobytes() for top in range(0, HEIGHT, 10)]
    tags = grey_tags(HEIGHT, WIDTH, t278=10)
    assert decode(tiff(tags, strips)).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(DamagedError, match="pieces"):
        decode(tiff(tags, strips[:-1]))
    for number in range(len(strips)):
        for short in (strips[number][:-1], b""):
            with pytest.raises(DamagedError):
                decode(tiff(tags, [*strips[:number], short, *strips[number + 1 :]]))
    data = b"".join(strips)
    sizes = [len(strip) for strip in strips]
    offsets = [8 + sum(sizes[:n]) for n in range(len(strips))]
    for place in (0, 4, 10**6, 2**32 - 1):
        with pytest.raises(DamagedError):
            decode(tiff_of([*tags, (273, 4, [*offsets[:-1], place]), (279, 4, sizes)], data))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_compressed_tiff_whose_piece_is_short_is_refused(compression: str) -> None:
    with Image.open(io.BytesIO(encoded(RGB.convert("L"), "TIFF", compression=compression))) as image:
        tags = dict(image.tag_v2)  # type: ignore[attr-defined]
        data = encoded(RGB.convert("L"), "TIFF", compression=compression)
    offset, size = tags[273][0], tags[279][0]
    piece = data[offset : offset + size]
    same = grey_tags(HEIGHT, WIDTH, t259=tags[259])
    assert decode(tiff(same, [piece])).shape == (HEIGHT, WIDTH, 3)
    for keep in (0.1, 0.5, 0.9):
        with pytest.raises(DamagedError):
            decode(tiff(same, [piece[: int(size * keep)]]))
    with pytest.raises(DamagedError):
        decode(tiff(same, [piece[: size // 2] + bytes(size - size // 2)]))


def test_a_second_page_of_a_tiff_is_named() -> None:
    two = encoded(RGB, "TIFF", save_all=True, append_images=[RGB.rotate(180)])
    with pytest.raises(RefusedError, match="several pictures"):
        decode(two)


def test_a_webp_whose_data_are_short_is_refused_though_its_parts_fit() -> None:
    for name in ("webp", "webp lossless"):
        data = WHOLE[name]
        assert data[12:15] == b"VP8"
        for keep in (0.05, 0.5, 0.95):
            size = int(struct.unpack_from("<I", data, 16)[0] * keep) // 2 * 2
            body = data[12:16] + struct.pack("<I", size) + data[20 : 20 + size]
            with pytest.raises(DamagedError):
                decode(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body)


def test_a_bmp_that_lacks_rows_is_refused() -> None:
    rows = np.pad(GREY, ((0, 0), (0, -WIDTH % 4))).tobytes()
    palette = bytes(v for level in range(256) for v in (level, level, level, 0))
    assert decode(bmp(WIDTH, HEIGHT, 8, rows, palette=palette)).shape == (HEIGHT, WIDTH, 3)
    for short in (rows[:-1], rows[:-WIDTH], b""):
        with pytest.raises(DamagedError):
            decode(bmp(WIDTH, HEIGHT, 8, short, palette=palette))


def test_a_sample_above_the_largest_that_a_pgm_says_is_damage() -> None:
    with pytest.raises(DamagedError, match="above 100"):
        decode(b"P5 2 1 100\n\x05\x65")
    with pytest.raises(DamagedError, match="above 255"):
        decode(b"P3 1 1 255\n1 2 300")


def test_a_second_picture_in_a_pnm_file_is_named() -> None:
    with pytest.raises(RefusedError, match="several pictures"):
        decode(WHOLE["pgm"] + WHOLE["pgm"])


def test_a_decoder_writes_nothing_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    for data in WHOLE.values():
        for broken in (
            data[: len(data) // 2],
            data[: len(data) // 2] + bytes(99) + data[len(data) // 2 + 99 :],
        ):
            try:
                decode(broken)
            except (DamagedError, RefusedError):
                continue
    assert capfd.readouterr() == ("", "")


def test_a_hole_of_ones_in_the_data_of_a_jpeg_is_refused_and_fill_bytes_before_a_marker_are_not() -> None:
    whole = encoded(photograph(200, 300), "JPEG", quality=90)
    start = whole.index(b"\xff\xda") + 14
    place = (
        whole.index(b"\0", start + 2000) - 40
    )  # what follows the hole makes its last byte a part of the data
    for length in (2, 8, 40):
        hole = whole[: place + 40 - length] + b"\xff" * length + whole[place + 40 :]
        with pytest.raises(DamagedError):
            decode(hole)
    filled = whole[:-2] + b"\xff\xff\xff" + whole[-2:]
    assert np.array_equal(decode(filled), pil_pixels(whole))


def test_a_jpeg_of_rare_sampling_factors_is_refused_by_name_and_not_called_damaged() -> None:
    inks = photograph().convert("CMYK")
    assert np.array_equal(decode(encoded(inks, "JPEG")), pil_pixels(encoded(inks, "JPEG")))
    for sampling in ("4:2:0", "4:2:2", "4:1:1"):
        with pytest.raises(RefusedError, match="sampling"):
            decode(encoded(inks, "JPEG", subsampling=sampling))
