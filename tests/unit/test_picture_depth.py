"""Images and frames of more than 8 bits are exact through a declared window, and refused without one."""

from __future__ import annotations

import io
import itertools
import json
import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import flowedge
from flowedge.bundle import open_bundle, replace_in_bundle
from flowedge.errors import BundleError, ImageError
from flowedge.manifest_json import json_from_manifest, manifest_from_json
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.pixel_range import in_8_bits, pixel_range_from, with_pixel_range
from flowedge.runtime.frames.pixels import pixels_of
from support.command_line import flowedge as run_flowedge
from support.picture_files import Tag, encoded, grey_tags, raw_png, tiff
from support.tiny_bundle import IMAGE_SIZE, tiny_manifest, write_tiny_bundle

RNG = np.random.default_rng(3)
HEIGHT, WIDTH = 21, 34
DEEP = RNG.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
TWELVE = (0.0, 4095.0)


def expected(levels: NDArray[np.generic], low: float, high: float) -> NDArray[np.uint8]:
    """Follow the documented formula in plain Python."""
    flat = [round((min(max(float(v), low), high) - low) * 255 / (high - low)) for v in levels.ravel()]
    grey = np.array(flat, np.uint8).reshape(levels.shape)
    return grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)


def deep_tiff(levels: NDArray[np.generic], order: str, *, planes: int = 1, orientation: int = 1) -> bytes:
    colours = 1 if levels.ndim == 2 else 3
    bits = 8 * levels.dtype.itemsize
    kind = {"u": 1, "i": 2, "f": 3}[levels.dtype.kind]
    fixed = grey_tags(
        HEIGHT, WIDTH, t262=1 if colours == 1 else 2, t277=colours, t284=planes, t274=orientation
    )
    tags: list[Tag] = [one for one in fixed if one[0] != 258]
    tags += [(258, 3, [bits] * colours), (339, 3, [kind] * colours)]
    stored = levels.astype(np.dtype(order + levels.dtype.str[1:]))
    parts = [stored] if planes == 1 else [stored[..., n] for n in range(colours)]
    return tiff(tags, [part.tobytes() for part in parts], order=order)


def files() -> dict[str, tuple[bytes, NDArray[np.generic]]]:
    grey = DEEP[..., 0]
    swapped = DEEP.astype(">u2")
    found: dict[str, tuple[bytes, NDArray[np.generic]]] = {
        "png grey": (raw_png(WIDTH, HEIGHT, 16, 0, swapped[..., 0].tobytes()), grey),
        "png rgb": (raw_png(WIDTH, HEIGHT, 16, 2, swapped.tobytes()), DEEP),
        "png grey alpha": (
            raw_png(WIDTH, HEIGHT, 16, 4, swapped[..., [0, 2]].tobytes()),
            np.repeat(grey[..., None], 3, axis=2),
        ),
        "png rgba": (raw_png(WIDTH, HEIGHT, 16, 6, swapped[..., [0, 1, 2, 0]].tobytes()), DEEP),
        "pgm": (b"P5\n%d %d\n65535\n" % (WIDTH, HEIGHT) + swapped[..., 0].tobytes(), grey),
        "ppm": (b"P6\n%d %d\n65535\n" % (WIDTH, HEIGHT) + swapped.tobytes(), DEEP),
        "plain pgm": (
            b"P2\n%d %d\n65535\n" % (WIDTH, HEIGHT) + " ".join(map(str, grey.ravel())).encode(),
            grey,
        ),
        "pfm": (
            b"Pf\n%d %d\n-1.0\n" % (WIDTH, HEIGHT) + grey[::-1].astype("<f4").tobytes(),
            grey.astype(np.float32),
        ),
        "pfm rgb": (
            b"PF\n%d %d\n1.0\n" % (WIDTH, HEIGHT) + DEEP[::-1].astype(">f4").tobytes(),
            DEEP.astype(np.float32),
        ),
        "pillow's lzw": (encoded(Image.fromarray(grey), "TIFF", compression="tiff_lzw"), grey),
    }
    for dtype, order in itertools.product(("u2", "i2", "u4", "i4", "f4", "f8"), "<>"):
        levels = DEEP.astype(dtype) if dtype != "i2" else (DEEP.astype(np.int32) - 32768).astype(dtype)
        found[f"tiff {dtype}{order}"] = (deep_tiff(levels[..., 0], order), levels[..., 0])
        found[f"tiff rgb {dtype}{order}"] = (deep_tiff(levels, order), levels)
    found["tiff planes"] = (deep_tiff(DEEP, "<", planes=2), DEEP)
    found["tiff turned"] = (deep_tiff(DEEP, "<", orientation=6), np.rot90(DEEP, -1))
    return found


FILES = files()
WINDOWS = [(0.0, 65535.0), TWELVE, (1000.5, 1255.5), (-500.0, 70000.0)]


def written(folder: Path, data: bytes) -> Path:
    path = folder / "deep"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_deep_file_is_exact_through_a_window_and_refused_without(name: str, tmp_path: Path) -> None:
    data, levels = FILES[name]
    path = written(tmp_path, data)
    for low, high in WINDOWS:
        np.testing.assert_array_equal(read_image(path, (low, high)), expected(levels, low, high))
    with pytest.raises(ImageError, match="pixel_range"):
        read_image(path)


def test_a_file_of_8_bits_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = (DEEP >> 8).astype(np.uint8)
    path = written(tmp_path, encoded(Image.fromarray(pixels), "PNG"))
    np.testing.assert_array_equal(read_image(path, TWELVE), pixels)


def test_the_windows_of_the_guide_cut_off_as_trainings_do() -> None:
    levels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    cut_off = (levels / 4095 * 255).astype(np.uint8)
    np.testing.assert_array_equal(in_8_bits(levels, (8.02, 4103.02))[..., 0], cut_off)
    np.testing.assert_array_equal(in_8_bits(levels, (7.5, 4087.5))[..., 0], levels >> 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_level_that_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    levels = DEEP[..., 0].astype(np.float32)
    levels[5, 7] = value
    with pytest.raises(ImageError, match="NaN or infinite"):
        read_image(written(tmp_path, deep_tiff(levels, "<")), TWELVE)
    with pytest.raises(ImageError, match="NaN or infinite"):
        pixels_of(levels, pixel_range=TWELVE)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int64", "float16", "float32", "float64"])
def test_a_frame_gives_what_its_8_bits_give(dtype: str) -> None:
    levels = (DEEP >> 4).astype(dtype)
    for frame in (levels, levels[..., 1], levels[..., :1]):
        np.testing.assert_array_equal(
            pixels_of(frame, pixel_range=TWELVE), expected(frame.squeeze(), *TWELVE)
        )
        with pytest.raises(ImageError, match="pixel_range"):
            pixels_of(frame)
    np.testing.assert_array_equal(
        pixels_of(levels[..., ::-1], color="bgr", pixel_range=TWELVE), pixels_of(levels, pixel_range=TWELVE)
    )


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 4), bool), np.zeros((4, 4, 4), np.uint16), np.zeros((0, 4), np.uint16)]
)
def test_other_frames_stay_refused(frame: NDArray[np.generic]) -> None:
    with pytest.raises(ImageError, match="a frame must be"):
        pixels_of(frame, pixel_range=TWELVE)


def test_a_detector_answers_the_same_for_the_file_the_deep_frame_and_its_8_bits(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b.flowedge")
    replace_in_bundle(bundle, manifest=with_pixel_range(bundle.manifest, TWELVE), files={})
    levels = RNG.integers(0, 4096, (*IMAGE_SIZE, 3), dtype=np.uint16)
    path = written(tmp_path, deep_tiff_of_any_size(levels))
    with flowedge.load(tmp_path / "b.flowedge") as detector:
        assert detector.bundle.manifest.pixel_range == TWELVE
        scores = {
            detector(levels).score,
            detector(expected(levels, *TWELVE)).score,
            detector(read_image(path, TWELVE)).score,
        }
    assert len(scores) == 1


def deep_tiff_of_any_size(levels: NDArray[np.uint16]) -> bytes:
    height, width = levels.shape[:2]
    return b"P6 %d %d 4095\n" % (width, height) + levels.astype(">u2").tobytes()


def test_a_manifest_keeps_the_window_and_lists_it_among_the_assumed_values() -> None:
    manifest = with_pixel_range(with_pixel_range(tiny_manifest(), (0, 255)), TWELVE)
    again = manifest_from_json(json_from_manifest(manifest))
    assert again.pixel_range == TWELVE
    assert [(one.name, one.value, one.given) for one in again.assumed] == [
        ("pixel_range", [0.0, 4095.0], True)
    ]
    with pytest.raises(BundleError, match="pixel_range"):
        json_from_manifest(msgspec.structs.replace(manifest, pixel_range=(5.0, 5.0)))


def test_a_user_s_words_for_a_window() -> None:
    assert pixel_range_from("0,4095") == TWELVE
    assert pixel_range_from("-1.5,1e3") == (-1.5, 1000.0)
    for text in ("", "5", "5,5", "9,1", "0,nan", "0,inf", "a,b", "1,2,3", "0,1e300"):
        with pytest.raises(ValueError):  # noqa: PT011 - the caller names the option
            pixel_range_from(text)


def test_a_jpeg_in_a_deep_bundle_stays_what_it_is(tmp_path: Path) -> None:
    data = encoded(Image.fromarray((DEEP >> 8).astype(np.uint8)), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(read_image(written(tmp_path, data), TWELVE), np.asarray(image))
    assert struct.unpack(">H", data[:2]) == (0xFFD8,)


def deep_dataset(folder: Path, height: int, width: int) -> Path:
    for place in ("train/good", "test/good", "test/scratch"):
        (folder / place).mkdir(parents=True)
        for number in range(3):
            levels = RNG.integers(0, 4096, (height, width), dtype=np.uint16)
            header = b"P5 %d %d 4095\n" % (width, height)
            (folder / place / f"{number}.pgm").write_bytes(header + levels.astype(">u2").tobytes())
    return folder


@pytest.mark.usefixtures("without_proof")
def test_every_command_sees_deep_images_through_the_window_that_calibrate_declares(tmp_path: Path) -> None:
    data = deep_dataset(tmp_path / "data", *IMAGE_SIZE)
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge").path
    refused = run_flowedge("calibrate", bundle, "--data", data)
    assert (refused.status, "pixel_range" in refused.stderr) == (2, True)
    for words in ("pixel_range=9,1", "clamp=2", "pixel_range"):
        assert run_flowedge("calibrate", bundle, "--data", data, "--set", words).status == 2
    assert open_bundle(bundle).manifest.pixel_range is None
    done = run_flowedge("calibrate", bundle, "--data", data, "--set", "pixel_range=0,4095")
    assert done.status == 0, done
    assert "pixel_range" in run_flowedge("info", bundle).stdout
    inspected = [json.loads(line) for line in run_flowedge("run", bundle, data, "--json").stdout.splitlines()]
    with flowedge.load(bundle) as detector:
        for line in inspected:
            assert line["score"] == detector(read_image(line["image"], TWELVE)).score
    assert json.loads(run_flowedge("eval", bundle, data, "--json").stdout)["good_images"] == 3
    again = run_flowedge("calibrate", bundle, "--data", data)
    assert (again.status, open_bundle(bundle).manifest.pixel_range) == (0, TWELVE)


@pytest.mark.slow
def test_an_export_stores_the_window_and_verify_against_the_checkpoint_takes_it(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    data = deep_dataset(tmp_path / "data", 64, 64)
    bundle = tmp_path / "exported.flowedge"
    done = run_flowedge("export", small_checkpoint, "-o", bundle, "--set", "pixel_range=0,4095")
    assert done.status == 0, done
    assert open_bundle(bundle).manifest.pixel_range == TWELVE
    done = run_flowedge("verify", bundle, "--against", small_checkpoint, "--data", data / "train" / "good")
    assert done.status == 0, done
