"""Compute U-Flow's unsupervised threshold, the number of false alarms (NFA) of the latents of a flow."""

from __future__ import annotations

from flowedge.runtime.nfa.levels import NotInspectedError
from flowedge.runtime.nfa.outputs import check_form, log_nfa_of_outputs
from flowedge.runtime.nfa.regions import detected_regions
from flowedge.runtime.nfa.tree import number_of_tests, tree_log_nfa, warm_up
from flowedge.runtime.nfa.windows import (
    block_log_nfa,
    exceedance_counts,
    exceedance_threshold,
    window_sides,
)

__all__ = [
    # The two forms of the test
    "tree_log_nfa",
    "block_log_nfa",
    "number_of_tests",
    "NotInspectedError",
    # The counts that the block form needs
    "exceedance_counts",
    "exceedance_threshold",
    "window_sides",
    # The test on the outputs of a bundle's graph
    "check_form",
    "log_nfa_of_outputs",
    # The detected regions
    "detected_regions",
    # Compilation before the first image
    "warm_up",
]
