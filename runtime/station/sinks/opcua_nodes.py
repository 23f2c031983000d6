"""Define the nodes of the OPC UA server. ``docs/station.md`` has the same nodes as a table.

Source: OPC 40100-1, Machine Vision, release 1.0, for the names ``VisionSystem``, ``VisionStateMachine``,
``ResultManagement``, ``Results``, ``ResultReadyEventType`` and those of ``RESULT`` that are marked. The types of that
specification are structures of its own nodeset. Here each value is a plain type that any client can read.
"""

from __future__ import annotations

from typing import Any, Final

from asyncua import ua

from flowedge.runtime.station.sinks.controllers import Shown
from flowedge.runtime.station.sinks.payload import payload_of

NAMESPACE: Final = "urn:flowedge:station"
RESULT_READY: Final = "ResultReadyEventType"

_T: Final = ua.VariantType

RESULT: Final[dict[str, Any]] = {
    # The names of OPC 40100-1.
    "ResultId": _T.String,
    "IsPartial": _T.Boolean,
    "IsSimulated": _T.Boolean,
    "ResultState": _T.Int32,
    "PartId": _T.String,
    "ProductId": _T.String,
    "InternalRecipeId": _T.String,
    "InternalConfigurationId": _T.String,
    "CreationTime": _T.DateTime,
    "ProcessingDuration": _T.Double,
    "ResultContent": _T.String,
    # The names of the station.
    "IsStale": _T.Boolean,
    "Signal": _T.String,
    "Verdict": _T.String,
    "Reason": _T.String,
    "Score": _T.Double,
    "Threshold": _T.Double,
    "LogNfa": _T.Double,
    "RegionCount": _T.UInt32,
    "DroppedBefore": _T.UInt32,
    "IsOk": _T.Boolean,
    "RecordNumber": _T.UInt32,
}
"""The variables of the newest result by name, which are also the fields of the event, in the order of their writing."""

_COMPLETED, _FAILED = 1, 4  # values of ResultState in OPC 40100-1
_LARGEST: Final = (1 << 32) - 1


def number_of(shown: Shown) -> int:
    """Return the number of the record as 32 bits have it, which a client acknowledges."""
    return shown.record.number & _LARGEST


def values_of(shown: Shown) -> dict[str, Any]:
    """Return the value of each variable of ``RESULT``. A number that there is not is NaN."""
    record = shown.record
    nan = float("nan")
    return {
        "ResultId": record.id,
        "IsPartial": False,
        "IsSimulated": False,
        "ResultState": _FAILED if record.verdict == "not_inspected" else _COMPLETED,
        "PartId": record.part or "",
        "ProductId": record.product,
        "InternalRecipeId": record.bundle_sha256,
        "InternalConfigurationId": str(record.threshold_version),
        "CreationTime": record.time,
        "ProcessingDuration": sum(record.stages_ms.values()),
        "ResultContent": payload_of(record).decode(),
        "IsStale": shown.is_stale,
        "Signal": record.signal,
        "Verdict": record.verdict,
        "Reason": record.reason,
        "Score": nan if record.score is None else record.score,
        "Threshold": nan if record.threshold is None else record.threshold,
        "LogNfa": nan if record.log_nfa is None else record.log_nfa,
        "RegionCount": len(record.regions) + record.regions_left_out,
        "DroppedBefore": min(record.dropped_before, _LARGEST),
        "IsOk": shown.is_ok,
        "RecordNumber": number_of(shown),
    }
