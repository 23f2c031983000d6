"""U-Flow's unsupervised threshold: the number of false alarms (NFA) of what a flow finds unlikely."""

from __future__ import annotations

from flowedge.runtime.nfa.blocks import block_log_nfa, exceedance_counts, exceedance_threshold, window_sides
from flowedge.runtime.nfa.levels import Compat, NotInspectedError
from flowedge.runtime.nfa.outputs import check_form, log_nfa_of_outputs
from flowedge.runtime.nfa.regions import Region, detected_regions
from flowedge.runtime.nfa.tree import number_of_tests, tree_log_nfa, warm_up

__all__ = [
    # The tests
    "tree_log_nfa",
    "block_log_nfa",
    "number_of_tests",
    "Compat",
    "NotInspectedError",
    # What the block test counts
    "exceedance_counts",
    "exceedance_threshold",
    "window_sides",
    # What a bundle's graph gives
    "check_form",
    "log_nfa_of_outputs",
    # What was detected
    "Region",
    "detected_regions",
    # The tree ahead of the first image
    "warm_up",
]
