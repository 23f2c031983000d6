"""What every reader returns: one record, one naming of the tensors.

Names of `Checkpoint.tensors` (l counts levels from fine, 0, to coarse; k counts blocks in order of application):

``backbone.NAME``
    The feature extractor, NAME as the file has it (`Checkpoint.backbone_naming` says in whose words), with its
    batch norms' running statistics and ``num_batches_tracked``. Absent for MSFlow and the official CS-Flow, whose
    files hold no extractor: see `backbone.with_backbone`. U-Flow's ``mcait`` has two extractors:
    ``backbone.extractor1.NAME`` (``cait_m48_448``) and ``backbone.extractor2.NAME`` (``cait_s24_224``).
``flow.{l}.{k}.NAME`` (CFLOW, FastFlow, U-Flow, MSFlow's parallel flows)
    One all-in-one block. ``global_scale`` and ``global_offset`` ``(C,)``; either ``w_perm``, int64 ``(C,)`` (an
    index, ``y_i = u[w_perm_i]``) or float32 ``(C, C)`` (a matrix), or ``vk_householder (n, C)`` and ``w_0 (C, C)``;
    ``subnet.{i}.weight`` and ``subnet.{i}.bias``, i = 0, 1, … over the layers that have weights, in order: two
    linear layers ``(out, in)`` for CFLOW, two convolutions ``(out, in, K, K)`` for FastFlow and U-Flow; MSFlow has
    a convolution, a layer norm ``(C,)`` and a convolution. Shapes are checked: C is the same for all blocks of a
    level, the first layer takes ``ceil(C/2)`` channels and the condition, the last gives ``2 * floor(C/2)``.
    The number of blocks may differ between levels.
``up.{l}.downsample_kernel`` (U-Flow), float32 ``(4g, 1, 2, 2)``
    The kernel of the up-sampling that takes 4g channels of level l to g of level l - 1: a constant of FrEIA, which
    makes it a pixel shuffle, but stored and loaded like a weight.
``norms.{l}.weight``, ``norms.{l}.bias`` (FastFlow and U-Flow with a convolutional extractor), ``(C, H, W)``
    The layer norm of level l's features.
``fusion.perm.{l}`` (MSFlow), int64 ``(C,)``
    The gather of level l before the fusion coupling.
``fusion.net1.NAME``, ``fusion.net2.NAME`` (MSFlow)
    ``cross_convs.{conv1,norm,conv2}.{weight,bias}`` and ``conv_{s,t}.{l}.{weight,bias}``; net2 acts first.
``flow.{k}.net1.NAME``, ``flow.{k}.net2.NAME`` (CS-Flow)
    ``gamma{0,1,2} (1,)`` (absent if the file has none), ``conv_scale{0,1,2}_{0,1}``, ``up_conv10``, ``up_conv21``,
    ``down_conv01``, ``down_conv12``, each ``.weight`` and ``.bias``; net2 acts first.

Floating-point tensors are float32 and finite, integers int64. They may be views of the mapped file: do not write
to them.

Names of `Checkpoint.hyperparameters`, by family (every one is also a ``--set`` name; see `settings`):

====================== ==================================================================================
all                    ``backbone`` str; ``clamp`` float; ``input_size`` (height, width) of the network's
                       input, pixels, after any crop; ``resize_method``, ``mean``, ``std`` as in ``preprocessing``
all but CS-Flow        ``clamp_variant``: ``tanh`` for ``clamp * tanh(a)``, ``tanh_over_alpha`` for
                       ``clamp * tanh(a / clamp)``
CFLOW                  ``layers``: names of the tapped layers, fine to coarse; ``top_pixels``: how many of the
                       map's largest values the score is the mean of
CFLOW, CS-Flow, MSFlow ``padding``: the extractor's: ``zeros`` or ``reflect``; for CS-Flow ``symmetric``
                       (torchvision), ``static_0.7`` or ``static_0.6`` (efficientnet_pytorch)
CS-Flow                ``use_gamma`` bool, false: leave the gammas out; ``permutations`` ``per_level`` or
                       ``shared``, how they were drawn
MSFlow                 ``pool_type``: ``avg``, ``max`` or ``none``; ``top_k``: a fraction
====================== ==================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.export.checkpoints.settings import Weights
from flowedge.manifest import Assumed, Family, Preprocessing, SourceScale

Array: TypeAlias = NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]
BackboneNaming: TypeAlias = Literal["torchvision", "timm", "efficientnet_pytorch"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint that was read and checked: plain data and NumPy arrays only.

    Attributes:
        repository: ``anomalib``, ``gudovskiy/cflow-ad``, ``gathierry/FastFlow``, ``mtailanian/uflow``,
            ``cool-xuan/msflow``, ``marco-rudolph/cs-flow`` or ``Taitran2202/TVTVision``.
        generation: Of anomalib ``0.x``, ``1.x``, ``2.0-2.6`` or ``2.7`` (a bare state dict may say no
            more than ``2.x`` or ``unknown``); of the others ``official``.
        tensors: See the module's documentation.
        backbone_naming: Whose layer names the ``backbone.`` tensors have; None when the file has none.
        hyperparameters: See the module's documentation.
        assumed: Every value that the file does not hold, or that the user gave.
        preprocessing: How a frame becomes the network's input.
        source_scale: anomalib's thresholds and ranges; None where it fitted none.
        permutations: CS-Flow only: per block the gathers of the three levels, int64 ``(C,)``.
        file: The file's name without folders.
        sha256: The file's hash.
        weights: ``trained``, or ``ema`` for an average of the weights over the training.
        other_weights: The keys under which the file holds the other of the two; empty if it does not.
        transform_file: Name without folders and hash of the other file that the transform was read from, or None.
        stand_ins: The classes and functions of the user's own code that the file mentions; none was run.
    """

    repository: str
    generation: str
    family: Family
    tensors: Tensors = field(repr=False)
    backbone_naming: BackboneNaming | None
    hyperparameters: Mapping[str, object]
    assumed: tuple[Assumed, ...]
    preprocessing: Preprocessing
    source_scale: SourceScale | None = None
    permutations: tuple[tuple[NDArray[np.int64], ...], ...] | None = field(default=None, repr=False)
    file: str
    sha256: str
    weights: Weights = "trained"
    other_weights: str = ""
    stand_ins: tuple[str, ...] = ()
    transform_file: tuple[str, str] | None = None
