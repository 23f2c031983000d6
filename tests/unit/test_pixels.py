"""A detector takes arrays, paths and PIL images, and says about everything else what to give in its place."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import flowedge
from flowedge.bundle import Bundle
from flowedge.errors import ImageError
from flowedge.manifest import NfaThreshold, Threshold, Thresholds
from flowedge.runtime.detector import Detector
from flowedge.runtime.engines.null import NullEngine
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.pixels import pixels_of
from support.opened_engine import opened
from support.picture_files import photograph
from support.tiny_bundle import IMAGE_SIZE, tiny_manifest, write_tiny_bundle

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (*IMAGE_SIZE, 3), np.uint8)
GREY = RGB[..., 0].copy()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The tiny bundle."""
    return write_tiny_bundle(tmp_path / "tiny.flowedge")


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "part.png"
    Image.fromarray(RGB).save(path)
    return path


def test_every_kind_of_frame_gets_the_same_answer(bundle: Bundle, png: Path) -> None:
    with flowedge.load(bundle.path) as detector:
        wanted = detector(RGB)
        bgr = cv2.imread(str(png))
        assert bgr is not None
        results = [
            detector(bgr, color="bgr"),
            detector(png),
            detector(str(png)),
            detector(Image.open(png)),
            *detector.detect_batch([RGB, png, str(png), Image.fromarray(RGB)]),
            *detector.detect_batch([bgr, png], color="bgr"),
        ]
    for result in results:
        assert result.score == wanted.score
        np.testing.assert_array_equal(result.anomaly_map, wanted.anomaly_map)
        np.testing.assert_array_equal(result.frame, RGB)
        assert result.frame.flags.c_contiguous


@pytest.mark.parametrize("grey", [GREY, GREY[..., None]])
def test_a_declared_grey_frame_is_repeated_three_times(bundle: Bundle, grey: np.ndarray) -> None:
    with flowedge.load(bundle.path) as detector:
        result = detector(grey, color="gray")
        wanted = detector(np.stack([GREY] * 3, axis=2))
        batch = detector.detect_batch(np.stack([GREY, GREY]), color="gray")
    assert result.score == wanted.score == batch[0].score == batch[1].score
    np.testing.assert_array_equal(result.frame, wanted.frame)


def test_a_frame_of_rgb_is_not_copied() -> None:
    assert pixels_of(RGB) is RGB


class Tensor:
    """An array of a library that is not installed here."""


Tensor.__module__ = "cupy"


@pytest.mark.parametrize(
    ("given", "color", "message"),
    [
        (None, "rgb", r"cv2\.imread returns None for a file that it cannot read"),
        (GREY, "rgb", r'A grey frame needs color="gray"'),
        (GREY[..., None], "bgr", r'A grey frame needs color="gray"'),
        (RGB, "gray", r'color="gray" must be \(H, W\) or \(H, W, 1\), got \(16, 24, 3\)'),
        (np.zeros((16, 24, 4), np.uint8), "rgb", r"frame\[\.\.\., :3\]"),
        (np.zeros((3, 16, 24), np.uint8), "rgb", r"channels come first: give frame\.transpose\(1, 2, 0\)"),
        (np.zeros((3, 16, 24), np.float32), "rgb", r"channels come first"),
        (np.zeros((16, 24, 3), np.float32), "rgb", r"Scale the levels to 0\.\.255 .* pixel_range"),
        (np.zeros((16, 24), np.uint16), "gray", r"pixel_range"),
        (np.zeros((16, 24), bool), "gray", r"astype\(numpy\.uint8\) \* 255"),
        (np.zeros((0, 24, 3), np.uint8), "rgb", r"The array is empty"),
        (np.zeros((2, 16, 24, 3), np.uint8), "rgb", r"detector\.detect_batch"),
        (np.zeros(5, np.uint8), "rgb", r"Give \(H, W, 3\) in RGB"),
        (
            torch.zeros(3, 16, 24),
            "rgb",
            r"torch\.Tensor\. Give tensor\.cpu\(\)\.numpy\(\), after tensor\.permute",
        ),
        (Tensor(), "rgb", r"cupy\.Tensor\. Give array\.get\(\)"),
        (b"\x89PNG", "rgb", r"bytes\. Give PIL\.Image\.open\(io\.BytesIO\(data\)\)"),
        (io.BytesIO(), "rgb", r"an open file \(BytesIO\)\. Give its path"),
        ([RGB, RGB], "rgb", r"a list\. Give several frames to detector\.detect_batch"),
        (3, "rgb", r"got int\. Give a NumPy array"),
    ],
)
def test_what_is_no_frame_is_refused_with_what_to_give(
    bundle: Bundle, given: Any, color: Any, message: str
) -> None:
    detector = Detector(bundle, opened(NullEngine(tiny_manifest())))
    with pytest.raises(ImageError, match=message):
        detector(given, color=color)
    with pytest.raises(ImageError, match=rf"^frames\[1\]: .*{message}"):
        detector.detect_batch([RGB if color == "rgb" else Image.fromarray(RGB), given], color=color)


@pytest.mark.parametrize(
    ("frames", "color", "message"),
    [
        (RGB, "rgb", r"got an array \(16, 24, 3\) uint8\. Put a single frame into a list"),
        (RGB, "gray", r"Put a single frame into a list"),
        (GREY, "gray", r"Put a single frame into a list"),
        (np.stack([GREY, GREY]), "rgb", r'Grey frames \(N, H, W\) need color="gray"'),
        (np.array(3, np.uint8), "rgb", r"Put a single frame into a list"),
        ("part.png", "rgb", r"got a single str\. Put it into a list"),
        (Path("part.png"), "rgb", r"got a single PosixPath"),
        (Image.fromarray(RGB), "rgb", r"got a single Image"),
        (torch.zeros(2, 16, 24, 3), "rgb", r"Give tensor\.cpu\(\)\.numpy\(\)"),
        (b"\x89PNG", "rgb", r"bytes\. Give PIL"),
        ((frame for frame in (RGB, RGB)), "rgb", r"got generator\. Give list\(frames\)"),
        ({"a": RGB}, "rgb", r"got dict\. Give list\(frames\.values\(\)\)"),
        ({"a": RGB}.values(), "rgb", r"got dict_values\. Give list\(frames\)"),
        ({"a.png"}, "rgb", r"got set\. Give list\(frames\)"),
        (np.array(["a.png", "b.png"]), "rgb", r"an array of paths becomes a list with tolist\(\)"),
        (None, "rgb", r"None"),
    ],
)
def test_what_is_no_list_of_frames_is_refused_with_what_to_give(
    bundle: Bundle, frames: Any, color: Any, message: str
) -> None:
    detector = Detector(bundle, opened(NullEngine(tiny_manifest())))
    with pytest.raises(ImageError, match=message):
        detector.detect_batch(frames, color=color)


def test_another_order_of_channels_is_a_mistake(bundle: Bundle) -> None:
    detector = Detector(bundle, opened(NullEngine(tiny_manifest())))
    for use in (detector, lambda frame, color: detector.detect_batch([frame], color=color)):
        with pytest.raises(ValueError, match='color must be "rgb", "bgr" or "gray", got \'grey\''):
            use(RGB, color="grey")  # type: ignore[arg-type]


def test_a_path_that_cannot_be_read_says_what_is_wrong(bundle: Bundle, tmp_path: Path) -> None:
    detector = Detector(bundle, opened(NullEngine(tiny_manifest())))
    with pytest.raises(ImageError, match=r"absent\.png does not exist"):
        detector(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="is a folder"):
        detector(str(tmp_path))
    with pytest.raises(ImageError, match=r"'a\\x00b' is no path of a file"):
        detector("a\0b")


# --- PIL images


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("TIFF", mode) for mode in ("L", "P", "RGB", "RGBA", "CMYK", "I;16")),
        *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    ],
)
def test_a_pil_image_gets_the_pixels_of_its_file(
    tmp_path: Path, mode: str, kind: str, orientation: int
) -> None:
    image = photograph(40, 60)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"part.{kind.lower()}"
    image.save(path, kind, exif=exif)
    wanted = read_image(path, (0, 65535))
    with Image.open(path) as opened_image:
        if kind == "TIFF" and orientation != 1:
            with pytest.raises(ImageError, match=r"turned TIFF file may be wrong\. Give the path"):
                pixels_of(opened_image)
            return
        np.testing.assert_array_equal(pixels_of(opened_image, pixel_range=(0, 65535)), wanted)
        if mode == "I;16":
            with pytest.raises(
                ImageError, match=r"a PIL image has \w+ pixels; 8 bits per channel are needed"
            ):
                pixels_of(opened_image)


def test_a_pil_image_of_a_turned_compressed_tiff_is_turned(tmp_path: Path) -> None:
    path = tmp_path / "part.tiff"
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(40, 60).save(path, compression="tiff_lzw", exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(pixels_of(image), read_image(path))


def test_a_pil_image_with_half_of_its_bits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    assert cv2.imwrite(str(path), RNG.integers(0, 65536, (8, 9, 3)).astype(np.uint16))
    with (
        Image.open(path) as image,
        pytest.raises(ImageError, match=r"holds 8 of the 16 bits of its file\. Give the path"),
    ):
        pixels_of(image)


def test_a_pil_image_of_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    photograph().save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with Image.open(path) as image, pytest.raises(ImageError, match="a PIL image cannot be decoded"):
        pixels_of(image)


def test_a_pil_image_beyond_the_limits_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageError, match="the longest side may be"):
        pixels_of(Image.new("L", (40_000, 2_000)))


# --- what a detector says about itself


def limit(value: float) -> Threshold:
    return Threshold(value=value, method="manual")


@pytest.mark.parametrize(
    ("thresholds", "limits"),
    [
        (Thresholds(), "no threshold"),
        (Thresholds(image=limit(0.5), pixel=limit(1.25)), "image threshold 0.5, pixel threshold 1.25"),
        (Thresholds(image=limit(0.5), nfa=NfaThreshold(form="tree", log_nfa=-2)), "log NFA limit -2"),
    ],
)
def test_a_detector_prints_its_model_size_engine_precision_and_thresholds(
    tmp_path: Path, thresholds: Thresholds, limits: str
) -> None:
    path = write_tiny_bundle(tmp_path / "tiny.flowedge", thresholds=thresholds).path
    detector = flowedge.load(path, engine="onnxruntime-cpu")
    text = f"<Detector {str(path)!r}: fastflow on resnet18, 16x24, fp32 on onnxruntime-cpu, {limits}"
    assert repr(detector) == f"{text}>"
    detector.close()
    assert repr(detector) == f"{text}, closed>"


def test_a_detector_knows_the_size_of_its_network(bundle: Bundle) -> None:
    with flowedge.load(bundle.path) as detector:
        assert detector.image_size == IMAGE_SIZE


@pytest.mark.parametrize("takes_frames", [False, True])
def test_warming_up_runs_the_graph_as_a_frame_does(tmp_path: Path, takes_frames: bool) -> None:
    shapes: list[tuple[int, ...]] = []

    class Counting(NullEngine):
        def infer(self, *inputs: Any) -> Any:
            shapes.append(inputs[0].shape)
            return super().infer(*inputs)

    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", takes_frames=takes_frames)
    detector = Detector(bundle, opened(Counting(bundle.manifest)))
    detector.warm_up()
    detector.warm_up(batch=4)
    one = (*IMAGE_SIZE, 3) if takes_frames else (3, *IMAGE_SIZE)
    assert shapes == [(1, *one), (4, *one)]
    if takes_frames:
        with pytest.raises(ImageError, match="takes frames of 16x24"):
            detector.warm_up((480, 640))
    else:
        detector.warm_up((480, 640))
        with pytest.raises(ImageError, match="more than 100 million"):
            detector.warm_up((100_000, 100_000))
    for wrong in ({"batch": 0}, {"frame_size": (0, 5)}, {"frame_size": (5, -1)}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            detector.warm_up(**wrong)


def test_small_regions_are_left_out_and_nothing_else_changes(bundle: Bundle, tmp_path: Path) -> None:
    path = write_tiny_bundle(
        tmp_path / "b.flowedge", thresholds=Thresholds(image=limit(-0.001), pixel=limit(-0.002))
    ).path
    with flowedge.load(path) as every, flowedge.load(path, min_region_px=5) as large:
        all_of_them, some = every(RGB), large(RGB)
    areas = [region.area_px for region in all_of_them.regions]
    assert min(areas) < 5 < max(areas)
    assert some.regions == tuple(region for region in all_of_them.regions if region.area_px >= 5)
    assert (some.score, some.verdict) == (all_of_them.score, all_of_them.verdict)
    np.testing.assert_array_equal(some.mask, all_of_them.mask)


@pytest.mark.parametrize(
    ("value", "kind"), [(0, ValueError), (-3, ValueError), (2.5, TypeError), ("3", TypeError)]
)
def test_a_smallest_region_that_is_no_number_of_pixels_is_a_mistake(
    bundle: Bundle, value: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="min_region_px must be"):
        flowedge.load(bundle.path, min_region_px=value)
