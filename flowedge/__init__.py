"""FlowEdge: normalizing-flow anomaly detectors, from a checkpoint to an inspection line.

Every name here is imported when it is first used, so that ``import flowedge`` loads neither NumPy nor an engine:

- `load` opens a bundle for inspection and gives a `Detector`. A `Detector` answers a frame with a `Result`.
- `load_pack` opens a pack of several detectors that share one backbone, and gives a `ProductLine`.
- `calibrate` fits the thresholds of a bundle.
- `evaluate` measures a detector on a dataset.
- `verify` replays the self-test of a bundle.
- `doctor` tells which engines work on this machine.
- `export` is the package of the exporter: ``flowedge.export.export_bundle`` makes a bundle of a checkpoint. The
  exporter needs PyTorch.
- `errors` holds every exception that a user can act on.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from flowedge import clock, telemetry
from flowedge.version import __version__

if TYPE_CHECKING:
    from flowedge import errors, export
    from flowedge.calibration.from_path import calibrate, evaluate
    from flowedge.runtime.detector import Detector
    from flowedge.runtime.from_path import load, load_pack, verify
    from flowedge.runtime.opening.doctor import doctor
    from flowedge.runtime.products import ProductLine
    from flowedge.runtime.result import Result

__all__ = [
    "Detector",
    "ProductLine",
    "Result",
    "__version__",
    "calibrate",
    "doctor",
    "errors",
    "evaluate",
    "export",
    "load",
    "load_pack",
    "verify",
]

_MODULES: Final = MappingProxyType(
    {
        "Detector": "flowedge.runtime.detector",
        "ProductLine": "flowedge.runtime.products",
        "Result": "flowedge.runtime.result",
        "calibrate": "flowedge.calibration.from_path",
        "doctor": "flowedge.runtime.opening.doctor",
        "evaluate": "flowedge.calibration.from_path",
        "load": "flowedge.runtime.from_path",
        "load_pack": "flowedge.runtime.from_path",
        "verify": "flowedge.runtime.from_path",
    }
)
"""The module of each class and function of this package."""


def _keep_log_for_the_program() -> None:
    """Let nothing of the log be shown until the program that uses FlowEdge configures `logging`."""
    import logging  # imported here, since the import fails before the clock is borne

    logging.getLogger("flowedge").addHandler(logging.NullHandler())


# Every program that imports a part of FlowEdge runs these lines first.
telemetry.switch_off()
clock.bear_late_clock()
_keep_log_for_the_program()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name in __all__:
        return importlib.import_module(f"flowedge.{name}")
    raise AttributeError(f"module 'flowedge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
