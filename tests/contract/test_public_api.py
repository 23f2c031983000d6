"""The public names are those that users may import, and no others."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import flowedge
from flowedge import errors

REPOSITORY = Path(__file__).resolve().parents[2]
TABLES_OF_CONTENTS = ["flowedge", "flowedge.export", "flowedge.runtime", "flowedge.calibration"]


def names_in_the_code(module: ModuleType) -> set[str]:
    """Collect what a package offers without an underscore, but for its submodules and its imports of the language."""
    submodules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in submodules | {"annotations", "Any", "Final", "MappingProxyType", "TYPE_CHECKING"}
        and not inspect.ismodule(value)
    }


@pytest.mark.parametrize("name", ["flowedge.runtime", "flowedge.calibration"])
def test_all_lists_exactly_what_the_package_offers(name: str) -> None:
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    assert len(listed) == len(set(listed))
    assert set(listed) == names_in_the_code(module)


def test_flowedge_offers_what_a_program_needs() -> None:
    functions = ["calibrate", "doctor", "evaluate", "load", "load_pack", "verify"]
    assert flowedge.__all__ == sorted(
        ["Detector", "ProductLine", "Result", "__version__", "errors", "export", *functions]
    )
    assert all(inspect.isfunction(getattr(flowedge, name)) for name in functions)
    assert set(flowedge.__all__) <= set(dir(flowedge))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        flowedge.lode  # noqa: B018


@pytest.mark.parametrize("name", TABLES_OF_CONTENTS)
def test_no_public_function_or_class_hides_a_module_of_its_name(name: str) -> None:
    package = importlib.import_module(name)
    modules = {found.name for found in pkgutil.iter_modules(package.__path__)}
    assert all(inspect.ismodule(getattr(package, each)) for each in modules & set(package.__all__))


@pytest.mark.parametrize("name", ["flowedge", "flowedge.export"])
def test_a_lazy_package_holds_no_other_public_name_than_it_lists(name: str) -> None:
    module = importlib.import_module(name)
    assert names_in_the_code(module) <= set(module.__all__)


def test_every_import_of_a_public_name_works_whatever_was_imported_before() -> None:
    names = [name for name in flowedge.__all__ if name != "__version__"]
    script = (
        f"import flowedge.export.checkpoints\nfrom flowedge import {', '.join(names)}\nfrom flowedge import *"
    )
    script += "\nassert export.__all__ and load is flowedge.load"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_load_has_the_documented_arguments() -> None:
    parameters = inspect.signature(flowedge.load).parameters
    assert list(parameters) == [
        "path",
        "engine",
        "precision",
        "threads",
        "source_scale",
        "build",
        "min_region_px",
        "levels",
        "require_signature",
    ]
    assert {name: parameter.default for name, parameter in parameters.items() if name != "path"} == {
        "engine": None,
        "precision": "fp32",
        "threads": None,
        "source_scale": False,
        "build": False,
        "min_region_px": 1,
        "levels": True,
        "require_signature": None,
    }
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(parameters)[1:])


def test_the_runtime_offers_what_embedding_needs() -> None:
    import flowedge.runtime

    assert set(flowedge.runtime.__all__) >= {
        "Detector",
        "Result",
        "ENGINES",
        "Engine",
        "available_engines",
        "open_engine",
    }


def test_every_error_is_in_one_tree_and_in_the_drawing_at_its_top() -> None:
    tree = [value for value in vars(errors).values() if inspect.isclass(value)]
    assert all(issubclass(one, errors.FlowEdgeError) for one in tree)
    drawing = errors.__doc__ or ""
    assert all(one.__name__ in drawing for one in tree)


@pytest.mark.parametrize("name", TABLES_OF_CONTENTS)
def test_what_is_public_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", []):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), public
