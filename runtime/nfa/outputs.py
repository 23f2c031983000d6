"""From what a bundle's graph gives to the number of false alarms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import BundleError
from flowedge.manifest import Manifest, NfaForm
from flowedge.runtime.nfa.blocks import block_log_nfa, window_sides
from flowedge.runtime.nfa.levels import NotInspectedError
from flowedge.runtime.nfa.tree import tree_log_nfa


def check_form(manifest: Manifest, form: NfaForm) -> None:
    """Refuse a form of the test that the bundle's graphs do not give enough for.

    Raises:
        BundleError: ``block`` without the graphs' counts, or ``tree`` without CFLOW's energies.
    """
    nfa = manifest.nfa
    if form == "block" and nfa is None:
        raise BundleError(
            "the block form of the NFA needs the graph's outputs count_*, which this bundle's graphs do not have. "
            "Export the checkpoint again with --nfa."
        )
    if form == "tree" and manifest.family == "cflow" and not (nfa and nfa.energies):
        raise BundleError(
            "the tree form of the NFA needs the energy of CFLOW's latents, and its level_* hold the log-determinant "
            "as well; this bundle's graphs have no energy_*. Export the checkpoint again with --nfa."
        )


def log_nfa_of_outputs(
    outputs: Mapping[str, NDArray[np.float32]], index: int, manifest: Manifest, form: NfaForm
) -> NDArray[np.float64]:
    """Log10 of the number of false alarms of each pixel of one image.

    Args:
        outputs: What the engine gave for a batch.
        index: Which image of the batch.
        manifest: The bundle's; `check_form` accepts it.
        form: Which test.

    Returns:
        ``(H, W)`` float64 at the size of the network's input; the lower, the surer that it is anomalous.

    Raises:
        NotInspectedError: A level, an energy or a count is NaN or infinite, or a count is no whole number.
    """
    channels = [level.channels for level in manifest.levels]

    def level_maps(kind: str) -> list[NDArray[np.float32]]:
        return [outputs[f"{kind}_{n}"][index, 0] for n in range(len(channels))]

    if form == "tree":
        if manifest.nfa is not None and manifest.nfa.energies:
            energies = level_maps("energy")
        else:
            per_level = -2.0 if manifest.family == "msflow" else 1.0  # MSFlow's levels are -mean(z²) / 2
            energies = [
                level * np.float32(per_level * depth)
                for level, depth in zip(level_maps("level"), channels, strict=True)
            ]
        return tree_log_nfa(energies, channels, manifest.image_size)

    assert manifest.nfa is not None
    # NaN reaches no threshold, so a broken latent leaves no trace in the counts. It does in the level.
    if not all(np.isfinite(level).all() for level in level_maps("level")):
        raise NotInspectedError(
            "a level holds values that are NaN or infinite. Look at the input image; if it is sound, run the "
            "bundle's fp32 graph."
        )
    counts = [_whole(count) for count in level_maps("count")]
    windows = window_sides(manifest.nfa.window, len(channels))
    return block_log_nfa(counts, channels, windows, manifest.nfa.probability, manifest.image_size)


def _whole(count: NDArray[np.float32]) -> NDArray[np.int64]:
    if not (np.isfinite(count).all() and np.array_equal(count, np.rint(count))):
        raise NotInspectedError(
            "the engine's counts are no whole numbers: it computes in less than float32. Run flowedge verify, "
            "and take another engine."
        )
    return count.astype(np.int64)
