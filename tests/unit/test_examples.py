"""The examples in the docstrings of the public names run as they stand."""

from __future__ import annotations

import doctest
import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import flowedge

FILES_OF_EXAMPLES = {
    "calibrate": ("bottle.flowedge", "bottle"),
    "doctor": (),
    "errors": (),
    "evaluate": ("bottle.flowedge", "bottle"),
    "export": ("bottle.ckpt",),
    "load": ("bottle.flowedge",),
    "verify": ("bottle.flowedge",),
    "Detector": ("bottle.flowedge",),
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
        elif name == "bottle.ckpt":
            shutil.copy(request.getfixturevalue("small_checkpoint"), name)
        else:
            write_dataset(Path(name))

    return make


def write_dataset(root: Path) -> None:
    """Write a dataset in MVTec AD's layout: noise for good images, and noise with a white square for a defect."""
    random = np.random.default_rng(0)
    for kind, count in (("train/good", 8), ("test/good", 2), ("test/square", 2)):
        (root / kind).mkdir(parents=True)
        for number in range(count):
            image = random.integers(60, 120, (64, 64, 3), dtype=np.uint8)
            if kind == "test/square":
                image[16:32, 16:32] = 255
            assert cv2.imwrite(str(root / kind / f"{number:03}.png"), image)
    masks = root / "ground_truth" / "square"
    masks.mkdir(parents=True)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[16:32, 16:32] = 255
    for number in range(2):
        assert cv2.imwrite(str(masks / f"{number:03}_mask.png"), mask)


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
    test = doctest.DocTestParser().get_doctest(documented(name).__doc__, {}, name, None, 0)
    assert test.examples
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert result.failed == 0, "".join(report)
