"""Define the manifest of a bundle: plain frozen data with a schema number.

The manifest is the contract between the exporter and every runtime, so unknown fields and unknown schema numbers are
errors, never guesses. A bundle is untrusted, so each field has a type of `flowedge.manifest_bounds`, which says how
large, small or long it may be. `flowedge.manifest_json` checks the bounds in writing and in reading. The records
about frames are defined in `flowedge.manifest_frames`, those about thresholds in `flowedge.manifest_thresholds`. Both
are imported from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, TypeAlias, TypeVar, get_args

import msgspec

from flowedge.errors import BundleError
from flowedge.manifest_bounds import (
    FileName,
    ManifestRecord,
    Moment,
    Name,
    NodeNames,
    Opset,
    PixelCount,
    Pixels,
    PositiveValue,
    Scalar,
    Sha256,
    Share,
    Text,
    Value,
)
from flowedge.manifest_frames import FrameCheck as FrameCheck
from flowedge.manifest_frames import FrameRange as FrameRange
from flowedge.manifest_frames import FrameStep as FrameStep
from flowedge.manifest_frames import PadMode as PadMode
from flowedge.manifest_frames import Preprocessing as Preprocessing
from flowedge.manifest_frames import ResizeMethod as ResizeMethod
from flowedge.manifest_thresholds import HISTORY_LENGTH, HistoryEntry
from flowedge.manifest_thresholds import NfaForm as NfaForm
from flowedge.manifest_thresholds import NfaThreshold as NfaThreshold
from flowedge.manifest_thresholds import Threshold as Threshold
from flowedge.manifest_thresholds import ThresholdMethod as ThresholdMethod
from flowedge.manifest_thresholds import Thresholds as Thresholds

# Schema 2 holds a hash of its own content. Schema 1, of versions before that, is still read.
SCHEMA: Final = 2
READABLE_SCHEMAS: Final = (1, 2)

Family: TypeAlias = Literal["cflow", "csflow", "fastflow", "uflow", "msflow"]
PrecisionName: TypeAlias = Literal["fp32", "pruned", "fp16", "bf16", "int8-cpu", "int8-gpu"]
# A pruned graph computes in float32 as the fp32 graph does, with fewer hidden units.
FLOAT32_PRECISIONS: Final = ("fp32", "pruned")
ScoreNormalisation: TypeAlias = Literal["none", "per_image", "fixed_reference"]
SourceRule: TypeAlias = Literal["0.x-1.x", "0.x-cdf", "2.0-2.6", "2.7"]
_Level = TypeVar("_Level")


class Assumed(ManifestRecord, frozen=True, kw_only=True):
    """One value that the checkpoint does not hold.

    Attributes:
        name: The name that ``--set name=value`` or the named option changes.
        value: The value that was used.
        given: True when the user gave it, false when it is the default.
        why: One sentence on the origin of the default.
    """

    name: Name
    value: Scalar | Annotated[list[Scalar], msgspec.Meta(max_length=10_000)]
    given: bool
    why: Text


class Source(ManifestRecord, frozen=True, kw_only=True):
    """The origin of the checkpoint.

    Attributes:
        repository: ``"anomalib"`` or the official repository, such as ``"gudovskiy/cflow-ad"``.
        generation: The version or the generation within that repository, such as ``"2.7"`` or ``"official"``.
        file: The checkpoint's file name, without folders, as `flowedge.text.printable` shows it.
        sha256: The checkpoint's hash.
        transform_file: The name of the other file that the preprocessing was read from, or None.
        transform_sha256: The hash of ``transform_file``.
    """

    repository: Name
    generation: Name
    file: FileName
    sha256: Sha256
    transform_file: FileName | None = None
    transform_sha256: Sha256 | None = None


class ScoreMaxima(ManifestRecord, frozen=True, kw_only=True):
    """The maxima over good images by which the scores and maps of ``fixed_reference`` are normalised.

    Attributes:
        level_max: The largest log-likelihood per dimension of each level, without constants as in the graph's outputs
            ``level_*``.
        map_max: The largest sum of the levels' exponentials, which is S* of CFLOW and belongs to MSFlow's additive map.
        mul_max: The largest sum of the levels' likelihoods. Only MSFlow has ``mul_max``.
    """

    level_max: tuple[Value, ...]
    map_max: PositiveValue
    mul_max: Value | None = None


class Scoring(ManifestRecord, frozen=True, kw_only=True):
    """The rule that makes the map and the image score of the levels. The formulas are in `flowedge.families`.

    Attributes:
        normalisation: The maxima that the map is normalised by: those of each image, those of good images, or none.
        score_maxima: Set exactly when ``normalisation`` is ``fixed_reference``. The JSON calls it ``reference``.
        csflow_map: The map of CS-Flow: the ``product`` of the levels (anomalib) or the ``finest`` level (official).
        top_fraction: The share of MSFlow's pixels, at least one pixel, whose mean is the score.
        top_pixels: The number of largest values of CFLOW's map whose mean is the score. Without a number it is one.
    """

    normalisation: ScoreNormalisation
    score_maxima: ScoreMaxima | None = msgspec.field(default=None, name="reference")
    csflow_map: Literal["product", "finest"] | None = None
    top_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_pixels: PixelCount | None = None


class ColourScale(ManifestRecord, frozen=True, kw_only=True):
    """The values of the anomaly map between which pictures change their colour.

    Both values come from pixels of good parts and from no threshold. A later threshold therefore changes the painted
    pixels and leaves the colour of each value.

    Attributes:
        low: The value of the first colour, which is the median of the good pixels.
        high: The value of the last colour. Half of the way to it lies the 0.9995 quantile of the good pixels.
    """

    low: Value
    high: Value

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(
                f"the low end of a colour scale is below the high one, got {self.low} and {self.high}"
            )


class PrunedLayer(ManifestRecord, frozen=True, kw_only=True):
    """One hidden layer of a coupling subnet, some of whose units were left out.

    Attributes:
        name: The name of the layer's convolution in the graph, without its operator.
        units: The number of units in the fp32 graph.
        kept: The number of units in this graph.
    """

    name: Annotated[str, msgspec.Meta(max_length=1000)]
    units: PixelCount
    kept: PixelCount

    def __post_init__(self) -> None:
        if self.kept > self.units:
            raise ValueError(f"a layer of {self.units} units cannot keep {self.kept} of them")


class GraphFile(ManifestRecord, frozen=True, kw_only=True):
    """One graph of the bundle.

    Attributes:
        precision: The precision that the graph computes in.
        file: The name of the graph's file in the bundle.
        opset: The ONNX opset of the graph.
        scoring: The rule of the graph's score. The score maxima in the rule are fitted for each precision.
        half: Patterns of the names of the nodes that compute in half precision. The list is empty where no
            node does.
        fp32_islands: Names of nodes that match a pattern of ``half`` and stay in FP32 all the same.
        int8: Names of the blocks that compute in INT8. The name of a node begins with that of its block.
        given_back: Names of the blocks that were reverted, since a lower precision changed the answers too much.
        pruned: The hidden layers whose units were left out before the precision was chosen.
        thresholds: The thresholds fitted with this precision.
        colours: The colour scale of the anomaly map, in units of this graph's map. The value is None before a
            calibration.
    """

    precision: PrecisionName
    file: Name
    opset: Opset
    scoring: Scoring
    half: NodeNames = ()
    fp32_islands: NodeNames = ()
    int8: NodeNames = ()
    given_back: NodeNames = ()
    pruned: Annotated[tuple[PrunedLayer, ...], msgspec.Meta(max_length=10_000)] = ()
    thresholds: Thresholds = Thresholds()
    colours: ColourScale | None = None


class PartScale(ManifestRecord, frozen=True, kw_only=True):
    """The numbers that anomalib fitted for the image score or for the map.

    A number is None where anomalib did not fit it or was told not to use it.

    Attributes:
        threshold: The threshold in units of the model's value, or for ``0.x-cdf`` of its standardised logarithm.
        minimum: The smallest value on anomalib's validation images.
        maximum: The largest value on anomalib's validation images.
        log_mean: The mean of the value's natural logarithm. Only ``0.x-cdf`` has it.
        log_std: The standard deviation of the value's natural logarithm. Only ``0.x-cdf`` has it.
        sensitivity: A normalised value above ``1 - sensitivity`` is anomalous. Only 2.x has it.
    """

    threshold: Value | None = None
    minimum: Value | None = None
    maximum: Value | None = None
    log_mean: Value | None = None
    log_std: Value | None = None
    sensitivity: Share | None = None


class SourceScale(ManifestRecord, frozen=True, kw_only=True):
    """The scale from 0 to 1 that anomalib shows its users, as a checkpoint of it holds it.

    Attributes:
        rule: The versions whose formulas these numbers belong to, see `flowedge.runtime.source_scale`.
        image: The numbers of the image score.
        pixel: The numbers of the anomaly map.
    """

    rule: SourceRule
    image: PartScale
    pixel: PartScale


class StoredFile(ManifestRecord, frozen=True, kw_only=True):
    """One file of the bundle, by its path relative to the bundle, with forward slashes."""

    path: Name
    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
    sha256: Sha256


class LevelInfo(ManifestRecord, frozen=True, kw_only=True):
    """One level of the flow: the channels of its latent and the size of its map in pixels."""

    channels: PixelCount
    height: Pixels
    width: Pixels


class NfaOutputs(ManifestRecord, frozen=True, kw_only=True):
    """The further outputs of the graphs, for the number of false alarms (Tailanian et al., JMIV 2024).

    Each level has an output ``count_i``: the number of ``z² >= tau`` in a window.

    Attributes:
        energies: True when each level has an output ``energy_i``, the channel sum of z². Families whose levels are
            likelihoods need it.
        window: The side of the window on the finest level, in its pixels. ``flowedge.runtime.nfa.window_sides`` gives
            the sides on all levels.
        probability: The probability that z² of a standard normal latent stays below tau.
    """

    energies: bool
    window: Pixels
    probability: Annotated[float, msgspec.Meta(gt=0, lt=1)]


class Manifest(ManifestRecord, frozen=True, kw_only=True):
    """The description of a bundle.

    Attributes:
        schema: The schema number of the file, one of ``READABLE_SCHEMAS``. Writing always gives the file ``SCHEMA``.
        flowedge_version: The version that wrote the bundle.
        created: The moment of writing in UTC, as ISO 8601.
        backbone: The name of the backbone in timm or torchvision.
        image_size: ``[height, width]`` of the network's input.
        levels: The levels of the flow from the finest to the coarsest.
        assumed: Every value that the checkpoint did not hold.
        source_scale: anomalib's own thresholds and ranges, where the checkpoint held any. These values belong to
            the scores of a bundle without fitted score maxima.
        nfa: The graphs' outputs for the number of false alarms, or None where the graphs have no such outputs.
        frame_size: ``[height, width]`` of the frames that the graphs take, doing the preprocessing themselves. The
            size is None where the graphs take the network's input.
        pixel_range: The two grey levels that become 0 and 255 in images of more than 8 bits, the lower one first.
            With None such images are refused.
        frame_check: The ranges of good frames, or None where the ranges were not calibrated or were switched off.
        threshold_history: The changes of the thresholds, the oldest first.
        licence_note: A note of the weights' origin on their licence, or an empty string.
        files: Every file of the bundle except the manifest.
    """

    schema: int
    flowedge_version: Name
    created: Moment
    family: Family
    source: Source
    backbone: Name
    image_size: tuple[Pixels, Pixels]
    levels: Annotated[tuple[LevelInfo, ...], msgspec.Meta(max_length=64)]
    preprocessing: Preprocessing
    graphs: tuple[GraphFile, ...]
    assumed: Annotated[tuple[Assumed, ...], msgspec.Meta(max_length=1000)] = ()
    source_scale: SourceScale | None = None
    nfa: NfaOutputs | None = None
    frame_size: tuple[Pixels, Pixels] | None = None
    pixel_range: tuple[Value, Value] | None = None
    frame_check: FrameCheck | None = None
    threshold_history: Annotated[tuple[HistoryEntry, ...], msgspec.Meta(max_length=HISTORY_LENGTH)] = ()
    licence_note: Text = ""
    files: Annotated[tuple[StoredFile, ...], msgspec.Meta(max_length=10_000)] = ()

    def graph(self, precision: str) -> GraphFile:
        """Return the graph of a precision.

        Raises:
            BundleError: The bundle holds no such graph.
        """
        for graph in self.graphs:
            if graph.precision == precision:
                return graph
        have = ", ".join(g.precision for g in self.graphs)
        if precision not in (*get_args(PrecisionName), "int8"):
            int8 = " (int8 is the form for the engine's device)" if "int8" in have else ""
            raise BundleError(
                f"there is no precision {precision!r}. Choose one of the bundle's: {have}{int8}."
            )
        if precision == "pruned" and self.family == "msflow":
            raise BundleError(
                f"the bundle has no pruned graph. It has {have}. Choose one of them. The subnets of family msflow have "
                "no hidden units that can be left out."
            )
        option = "prune auto" if precision == "pruned" else precision.partition("-")[0]
        raise BundleError(
            f"the bundle has no {precision} graph. It has {have}. Choose one of them, or add it with "
            f"flowedge calibrate --data GOOD --{option}."
        )

    def precision_on(self, device: str, precision: str) -> str:
        """Return the name of the graph that a precision means on a device.

        The precision ``int8`` has one graph for CPUs and one for other devices. Every other word stays as it is.

        Args:
            device: The device of an engine's facts, such as ``"cpu"``.
            precision: The precision that the user asked for.
        """
        if precision != "int8":
            return precision
        return "int8-cpu" if device == "cpu" else "int8-gpu"


def level_outputs(levels: Sequence[_Level], nfa: NfaOutputs | None) -> dict[str, _Level]:
    """Return the level of each output of shape ``(N, 1, h, w)`` by the output's name, in the graph's order."""
    kinds = ["level", *(["energy"] if nfa and nfa.energies else []), *(["count"] if nfa else [])]
    return {f"{kind}_{n}": level for kind in kinds for n, level in enumerate(levels)}
