"""Make graphs of lower precision: take ranges, convert to INT8 or half precision, and let the gate decide.

These modules edit graphs, so they need the onnx package and ONNX Runtime, unlike the rest of ``flowedge.calibration``.
"""

from __future__ import annotations

from flowedge.calibration.precision.add import add_precisions
from flowedge.calibration.precision.by_rule import add_half_graphs
from flowedge.calibration.precision.precision_request import PrecisionRequest

__all__ = ["PrecisionRequest", "add_half_graphs", "add_precisions"]
