"""What a bundle says of itself: plain frozen data, its JSON form, and its schema number.

The manifest is the contract between the exporter and every runtime, so unknown fields and unknown schema
numbers are errors, never guesses. All numbers are finite: JSON has no NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Final, Literal, TypeAlias, TypeVar, get_args

import msgspec

from flowedge.errors import BundleError

SCHEMA: Final = 1

Family: TypeAlias = Literal["cflow", "csflow", "fastflow", "uflow", "msflow"]
PrecisionName: TypeAlias = Literal["fp32", "fp16", "bf16", "int8-cpu", "int8-gpu"]
ResizeMethod: TypeAlias = Literal["float_bilinear", "pil_bilinear", "pil_lanczos", "cv2_bilinear"]
ScoreNormalisation: TypeAlias = Literal["none", "per_image", "fixed_reference"]
ThresholdMethod: TypeAlias = Literal["quantile", "target-fpr", "f1", "manual", "source"]
SourceRule: TypeAlias = Literal["0.x-1.x", "0.x-cdf", "2.0-2.6", "2.7"]
NfaForm: TypeAlias = Literal["tree", "block"]
Scalar: TypeAlias = str | int | float | bool
Pixels: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=16384)]
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Level = TypeVar("_Level")
Sha256: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]

_UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError)


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
    value: Scalar | list[Scalar]
    given: bool
    why: str


class Source(_Record, frozen=True, kw_only=True):
    """Where the checkpoint comes from.

    Attributes:
        repository: ``"anomalib"`` or the official repository, such as ``"gudovskiy/cflow-ad"``.
        generation: The version or the generation within that repository, such as ``"2.7"`` or ``"official"``.
        file: The checkpoint's file name, without folders.
        sha256: The checkpoint's hash.
    """

    repository: Name
    generation: Name
    file: Name
    sha256: Sha256


class Preprocessing(_Record, frozen=True, kw_only=True):
    """How a frame (uint8, RGB, any size) becomes the network's input, in this order.

    Attributes:
        resize: ``[height, width]`` in pixels to resize to, whatever the frame's aspect; with ``keep_aspect``
            only the first is used, for the shorter side.
        keep_aspect: Resize the shorter side, keep the aspect ratio.
        method: ``float_bilinear``: float32 in [0, 1], antialiased bilinear as torchvision computes it on
            tensors. ``pil_bilinear`` and ``pil_lanczos``: uint8 in, uint8 out, as PIL computes them.
            ``cv2_bilinear``: uint8 in, uint8 out, OpenCV's INTER_LINEAR, not antialiased.
        crop: ``[height, width]`` of a centre crop after the resize, or None.
        mean: Per RGB channel, in units of the [0, 1] range.
        std: Per RGB channel, in units of the [0, 1] range.
    """

    resize: tuple[Pixels, Pixels]
    keep_aspect: bool = False
    method: ResizeMethod
    crop: tuple[Pixels, Pixels] | None = None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class FixedReference(_Record, frozen=True, kw_only=True):
    """The constants that ``fixed_reference`` scores are normalised by, fitted on good images.

    Attributes:
        level_max: Per level, the largest log-likelihood per dimension (constants dropped, as the graph's
            ``level_*``).
        map_max: The largest sum of the levels' exponentials (CFLOW: S*; MSFlow: of the additive map).
        mul_max: MSFlow only: the largest sum of the levels' likelihoods.
    """

    level_max: tuple[float, ...]
    map_max: float
    mul_max: float | None = None


class Scoring(_Record, frozen=True, kw_only=True):
    """How the levels become the map and the image score (families.md 4.4, 5.5, 6.3, 7.4, 8.5).

    Attributes:
        normalisation: ``none`` for the families whose map needs no maximum.
        reference: Set exactly when ``normalisation`` is ``fixed_reference``.
        csflow_map: CS-Flow only: ``product`` of the levels (anomalib) or the ``finest`` level (official).
        top_fraction: MSFlow only: the share of the pixels, at least one, whose mean is the score.
        top_pixels: CFLOW only: how many of the map's largest values have their mean as the score; None is one.
    """

    normalisation: ScoreNormalisation
    reference: FixedReference | None = None
    csflow_map: Literal["product", "finest"] | None = None
    top_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_pixels: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Threshold(_Record, frozen=True, kw_only=True):
    """One fitted decision limit: a value above it is anomalous.

    Attributes:
        value: In units of the score (or of the anomaly map, for a pixel threshold).
        method: How it was fitted.
        parameter: The quantile or the target false-alarm rate, where the method has one.
        images: On how many images it was fitted; 0 for a manual one.
    """

    value: float
    method: ThresholdMethod
    parameter: float | None = None
    images: int = 0


class NfaThreshold(_Record, frozen=True, kw_only=True):
    """The a-contrario decision: a region is anomalous where log10 of its number of false alarms is below a limit.

    Attributes:
        form: Which test, of ``flowedge.runtime.nfa``.
        log_nfa: The limit, log10 of the false alarms that are expected per image; 0 is one.
    """

    form: NfaForm
    log_nfa: float = 0.0


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
        scoring: How it scores; the constants of a fixed reference are fitted for each precision.
        half: Patterns of the names of the nodes that compute in half precision; empty where none does.
        fp32_islands: Names of nodes that match a pattern of ``half`` and stay in FP32 all the same.
        int8: Names of the blocks that compute in INT8: their nodes' names begin with it.
        given_back: Names of the blocks that could have a lower precision and lost too much by it.
        thresholds: The limits fitted with this precision.
    """

    precision: PrecisionName
    file: Name
    opset: int
    scoring: Scoring
    half: tuple[str, ...] = ()
    fp32_islands: tuple[str, ...] = ()
    int8: tuple[str, ...] = ()
    given_back: tuple[str, ...] = ()
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

    threshold: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    log_mean: float | None = None
    log_std: float | None = None
    sensitivity: float | None = None


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


class StoredFile(_Record, frozen=True, kw_only=True):
    """One file of the bundle, by its path relative to the bundle, with forward slashes."""

    path: Name
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Sha256


class LevelInfo(_Record, frozen=True, kw_only=True):
    """One scale of the flow: channels of its latent and the size of its map."""

    channels: Annotated[int, msgspec.Meta(ge=1)]
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
    window: Annotated[int, msgspec.Meta(ge=1)]
    probability: Annotated[float, msgspec.Meta(gt=0, lt=1)]


class Manifest(_Record, frozen=True, kw_only=True):
    """A bundle's own description.

    Attributes:
        schema: Always ``SCHEMA``; checked before anything else.
        flowedge_version: The version that wrote the bundle.
        created: ISO 8601, UTC.
        backbone: The network's name, in timm's or torchvision's words.
        image_size: ``[height, width]`` of the network's input.
        levels: Fine to coarse.
        assumed: Every value that the checkpoint did not hold.
        source_scale: anomalib's own thresholds and ranges, where the checkpoint held any. They belong to the scores
            of a bundle that was not calibrated to a fixed reference.
        nfa: What the graphs give for the number of false alarms; None without ``--nfa``.
        frame_size: ``[height, width]`` of the frames that the graphs take as they are, doing the preprocessing
            themselves; None where they take the network's input.
        licence_note: What the weights' origin says about their licence, or an empty string.
        files: Every file of the bundle but the manifest itself.
    """

    schema: int
    flowedge_version: str
    created: str
    family: Family
    source: Source
    backbone: Name
    image_size: tuple[Pixels, Pixels]
    levels: tuple[LevelInfo, ...]
    preprocessing: Preprocessing
    graphs: tuple[GraphFile, ...]
    assumed: tuple[Assumed, ...] = ()
    source_scale: SourceScale | None = None
    nfa: NfaOutputs | None = None
    frame_size: tuple[Pixels, Pixels] | None = None
    licence_note: str = ""
    files: tuple[StoredFile, ...] = ()

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


def manifest_from_json(data: bytes) -> Manifest:
    """Parse and check a manifest.

    Raises:
        BundleError: Not JSON, an unknown schema number, a missing, unknown or ill-typed field, a number that
            is not finite.
    """
    try:
        schema = msgspec.json.decode(data, type=_SchemaOnly).schema
    except RecursionError as error:
        raise BundleError("manifest.json is nested too deeply to be a manifest. Export it again.") from error
    except _UNDECODABLE as error:
        raise BundleError(
            f"manifest.json is not a FlowEdge manifest: {error}. Export the bundle again."
        ) from error
    if schema != SCHEMA:
        raise BundleError(
            f"manifest.json has schema {schema}, this FlowEdge reads schema {SCHEMA}. "
            f"{'Install a newer FlowEdge' if schema > SCHEMA else 'Export the bundle again'}."
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except _UNDECODABLE as error:
        raise BundleError(f"manifest.json is not valid: {error}. Export the bundle again.") from error
    _check(manifest)
    return manifest


def json_from_manifest(manifest: Manifest) -> bytes:
    """The manifest as indented UTF-8 JSON with a stable field order."""
    _check(manifest)
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


class _SchemaOnly(msgspec.Struct):
    schema: int


def _check(manifest: Manifest) -> None:
    """What the types cannot say."""
    for graph in manifest.graphs:
        scoring = graph.scoring
        if (scoring.normalisation == "fixed_reference") != (scoring.reference is not None):
            raise BundleError(
                f"manifest.json: the {graph.precision} graph's scoring.reference must be there exactly when its "
                "normalisation is fixed_reference."
            )
        if scoring.reference is not None and len(scoring.reference.level_max) != len(manifest.levels):
            raise BundleError(
                f"manifest.json: {len(scoring.reference.level_max)} reference maxima for the {graph.precision} "
                f"graph's {len(manifest.levels)} levels."
            )
    if not manifest.levels or not manifest.graphs:
        raise BundleError("manifest.json: a bundle needs at least one level and one graph.")
    names = [g.precision for g in manifest.graphs]
    if len(set(names)) != len(names):
        raise BundleError(f"manifest.json: a precision is listed twice: {', '.join(names)}.")
    if any(value <= 0 for value in manifest.preprocessing.std):
        raise BundleError(
            f"manifest.json: preprocessing.std must be positive, got {manifest.preprocessing.std}."
        )
    scale = manifest.source_scale
    if scale is not None and scale.rule == "0.x-cdf":
        needed = (
            scale.image.log_mean,
            *(v for p in (scale.image, scale.pixel) for v in (p.threshold, p.log_std)),
        )
        if None in needed:
            raise BundleError(
                "manifest.json: a source_scale by 0.x-cdf needs both thresholds and log_std, and image.log_mean."
            )
    _check_finite(msgspec.to_builtins(manifest), "manifest.json")


def _check_finite(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise BundleError(f"{where} is {value}; only finite numbers are allowed.")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{where}: {key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_finite(item, f"{where}[{index}]")
