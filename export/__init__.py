"""Export a PyTorch checkpoint to a verified bundle.

The public names are imported when they are first used, since most of them need PyTorch, which takes seconds to import.

Examples:
    >>> from pathlib import Path
    >>> from flowedge.export import ExportOptions, export_bundle
    >>> result = export_bundle(Path("bottle.ckpt"), Path("new.flowedge"), ExportOptions())
    >>> all(check.passed for check in result.checks["fp32"])
    True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowedge.export.pipeline import ExportOptions, ExportResult, export_bundle

__all__ = ["ExportOptions", "ExportResult", "export_bundle"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in __all__:
        return getattr(importlib.import_module("flowedge.export.pipeline"), name)
    raise AttributeError(f"module 'flowedge.export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
