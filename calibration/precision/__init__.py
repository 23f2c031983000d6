"""Graphs of lower precision: ranges, INT8 and half-precision conversion, and the gate that decides.

All of it edits graphs, so unlike the rest of ``flowedge.calibration`` it needs the onnx package and ONNX Runtime.
"""

from __future__ import annotations

from flowedge.calibration.precision.add import PrecisionRequest, add_precisions
from flowedge.calibration.precision.by_rule import add_half_graphs

__all__ = ["PrecisionRequest", "add_half_graphs", "add_precisions"]
