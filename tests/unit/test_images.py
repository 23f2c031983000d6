from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from flowedge.errors import DataError, ImageError
from flowedge.runtime.frames import images
from flowedge.runtime.frames.finding import find_images
from flowedge.runtime.frames.images import read_image

TILES = Path(__file__).resolve().parents[3] / "shared" / "data" / "magnetic_tile"


def photograph() -> Image.Image:
    """Make 97x131 pixels of smooth colours, like those of a photograph."""
    noise = np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    blurred = cv2.GaussianBlur(noise, (0, 0), 3)
    low, high = int(blurred.min()), int(blurred.max())
    return Image.fromarray(((blurred.astype(np.int32) - low) * 255 // (high - low)).astype(np.uint8))


RGB = photograph()
GREY = RGB.convert("L")
RGBA = RGB.copy()
RGBA.putalpha(GREY)
GREY_ALPHA = GREY.copy()
GREY_ALPHA.putalpha(RGB.getchannel(0))
PALETTE = RGB.quantize(64)
ROTATED = Image.Exif()
ROTATED[0x112] = 6


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pil_pixels(data: bytes | Path) -> NDArray[np.uint8]:
    with Image.open(data if isinstance(data, Path) else io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def written(folder: Path, data: bytes) -> Path:
    path = folder / "image"
    path.write_bytes(data)
    return path


FILES = {
    "png": encoded(RGB, "PNG"),
    "png grey": encoded(GREY, "PNG"),
    "png black and white": encoded(RGB.convert("1"), "PNG"),
    "png with alpha": encoded(RGBA, "PNG"),
    "png grey with alpha": encoded(GREY_ALPHA, "PNG"),
    "png palette": encoded(PALETTE, "PNG"),
    "png palette of 4 bits": encoded(RGB.quantize(13), "PNG", bits=4),
    "png palette with a transparent colour": encoded(PALETTE, "PNG", transparency=3),
    "png with a transparent colour": encoded(RGB, "PNG", transparency=(1, 2, 3)),
    "png grey with a transparent level": encoded(GREY, "PNG", transparency=5),
    "png that a camera turned": encoded(RGB, "PNG", exif=ROTATED),
    "jpeg": encoded(RGB, "JPEG"),
    "jpeg of full colour": encoded(RGB, "JPEG", subsampling=0, quality=95),
    "jpeg progressive": encoded(RGB, "JPEG", progressive=True),
    "jpeg grey": encoded(GREY, "JPEG"),
    "jpeg that a camera turned": encoded(RGB, "JPEG", exif=ROTATED),
    "bmp": encoded(RGB, "BMP"),
    "bmp grey": encoded(GREY, "BMP"),
    "bmp palette": encoded(PALETTE, "BMP"),
    "bmp black and white": encoded(RGB.convert("1"), "BMP"),
    "tiff": encoded(RGB, "TIFF"),
    "tiff grey": encoded(GREY, "TIFF"),
    "tiff with alpha": encoded(RGBA, "TIFF"),
    "tiff cmyk": encoded(RGB.convert("CMYK"), "TIFF"),
    "tiff compressed": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "webp": encoded(RGB, "WEBP"),
    "webp lossless": encoded(RGB, "WEBP", lossless=True),
    "webp with alpha": encoded(RGBA, "WEBP", lossless=True, exact=True),
}
COMPLETE_ONLY = [
    "png",
    "png palette",
    "jpeg",
    "jpeg progressive",
    "jpeg grey",
    "bmp",
    "tiff",
    "webp",
    "webp lossless",
]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_pil_converts_it_to_rgb(name: str, tmp_path: Path) -> None:
    pixels = read_image(written(tmp_path, FILES[name]))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, pil_pixels(FILES[name]))


def test_a_cmyk_jpeg_is_read_as_pil_converts_it_to_rgb(tmp_path: Path) -> None:
    data = encoded(RGB.convert("CMYK"), "JPEG")
    np.testing.assert_array_equal(read_image(written(tmp_path, data)), pil_pixels(data))


@pytest.mark.skipif(not TILES.is_dir(), reason="the magnetic tile images are not on this machine")
def test_every_magnetic_tile_is_read_as_pil_reads_it() -> None:
    paths = find_images(TILES / "test").images
    assert len(paths) == 240
    for path in paths:
        np.testing.assert_array_equal(read_image(path), pil_pixels(path), err_msg=str(path))


@pytest.mark.parametrize("missing", [1, 3, 9, 20, 500])
@pytest.mark.parametrize("name", COMPLETE_ONLY)
def test_a_truncated_file_is_refused_with_the_reason(name: str, missing: int, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"is damaged: "):
        read_image(written(tmp_path, FILES[name][:-missing]))


@settings(max_examples=150)
@given(name=st.sampled_from(sorted(FILES)), keep=st.floats(0, 0.9))
def test_no_part_of_a_file_passes_for_a_whole_one(
    name: str, keep: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = FILES[name][: int(len(FILES[name]) * keep)]
    with pytest.raises(ImageError):
        read_image(written(tmp_path_factory.mktemp("part"), data))


@settings(max_examples=150)
@given(name=st.sampled_from(sorted(FILES)), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_is_read_or_refused_but_never_an_accident(
    name: str, place: float, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(FILES[name])
    data[int(place * len(data))] ^= flip
    try:
        pixels = read_image(written(tmp_path_factory.mktemp("flipped"), bytes(data)))
    except ImageError:
        return
    assert pixels.ndim == 3
    assert not name.startswith("png") or np.array_equal(pixels, pil_pixels(FILES[name]))


def test_trailing_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path: Path) -> None:
    data = FILES["jpeg"] + b"\0" * 100
    np.testing.assert_array_equal(read_image(written(tmp_path, data)), pil_pixels(FILES["jpeg"]))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"not an image at all", "is not a JPEG, PNG, BMP, TIFF, WebP or PNM image"),
        (encoded(PALETTE, "GIF"), "is not a JPEG, PNG, BMP, TIFF, WebP or PNM image"),
        (encoded(Image.fromarray(np.full((5, 5), 40000, np.uint16)), "PNG"), "uint16 pixels; 8 bits"),
        (encoded(Image.fromarray(np.zeros((5, 5), np.float32)), "TIFF"), "float32 pixels; 8 bits"),
        (encoded(RGB.convert("YCbCr"), "TIFF"), "TIFF file with YCbCr colours"),
        (FILES["png"][:60] + b"?" + FILES["png"][61:], "damaged: the checksum of its part IDAT is wrong"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(data: bytes, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path, data)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent\.png does not exist"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="it is a folder, not a file"):
        read_image(tmp_path)


def huge_headers() -> Iterator[tuple[str, bytes]]:
    """Write files of a few bytes that claim 60000x60000 pixels."""
    side = 60000
    png = bytearray(FILES["png"])
    png[16:24] = struct.pack(">II", side, side)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    yield "png", bytes(png)
    jpeg = bytearray(FILES["jpeg"])
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", side, side)
    yield "jpeg", bytes(jpeg)
    bmp = bytearray(encoded(PALETTE, "BMP"))
    bmp[18:26] = struct.pack("<ii", side, -side)
    bmp[30:34] = struct.pack("<I", 1)  # run-length coded: its length says nothing about its size
    yield "bmp", bytes(bmp)
    tiff = bytearray(FILES["tiff"])
    first = struct.unpack_from("<I", tiff, 4)[0] + 2
    for entry in range(first, first + 24, 12):
        struct.pack_into("<HII", tiff, entry + 2, 4, 1, side)
    yield "tiff", bytes(tiff)


@pytest.mark.parametrize(("kind", "data"), list(huge_headers()), ids=["png", "jpeg", "bmp", "tiff"])
def test_an_image_that_is_too_large_is_refused_before_it_is_decoded(
    kind: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail(f"the {kind} was decoded"))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail(f"the {kind} was decoded"))
    with pytest.raises(ImageError, match="60000x60000 pixels, more than 100 million"):
        read_image(written(tmp_path, data))


def test_a_file_that_is_too_large_for_any_image_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    with pytest.raises(ImageError, match="0 MB, more than an image of 100 million pixels needs"):
        read_image(written(tmp_path, FILES["png"]))


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_is_searched_below_in_natural_order(tmp_path: Path) -> None:
    touched(
        tmp_path, "part10.png", "part2.PNG", "b/1.jpg", "a10/0.tif", "a9/0.webp", "notes.txt", ".hidden.png"
    )
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path).images]
    assert found == ["a9/0.webp", "a10/0.tif", "b/1.jpg", "part2.PNG", "part10.png"]


def test_a_pattern_finds_images_and_nothing_else(tmp_path: Path) -> None:
    touched(tmp_path, "x/1.png", "x/2.png", "y/3.png", "x/2.txt", "x/deep/4.png")
    assert [path.name for path in find_images(f"{tmp_path}/x/*").images] == ["1.png", "2.png"]
    assert [path.name for path in find_images(f"{tmp_path}/**/[34].png").images] == ["4.png", "3.png"]


def test_a_named_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    touched(tmp_path, "frame[1].dat")
    assert find_images(tmp_path / "frame[1].dat").images == [tmp_path / "frame[1].dat"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("absent", "does not exist"),
        ("empty", "hold 0 files"),
        ("texts", "hold 2 files; images end in .bmp, .dib"),
        ("texts/*", "matches 2 files"),
        ("texts/*.png", "matches 0 files"),
    ],
)
def test_a_source_without_images_is_refused_with_what_it_holds(
    source: str, reason: str, tmp_path: Path
) -> None:
    touched(tmp_path, "texts/a.txt", "texts/b.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=reason):
        find_images(tmp_path / source)


def test_names_that_mix_digits_and_letters_can_be_sorted(tmp_path: Path) -> None:
    touched(tmp_path, "1a.png", "a1.png", "1.png", "a.png", "01.png", "²x.png")
    names = [path.name for path in find_images(tmp_path).images]
    assert names[:2] == ["01.png", "1.png"]
    assert len(names) == 6


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user who can be refused")
def test_a_file_that_may_not_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = written(tmp_path, FILES["png"])
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        read_image(path)
