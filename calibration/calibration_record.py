"""Read and write ``calibration.json``: the numbers that were fitted on images, and the gates' reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from flowedge.bundle import Bundle
from flowedge.calibration.gate_report import GateReport
from flowedge.calibration.operating_points import OperatingPoint
from flowedge.errors import BundleError
from flowedge.manifest import ColourScale, PrunedLayer, ScoreMaxima, Thresholds

RECORD: Final = "calibration.json"
MOST_GOOD_VALUES: Final = 256
"""The largest number of good images whose values a record holds. They are spread evenly over all images."""


class FittedGraph(msgspec.Struct, frozen=True, kw_only=True):
    """The score maxima and thresholds that were fitted for one precision.

    Attributes:
        precision: The precision's name in the manifest.
        score_maxima: The value is None where none were fitted. The JSON calls it ``reference``.
        thresholds: The fitted limits.
        notes: Sentences about weaknesses of a threshold, for instance too few images.
        colours: The fitted colour scale of pictures. The value is None where none was fitted.
        operating_points: The image thresholds to choose from, counted on the images of the fit.
        good_scores: The scores of at most ``MOST_GOOD_VALUES`` good images, with which a station compares its scores.
    """

    precision: str
    score_maxima: ScoreMaxima | None = msgspec.field(name="reference")
    thresholds: Thresholds
    notes: tuple[str, ...]
    colours: ColourScale | None = None
    operating_points: tuple[OperatingPoint, ...] = ()
    good_scores: tuple[float, ...] = ()


class BlockChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Gives the precision of one block of a graph, with the reason.

    Attributes:
        name: The common beginning of the names of the block's nodes.
        macs_share: The block's share of all multiply-accumulates that could have the lower precision, in 0..1.
        precision: The precision of the block's convolutions and matrix products.
        sensitivity: The root mean square change of the map when this block alone has the lower precision, in standard
            deviations of the good images' fp32 maps. The sensitivity is None where it was not measured.
        reason: The reason for reverting the block to a higher precision. The text is empty for other blocks.
    """

    name: str
    macs_share: float
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    sensitivity: float | None
    reason: str


class PruningFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Tells which hidden units were left out of a graph, and what that saves.

    Attributes:
        layers: The hidden layers, with the number of units before and after.
        macs_saved: The share of the whole graph's multiply-accumulates that is saved, in 0..1.
        time_ratio: The processor time of one image in the pruned float32 graph, divided by that in the fp32 graph,
            measured in turns on one core of the machine of the calibration.
    """

    layers: tuple[PrunedLayer, ...]
    macs_saved: float
    time_ratio: float


class PrecisionReport(msgspec.Struct, frozen=True, kw_only=True):
    """Reports how one graph of lower precision was made.

    Attributes:
        precision: The precision's name in the manifest.
        calibrator: The method that chose the ranges of activations. The method is None where nothing is INT8.
        images: The number of good images on which the ranges were measured.
        images_sha256: The SHA-256 of the images that ``images`` counts, computed as in `CalibrationRecord`.
        kept_in_fp32: Nodes that stay in float32 although no rule of the family keeps them, each with the reason. The
            JSON calls them ``islands``.
        blocks: The blocks in the graph's order.
        gate: The comparison with fp32. Each precision has its own score maxima and thresholds.
        bytes_share: The size of the graph with its weights, divided by the size of the fp32 graph.
        pruning: The hidden units that were left out before the precision was chosen. The value is None where none were.
    """

    precision: str
    calibrator: str | None
    images: int
    images_sha256: str
    kept_in_fp32: dict[str, str] = msgspec.field(name="islands")
    blocks: tuple[BlockChoice, ...]
    gate: GateReport
    bytes_share: float
    pruning: PruningFacts | None = None


class CalibrationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``calibration.json``.

    Attributes:
        date: The date of the calibration, ISO 8601, UTC.
        engine: The engine that computed the scores.
        images: The number of good images.
        images_sha256: SHA-256 of the images' own hashes, in the order of the images' names.
        labelled_images: The number of labelled images on which ``f1`` was fitted.
        graphs: The fitted numbers of each precision.
        lower_precisions: The reports on the graphs of lower precision. The JSON calls them ``typed``.
        frame_notes: One sentence for each good image outside the frame check's ranges.
        good_frames: The statistics of at most ``MOST_GOOD_VALUES`` good images, by a name of
            `flowedge.frame_quantities`, with which a station compares its frames.
    """

    date: str
    engine: str
    images: int
    images_sha256: str
    labelled_images: int
    graphs: tuple[FittedGraph, ...]
    lower_precisions: tuple[PrecisionReport, ...] = msgspec.field(default=(), name="typed")
    frame_notes: tuple[str, ...] = ()
    good_frames: dict[str, tuple[float, ...]] = {}


def kept_values(values: Sequence[float]) -> tuple[float, ...]:
    """Return the values of the images that a record keeps, rounded to six digits."""
    kept = min(len(values), MOST_GOOD_VALUES)
    return tuple(float(f"{values[n * len(values) // kept]:.6g}") for n in range(kept))


def read_record(bundle: Bundle) -> CalibrationRecord | None:
    """Return the bundle's ``calibration.json``, or None where the bundle was never calibrated.

    Raises:
        BundleError: The file cannot be read.
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
    """Return the content as indented JSON.

    Raises:
        BundleError: `read_record` would refuse the JSON, for instance for a number that is not finite.
    """
    data = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    try:
        msgspec.json.decode(data, type=CalibrationRecord)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{RECORD} cannot be written: {error}.") from error
    return data
