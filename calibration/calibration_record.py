"""What ``calibration.json`` holds: everything that was fitted on images, and what the gates found."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from flowedge.bundle import Bundle
from flowedge.calibration.gates import GateReport
from flowedge.errors import BundleError
from flowedge.manifest import ScoreMaxima, Thresholds

RECORD: Final = "calibration.json"


class FittedGraph(msgspec.Struct, frozen=True, kw_only=True):
    """The score maxima and thresholds that were fitted for one precision.

    Attributes:
        precision: The precision's name in the manifest.
        score_maxima: The value is None for a family without score maxima. The JSON calls it ``reference``.
        thresholds: The fitted limits.
        notes: Sentences on what weakens a threshold.
    """

    precision: str
    score_maxima: ScoreMaxima | None = msgspec.field(name="reference")
    thresholds: Thresholds
    notes: tuple[str, ...]


class BlockChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What one block of a graph computes in, and why.

    Attributes:
        name: The common beginning of its nodes' names.
        macs_share: Of all multiply-accumulates that could have the precision, in 0..1.
        precision: What its convolutions and matrix products compute in.
        sensitivity: The root mean square change of the map when this block alone has the lower precision, in standard
            deviations of the good images' fp32 map; None where it was not measured.
        reason: Why it was given back, else empty.
    """

    name: str
    macs_share: float
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    sensitivity: float | None
    reason: str


class PrecisionReport(msgspec.Struct, frozen=True, kw_only=True):
    """How one graph of lower precision came to be.

    Attributes:
        precision: As in the manifest.
        calibrator: How the activations' ranges were chosen; None where nothing is INT8.
        images: How many good images the ranges were taken from.
        images_sha256: As in `CalibrationRecord`.
        kept_in_fp32: Nodes that stay in float32 beside the families' rule, each with the reason.
        blocks: In the graph's order.
        gate: What the comparison with fp32 found, with the references and thresholds of each.
        bytes_share: The size of the graph with its weights over that of fp32.
    """

    precision: str
    calibrator: str | None
    images: int
    images_sha256: str
    kept_in_fp32: dict[str, str] = msgspec.field(name="islands")
    blocks: tuple[BlockChoice, ...]
    gate: GateReport
    bytes_share: float


class CalibrationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``calibration.json``.

    Attributes:
        date: ISO 8601, UTC.
        engine: The engine that computed the scores.
        images: How many good images were used.
        images_sha256: Over the images' own hashes, in the order of their names.
        labelled_images: How many labelled images ``f1`` was fitted on.
        graphs: By precision.
        lower_precisions: The reports of the lower precisions from the time when their graphs were made. The JSON calls
            it ``typed``.
        frame_notes: Good images that lie outside the ranges of plain statistics, a sentence each.
    """

    date: str
    engine: str
    images: int
    images_sha256: str
    labelled_images: int
    graphs: tuple[FittedGraph, ...]
    lower_precisions: tuple[PrecisionReport, ...] = msgspec.field(name="typed", default=())
    frame_notes: tuple[str, ...] = ()


def read_record(bundle: Bundle) -> CalibrationRecord | None:
    """The bundle's, None where it was never calibrated.

    Raises:
        BundleError: It cannot be read.
    """
    if RECORD not in {stored.path for stored in bundle.manifest.files}:
        return None
    try:
        return msgspec.json.decode(bundle.read(RECORD), type=CalibrationRecord)
    except msgspec.MsgspecError as error:
        raise BundleError(
            f"{bundle.path}/{RECORD} is not what flowedge calibrate writes: {error}. Calibrate again."
        ) from error


def bytes_of_record(record: CalibrationRecord) -> bytes:
    """Return the record as indented JSON.

    Raises:
        BundleError: `read_record` would refuse it, for instance for a number that is not finite.
    """
    data = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    try:
        msgspec.json.decode(data, type=CalibrationRecord)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{RECORD} cannot be written: {error}.") from error
    return data
