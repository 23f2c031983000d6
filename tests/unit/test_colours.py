"""Colours of maps keep the order of values for every eye, and one scale holds for all images of a bundle."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

from flowedge.manifest import ColourScale, NfaForm, NfaThreshold, PartScale, SourceScale
from flowedge.runtime.colours import COLOURS, heatmap, painted_values
from flowedge.runtime.render import RED
from flowedge.runtime.source_scale import source_colours
from support.made_result import SCALE, made_result

FRAME: Final = np.full((8, 8, 3), 100, np.uint8)
RAMP: Final = np.linspace(0, 4, 64, dtype=np.float32).reshape(8, 8)

# G. Machado, M. Oliveira and L. Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency",
# IEEE TVCG 2009: the matrices of severity 1 on linear RGB.
EYES: Final = {
    "trichromat": np.eye(3),
    "protanope": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranope": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanope": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def seen(colours: NDArray[np.number], eye: str) -> NDArray[np.float64]:
    """Simulate an eye's view of 8-bit sRGB colours, in sRGB of 0 to 1."""
    share = np.asarray(colours, np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    changed = np.clip(linear @ EYES[eye].T, 0, 1)
    return np.asarray(np.where(changed <= 0.0031308, changed * 12.92, 1.055 * changed ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("eye", EYES)
def test_lightness_grows_evenly_with_the_value_for_every_eye(eye: str) -> None:
    lightness = rgb2lab(seen(COLOURS, eye))[:, 0]
    steps = np.diff(lightness[::5])
    assert (steps > 0).all()
    assert steps.max() < 2.1 * np.median(steps), "no step stands out as a false border"
    assert lightness[-1] - lightness[0] > 70


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("frame", [0, 128, 255])
def test_the_line_of_a_region_is_seen_on_every_colour(eye: str, frame: int) -> None:
    grounds = rgb2lab(seen(0.6 * COLOURS + 0.4 * frame, eye))
    lines = rgb2lab(seen(np.array([RED, (255, 255, 255)]), eye))
    apart = np.max(
        [deltaE_ciede2000(grounds, line[None]) for line in lines],  # type: ignore[no-untyped-call]
        axis=0,
    )
    assert apart.min() > 20, "a difference of 10 is seen at a glance"


def test_values_beyond_the_ends_have_the_colours_of_the_ends() -> None:
    colours = heatmap(np.array([-5, 0, 1, 9, np.nan], np.float32), 0, 1)
    np.testing.assert_array_equal(colours, COLOURS[[0, 0, 255, 255, 0]])


def test_only_the_place_between_low_and_high_counts() -> None:
    np.testing.assert_array_equal(heatmap(RAMP * 50 - 7, -7, 193), heatmap(RAMP, 0, 4))


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (float("nan"), 1)])
def test_an_empty_range_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low must be below high"):
        heatmap(RAMP, low, high)


def test_the_scale_of_the_calibration_holds_for_every_image() -> None:
    for network_map in (RAMP, RAMP * 100, RAMP - 7):
        painted = painted_values(made_result(FRAME, network_map))
        assert (painted.low, painted.high, painted.threshold) == (SCALE.low, SCALE.high, 2.0)


@pytest.mark.parametrize("threshold", [1.0, 1.3, 7 / 3])
def test_another_threshold_leaves_the_colour_of_each_value(threshold: float) -> None:
    painted = painted_values(made_result(FRAME, RAMP, pixel_threshold=threshold))
    assert (painted.low, painted.high) == pytest.approx((SCALE.low, SCALE.high))


@pytest.mark.parametrize(("threshold", "low", "high"), [(2.9, 1.0, 3.85), (9.0, 1.0, 13.0), (0.5, 0.5, 3.0)])
def test_a_threshold_near_an_end_widens_the_scale(threshold: float, low: float, high: float) -> None:
    painted = painted_values(made_result(FRAME, RAMP, pixel_threshold=threshold))
    assert (painted.low, painted.high) == pytest.approx((low, high))


def test_a_bundle_without_a_scale_has_that_of_the_image_and_the_title_says_so() -> None:
    painted = painted_values(made_result(FRAME, RAMP, colours=None, pixel_threshold=None))
    assert (painted.low, painted.high, painted.threshold) == (0, 4, None)
    assert "this image alone" in painted.title


@pytest.mark.parametrize("value", [0.0, 3.4e38, -3.4e38, float("nan")])
def test_a_flat_map_without_a_scale_has_one_all_the_same(value: float) -> None:
    flat = np.full((8, 8), value, np.float32)
    result = made_result(FRAME, RAMP, colours=None, pixel_threshold=None)
    result.__dict__["anomaly_map"] = flat
    painted = painted_values(result)
    assert painted.low < painted.high


@pytest.mark.parametrize(("form", "low", "high"), [("tree", -98, 102), ("block", -8, 12)])
def test_where_false_alarms_decide_their_number_is_painted(form: NfaForm, low: float, high: float) -> None:
    log_nfa = np.where(RAMP > 3, -40.0, 60.0)
    result = made_result(FRAME, RAMP, nfa=NfaThreshold(form=form, log_nfa=-2.0), network_log_nfa=log_nfa)
    painted = painted_values(result)
    np.testing.assert_array_equal(painted.values, -log_nfa)
    assert (painted.low, painted.threshold, painted.high) == (low, 2, high)
    assert [painted.text(value) for value in (low, 2, high)] == [f"{-low}", "-2", f"{-high}"]
    assert result.mask is not None
    np.testing.assert_array_equal(painted.values > 2, result.mask)


@pytest.mark.parametrize(
    ("scale", "colours"),
    [
        (SourceScale(rule="2.7", image=PartScale(), pixel=PartScale(minimum=1, maximum=2)), (0, 1)),
        (SourceScale(rule="0.x-cdf", image=PartScale(), pixel=PartScale(threshold=1, log_std=1)), (0, 1)),
        (SourceScale(rule="2.7", image=PartScale(), pixel=PartScale(threshold=1)), None),
    ],
)
def test_maps_on_the_scale_of_anomalib_are_painted_from_0_to_1(
    scale: SourceScale, colours: tuple[float, float] | None
) -> None:
    expected = None if colours is None else ColourScale(low=colours[0], high=colours[1])
    assert source_colours(scale) == expected
