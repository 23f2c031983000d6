"""Fit score maxima, thresholds and lower precisions on images, and measure detectors. Torch is never imported."""

from __future__ import annotations

from flowedge.calibration.calibrate import Calibration, calibrate_bundle
from flowedge.calibration.calibration_record import BlockChoice, CalibrationRecord
from flowedge.calibration.dataset import Dataset, Sample, good_images, read_dataset
from flowedge.calibration.defects import DEFECTS, Defect, synthetic_defect, synthetic_defects
from flowedge.calibration.evaluation import evaluate
from flowedge.calibration.evaluation_result import Evaluation
from flowedge.calibration.gate_page import MapTriple, page_from_gate
from flowedge.calibration.gate_report import DEFAULT_LIMITS, GateLimits, GateQuantity, GateReport
from flowedge.calibration.gates import Gate, compare
from flowedge.calibration.intervals import fitted_rate_interval, rate_interval
from flowedge.calibration.operating_points import CountedRate, OperatingPoint
from flowedge.calibration.plan import CalibrationPlan, PlanResult, carry_out
from flowedge.calibration.threshold import ThresholdRequest
from flowedge.calibration.threshold_changes import (
    NewThresholds,
    ThresholdFit,
    fit_thresholds,
    set_thresholds,
)
from flowedge.calibration.threshold_history import ChangeOrigin

__all__ = [
    # fitting
    "Calibration",
    "CalibrationPlan",
    "CalibrationRecord",
    "PlanResult",
    "ThresholdRequest",
    "calibrate_bundle",
    "carry_out",
    # changing thresholds alone
    "ChangeOrigin",
    "NewThresholds",
    "ThresholdFit",
    "fit_thresholds",
    "set_thresholds",
    # defects made from good images
    "DEFECTS",
    "Defect",
    "synthetic_defect",
    "synthetic_defects",
    # comparing a lower precision with fp32
    "BlockChoice",
    "DEFAULT_LIMITS",
    "Gate",
    "GateLimits",
    "GateQuantity",
    "GateReport",
    "MapTriple",
    "compare",
    "page_from_gate",
    # measuring
    "Dataset",
    "CountedRate",
    "Evaluation",
    "OperatingPoint",
    "Sample",
    "evaluate",
    "fitted_rate_interval",
    "good_images",
    "rate_interval",
    "read_dataset",
]
