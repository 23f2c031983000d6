"""Keep libraries from reporting to their makers, in every process that imports FlowEdge."""

from __future__ import annotations

import os
import sys


def switch_off() -> None:
    """Keep ONNX Runtime, OpenVINO and Hugging Face's libraries from reporting. Call it before they are imported.

    ONNX Runtime (from 1.32 on) would look up Microsoft's server and keep an identifier of the device in the user's
    cache. OpenVINO would report its import to Google Analytics and keep an identifier in the user's home.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    loaded = sys.modules.get("onnxruntime")
    if loaded is not None:  # the program that uses FlowEdge imported it, and the variable comes too late
        loaded.disable_telemetry_events()
    # No variable stops OpenVINO. Where this package cannot be imported, OpenVINO takes a silent stand-in of its own.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
