"""The intermediate representation: five families, one vocabulary of plain frozen data.

A ``FlowModel`` is a backbone that gives one feature map per level, a program of steps over *streams*, and a
score. Stream ``l`` starts as the features of level ``l`` (levels run from fine, 0, to coarse) and ends as the
latent z of that level; ``Split`` makes further ones, numbered behind the levels. Every array is float32 or
int64 NumPy; nothing here knows torch.

The same classes hold a model as its paper writes it and as the passes leave it: a pass turns a field into its
neutral value (``None``, 1.0) and moves what it held elsewhere.
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
    """``y = weight x + bias`` at every position by itself. weight ``(out, in)``, bias ``(out,)``."""

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

    With ``centred`` each pixel's mean is already zero.
    """

    weight: Array
    bias: Array
    eps: float
    centred: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relu:
    """``max(x, 0)``."""


SubnetLayer: TypeAlias = Linear | Conv | ChannelNorm | Relu


# --- what a subnet sees besides the passive half --------------------------------------------------------------


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
        """How many channels the basis has."""
        return len(self.columns) + len(self.rows)


# --- the steps ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coupling:
    """The affine coupling of FrEIA's all-in-one block, without its permutation.

    With ``x1 = x[passive]``, ``x2 = x[active]`` and ``r = gain * subnet(concat(x1, condition))``, whose first
    half is a and whose second half is t::

        g = alpha * tanh(inner * a)
        y = scale * concat(x1, x2 * exp(g) + t) + offset

    so the passive channels come first in the output. ``inner`` is 1 for FrEIA 0.2 and ``1 / alpha`` for FrEIA's
    main branch since August 2023.

    Attributes:
        passive: Channels of the stream that the subnet reads, in its order; one may be repeated.
        active: Channels that are transformed, in the order of the subnet's output.
        scale: ``(len(passive) + len(active),)`` or None for 1.
        offset: Likewise, or None for 0.
        log_det: Whether the score needs the sum of g over channels.
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

    Exactly one of ``index (out,)`` and ``matrix (out, in)`` is set; ``bias (out,)`` goes with a matrix only.
    """

    stream: int
    index: Index | None = None
    matrix: Array | None = None
    bias: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelAffine:
    """``y = scale * x + shift`` per channel; None is 1 or 0."""

    stream: int
    scale: Array | None
    shift: Array | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PositionChannels:
    """Append the constant maps of a basis to the stream, behind its channels."""

    stream: int
    basis: PositionBasis


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerNorm:
    """Normalise each image over channels, rows and columns together; weight and bias ``(C, H, W)``."""

    stream: int
    weight: Array
    bias: Array
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """Pool by 3x3 windows, stride 2, padding 1. ``avg`` divides by 9 at the border too."""

    stream: int
    kind: Literal["avg", "max"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """The channels ``send`` leave the stream and become the stream ``into``; the channels ``keep`` stay."""

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
    """The channels of the stream ``other``, which ends here, go behind those of the stream."""

    stream: int
    other: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """One convolution of a ``CrossScaleNet`` between levels.

    Attributes:
        sources: The levels it reads, concatenated; those coarser than its own are first upsampled by 2, but for
            ``mixes_first``.
        conv: Its weights; zero-padded by ``k // 2``.
        stride: 2 where it reads a finer level, else 1.
        mixes_first: Of a route from one coarser level: the channels are mixed there, once for each of the kernel's
            taps, and what that gives is upsampled, shifted and summed by one constant matrix. No bias.
    """

    sources: tuple[int, ...]
    conv: Conv
    stride: int
    mixes_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossScaleNet:
    """CS-Flow's subnet: a convolution per level, leaky ReLU 0.1, and convolutions between neighbouring levels.

    Attributes:
        inner: Per level the first convolution.
        routes: Per level the convolutions whose sum is its output.
        gains: Per level the factor of that sum.
    """

    inner: tuple[Conv, ...]
    routes: tuple[tuple[Route, ...], ...]
    gains: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FusionNet:
    """MSFlow's subnet: all levels pooled to the coarsest one, mixed, upsampled and added to each level.

    ``q = relu(conv2(relu(norm(conv1(concat(pooled levels))))))``; each level adds its share of q, upsampled, and
    its heads, concatenated, give the output.
    """

    conv1: Conv
    norm: ChannelNorm
    conv2: Conv
    heads: tuple[tuple[Conv, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TwoSidedCoupling:
    """Both halves of every level are transformed in turn, each by what all levels' other halves say.

    With ``x1 = x[first]`` and ``x2 = x[second]`` per level, and (S, T) the halves of a net's output::

        y1 = E(S2) x1 + T2     (S2, T2) = net2(all x2)
        y2 = E(S1) x2 + T1     (S1, T1) = net1(all y1)
        E(s) = exp(0.636 kappa atan(inner s))
        y  = clip(concat(y1, y2), -limit, limit)

    ``inner`` is ``1 / kappa``.
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
    """The streams that a step reads."""
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
        network: The network's name in timm's words, such as ``resnet18`` (torchvision's for MobileNetV3), or
            ``mcait``: a CaiT-M48 on the image and a CaiT-S24 on the image at half its size.
        taps: Which features, in the order of the levels, in the network's own names: ``layer2`` for that
            module's output, ``blocks.4`` of a transformer for that block's tokens.
        padding: ``reflect`` where every convolution wider than one pixel pads by reflection (the private ResNets
            of the official CFLOW and MSFlow), ``static_0.7`` and ``static_0.6`` as these versions of
            efficientnet_pytorch pad, ``zeros`` for the network as its library builds it.
        weights: State dict of the network, by the names that ``naming`` says.
        naming: Whose names the weights have; taps of a network in efficientnet_pytorch's are in torchvision's.
        final_norm: Transformers: the network's last layer norm follows each tap.
        pyramid: On how many scales the network runs, each taking every second pixel of the one before; the
            features are those of all scales, from the whole image on.
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
    """One scale.

    Attributes:
        channels: Channels of the level's latent, the number of dimensions that the score divides by.
        height: Rows of the latent's map.
        width: Columns of the latent's map.
        feature_channels: Channels of the level's features.
        latent_scale: ``z = latent_scale * stream`` at the end of the program, ``(channels of the stream,)``;
            None is 1. A zero drops a channel from the score.
    """

    channels: int
    height: int
    width: int
    feature_channels: int
    latent_scale: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlowModel:
    """A trained detector, as data.

    Attributes:
        image_size: ``(height, width)`` of the network's input, pixels.
        levels: Fine to coarse.
        steps: The program, in order of execution.
        scoring: How the levels become the map and the score.
    """

    family: Family
    image_size: tuple[int, int]
    backbone: Backbone
    levels: tuple[Level, ...]
    steps: tuple[Step, ...]
    scoring: Scoring


def position_code(length: int, size: int) -> NDArray[np.float64]:
    """One axis of the position code: ``(length / 2, size)``, rows ``sin(p w_i), cos(p w_i)`` in turn.

    The frequencies ``w_i = exp(-2 i ln(10000) / (length / 2))`` are rounded to float32, as the original
    computes them; the rest is float64.

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
