"""Measure bundles on this machine: ``flowedge.runtime.bench.measure`` plans, ``worker`` is each measured process."""
