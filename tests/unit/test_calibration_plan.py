from __future__ import annotations

from pathlib import Path

import pytest

from flowedge.bundle import Bundle, open_bundle
from flowedge.calibration import CalibrationPlan, carry_out
from flowedge.calibration.precision import PrecisionRequest
from flowedge.errors import BundleError, CalibrationError
from flowedge.manifest import NfaThreshold
from support.tiny_bundle import write_tiny_bundle

STRICT = NfaThreshold(form="tree", log_nfa=-2.0)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny.flowedge")


def test_a_plan_that_only_sets_the_limit_of_log_nfa_needs_no_images(bundle: Bundle) -> None:
    result = carry_out(CalibrationPlan(thresholds=None, nfa=STRICT), bundle)
    assert result.record is None
    assert [graph.thresholds.nfa for graph in open_bundle(bundle.path).manifest.graphs] == [STRICT]


@pytest.mark.parametrize(
    "plan",
    [
        CalibrationPlan(),
        CalibrationPlan(nfa=STRICT),
        CalibrationPlan(thresholds=None, nfa=STRICT, pixel_range=(0.0, 4095.0)),
        CalibrationPlan(thresholds=None, nfa=STRICT, precisions=PrecisionRequest(wanted=("fp16",))),
    ],
)
def test_a_plan_that_fits_on_images_is_refused_without_them(bundle: Bundle, plan: CalibrationPlan) -> None:
    with pytest.raises(CalibrationError, match="images of good parts"):
        carry_out(plan, bundle)


def test_a_pixel_range_and_new_precisions_are_refused_together(bundle: Bundle, tmp_path: Path) -> None:
    plan = CalibrationPlan(pixel_range=(0.0, 4095.0), precisions=PrecisionRequest(wanted=("fp16",)))
    with pytest.raises(CalibrationError, match="pixel range"):
        carry_out(plan, bundle, tmp_path)


def test_a_form_that_the_graphs_lack_outputs_for_is_refused_before_the_images_are_read(
    bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="--nfa"):
        carry_out(CalibrationPlan(nfa=NfaThreshold(form="block")), bundle, tmp_path / "no folder")
