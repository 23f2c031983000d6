"""The manifest of a bundle: plain frozen data, its JSON form, and its schema number.

The manifest is the contract between the exporter and every runtime, so unknown fields and unknown schema
numbers are errors, never guesses. A bundle is untrusted, so the types below say how large, small or long each field
may be. The bounds admit whatever a detector can have, and `flowedge.manifest_json` holds writing and reading to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, TypeAlias, TypeVar, get_args

import msgspec

from flowedge.errors import BundleError
from flowedge.frame_quantities import LARGEST_QUANTITY
from flowedge.manifest_bounds import (
    Border,
    Count,
    FileName,
    GreyLevel,
    LogNfa,
    Mean,
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
    Std,
    Text,
    Value,
)

# Schema 2 holds a hash of its own content. Schema 1, of versions before that, is still read.
SCHEMA: Final = 2
READABLE_SCHEMAS: Final = (1, 2)

Family: TypeAlias = Literal["cflow", "csflow", "fastflow", "uflow", "msflow"]
PrecisionName: TypeAlias = Literal["fp32", "fp16", "bf16", "int8-cpu", "int8-gpu"]
ResizeMethod: TypeAlias = Literal[
    "float_bilinear", "float_bicubic", "pil_bilinear", "pil_lanczos", "cv2_bilinear"
]
PadMode: TypeAlias = Literal["constant", "edge", "reflect", "symmetric"]
ScoreNormalisation: TypeAlias = Literal["none", "per_image", "fixed_reference"]
ThresholdMethod: TypeAlias = Literal["quantile", "target-fpr", "f1", "manual", "source"]
SourceRule: TypeAlias = Literal["0.x-1.x", "0.x-cdf", "2.0-2.6", "2.7"]
NfaForm: TypeAlias = Literal["tree", "block"]
_Level = TypeVar("_Level")


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Frozen and closed to unknown fields; msgspec wants ``kw_only`` said again by each subclass."""


class Assumed(_Record, frozen=True, kw_only=True):
    """One value that the checkpoint does not hold.

    Attributes:
        name: What ``--set name=value`` or the named option changes.
        value: The value that was used.
        given: True when the user gave it, false when it is the default.
        why: One sentence: where the default comes from.
    """

    name: Name
    value: Scalar | Annotated[list[Scalar], msgspec.Meta(max_length=10_000)]
    given: bool
    why: Text


class Source(_Record, frozen=True, kw_only=True):
    """Where the checkpoint comes from.

    Attributes:
        repository: ``"anomalib"`` or the official repository, such as ``"gudovskiy/cflow-ad"``.
        generation: The version or the generation within that repository, such as ``"2.7"`` or ``"official"``.
        file: The checkpoint's file name, without folders, as `flowedge.text.printable` shows it.
        sha256: The checkpoint's hash.
        transform_file: The name of the other file that the preprocessing was read from, or None.
        transform_sha256: That file's hash.
    """

    repository: Name
    generation: Name
    file: FileName
    sha256: Sha256
    transform_file: FileName | None = None
    transform_sha256: Sha256 | None = None


class FrameStep(_Record, frozen=True, kw_only=True):
    """One change of a frame's borders before the resize.

    Attributes:
        kind: ``center_crop`` to ``size``; ``pad`` by ``border``; ``square_pad`` of the shorter side to the longer one.
        size: ``[height, width]`` of a centre crop in pixels; where it is larger than the frame, ``fill`` is around it.
        border: Pixels added at the left, the top, the right and the bottom, as torchvision orders them.
        mode: What is added: ``constant`` the ``fill``, ``edge`` the last pixel again, ``reflect`` and ``symmetric`` the
            mirrored frame without and with its last pixel.
        fill: Grey levels of red, green and blue, 0 to 255.
    """

    kind: Literal["center_crop", "pad", "square_pad"]
    size: tuple[Pixels, Pixels] | None = None
    border: tuple[Border, Border, Border, Border] = (0, 0, 0, 0)
    mode: PadMode = "constant"
    fill: tuple[GreyLevel, GreyLevel, GreyLevel] = (0, 0, 0)

    def __post_init__(self) -> None:
        if (self.size is not None) != (self.kind == "center_crop"):
            raise ValueError("a centre crop has a size, and no other step does")


class Preprocessing(_Record, frozen=True, kw_only=True):
    """The steps from a frame (uint8, RGB, any size) to the network's input, in this order.

    Attributes:
        frame_steps: Changes of the frame's borders, in order.
        resize: ``[height, width]`` in pixels to resize to, whatever the frame's aspect; with ``keep_aspect``
            only the first is used, for the shorter side.
        keep_aspect: Resize the shorter side, keep the aspect ratio.
        method: ``float_bilinear`` and ``float_bicubic``: float32 in [0, 1], antialiased as torchvision computes it on
            tensors. ``pil_bilinear`` and ``pil_lanczos``: uint8 in, uint8 out, as PIL computes them.
            ``cv2_bilinear``: uint8 in, uint8 out, OpenCV's INTER_LINEAR, not antialiased.
        crop: ``[height, width]`` of a centre crop after the resize, or None.
        grayscale: Replace each channel by ``0.2989 red + 0.587 green + 0.114 blue`` after the resize, in float32.
        mean: Per RGB channel, in units of the [0, 1] range.
        std: Per RGB channel, in units of the [0, 1] range.
    """

    resize: tuple[Pixels, Pixels]
    keep_aspect: bool = False
    method: ResizeMethod
    crop: tuple[Pixels, Pixels] | None = None
    frame_steps: Annotated[tuple[FrameStep, ...], msgspec.Meta(max_length=8)] = ()
    grayscale: bool = False
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Std, Std, Std]


class ScoreMaxima(_Record, frozen=True, kw_only=True):
    """The maxima over good images by which the scores and maps of ``fixed_reference`` are normalised.

    Attributes:
        level_max: Per level, the largest log-likelihood per dimension (constants dropped, as the graph's
            ``level_*``).
        map_max: The largest sum of the levels' exponentials (CFLOW: S*; MSFlow: of the additive map).
        mul_max: MSFlow only: the largest sum of the levels' likelihoods.
    """

    level_max: tuple[Value, ...]
    map_max: PositiveValue
    mul_max: Value | None = None


class Scoring(_Record, frozen=True, kw_only=True):
    """How the levels become the map and the image score (families.md 4.4, 5.5, 6.3, 7.4, 8.5).

    Attributes:
        normalisation: ``none`` for the families whose map needs no maximum.
        score_maxima: Set exactly when ``normalisation`` is ``fixed_reference``. The JSON calls it ``reference``.
        csflow_map: CS-Flow only: ``product`` of the levels (anomalib) or the ``finest`` level (official).
        top_fraction: MSFlow only: the share of the pixels, at least one, whose mean is the score.
        top_pixels: CFLOW only: how many of the map's largest values have their mean as the score; None is one.
    """

    normalisation: ScoreNormalisation
    score_maxima: ScoreMaxima | None = msgspec.field(default=None, name="reference")
    csflow_map: Literal["product", "finest"] | None = None
    top_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_pixels: PixelCount | None = None


class Threshold(_Record, frozen=True, kw_only=True):
    """One fitted decision limit: a value above it is anomalous.

    Attributes:
        value: In units of the score (or of the anomaly map, for a pixel threshold).
        method: How it was fitted.
        parameter: The quantile or the target false-alarm rate, where the method has one.
        images: On how many images it was fitted; 0 for a manual one.
    """

    value: Value
    method: ThresholdMethod
    parameter: Share | None = None
    images: Count = 0


class NfaThreshold(_Record, frozen=True, kw_only=True):
    """The a-contrario decision: a region is anomalous where log10 of its number of false alarms is below a limit.

    Attributes:
        form: Which test, of ``flowedge.runtime.nfa``.
        log_nfa: The limit, log10 of the false alarms that are expected per image; 0 is one.
    """

    form: NfaForm
    log_nfa: LogNfa = 0.0


class Thresholds(_Record, frozen=True, kw_only=True):
    """The decision limits of one precision; ``nfa``, where it is set, decides in place of the other two."""

    image: Threshold | None = None
    pixel: Threshold | None = None
    nfa: NfaThreshold | None = None


class GraphFile(_Record, frozen=True, kw_only=True):
    """One graph of the bundle.

    Attributes:
        precision: What the graph computes in.
        file: Its file name in the bundle.
        opset: Its ONNX opset.
        scoring: How it scores; the score maxima are fitted for each precision.
        half: Patterns of the names of the nodes that compute in half precision; empty where none does.
        fp32_islands: Names of nodes that match a pattern of ``half`` and stay in FP32 all the same.
        int8: Names of the blocks that compute in INT8: their nodes' names begin with it.
        given_back: Names of the blocks that could have a lower precision and lost too much by it.
        thresholds: The limits fitted with this precision.
    """

    precision: PrecisionName
    file: Name
    opset: Opset
    scoring: Scoring
    half: NodeNames = ()
    fp32_islands: NodeNames = ()
    int8: NodeNames = ()
    given_back: NodeNames = ()
    thresholds: Thresholds = Thresholds()


class PartScale(_Record, frozen=True, kw_only=True):
    """What anomalib fitted for the image score or for the map; None is what it never fitted or was told not to use.

    Attributes:
        threshold: In units of the value as the model gives it; for ``0.x-cdf`` of its standardised logarithm.
        minimum: The smallest value of its validation images.
        maximum: The largest.
        log_mean: ``0.x-cdf`` only: the mean of the value's natural logarithm.
        log_std: ``0.x-cdf`` only: its standard deviation.
        sensitivity: 2.x only: a normalised value above ``1 - sensitivity`` is anomalous.
    """

    threshold: Value | None = None
    minimum: Value | None = None
    maximum: Value | None = None
    log_mean: Value | None = None
    log_std: Value | None = None
    sensitivity: Share | None = None


class SourceScale(_Record, frozen=True, kw_only=True):
    """The scale from 0 to 1 that anomalib shows its users, as a checkpoint of it holds it.

    Attributes:
        rule: The versions whose formulas these numbers belong to; see `flowedge.runtime.source_scale`.
        image: Of the image score.
        pixel: Of the anomaly map.
    """

    rule: SourceRule
    image: PartScale
    pixel: PartScale


class FrameRange(_Record, frozen=True, kw_only=True):
    """The values of one plain statistic that frames of good parts have.

    Attributes:
        quantity: One of `flowedge.frame_quantities.FRAME_QUANTITIES`.
        low: The smallest value of a good frame, in the quantity's unit.
        high: The largest.
    """

    quantity: Name
    low: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_QUANTITY)]
    high: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_QUANTITY)]


class FrameCheck(_Record, frozen=True, kw_only=True):
    """The ranges of the frames of good parts. A frame outside of any range is not inspected.

    Attributes:
        rate: The expected share of good frames that are outside, over all quantities together.
        images: How many good frames the ranges were fitted on.
        ranges: At most one per quantity.
    """

    rate: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    images: Count
    ranges: Annotated[tuple[FrameRange, ...], msgspec.Meta(max_length=1000)]


class StoredFile(_Record, frozen=True, kw_only=True):
    """One file of the bundle, by its path relative to the bundle, with forward slashes."""

    path: Name
    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
    sha256: Sha256


class LevelInfo(_Record, frozen=True, kw_only=True):
    """One scale of the flow: channels of its latent and the size of its map."""

    channels: PixelCount
    height: Pixels
    width: Pixels


class NfaOutputs(_Record, frozen=True, kw_only=True):
    """What the graphs give beside their levels, for the number of false alarms (Tailanian et al., JMIV 2024).

    Attributes:
        energies: Whether there is an ``energy_i`` per level: the channel sum of z squared, for the families whose
            levels are likelihoods. ``count_i`` is always there: how many ``z squared >= tau`` the window holds.
        window: Side of the window on the finest level, in its pixels; ``flowedge.runtime.nfa.window_sides`` gives
            those of all levels.
        probability: With which a standard normal latent stays below tau.
    """

    energies: bool
    window: Pixels
    probability: Annotated[float, msgspec.Meta(gt=0, lt=1)]


class Manifest(_Record, frozen=True, kw_only=True):
    """A bundle's own description.

    Attributes:
        schema: The number that the file has, one of ``READABLE_SCHEMAS``; ``SCHEMA`` is written whatever it says.
        flowedge_version: The version that wrote the bundle.
        created: ISO 8601, UTC.
        backbone: The network's name, in timm's or torchvision's words.
        image_size: ``[height, width]`` of the network's input.
        levels: Fine to coarse.
        assumed: Every value that the checkpoint did not hold.
        source_scale: anomalib's own thresholds and ranges, where the checkpoint held any. They belong to the scores
            of a bundle without fitted score maxima.
        nfa: What the graphs give for the number of false alarms; None without ``--nfa``.
        frame_size: ``[height, width]`` of the frames that the graphs take as they are, doing the preprocessing
            themselves; None where they take the network's input.
        pixel_range: The levels of images and frames of more than 8 bits that become 0 and 255, the lower one first.
            None refuses such images.
        frame_check: What good frames look like; None where that was not calibrated or was switched off.
        licence_note: What the weights' origin says about their licence, or an empty string.
        files: Every file of the bundle but the manifest itself.
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
    licence_note: Text = ""
    files: Annotated[tuple[StoredFile, ...], msgspec.Meta(max_length=10_000)] = ()

    def graph(self, precision: str) -> GraphFile:
        """The graph of a precision.

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
        raise BundleError(
            f"the bundle has no {precision} graph; it has {have}. Choose one of them, or add it with "
            f"flowedge calibrate --data GOOD --{precision.partition('-')[0]}."
        )

    def precision_on(self, device: str, precision: str) -> str:
        """The graph that a precision means on a device: ``int8`` has one form for CPUs and one for others.

        Args:
            device: As an engine's facts have it, such as ``"cpu"``.
            precision: What the user asked for; every other word stays as it is.
        """
        if precision != "int8":
            return precision
        return "int8-cpu" if device == "cpu" else "int8-gpu"


def level_outputs(levels: Sequence[_Level], nfa: NfaOutputs | None) -> dict[str, _Level]:
    """A graph's outputs of shape ``(N, 1, h, w)``, by name in the graph's order, and the level that each is of."""
    kinds = ["level", *(["energy"] if nfa and nfa.energies else []), *(["count"] if nfa else [])]
    return {f"{kind}_{n}": level for kind in kinds for n, level in enumerate(levels)}
