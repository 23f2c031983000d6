from __future__ import annotations

from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from flowedge.errors import ImageError
from flowedge.manifest import Preprocessing
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.preprocess import Preprocessor

SHARED = Path(__file__).resolve().parents[3] / "shared"
IMAGENET = Preprocessing(
    resize=(64, 64), method="float_bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
FRAMES = [(64, 64), (200, 301), (301, 200), (31, 17), (17, 65), (1, 40), (40, 1), (1, 1), (515, 97)]
SIZES = [(64, 64), (33, 50), (1, 7), (256, 256)]


def random_frame(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Make noise ``(H, W, 3)``, in part black and white, which is hardest for rounding and clipping."""
    random = np.random.default_rng(size)
    frame = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    extremes = random.integers(0, 2, frame.shape, dtype=np.uint8) * np.uint8(255)
    return np.where(random.random((*size, 1)) < 0.5, frame, extremes)


def without_normalisation(preprocessing: Preprocessing) -> Preprocessing:
    """Leave out the normalisation, so that the result is in [0, 1]."""
    return msgspec.structs.replace(preprocessing, mean=(0, 0, 0), std=(1, 1, 1))


def torch_from_frame(frame: NDArray[np.uint8]) -> torch.Tensor:
    """Return the frame as ``(1, 3, H, W)`` in [0, 1], in torch's own layout."""
    return torch.from_numpy(frame.transpose(2, 0, 1).astype(np.float32) / 255).contiguous()


def pil_levels(
    frame: NDArray[np.uint8], size: tuple[int, int], method: Image.Resampling
) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(frame).resize(size[::-1], method))


def levels_of(preprocessing: Preprocessing, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the grey levels before normalisation, ``(h, w, 3)``, as floats."""
    return Preprocessor(without_normalisation(preprocessing))(frame).transpose(1, 2, 0) * np.float32(255)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frame_size", FRAMES)
def test_float_bilinear_is_torchvisions_resize_of_a_float_tensor(
    frame_size: tuple[int, int], size: tuple[int, int]
) -> None:
    frame = random_frame(frame_size)
    result = Preprocessor(without_normalisation(msgspec.structs.replace(IMAGENET, resize=size)))(frame)
    expected = v2.Resize(list(size), antialias=True)(torch_from_frame(frame))
    np.testing.assert_allclose(result, expected.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frame_size", FRAMES)
@pytest.mark.parametrize(
    ("method", "resampling"),
    [("pil_bilinear", Image.Resampling.BILINEAR), ("pil_lanczos", Image.Resampling.LANCZOS)],
)
def test_pils_methods_are_exact_to_the_last_grey_level(
    method: str, resampling: Image.Resampling, frame_size: tuple[int, int], size: tuple[int, int]
) -> None:
    frame = random_frame(frame_size)
    preprocessing = msgspec.structs.replace(IMAGENET, resize=size, method=method)
    expected = pil_levels(frame, size, resampling)
    np.testing.assert_allclose(levels_of(preprocessing, frame), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("frame_size", "size"),
    [
        ((50, 40), (30, 30)),
        ((51, 40), (30, 30)),
        ((49, 40), (50, 30)),
        ((50, 30), (49, 40)),
        ((50, 30), (50, 40)),
    ],
)
def test_the_order_of_pils_passes_is_kept_at_its_edges(
    frame_size: tuple[int, int], size: tuple[int, int]
) -> None:
    frame = random_frame(frame_size)
    preprocessing = msgspec.structs.replace(IMAGENET, resize=size, method="pil_lanczos")
    expected = pil_levels(frame, size, Image.Resampling.LANCZOS)
    np.testing.assert_allclose(levels_of(preprocessing, frame), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["pil_bilinear", "pil_lanczos"])
def test_a_large_frame_is_exact_across_the_strips_it_is_done_in(method: str) -> None:
    frame = random_frame((777, 1030))
    preprocessing = msgspec.structs.replace(IMAGENET, resize=(256, 250), method=method)
    resampling = Image.Resampling.LANCZOS if method == "pil_lanczos" else Image.Resampling.BILINEAR
    expected = pil_levels(frame, (256, 250), resampling)
    np.testing.assert_allclose(levels_of(preprocessing, frame), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("frame_size", FRAMES)
def test_cv2_bilinear_is_opencvs_resize(frame_size: tuple[int, int]) -> None:
    frame = random_frame(frame_size)
    expected = cv2.resize(frame, (50, 33), interpolation=cv2.INTER_LINEAR)
    result = levels_of(msgspec.structs.replace(IMAGENET, resize=(33, 50), method="cv2_bilinear"), frame)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("crop", [(56, 56), (33, 64), (70, 51), (64, 90)])
@pytest.mark.parametrize("method", ["float_bilinear", "pil_bilinear", "pil_lanczos", "cv2_bilinear"])
def test_the_crop_is_torchvisions_with_black_around_a_small_frame(method: str, crop: tuple[int, int]) -> None:
    frame = random_frame((90, 131))
    whole = msgspec.structs.replace(IMAGENET, resize=(64, 1), keep_aspect=True, method=method)
    resized = torch.from_numpy(Preprocessor(without_normalisation(whole))(frame))
    assert resized.shape == (3, 64, 93)
    expected = v2.functional.center_crop(resized, list(crop))
    result = Preprocessor(without_normalisation(msgspec.structs.replace(whole, crop=crop)))(frame)
    np.testing.assert_allclose(result, expected.numpy(), rtol=0, atol=1e-6)


def test_an_official_pipeline_of_resize_crop_and_normalise_is_reproduced() -> None:
    frame = random_frame((300, 411))
    official = v2.Compose(
        [
            v2.Resize(72, v2.InterpolationMode.LANCZOS),
            v2.CenterCrop(64),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(IMAGENET.mean), list(IMAGENET.std)),
        ]
    )
    ours = msgspec.structs.replace(
        IMAGENET, resize=(72, 72), keep_aspect=True, crop=(64, 64), method="pil_lanczos"
    )
    expected = official(Image.fromarray(frame)).numpy()
    np.testing.assert_allclose(Preprocessor(ours)(frame), expected, rtol=0, atol=1e-6)


def test_the_result_is_contiguous_float32_and_the_frame_is_left_alone() -> None:
    frame = random_frame((80, 120))
    before = frame.copy()
    result = Preprocessor(IMAGENET)(frame)
    assert result.dtype == np.float32
    assert result.shape == (3, 64, 64)
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize("method", ["float_bilinear", "pil_lanczos", "cv2_bilinear"])
def test_a_view_of_a_larger_frame_gives_what_its_copy_gives(method: str) -> None:
    region = random_frame((200, 300))[10:150:2, 295:20:-3]
    preprocessor = Preprocessor(msgspec.structs.replace(IMAGENET, method=method))
    np.testing.assert_array_equal(preprocessor(region), preprocessor(region.copy()))


def test_frames_of_changing_sizes_do_not_disturb_each_other() -> None:
    preprocessor = Preprocessor(IMAGENET)
    sizes = [(50 + n, 90 - n) for n in range(20)]
    first = [preprocessor(random_frame(size)) for size in sizes]
    for size, expected in zip(sizes, first, strict=True):
        np.testing.assert_array_equal(preprocessor(random_frame(size)), expected)


@pytest.mark.parametrize(
    ("frame", "found"),
    [
        (np.zeros((8, 8), np.uint8), r"\(8, 8\) uint8"),
        (np.zeros((8, 8, 1), np.uint8), r"\(8, 8, 1\) uint8"),
        (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\) uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\) uint8"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"\(1, 8, 8, 3\) uint8"),
        (np.zeros((8, 8, 3), np.float32), r"\(8, 8, 3\) float32"),
        (np.zeros((8, 8, 3), np.uint16), r"\(8, 8, 3\) uint16"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\) uint8"),
        (None, "NoneType"),
        ([[[1, 2, 3]]], "list"),
    ],
)
def test_a_wrong_frame_is_refused_with_what_was_expected_and_found(frame: object, found: str) -> None:
    with pytest.raises(ImageError, match=rf"must be .*\(H, W, 3\) uint8.*got {found}"):
        Preprocessor(IMAGENET)(frame)  # type: ignore[arg-type]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded checkpoint is not on this machine")
def test_anomalibs_recorded_network_inputs_are_reproduced() -> None:
    preprocessor = Preprocessor(msgspec.structs.replace(IMAGENET, resize=(256, 256)))
    with np.load(SHARED / "checkpoints" / "cflow_magnetic_tile.expected.npz") as recorded:
        names, indices, inputs = recorded["names"], recorded["map_index"], recorded["x"]
    worst = 0.0
    for index, expected in zip(indices, inputs, strict=True):
        path = next((SHARED / "data" / "magnetic_tile").glob(f"**/{Path(str(names[index]))}"))
        worst = max(worst, float(np.abs(preprocessor(read_image(path)) - expected).max()))
    print(f"worst error of the network's input: {worst:.2g}")
    assert len(inputs) == 6
    assert worst < 1e-5
