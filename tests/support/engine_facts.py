"""Make the facts of an engine that nobody built."""

from __future__ import annotations

import msgspec

from flowedge.runtime.device.engine_file import EngineFacts


def facts(**changes: object) -> EngineFacts:
    """Return the facts of an engine on a Jetson, with other values for the named fields."""
    made = EngineFacts(
        engine="tensorrt",
        version="10.3.0",
        graph="0" * 64,
        precision="fp16",
        device="Orin",
        capability="8.7",
        driver="12.6",
        batches=(1, 1, 8),
    )
    return msgspec.structs.replace(made, **changes)
