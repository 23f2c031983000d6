"""Compute the number of false alarms from the outputs of a bundle's graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import BundleError
from flowedge.families import TRAITS
from flowedge.manifest import Manifest, NfaForm
from flowedge.runtime.nfa.levels import NotInspectedError
from flowedge.runtime.nfa.tree import tree_log_nfa
from flowedge.runtime.nfa.windows import block_log_nfa, window_sides


def check_form(manifest: Manifest, form: NfaForm) -> None:
    """Refuse a form of the NFA test for which the bundle's graphs lack outputs.

    Raises:
        BundleError: ``block`` without the graphs' counts, or ``tree`` without CFLOW's energies.
    """
    nfa = manifest.nfa
    if form == "block" and nfa is None:
        raise BundleError(
            "the block form of the NFA needs the graph's outputs count_*, which this bundle's graphs do not have. "
            "Export the checkpoint again with --nfa."
        )
    needs_energies = TRAITS[manifest.family].level_statistic == "log_likelihood"
    if form == "tree" and needs_energies and not (nfa and nfa.energies):
        raise BundleError(
            "the tree form of the NFA needs the energy of CFLOW's latents, and its level_* hold the log-determinant "
            "as well. This bundle's graphs have no energy_*. Export the checkpoint again with --nfa."
        )


def log_nfa_of_outputs(
    outputs: Mapping[str, NDArray[np.float32]], index: int, manifest: Manifest, form: NfaForm
) -> NDArray[np.float64]:
    """Return log10 of the number of false alarms of each pixel of one image.

    Args:
        outputs: The engine's outputs for a batch, by name.
        index: The position of the image in the batch.
        manifest: The bundle's manifest, for which `check_form` accepts the form.
        form: The form of the test.

    Returns:
        ``(H, W)`` float64 at the size of the network's input. A lower value is surer to be anomalous.

    Raises:
        NotInspectedError: A level, an energy or a count is NaN or infinite, or a count is not a whole number.
    """
    channels = [level.channels for level in manifest.levels]
    statistic = TRAITS[manifest.family].level_statistic

    def level_maps(kind: str) -> list[NDArray[np.float32]]:
        return [outputs[f"{kind}_{n}"][index, 0] for n in range(len(channels))]

    if form == "tree":
        if manifest.nfa is not None and manifest.nfa.energies:
            energies = level_maps("energy")
        else:
            per_level = -2.0 if statistic == "negative_half_mean_square" else 1.0
            energies = [
                level * np.float32(per_level * depth)
                for level, depth in zip(level_maps("level"), channels, strict=True)
            ]
        return tree_log_nfa(energies, channels, manifest.image_size)

    assert manifest.nfa is not None
    # NaN reaches no threshold, so a broken latent leaves no trace in the counts. The level shows it.
    if not all(np.isfinite(level).all() for level in level_maps("level")):
        raise NotInspectedError(
            "a level holds values that are NaN or infinite. Look at the input image. If it is sound, run the "
            "bundle's fp32 graph."
        )
    counts = [_whole(count) for count in level_maps("count")]
    windows = window_sides(manifest.nfa.window, len(channels))
    return block_log_nfa(counts, channels, windows, manifest.nfa.probability, manifest.image_size)


def _whole(count: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the counts of a graph as integers, and refuse counts that an engine rounded to fractions."""
    if not (np.isfinite(count).all() and np.array_equal(count, np.rint(count))):
        raise NotInspectedError(
            "the engine's counts are no whole numbers, so it computes in less than float32. Run flowedge verify, "
            "and take another engine."
        )
    return count.astype(np.int64)
