"""Imports between the folders of the package keep their directions, lazy and typing-only imports included.

Engines are named by strings in a table and imported when they are opened. Such an import is no arrow of the code.
"""

from __future__ import annotations

import ast
import functools
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE_FOLDERS = {"flowedge": "flowedge"} | {
    name: f"flowedge.{name}" for name in ("export", "runtime", "calibration")
}
CORE, DOOR = "the core", "flowedge/__init__.py"
RUNTIME = ("runtime", "runtime.device", "runtime.frames")
# The folders below may import from the folders that their line names, and from themselves.
MAY_IMPORT = {
    CORE: set[str](),
    "runtime.device": {CORE},
    "runtime.frames": {CORE, "runtime.device"},
    "runtime": {CORE, "runtime.device", "runtime.frames"},
    "runtime.bench": {CORE, *RUNTIME},
    "runtime.sources": {CORE, *RUNTIME},
    "runtime.area": {CORE, *RUNTIME},
    "runtime.station": {CORE, *RUNTIME, "runtime.sources", "runtime.area", "runtime.registry"},
    "runtime.serving": {CORE, *RUNTIME},
    "runtime.batch": {CORE, *RUNTIME},
    "runtime.registry": {CORE, *RUNTIME},
    "calibration": {CORE, *RUNTIME},
    "export": {CORE, *RUNTIME, "runtime.bench"},  # PyTorch is one of the subjects of a benchmark
    DOOR: {CORE, *RUNTIME, "calibration", "export"},
    "export.demo": {CORE, *RUNTIME, "calibration", "export", DOOR},
    "cli": {
        CORE,
        *RUNTIME,
        "runtime.bench",
        "runtime.sources",
        "runtime.area",
        "runtime.station",
        "runtime.serving",
        "runtime.batch",
        "runtime.registry",
        "calibration",
        "export",
        "export.demo",
        DOOR,
    },
}


def module_files() -> dict[str, Path]:
    """Find every module of the package by its name. The links inside ``flowedge`` are not followed."""
    found = {}
    for folder, package in PACKAGE_FOLDERS.items():
        for file in (REPOSITORY / folder).rglob("*.py"):
            inner = file.relative_to(REPOSITORY / folder).with_suffix("").parts
            if folder != "flowedge" or inner[0] not in PACKAGE_FOLDERS:
                found[".".join((package, *inner)).removesuffix(".__init__")] = file
    return found


FILES = module_files()


def imports_in(source: str) -> set[str]:
    """Find the package's modules that a source text imports, wherever in it the statement stands."""
    named: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named += [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = [f"{node.module}.{one.name}" for one in node.names]
            named += [name if name in FILES else node.module for name in inner]
    return set(named) & set(FILES)


@functools.cache
def imports() -> dict[str, set[str]]:
    """Find for every module the package's modules that it imports."""
    return {name: imports_in(file.read_text(encoding="utf-8")) - {name} for name, file in FILES.items()}


def room_of(module: str) -> str:
    if module == "flowedge":
        return DOOR
    inside = f"{module.removeprefix('flowedge.')}."
    return max((room for room in MAY_IMPORT if inside.startswith(f"{room}.")), key=len, default=CORE)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_folder_imports_only_the_folders_below_it(room: str) -> None:
    modules = [name for name in FILES if room_of(name) == room]
    assert modules
    wrong = {
        f"{name} imports {other}"
        for name in modules
        for other in imports()[name]
        if room_of(other) not in {room, *MAY_IMPORT[room]}
    }
    assert not wrong


def test_no_import_of_any_kind_closes_a_circle() -> None:
    order = list(TopologicalSorter(imports()).static_order())  # raises CycleError with the circle
    assert set(order) == set(FILES)


def test_lazy_and_typing_only_imports_count() -> None:
    lazy = "def f():\n    from flowedge.runtime.opening import engine"
    typing_only = "if TYPE_CHECKING:\n    import flowedge.runtime.opening.engine"
    assert imports_in(lazy) == imports_in(typing_only) == {"flowedge.runtime.opening.engine"}
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
