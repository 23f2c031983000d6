"""The examples in the docstrings of the public names run as they stand."""

from __future__ import annotations

import doctest
import importlib
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flowedge
from flowedge.export.pack import pack_bundles
from support.small_dataset import write_dataset

FILES_OF_EXAMPLES = {
    "calibrate": ("bottle.flowedge", "bottle"),
    "doctor": (),
    "errors": (),
    "evaluate": ("bottle.flowedge", "bottle"),
    "export": ("bottle.ckpt",),
    "load": ("bottle.flowedge",),
    "load_pack": ("line.flowedgepack",),
    "verify": ("bottle.flowedge",),
    "Detector": ("bottle.flowedge",),
    "ProductLine": ("line.flowedgepack",),
    "Result": ("bottle.flowedge",),
}


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[str], None]:
    """Make the current folder one that has the named files of an example."""
    monkeypatch.chdir(tmp_path)

    def make(name: str) -> None:
        if name == "bottle.flowedge":
            shutil.copytree(request.getfixturevalue("small_bundle"), name)
        elif name == "line.flowedgepack":
            bundle = request.getfixturevalue("small_bundle")
            pack_bundles({"bottle": bundle, "cable": bundle}, Path(name))
        elif name == "bottle.ckpt":
            shutil.copy(request.getfixturevalue("small_checkpoint"), name)
        else:
            write_dataset(Path(name))

    return make


def documented(name: str) -> Any:
    return (
        importlib.import_module(f"flowedge.{name}")
        if name in ("errors", "export")
        else getattr(flowedge, name)
    )


def test_every_public_name_has_an_example() -> None:
    assert set(FILES_OF_EXAMPLES) == set(flowedge.__all__) - {"__version__"}


@pytest.mark.parametrize("name", FILES_OF_EXAMPLES)
def test_the_example_of_a_public_name_runs(name: str, folder: Callable[[str], None]) -> None:
    for file in FILES_OF_EXAMPLES[name]:
        folder(file)
    found = documented(name)
    examples = doctest.DocTestFinder(recurse=inspect.isclass(found)).find(found, name, globs={})
    assert examples[0].examples
    check(examples)


@pytest.mark.parametrize("name", ["regions", "contours", "frames.pixels"])
def test_the_examples_of_the_steps_around_a_result_run(name: str) -> None:
    module = importlib.import_module(f"flowedge.runtime.{name}")
    check(doctest.DocTestFinder().find(module))


def check(examples: list[doctest.DocTest]) -> None:
    """Run examples, of which there is at least one."""
    assert any(one.examples for one in examples)
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for one in examples:
        runner.run(one, out=report.append)
    assert runner.failures == 0, "".join(report)
