"""Every name of CUDA and TensorRT that the engines use is there in the real packages, and takes as many arguments.

The code runs on machines that the tests do not have. So what can be checked without one is checked: each
``cudart.X``, ``trt.X`` and method of a TensorRT object in the source, against the installed binding.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

cudart: Any = pytest.importorskip(
    "cuda.bindings.runtime", reason="cuda-bindings is not installed: pip install cuda-bindings"
)
trt: Any = pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install tensorrt-rtx"
)

ENGINES = Path(__file__).resolve().parents[2] / "runtime" / "engines"
SOURCES = {
    name: ast.parse((ENGINES / name).read_text()) for name in ("cuda.py", "nvidia.py", "nvidia_build.py")
}

# The types of the variables in the source.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": ("IBuilderConfig", "IRuntimeConfig"),
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "layer": "ILayer",
    "image": "ITensor",
    "times": "ITimingCache",
    "context": "IExecutionContext",
    "_runtime_cache": "IRuntimeCache",
}
FROM_TENSORRT_ALONE = {"EXPLICIT_BATCH"}  # in TensorRT 8.6, read by getattr


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for an attribute of names, or an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def attributes(tree: ast.AST, root: str) -> Iterator[str]:
    for node in ast.walk(tree):
        name = dotted(node)
        if isinstance(node, ast.Attribute) and name.startswith(f"{root}."):
            yield name.removeprefix(f"{root}.")


def lookup(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


USED_OF_CUDA = sorted({path for tree in SOURCES.values() for path in attributes(tree, "cudart")})
USED_OF_TRT = sorted(
    {path for tree in SOURCES.values() for path in attributes(tree, "trt") if not path.startswith("__")}
)


def used_methods() -> list[tuple[str, str]]:
    """Return ``(variable, attribute)`` of each use of an object in ``CLASSES``."""
    found: set[tuple[str, str]] = set()
    for tree in SOURCES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                owner = dotted(node.value).removeprefix("self.")
                if owner in CLASSES:
                    found.add((owner, node.attr))
    return sorted(found)


def test_the_walk_finds_what_is_used() -> None:
    assert {"cudaMemcpyAsync", "cudaGraphLaunch", "cudaError_t.cudaSuccess"} <= set(USED_OF_CUDA)
    assert {"BuilderFlag.TF32", "Runtime", "IProgressMonitor"} <= set(USED_OF_TRT)
    assert {("context", "execute_async_v3"), ("config", "clear_flag")} <= set(used_methods())


@pytest.mark.parametrize("path", USED_OF_CUDA)
def test_cuda_has_it(path: str) -> None:
    assert lookup(cudart, path) is not None


@pytest.mark.parametrize("path", USED_OF_TRT)
def test_tensorrt_has_it(path: str) -> None:
    assert lookup(trt, path) is not None


@pytest.mark.parametrize(("variable", "name"), used_methods())
def test_the_objects_of_tensorrt_have_it(variable: str, name: str) -> None:
    classes = CLASSES[variable]
    owners = (classes,) if isinstance(classes, str) else classes
    assert any(hasattr(getattr(trt, owner), name) for owner in owners), owners


def cuda_calls() -> Iterator[tuple[str, int]]:
    """Return the function and the number of arguments of ``cudart.f(a, b)`` and ``call(cudart.f, a, b)``."""
    for node in ast.walk(SOURCES["cuda.py"]):
        if not isinstance(node, ast.Call):
            continue
        target = dotted(node.func)
        if target.startswith("cudart."):
            yield target.removeprefix("cudart."), len(node.args)
        elif target == "call" and node.args and dotted(node.args[0]).startswith("cudart."):
            yield dotted(node.args[0]).removeprefix("cudart."), len(node.args) - 1


@pytest.mark.parametrize(("name", "count"), sorted(set(cuda_calls())))
def test_a_call_of_cuda_has_as_many_arguments_as_the_real_one(name: str, count: int) -> None:
    documented = re.match(rf"{name}\((.*)\)", getattr(cudart, name).__doc__)
    assert documented is not None
    assert len([part for part in documented[1].split(",") if part.strip()]) == count


def test_tensorrt_adds_only_what_is_asked_for_by_name() -> None:
    by_name = {
        node.value
        for node in ast.walk(SOURCES["nvidia_build.py"])
        if isinstance(node, ast.Constant) and node.value in FROM_TENSORRT_ALONE
    }
    assert by_name == FROM_TENSORRT_ALONE


def without_docstrings(source: str) -> str:
    """Return a source's syntax tree as text, without the strings that stand alone."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef)):
            node.body = [
                statement
                for statement in node.body
                if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
            ]
    return ast.dump(tree)


def test_tensorrts_code_is_the_same_as_that_for_rtx_but_for_the_library() -> None:
    one, other = (
        (ENGINES / f"{name}.py").read_text(encoding="utf-8") for name in ("tensorrt", "tensorrt_rtx")
    )
    assert "tensorrt_rtx" in other
    assert without_docstrings(one) == without_docstrings(other.replace("tensorrt_rtx as", "tensorrt as"))
