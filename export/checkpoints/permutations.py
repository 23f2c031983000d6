"""Draw CS-Flow's channel permutations again, which its state dicts do not hold.

The official code seeds NumPy's global generator with the block's number and draws one permutation for each level. Since
1.0 anomalib seeds a new-style generator for each level, so that the three levels share one permutation. NumPy promises
the stream of the first generator for ever and that of the second only within a version policy. So both are compared
with known numbers.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ExportError
from flowedge.export.checkpoints.checkpoint import Tensors

LEVELS: Final = 3
# The first five entries of block 0 for 304 channels, by level.
_PER_LEVEL_START: Final = ([66, 156, 247, 267, 145], [222, 196, 64, 232, 186], [14, 158, 98, 275, 225])
# The hashes of blocks 0 to 3.
_SHARED_START: Final = (
    [162, 295, 123, 299, 119],
    [192, 172, 10, 121, 108],
    [113, 169, 282, 292, 254],
    [126, 146, 133, 62, 94],
)


def csflow_permutations(scheme: str, tensors: Tensors) -> tuple[tuple[NDArray[np.int64], ...], ...]:
    """Return the permutations of channels before each coupling of a CS-Flow, as index arrays.

    Args:
        scheme: ``per_level`` (the official code, anomalib 0.x) or ``shared`` (anomalib since 1.0).
        tensors: The flow's tensors by the names of `Checkpoint`, which determine the numbers of blocks and channels.

    Returns:
        An int64 array ``(C,)`` for each level of each block.

    Raises:
        ExportError: This NumPy draws other numbers than those that the models were trained with.
    """
    _check_generators()
    draw = _per_level if scheme == "per_level" else _shared
    drawn: list[tuple[NDArray[np.int64], ...]] = []
    while (name := f"flow.{len(drawn)}.net1.conv_scale0_0.weight") in tensors:
        channels = tensors[name].shape[1] + tensors[name.replace("net1", "net2")].shape[1]
        drawn.append(draw(len(drawn), channels))
    return tuple(drawn)


def _per_level(block: int, channels: int) -> tuple[NDArray[np.int64], ...]:
    generator = np.random.RandomState(block)
    return tuple(generator.permutation(channels).astype(np.int64) for _ in range(LEVELS))


def _shared(block: int, channels: int) -> tuple[NDArray[np.int64], ...]:
    permutation = np.random.default_rng(block).permutation(channels).astype(np.int64)
    return (permutation,) * LEVELS


def _check_generators() -> None:
    drawn = [list(permutation[:5]) for permutation in _per_level(0, 304)]
    shared = [list(_shared(block, 304)[0][:5]) for block in range(len(_SHARED_START))]
    if drawn != list(_PER_LEVEL_START) or shared != list(_SHARED_START):
        raise ExportError(
            f"NumPy {np.__version__} draws other permutations than CS-Flow was trained with. "
            "Install NumPy 1.26 or 2.x for the export."
        )
