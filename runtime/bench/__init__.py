"""Measure bundles on this machine. `run_bench` in ``measure`` starts one ``worker`` process for each combination."""
