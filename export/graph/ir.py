"""The intermediate representation (IR) describes the trained flows of all families as plain frozen data.

A ``FlowModel`` is a backbone that gives one feature map per level, a program of steps over *streams*, and a
score. Stream ``l`` starts as the features of level ``l`` and ends as the latent z of that level. Levels run from
fine, 0, to coarse. Each ``Split`` makes a further stream, numbered after the levels. Every array is float32 or int64
NumPy. Nothing here knows torch.

One set of classes holds both a model as its paper writes it and the model after the passes. A pass folds the value
of a field into another place, and sets the field to its neutral value (``None``, 1.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.manifest import Family, Scoring

Array: TypeAlias = NDArray[np.float32]
Index: TypeAlias = NDArray[np.int64]


# --- the layers of a coupling's subnet ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linear:
    """A linear layer ``y = weight x + bias`` at every position by itself. weight ``(out, in)``, bias ``(out,)``."""

    weight: Array
    bias: Array | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conv:
    """A convolution, stride 1, zero-padded by ``k // 2``. weight ``(out, in, k, k)``, bias ``(out,)``."""

    weight: Array
    bias: Array | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelNorm:
    """Layer normalisation over the channels of each pixel. weight and bias ``(C,)``.

    Where ``centred`` is true, the input's mean over the channels is already zero.
    """

    weight: Array
    bias: Array
    eps: float
    centred: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relu:
    """``max(x, 0)``."""


SubnetLayer: TypeAlias = Linear | Conv | ChannelNorm | Relu


# --- what a subnet reads besides the passive half -------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PositionCode:
    """The sinusoidal code of Vaswani et al. in two dimensions (CFLOW-AD, eq. 7): ``length`` channels.

    Channels ``0 .. length/2`` depend on the column only, the others on the row only.
    """

    length: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PositionBasis:
    """Constant maps that span the position code: ``columns (r, W)`` and ``rows (s, H)``, so ``r + s`` channels."""

    columns: Array
    rows: Array

    @property
    def length(self) -> int:
        """The number of channels of the basis."""
        return len(self.columns) + len(self.rows)


# --- the steps ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coupling:
    """The affine coupling of FrEIA's all-in-one block, without its permutation.

    With ``x1 = x[passive]`` and ``x2 = x[active]``::

        a, t = halves of gain * subnet(concat(x1, condition))
        g = alpha * tanh(inner * a)
        y = scale * concat(x1, x2 * exp(g) + t) + offset

    In the output the passive channels come before the active ones.

    Attributes:
        stream: The stream that the coupling transforms.
        passive: Channels of the stream that the subnet reads, in its order. A channel may be repeated.
        active: Channels that are transformed, in the order of the subnet's output.
        condition: Constant maps that the subnet reads after the passive channels, or None.
        subnet: The layers of the subnet, in order.
        gain: Factor of the subnet's output, 0.1 in FrEIA.
        alpha: Largest absolute value of g, FrEIA's clamp.
        inner: 1 for FrEIA 0.2, and ``1 / alpha`` for FrEIA's main branch since August 2023.
        scale: The global scale ``(len(passive) + len(active),)``, or None for 1.
        offset: The global offset ``(len(passive) + len(active),)``, or None for 0.
        log_det: True when the score needs the sum of g over the channels.
    """

    stream: int
    passive: Index
    active: Index
    condition: PositionCode | PositionBasis | None
    subnet: tuple[SubnetLayer, ...]
    gain: float
    alpha: float
    inner: float
    scale: Array | None
    offset: Array | None
    log_det: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelMap:
    """A fixed map of the channels of every pixel: ``y = matrix x + bias``, or the gather ``y_i = x[index_i]``.

    Exactly one of ``index (out,)`` and ``matrix (out, in)`` is set. Only a matrix may have a ``bias (out,)``.
    """

    stream: int
    index: Index | None = None
    matrix: Array | None = None
    bias: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelAffine:
    """A scale and shift per channel, ``y = scale * x + shift``. A scale of None is 1, a shift of None is 0."""

    stream: int
    scale: Array | None
    shift: Array | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PositionChannels:
    """Append the constant maps of the position code to the channels of a stream."""

    stream: int
    basis: PositionBasis


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerNorm:
    """Normalise each image over channels, rows and columns together. weight and bias ``(C, H, W)``."""

    stream: int
    weight: Array
    bias: Array
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """Pool by 3x3 windows, stride 2, padding 1. The kind ``avg`` divides by 9 at the border too."""

    stream: int
    kind: Literal["avg", "max"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """The channels ``send`` leave the stream and become the stream ``into``. The channels ``keep`` stay."""

    stream: int
    into: int
    send: Index
    keep: Index


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PixelShuffle:
    """Four channels become one of twice the size: ``y[g, 2i + a, 2j + b] = x[4g + 2a + b, i, j]``."""

    stream: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Concat:
    """Append the channels of the stream ``other`` to the stream. The stream ``other`` ends here."""

    stream: int
    other: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """One convolution of a ``CrossScaleNet`` between levels.

    Attributes:
        sources: The levels that the route reads, concatenated. Levels coarser than the route's own are first
            upsampled by 2, unless ``mixes_first``.
        conv: The convolution, zero-padded by ``k // 2``.
        stride: 2 where the route reads a finer level, else 1.
        mixes_first: True when a route from one coarser level mixes channels at that level, once for each tap of the
            kernel. One constant matrix then upsamples, shifts and sums the results. Such a route has no bias.
    """

    sources: tuple[int, ...]
    conv: Conv
    stride: int
    mixes_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossScaleNet:
    """CS-Flow's subnet: a convolution per level, leaky ReLU 0.1, and convolutions between neighbouring levels.

    Attributes:
        inner: The first convolution of each level.
        routes: The convolutions of each level, which are summed.
        gains: The factor of the sum at each level.
    """

    inner: tuple[Conv, ...]
    routes: tuple[tuple[Route, ...], ...]
    gains: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FusionNet:
    """MSFlow's subnet: all levels pooled to the coarsest one, mixed, upsampled and added to each level.

    The mixing is ``q = relu(conv2(relu(norm(conv1(concat(pooled levels))))))``. Each level adds the upsampled q of its
    own channels. Then the level's ``heads`` are run, and their outputs are concatenated.
    """

    conv1: Conv
    norm: ChannelNorm
    conv2: Conv
    heads: tuple[tuple[Conv, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TwoSidedCoupling:
    """A coupling across levels: the halves of every level are transformed in turn.

    Each subnet reads the other halves of all levels. With ``x1 = x[first]`` and ``x2 = x[second]`` per level, and
    (S, T) the halves of a subnet's output::

        y1 = E(S2) x1 + T2     (S2, T2) = net2(all x2)
        y2 = E(S1) x2 + T1     (S1, T1) = net1(all y1)
        E(s) = exp(0.636 kappa atan(inner s))
        y  = clip(concat(y1, y2), -limit, limit)

    The papers have ``inner = 1 / kappa``.
    """

    streams: tuple[int, ...]
    first: tuple[Index, ...]
    second: tuple[Index, ...]
    net1: CrossScaleNet | FusionNet
    net2: CrossScaleNet | FusionNet
    kappa: float
    inner: float
    limit: float


Step: TypeAlias = (
    Coupling
    | ChannelMap
    | ChannelAffine
    | PositionChannels
    | LayerNorm
    | Pool
    | Split
    | PixelShuffle
    | Concat
    | TwoSidedCoupling
)


def streams_of(step: Step) -> tuple[int, ...]:
    """Return the streams that a step reads."""
    match step:
        case TwoSidedCoupling():
            return step.streams
        case Concat():
            return (step.stream, step.other)
        case _:
            return (step.stream,)


# --- the model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Backbone:
    """The frozen network that gives the features.

    Attributes:
        network: The network's name in timm, such as ``resnet18``, or in torchvision for MobileNetV3. ``mcait`` is a
            CaiT-M48 on the image and a CaiT-S24 on the image at half its size.
        taps: The features to take, in the order of the levels and by the network's own names. ``layer2`` is that
            module's output, and ``blocks.4`` of a transformer is that block's tokens.
        padding: ``zeros`` for the network as its library builds it. ``reflect`` where every convolution wider than
            one pixel pads by reflection, as in the private ResNets of the official CFLOW and MSFlow. ``static_0.7``
            and ``static_0.6`` for the padding of these versions of efficientnet_pytorch.
        weights: State dict of the network, by the names of the library in ``naming``.
        naming: The library whose names the weights have. A network that is named as in efficientnet_pytorch has taps
            named as in torchvision.
        final_norm: True when the last layer norm of a transformer follows each tap.
        pyramid: Number of scales on which the network runs, from the whole image on. Each scale takes every second
            pixel of the scale before. The features of all scales are the levels.
    """

    network: str
    taps: tuple[str, ...]
    padding: Literal["zeros", "reflect", "static_0.7", "static_0.6"]
    weights: Mapping[str, Array] = field(repr=False)
    naming: Literal["timm", "torchvision", "efficientnet_pytorch"] = "timm"
    final_norm: bool = False
    pyramid: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Level:
    """One feature scale of the flow.

    Attributes:
        channels: Channels of the level's latent. The score divides by this number of dimensions.
        height: Rows of the latent's map.
        width: Columns of the latent's map.
        feature_channels: Channels of the level's features.
        latent_scale: Factor ``(channels of the stream,)`` in ``z = latent_scale * stream`` at the end of the program.
            A scale of None is 1. A zero drops a channel from the score.
    """

    channels: int
    height: int
    width: int
    feature_channels: int
    latent_scale: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlowModel:
    """A trained backbone, flow and scoring rule as data.

    Attributes:
        family: The family of the flow.
        image_size: ``(height, width)`` of the network's input in pixels.
        backbone: The feature extractor.
        levels: The feature scales, from fine to coarse.
        steps: The program, in order of execution.
        scoring: The rule that makes the anomaly map and the score from the levels.
    """

    family: Family
    image_size: tuple[int, int]
    backbone: Backbone
    levels: tuple[Level, ...]
    steps: tuple[Step, ...]
    scoring: Scoring


def position_code(length: int, size: int) -> NDArray[np.float64]:
    """Compute one axis of the position code ``(length / 2, size)``, with rows ``sin(p w_i), cos(p w_i)`` in turn.

    The frequencies ``w_i = exp(-2 i ln(10000) / (length / 2))`` are rounded to float32, because the original
    computes them in float32. The rest is float64.

    Raises:
        ValueError: ``length`` is not a multiple of 4.
    """
    if length % 4:
        raise ValueError(f"a position code needs a multiple of 4 channels, got {length}")
    half = length // 2
    exponent = np.arange(0, half, 2, dtype=np.float32) * np.float32(-(np.log(10000.0) / half))
    frequency = np.exp(exponent).astype(np.float64)
    phase = np.arange(size)[None, :] * frequency[:, None]
    return np.stack([np.sin(phase), np.cos(phase)], axis=1).reshape(half, size)
