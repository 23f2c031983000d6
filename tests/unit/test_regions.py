"""Regions of a mask: boxes, peaks and contours, against SciPy and scikit-image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from skimage.draw import polygon2mask

from flowedge.runtime.regions import Region, find_regions

SIDES, EIGHT = ndimage.generate_binary_structure(2, 1), ndimage.generate_binary_structure(2, 2)


def regions_of(rows: list[str]) -> tuple[Region, ...]:
    mask = np.array([[pixel == "#" for pixel in row] for row in rows])
    return find_regions(mask, np.zeros(mask.shape))


def covered(region: Region, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill the contour by scikit-image, whose pixels have their centre at whole numbers."""
    corners = np.array(region.contour)[:, ::-1] - 0.5
    return np.asarray(polygon2mask(shape, corners))  # type: ignore[no-untyped-call]


def shoelace(region: Region) -> float:
    """Compute the area inside the contour. The area is positive where the contour is clockwise on the screen."""
    x, y = np.array(region.contour, float).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


@settings(max_examples=200, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.booleans()))
def test_boxes_areas_peaks_and_contours_are_those_of_scipy_and_scikit_image(mask: NDArray[Any]) -> None:
    values = np.random.default_rng(0).permutation(mask.size).reshape(mask.shape).astype(np.float32)
    labels, count = ndimage.label(mask, SIDES)
    boxes = ndimage.find_objects(labels)
    expected = {}
    for label in range(1, count + 1):
        own = labels == label
        rows, columns = boxes[label - 1]
        peak_at = ndimage.maximum_position(values, labels, label)
        expected[peak_at] = (
            own,
            (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start),
        )
    regions = find_regions(mask, values)
    assert [region.peak for region in regions] == sorted((values[at] for at in expected), reverse=True)
    for region in regions:
        own, box = expected.pop(region.peak_at)
        assert region.log_nfa is None
        assert region.peak == values[region.peak_at]
        assert (region.top, region.left, region.height_px, region.width_px) == box
        assert region.area_px == own.sum()
        assert region.centroid == pytest.approx(ndimage.center_of_mass(own))
        # A hole is background that no path of 8 neighbours leads out of.
        filled = ndimage.binary_fill_holes(own, EIGHT)
        np.testing.assert_array_equal(covered(region, mask.shape), filled)
        assert shoelace(region) == filled.sum()
    assert not expected


def test_one_pixel_gives_a_square() -> None:
    (region,) = regions_of(["...", ".#.", "..."])
    assert region.contour == ((1, 1), (2, 1), (2, 2), (1, 2))


def test_a_region_prints_its_numbers_and_not_each_corner() -> None:
    mask = np.ones((3, 4), np.bool_)
    (region,) = find_regions(mask, mask.astype(np.float32))
    assert "area_px=12" in repr(region)
    assert "contour" not in repr(region)


def test_a_line_gives_a_rectangle_of_four_corners() -> None:
    (region,) = regions_of(["....", "###."])
    assert region.contour == ((0, 1), (3, 1), (3, 2), (0, 2))


def test_a_hole_has_no_contour_and_the_outer_one_covers_it() -> None:
    (region,) = regions_of(["###", "#.#", "###"])
    assert region.contour == ((0, 0), (3, 0), (3, 3), (0, 3))
    assert region.area_px == 8


def test_pixels_that_touch_at_a_corner_are_two_regions() -> None:
    assert [region.contour for region in regions_of(["#.", ".#"])] == [
        ((0, 0), (1, 0), (1, 1), (0, 1)),
        ((1, 1), (2, 1), (2, 2), (1, 2)),
    ]


def test_a_contour_passes_a_corner_twice_where_its_region_touches_itself() -> None:
    (region,) = regions_of(["##.", "#.#", "###"])
    assert region.contour.count((2, 1)) == 2


def test_regions_are_sorted_by_log_nfa_where_there_is_one_and_by_peak_elsewhere() -> None:
    detected = np.array([[True, False, True]])
    anomaly_map, log_nfa = np.array([[5.0, 0.0, 9.0]]), np.array([[-7.0, 1.0, -2.0]])
    assert [region.left for region in find_regions(detected, anomaly_map)] == [2, 0]
    by_nfa = find_regions(detected, anomaly_map, log_nfa=log_nfa)
    assert [(region.left, region.log_nfa, region.peak) for region in by_nfa] == [
        (0, -7.0, 5.0),
        (2, -2.0, 9.0),
    ]


def test_regions_below_the_smallest_area_are_left_out() -> None:
    mask = np.array([[True, False, True, True, False, True, True, True]])
    areas = [
        {region.area_px for region in find_regions(mask, np.zeros(mask.shape), min_area_px=least)}
        for least in (1, 2, 3, 4)
    ]
    assert areas == [{1, 2, 3}, {2, 3}, {3}, set()]


def test_an_empty_mask_has_no_regions() -> None:
    assert regions_of(["..", ".."]) == ()


def test_regions_within_a_larger_frame_are_the_same_ones_moved() -> None:
    mask = np.array([[True, False, True], [True, True, False]])
    values = np.array([[1.0, 0.0, 5.0], [2.0, 4.0, 0.0]], np.float32)
    border = ((3, 2), (7, 1))
    small = find_regions(mask, values, log_nfa=-values)
    moved = find_regions(np.pad(mask, border), np.pad(values, border), log_nfa=-np.pad(values, border))
    assert [(one.top - 3, one.left - 7, one.peak, one.log_nfa) for one in moved] == [
        (one.top, one.left, one.peak, one.log_nfa) for one in small
    ]
    assert [(row - 3, column - 7) for row, column in (one.peak_at for one in moved)] == [
        one.peak_at for one in small
    ]
    assert [(row - 3, column - 7) for row, column in (one.centroid for one in moved)] == [
        pytest.approx(one.centroid) for one in small
    ]
    assert [tuple((x - 7, y - 3) for x, y in one.contour) for one in moved] == [one.contour for one in small]
