"""Areas and lengths of regions are those of scikit-image and of a comparison of all points."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flowedge.runtime.regions import find_regions
from flowedge.runtime.station.measuring import ScaleSettings, length_of

# The type checker knows nothing of these packages.
distance: Any = pytest.importorskip("scipy.spatial.distance")
draw: Any = pytest.importorskip("skimage.draw")
measure: Any = pytest.importorskip("skimage.measure")


def edge_midpoints(mask: np.ndarray) -> np.ndarray:
    """Return the midpoints of all edges between a pixel of a mask and one outside."""
    inside = np.pad(mask, 1)
    points = []
    for row, column in np.argwhere(inside):
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            if not inside[row + down, column + right]:
                points.append((row + down / 2, column + right / 2))
    return np.array(points)


@given(mask=arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@settings(max_examples=60, deadline=None)
def test_a_length_is_the_largest_distance_of_all_points_of_the_border(mask: np.ndarray) -> None:
    labels = measure.label(mask, connectivity=1)
    for region in find_regions(mask, mask.astype(np.float32)):
        row, column = region.peak_at
        assert length_of(region.contour) == pytest.approx(
            distance.pdist(edge_midpoints(labels == labels[row, column])).max()
        )


def shapes() -> dict[str, np.ndarray]:
    drawn = {name: np.zeros((120, 160), bool) for name in ("disk", "scratch", "triangle", "pixel", "bar")}
    drawn["disk"][draw.disk((60, 70), 33)] = True
    for shift in range(3):
        rows, columns = draw.line(10 + shift, 5, 90 + shift, 140)
        drawn["scratch"][rows, columns] = True
    drawn["triangle"][draw.polygon((10, 100, 100), (20, 20, 150))] = True
    drawn["pixel"][3, 4] = True
    drawn["bar"][50, 10:110] = True
    return drawn


@pytest.mark.parametrize("name", shapes())
def test_area_and_length_are_those_of_scikit_image(name: str) -> None:
    mask = shapes()[name]
    (region,) = find_regions(mask, mask.astype(np.float32))
    (props,) = measure.regionprops(mask.astype(np.uint8), spacing=(1, 1))
    assert region.area_px == props.area
    # scikit-image fills the convex hull with pixels first, and so moves a slanted border by less than a pixel.
    assert length_of(region.contour) == pytest.approx(props.feret_diameter_max, abs=1.0)
    if name in ("pixel", "bar"):
        assert length_of(region.contour) == pytest.approx(props.feret_diameter_max)


def test_a_scratch_in_the_diagonal_is_longer_than_the_side_of_its_rectangle() -> None:
    mask = np.eye(30, dtype=bool) | np.eye(30, k=1, dtype=bool)
    (region,) = find_regions(mask, mask.astype(np.float32))
    assert length_of(region.contour) == pytest.approx(math.hypot(29, 29), rel=0.05)


def test_two_points_give_the_scale() -> None:
    by_points = ScaleSettings(from_px=(100.0, 50.0), to_px=(400.0, 450.0), distance_mm=25.0)
    assert by_points.value == 25 / 500
    assert ScaleSettings(mm_per_px=0.05).value == 0.05


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"mm_per_px": 0.1, "distance_mm": 2.0},
        {"from_px": (0.0, 0.0), "to_px": (9.0, 0.0)},
        {"from_px": (1.0, 1.0), "to_px": (1.0, 2.0), "distance_mm": 5.0},
    ],
)
def test_a_scale_that_is_not_given_in_one_way_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"mm_per_px|from_px"):
        ScaleSettings(**fields)  # type: ignore[arg-type]
