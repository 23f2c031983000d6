from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from flowedge.errors import ImageError
from flowedge.geometry import input_matrices, map_to_frame, placement
from flowedge.manifest import Preprocessing
from flowedge.manifest_bounds import MAX_SIDE
from flowedge.resampling import BandedMatrix, Kernel, bicubic_matrix, bilinear_matrix, pil_fixed_point
from support.antialiased import antialiased_matrix

SQUARE = Preprocessing(resize=(256, 256), method="float_bilinear", mean=(0, 0, 0), std=(1, 1, 1))
LENGTHS = [(1, 1), (1, 9), (9, 1), (2, 2), (7, 7), (256, 64), (64, 256), (257, 16), (33, 500), (448, 1023)]


def torch_matrix(outputs: int, inputs: int, mode: str, **options: Any) -> NDArray[np.float32]:
    """Return the matrix ``[outputs, inputs]`` of a resize by torch, from its answer to each unit vector along y."""
    unit = torch.eye(inputs).expand(1, 1, inputs, inputs)
    return F.interpolate(unit, size=(outputs, inputs), mode=mode, **options)[0, 0].numpy()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), LENGTHS)
def test_bilinear_weights_are_torchs(outputs: int, inputs: int, align_corners: bool) -> None:
    expected = torch_matrix(outputs, inputs, "bilinear", align_corners=align_corners)
    np.testing.assert_allclose(
        bilinear_matrix(outputs, inputs, align_corners=align_corners), expected, rtol=0, atol=2e-7
    )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), LENGTHS)
def test_bicubic_weights_are_torchs(outputs: int, inputs: int, align_corners: bool) -> None:
    expected = torch_matrix(outputs, inputs, "bicubic", align_corners=align_corners)
    np.testing.assert_allclose(
        bicubic_matrix(outputs, inputs, align_corners=align_corners), expected, rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("outputs", "inputs"), LENGTHS)
def test_antialiased_weights_in_float32_are_torchs(outputs: int, inputs: int, kernel: Kernel) -> None:
    expected = torch_matrix(outputs, inputs, kernel, antialias=True)
    weights = antialiased_matrix(outputs, inputs, kernel=kernel, arithmetic="float32")
    np.testing.assert_allclose(weights, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("outputs", "inputs"), LENGTHS)
def test_antialiased_weights_in_float64_are_pils(outputs: int, inputs: int, kernel: Kernel) -> None:
    method = {
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }[kernel]
    unit = Image.fromarray(np.eye(inputs, dtype=np.float32))
    expected = np.asarray(unit.resize((inputs, outputs), method))  # PIL resizes float images in float64
    np.testing.assert_allclose(
        antialiased_matrix(outputs, inputs, kernel=kernel), expected, rtol=0, atol=1e-7
    )


@settings(max_examples=60)
@given(outputs=st.integers(1, 120), inputs=st.integers(1, 120), align=st.booleans())
def test_every_row_of_weights_sums_to_one(outputs: int, inputs: int, align: bool) -> None:
    for matrix in (
        bilinear_matrix(outputs, inputs, align_corners=align),
        bicubic_matrix(outputs, inputs, align_corners=align),
        antialiased_matrix(outputs, inputs, kernel="bilinear"),
        antialiased_matrix(outputs, inputs, kernel="lanczos"),
    ):
        assert matrix.shape == (outputs, inputs)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-6)


@settings(max_examples=40)
@given(outputs=st.integers(1, 90), inputs=st.integers(1, 90))
def test_mirroring_the_input_mirrors_the_output(outputs: int, inputs: int) -> None:
    matrix = antialiased_matrix(outputs, inputs, kernel="lanczos")
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], rtol=0, atol=1e-9)


def test_a_length_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0 outputs and 5 inputs"):
        bilinear_matrix(0, 5, align_corners=True)
    with pytest.raises(ValueError, match="got 5 outputs and 0 inputs"):
        antialiased_matrix(5, 0, kernel="bilinear")


def test_fixed_point_weights_round_halves_away_from_zero() -> None:
    unit = 2.0**-22
    weights = np.array([[0.5, 1.5, -0.5, -1.49, 0.49]]) * unit
    assert pil_fixed_point(weights).tolist() == [[1, 2, -1, -1, 0]]


@settings(max_examples=40)
@given(outputs=st.integers(1, 70), inputs=st.integers(1, 70), at_once=st.integers(1, 40))
def test_a_banded_product_is_the_dense_product(outputs: int, inputs: int, at_once: int) -> None:
    matrix = antialiased_matrix(outputs, inputs, kernel="lanczos")
    image = np.random.default_rng(outputs).integers(0, 256, (inputs, 5), dtype=np.uint8)
    banded = BandedMatrix(matrix, outputs_at_once=at_once)
    expected = matrix @ image.astype(np.float64)
    np.testing.assert_allclose(banded @ image, expected, rtol=0, atol=1e-9)
    result = np.full((5, outputs), np.nan)
    banded.along_rows(image.T.astype(np.float64), result)
    np.testing.assert_allclose(result.T, expected, rtol=0, atol=1e-9)


@settings(max_examples=150)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    shorter=st.integers(1, 80),
    crop=st.none() | st.tuples(st.integers(1, 99), st.integers(1, 99)),
    keep_aspect=st.booleans(),
)
def test_placement_is_torchvisions(
    height: int, width: int, shorter: int, crop: tuple[int, int] | None, keep_aspect: bool
) -> None:
    assume(shorter * max(height, width) <= MAX_SIDE * min(height, width))  # beyond it a frame is refused
    resize = (shorter, shorter + 3)
    preprocessing = msgspec.structs.replace(SQUARE, resize=resize, keep_aspect=keep_aspect, crop=crop)
    place = placement(preprocessing, (height, width))

    frame = torch.zeros(1, height, width, dtype=torch.uint8)
    resized = v2.functional.resize(
        frame, [shorter] if keep_aspect else list(resize), v2.InterpolationMode.NEAREST
    )
    assert place.resized == tuple(resized.shape[1:])

    # Number the pixels from 1, so that the crop shows where it was taken. 0 is padding.
    rows, columns = place.resized
    numbered = torch.arange(1, rows * columns + 1).reshape(1, rows, columns)
    cropped = v2.functional.center_crop(numbered, list(crop)) if crop else numbered
    assert place.window == tuple(cropped.shape[1:])
    row, column = np.indices(place.window) + np.array([place.top, place.left])[:, None, None]
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    np.testing.assert_array_equal(np.where(inside, row * columns + column + 1, 0), cropped[0].numpy())


def test_an_empty_or_too_elongated_frame_is_refused_with_its_size() -> None:
    with pytest.raises(ImageError, match="0x5"):
        placement(SQUARE, (0, 5))
    strip = msgspec.structs.replace(SQUARE, keep_aspect=True)
    with pytest.raises(ImageError, match=rf"1x70 .* 256x17920. The longest side may be {MAX_SIDE}"):
        placement(strip, (1, 70))


def test_the_rows_of_a_crop_are_a_part_of_the_rows_of_the_resize() -> None:
    whole_rows, whole_columns = input_matrices(SQUARE, (300, 280))
    rows, columns = input_matrices(msgspec.structs.replace(SQUARE, crop=(224, 262)), (300, 280))
    np.testing.assert_array_equal(rows, whole_rows[16:240])
    np.testing.assert_array_equal(columns[3:259], whole_columns)
    assert not columns[:3].any()
    assert not columns[259:].any()


@pytest.mark.parametrize(
    ("frame", "cells"), [((600, 801), (256, 256)), ((100, 90), (256, 256)), ((37, 1), (8, 5))]
)
def test_a_map_of_the_whole_frame_is_resized_as_torch_does(
    frame: tuple[int, int], cells: tuple[int, int]
) -> None:
    anomaly_map = np.random.default_rng(0).normal(size=cells).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(anomaly_map)[None, None], size=frame, mode="bilinear")[0, 0]
    # Positions in float32, as torch has them, are off by up to 3e-5 of a pixel.
    np.testing.assert_allclose(map_to_frame(anomaly_map, SQUARE, frame), expected.numpy(), rtol=0, atol=3e-4)


def test_a_map_of_a_crop_lies_where_the_crop_was_and_is_nan_around_it() -> None:
    # 80x40 is resized to 40x20 and its central 20x10 is the input: rows 20 to 59, columns 10 to 29 of the frame.
    preprocessing = msgspec.structs.replace(SQUARE, resize=(20, 40), keep_aspect=True, crop=(20, 10))
    anomaly_map = np.full((20, 10), 5, np.float32)
    over_frame = map_to_frame(anomaly_map, preprocessing, (80, 40))
    expected = np.full((80, 40), np.nan, np.float32)
    expected[20:60, 10:30] = 5
    np.testing.assert_array_equal(over_frame, expected)


def test_a_pixel_that_stands_out_is_found_at_its_place_after_the_way_there_and_back() -> None:
    preprocessing = msgspec.structs.replace(SQUARE, resize=(128, 128), keep_aspect=True, crop=(112, 120))
    frame = np.zeros((400, 300), np.float32)
    frame[150:154, 200:204] = 1
    rows, columns = input_matrices(preprocessing, frame.shape)
    seen = (rows @ frame @ columns.T).astype(np.float32)
    back = map_to_frame(seen, preprocessing, frame.shape)
    y, x = np.unravel_index(np.nanargmax(back), back.shape)
    assert abs(y - 151.5) <= 3
    assert abs(x - 201.5) <= 3


def test_padding_around_the_frame_is_dropped_on_the_way_back() -> None:
    preprocessing = msgspec.structs.replace(SQUARE, resize=(10, 10), crop=(14, 14))
    padded = np.full((14, 14), 9, np.float32)
    padded[2:12, 2:12] = np.arange(10)
    over_frame = map_to_frame(padded, preprocessing, (10, 10))
    np.testing.assert_allclose(over_frame, np.broadcast_to(np.arange(10), (10, 10)), atol=1e-6)
