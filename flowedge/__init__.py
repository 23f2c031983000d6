"""FlowEdge: normalizing-flow anomaly detectors, from a checkpoint to an inspection line."""

__version__ = "0.1.0"
