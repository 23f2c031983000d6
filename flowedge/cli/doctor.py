"""``flowedge doctor`` shows which engines this machine can run, and how to install the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields

import typer

from flowedge.cli.output import RESULTS, Json, print_json, table
from flowedge.packages import pip_install

NAME = "doctor"


def command(json: Json = False) -> None:
    """Try every engine on a small graph, and list the installed and the missing packages.

    The exit status is 1 when no engine works.
    """
    from flowedge.runtime.opening.doctor import doctor

    found = doctor()
    if json:
        print_json(
            {
                "ready": found.is_ready,
                "verdict": found.verdict,
                "machine": found.machine,
                "engines": [
                    {
                        "name": status.spec.name,
                        "device": status.spec.device,
                        "installed": status.installed,
                        "version": status.version,
                        "works": status.works,
                        "problem": status.problem,
                    }
                    for status in found.engines
                ],
                "order": found.order,
                "default": found.default,
                "slow_precisions": found.slow,
                "export": found.export,
                "nfa_compiler": {"numba": found.numba},
            }
        )
        raise typer.Exit(0 if found.is_ready else 1)
    RESULTS.print(found.verdict, soft_wrap=True)
    facts = table("", "")
    for field in fields(found.machine):
        facts.add_row(field.name, _described(getattr(found.machine, field.name)))
    RESULTS.print(facts)
    rows = table("engine", "device", "version", "works")
    for status in found.engines:
        version = (status.version or "-").partition("-")[0] or "-"
        rows.add_row(status.spec.name, status.spec.device, version, "yes" if status.works else "no")
    RESULTS.print(rows)
    RESULTS.print(
        f"Without --engine, the first engine that opens is taken, in the order {', '.join(found.order)}. "
        f"Here that is {found.default or 'none'}"
        + (
            f", and {' or '.join(found.compiled)} for what flowedge build has compiled."
            if found.compiled
            else "."
        ),
        soft_wrap=True,
    )
    for sentence in found.slow.values():
        RESULTS.print(sentence, soft_wrap=True)
    for status in found.engines:
        if status.problem:
            RESULTS.print(f"{status.spec.name}: {status.problem}", soft_wrap=True)
    for line in _tasks(found.export):
        RESULTS.print(line, soft_wrap=True)
    if found.numba is None:
        RESULTS.print(f"the NFA tree runs as plain Python. To make it faster: {pip_install('nfa')}")
    else:
        RESULTS.print(f"the NFA tree is compiled by numba {found.numba}")
    raise typer.Exit(0 if found.is_ready else 1)


def _tasks(versions: Mapping[str, str | None]) -> Iterator[str]:
    """Give a line for each task that needs more packages than running a bundle. A device needs the first at most."""
    for task, extra, names in (
        ("adding lower precisions", "calibrate", ("onnx",)),
        ("exporting, which a workstation does,", "export", tuple(versions)),
    ):
        missing = [name for name in names if versions[name] is None]
        if missing:
            yield f"{task} lacks {', '.join(missing)}: {pip_install(extra)}"
        else:
            yield f"{task} has {', '.join(f'{name} {versions[name]}' for name in names)}"


def _described(value: object) -> str:
    from flowedge.runtime.device.machine import Jetson, Memory, NvidiaDriver

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
