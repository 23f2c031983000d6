"""``flowedge doctor``: what this machine can run, and how to get what it lacks."""

from __future__ import annotations

import os
import platform

from flowedge.cli.output import RESULTS, Json, print_json, table
from flowedge.packages import installed_version, pip_install
from flowedge.version import __version__

NAME = "doctor"

_EXPORT_PACKAGES = ("torch", "torchvision", "timm", "FrEIA", "onnx", "onnxscript")


def command(json: Json = False) -> None:
    """Try every engine on a small graph, and list what is installed and what is missing."""
    from flowedge.runtime.engine import available_engines
    from flowedge.runtime.engine_cache import engine_cache
    from flowedge.runtime.machine import (
        cpu_extensions,
        cpu_name,
        find_jetson,
        find_memory,
        find_nvidia_driver,
        system_name,
    )

    engines = available_engines()
    packages = {name: installed_version(name) for name in _EXPORT_PACKAGES}
    numba = installed_version("numba")
    missing = [name for name, version in packages.items() if version is None]
    cache = engine_cache()
    machine = {
        "flowedge": __version__,
        "python": platform.python_version(),
        "platform": system_name(),
        "cpu": cpu_name(),
        "cpu_extensions": cpu_extensions(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": find_memory(),
        "jetson": find_jetson(),
        "nvidia": find_nvidia_driver(),
        "engine_cache": f"none: {cache.problem}" if cache.problem else str(cache.folder),
    }
    ordered = [status for status in engines if status.spec.order is not None]
    order = [status.spec.name for status in ordered]
    default = next((s.spec.name for s in ordered if s.works and not s.spec.compiled), None)
    compiled = [s.spec.name for s in ordered if s.works and s.spec.compiled]
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
                "order": order,
                "default": default,
                "export": packages,
                "nfa_compiler": {"numba": numba},
            }
        )
        return
    facts = table("", "")
    for name, value in machine.items():
        facts.add_row(name, _described(value))
    RESULTS.print(facts)
    rows = table("engine", "device", "version", "works")
    for status in engines:
        version = (status.version or "-").partition("-")[0] or "-"
        rows.add_row(status.spec.name, status.spec.device, version, "yes" if status.works else "no")
    RESULTS.print(rows)
    RESULTS.print(
        f"Without --engine, the first that opens is taken, the fastest kind first: {', '.join(order)}. "
        f"Here that is {default or 'none'}"
        + (f", and {' or '.join(compiled)} for what flowedge build has compiled." if compiled else "."),
        soft_wrap=True,
    )
    for status in engines:
        if status.problem:
            RESULTS.print(f"{status.spec.name}: {status.problem}", soft_wrap=True)
    if missing:
        RESULTS.print(f"exporting lacks {', '.join(missing)}: {pip_install('export')}", soft_wrap=True)
    else:
        RESULTS.print("exporting: " + ", ".join(f"{name} {version}" for name, version in packages.items()))
    if numba is None:
        RESULTS.print(f"the NFA tree runs as plain Python; faster: {pip_install('nfa')}")
    else:
        RESULTS.print(f"the NFA tree is compiled by numba {numba}")


def _described(value: object) -> str:
    from flowedge.runtime.machine import Jetson, Memory, NvidiaDriver

    match value:
        case Memory():
            return f"{value.total / 1e9:.1f} GB, {value.available / 1e9:.1f} GB available"
        case Jetson():
            mode = value.power_mode or "unknown"
            others = ", ".join(value.power_modes)
            modes = f"power mode {mode}" + (f" (of {others}; sudo nvpmodel -m NUMBER)" if others else "")
            return f"{value.model}, JetPack {value.jetpack} (L4T {value.l4t}), {modes}"
        case NvidiaDriver():
            return f"driver {value.version}, {', '.join(value.names)}" if value.version else "no driver"
        case tuple():
            return ", ".join(str(one) for one in value) or "-"
        case None:
            return "-"
    return str(value)
