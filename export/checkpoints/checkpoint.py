"""Define `Checkpoint`, which every reader returns, and the names of its tensors and hyper-parameters.

Names of `Checkpoint.tensors`, where l counts levels from fine, 0, to coarse, and k counts coupling blocks in the order
of application:

``backbone.NAME``
    The feature extractor, with NAME as in the file and with its batch norms' running statistics and
    ``num_batches_tracked``. `Checkpoint.backbone_naming` is the library whose names they are. The files of MSFlow and
    of the official CS-Flow hold no extractor, which `backbone.with_backbone` adds. U-Flow's ``mcait`` has two
    extractors:
    ``backbone.extractor1.NAME`` (``cait_m48_448``) and ``backbone.extractor2.NAME`` (``cait_s24_224``).
``flow.{l}.{k}.NAME`` (CFLOW, FastFlow, U-Flow, MSFlow's parallel flows)
    One all-in-one coupling block. ``global_scale`` and ``global_offset`` are ``(C,)``. The permutation is ``w_perm``,
    or ``vk_householder (n, C)`` and ``w_0 (C, C)``. ``w_perm`` is int64 ``(C,)`` (an index, ``y_i = u[w_perm_i]``) or
    float32 ``(C, C)`` (a matrix). ``subnet.{i}.weight`` and ``subnet.{i}.bias`` count the layers that have weights, i =
    0, 1, …, in order. CFLOW has two linear layers ``(out, in)``, FastFlow and U-Flow two convolutions ``(out, in, K,
    K)``, and MSFlow a convolution, a layer norm ``(C,)`` and a convolution. Readers check the shapes: C is the same for
    all blocks of a level, the first layer takes ``ceil(C/2)`` channels and the condition, and the last gives ``2 *
    floor(C/2)``.
    The number of blocks may differ between levels.
``up.{l}.downsample_kernel`` (U-Flow), float32 ``(4g, 1, 2, 2)``
    The kernel of the up-sampling that takes 4g channels of level l to g of level l - 1. FrEIA's constant makes it a
    pixel shuffle, but files store and load it like a weight.
``norms.{l}.weight``, ``norms.{l}.bias`` (FastFlow and U-Flow with a convolutional extractor), ``(C, H, W)``
    The layer norm of level l's features.
``fusion.perm.{l}`` (MSFlow), int64 ``(C,)``
    The gather of level l before the fusion coupling.
``fusion.net1.NAME``, ``fusion.net2.NAME`` (MSFlow)
    ``cross_convs.{conv1,norm,conv2}.{weight,bias}`` and ``conv_{s,t}.{l}.{weight,bias}``. net2 acts first.
``flow.{k}.net1.NAME``, ``flow.{k}.net2.NAME`` (CS-Flow)
    ``gamma{0,1,2} (1,)`` (absent if the file has none), ``conv_scale{0,1,2}_{0,1}``, ``up_conv10``, ``up_conv21``,
    ``down_conv01``, ``down_conv12``, each ``.weight`` and ``.bias``. net2 acts first.

Floating-point tensors are float32 and finite. Integers are int64. Tensors may be views of the mapped file, so nobody
may write to them.

Names of `Checkpoint.hyperparameters`, by family. Each is also a ``--set`` name of `settings`:

====================== ==================================================================================
all                    ``backbone`` str, ``clamp`` float, ``input_size`` (height, width) of the network's
                       input, pixels, after any crop, ``resize_method``, ``mean``, ``std`` as in ``preprocessing``
all but CS-Flow        ``clamp_variant``: ``tanh`` for ``clamp * tanh(a)``, ``tanh_over_alpha`` for
                       ``clamp * tanh(a / clamp)``
CFLOW                  ``layers``: names of the tapped layers, fine to coarse. ``top_pixels``: how many of the
                       map's largest values the score is the mean of
CFLOW, CS-Flow, MSFlow ``padding``: the extractor's: ``zeros`` or ``reflect``, for CS-Flow ``symmetric``
                       (torchvision), ``static_0.7`` or ``static_0.6`` (efficientnet_pytorch)
CS-Flow                ``use_gamma`` bool, false: leave the gammas out. ``permutations`` ``per_level`` or
                       ``shared``, how they were drawn
MSFlow                 ``pool_type``: ``avg``, ``max`` or ``none``. ``top_k``: a fraction
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
    """Hold a checkpoint that was read and checked, as plain data and NumPy arrays only.

    Attributes:
        repository: ``anomalib``, ``gudovskiy/cflow-ad``, ``gathierry/FastFlow``, ``mtailanian/uflow``,
            ``cool-xuan/msflow``, ``marco-rudolph/cs-flow`` or ``Taitran2202/TVTVision``.
        generation: ``0.x``, ``1.x``, ``2.0-2.6`` or ``2.7`` for anomalib and ``official`` for the others. A bare state
            dict of anomalib may only allow ``2.x`` or ``unknown``.
        tensors: The tensors by the names in the module's documentation.
        backbone_naming: The library whose layer names the ``backbone.`` tensors have. The value is None when the file
            has no such tensors.
        hyperparameters: The values by the names in the module's documentation.
        assumed: Every value that the file does not hold, or that the user gave.
        preprocessing: The steps that make the network's input from a frame.
        source_scale: anomalib's thresholds and ranges. The value is None where it fitted none.
        permutations: The gathers of the three levels for each block of CS-Flow, int64 ``(C,)``. Other families have
            None.
        file: The file's name without folders.
        sha256: The file's hash.
        weights: ``trained``, or ``ema`` for an average of the weights over the training.
        other_weights: The keys under which the file holds the other of the two. The text is empty if it does not.
        transform_file: Name without folders and hash of the other file that the transform was read from, or None.
        stand_ins: The classes and functions of the user's own code that the file mentions. No code of theirs was run.
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
