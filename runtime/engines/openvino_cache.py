"""Keep the graphs that OpenVINO compiled for the CPU in the device cache, so that the next start need not compile.

Compiling takes most of the time of a start. A compiled graph is stored like a compiled engine, under everything that
it depends on, and with its hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import openvino as ov

from flowedge.errors import EngineCacheError
from flowedge.runtime.device.denormals import flushing_denormals
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.device.engine_file import EngineFacts
from flowedge.runtime.device.machine import cpu_flags, cpu_name
from flowedge.runtime.opening.engine_contract import Opening

_LOG: Final = logging.getLogger(__name__)

COMPILING: Final = threading.Lock()
"""Held while a graph is compiled or loaded compiled: two threads that compiled at once have waited for each other for
ever in OpenVINO 2026.4, once in some hundred graphs."""

# Settings of the environment that may choose other kernels.
_SETTINGS: Final = ("ONEDNN_", "DNNL_", "OV_", "OPENVINO_", "GLIBC_TUNABLES", "LD_PRELOAD", "LD_LIBRARY_PATH")


def facts_of_compiled(opening: Opening, options: Mapping[str, Any], batch: int) -> EngineFacts:
    """Collect everything that a graph compiled for the CPU depends on.

    Args:
        opening: The graph.
        options: The options of the compilation.
        batch: The number of images of a run.
    """
    settings = {key: value for key, value in os.environ.items() if key.startswith(_SETTINGS)}
    # The code beside this file prepares the graph for OpenVINO.
    code = [file.read_bytes() for file in sorted(Path(__file__).parent.glob("openvino*.py"))]
    circumstances = repr((sorted(settings.items()), cpu_flags(), sorted(options.items()), code)).encode()
    return EngineFacts(
        engine=opening.spec.listed,
        version=ov.__version__,
        graph=opening.source.sha256,
        precision=opening.precision,
        device=cpu_name(),
        capability=hashlib.sha256(circumstances).hexdigest()[:16],
        driver="",
        batches=(batch, batch, batch),
    )


def find_compiled(facts: EngineFacts, options: Mapping[str, Any]) -> ov.CompiledModel | None:
    """Load a compiled graph from the device cache. A graph that OpenVINO refuses is deleted, and None is returned."""
    with contextlib.suppress(EngineCacheError):
        cache = device_cache()
        found = cache.find(facts)
        if found.plan is None:
            return None
        try:
            # The option for denormals changes the mode of the calling thread. The context restores that mode.
            with COMPILING, flushing_denormals():
                return ov.Core().import_model(io.BytesIO(found.plan), "CPU", dict(options))
        except Exception as error:  # its failures have no base class of their own
            _LOG.info("OpenVINO refuses %s: %s", found.path, error)
            cache.drop(found.path)
    return None


def store_compiled(facts: EngineFacts, compiled: ov.CompiledModel) -> None:
    """Store a compiled graph in the device cache. Where that fails, the next start compiles again."""
    try:
        device_cache().store(facts, compiled.export_model().getvalue())
    except (EngineCacheError, RuntimeError) as error:
        _LOG.info("the compiled graph is not kept: %s", error)
