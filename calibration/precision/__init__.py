"""Graphs of lower precision: ranges, INT8 and half-precision typing, and the gate that decides.

All of it edits graphs, so unlike the rest of ``flowedge.calibration`` it needs the onnx package and ONNX Runtime.
"""

from __future__ import annotations

from flowedge.calibration.precision.add import PrecisionRequest, Progress, add_precisions

__all__ = ["PrecisionRequest", "Progress", "add_precisions"]
