"""What users may import, by name; the rest is private."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import flowedge
from flowedge import errors

REPOSITORY = Path(__file__).resolve().parents[2]
TABLES_OF_CONTENTS = ["flowedge", "flowedge.runtime", "flowedge.calibration"]


def names_in_the_code(module: ModuleType) -> set[str]:
    """What a module offers without an underscore, without its own submodules and imports of the language."""
    submodules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in submodules | {"annotations", "TYPE_CHECKING", "PathLike"}
        and not inspect.ismodule(value)
    }


@pytest.mark.parametrize("name", TABLES_OF_CONTENTS)
def test_all_lists_exactly_what_the_package_offers(name: str) -> None:
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    assert len(listed) == len(set(listed))
    assert set(listed) - {"__version__"} == names_in_the_code(module)


def test_flowedge_offers_one_function_and_its_version() -> None:
    assert flowedge.__all__ == ["__version__", "load"]


def test_load_has_the_documented_arguments() -> None:
    parameters = inspect.signature(flowedge.load).parameters
    assert list(parameters) == ["path", "engine", "precision", "threads", "source_scale", "build"]
    assert {name: parameter.default for name, parameter in parameters.items() if name != "path"} == {
        "engine": None,
        "precision": "fp32",
        "threads": None,
        "source_scale": False,
        "build": False,
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
