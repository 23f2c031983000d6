"""``flowedge doctor``: what this machine can run, and how to get what it lacks."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from flowedge import __version__
from flowedge.cli.output import RESULTS, Json, print_json, table

NAME = "doctor"

_EXPORT_PACKAGES = ("torch", "torchvision", "timm", "FrEIA", "onnx", "onnxscript")


def command(json: Json = False) -> None:
    """Try every engine on a small graph, and list what is installed and what is missing."""
    from flowedge.runtime.engine import available_engines

    engines = available_engines()
    packages = {name: _version(name) for name in _EXPORT_PACKAGES}
    numba = _version("numba")
    missing = [name for name, version in packages.items() if version is None]
    machine = {
        "flowedge": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    if json:
        print_json(
            {
                "machine": machine,
                "engines": [
                    {
                        "name": status.spec.name,
                        "device": status.spec.device,
                        "installed": status.installed,
                        "version": status.version,
                        "works": status.works,
                        "problem": status.problem,
                    }
                    for status in engines
                ],
                "export": packages,
                "nfa_compiler": {"numba": numba},
            }
        )
        return
    facts = table("", "")
    for name, value in machine.items():
        facts.add_row(name, str(value))
    RESULTS.print(facts)
    rows = table("engine", "device", "version", "works", "what to do")
    for status in engines:
        rows.add_row(
            status.spec.name,
            status.spec.device,
            status.version or "-",
            "yes" if status.works else "no",
            status.problem,
        )
    RESULTS.print(rows)
    if missing:
        RESULTS.print(f"exporting lacks {', '.join(missing)}: pip install 'flowedge[export]'")
    else:
        RESULTS.print("exporting: " + ", ".join(f"{name} {version}" for name, version in packages.items()))
    if numba is None:
        RESULTS.print("the NFA tree runs as plain Python; faster: pip install 'flowedge[nfa]'")
    else:
        RESULTS.print(f"the NFA tree is compiled by numba {numba}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
