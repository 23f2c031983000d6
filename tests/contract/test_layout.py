"""The repository's folders, the packages in pyproject.toml and the three links agree."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")

REPOSITORY = Path(__file__).resolve().parents[2]
LINKED = ("calibration", "export", "runtime")


def setuptools_settings() -> dict[str, Any]:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        settings: dict[str, Any] = tomllib.load(file)["tool"]["setuptools"]
    return settings


def packages_on_disk() -> set[str]:
    """Return every folder with an ``__init__.py``, by the name of its import."""
    found = set()
    for root in ("flowedge", *LINKED):
        for init in (REPOSITORY / root).rglob("__init__.py"):  # rglob does not follow the links
            parts = init.parent.relative_to(REPOSITORY).parts
            found.add(".".join(parts if root == "flowedge" else ("flowedge", *parts)))
    return found


def test_every_package_on_disk_is_listed_and_the_other_way_round() -> None:
    assert set(setuptools_settings()["packages"]) == packages_on_disk()


def test_every_folder_with_code_is_a_package() -> None:
    for root in ("flowedge", *LINKED):
        for module in (REPOSITORY / root).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), module


@pytest.mark.parametrize("name", LINKED)
def test_the_links_are_relative_and_lead_to_the_root_folders(name: str) -> None:
    link = REPOSITORY / "flowedge" / name
    if not link.is_symlink():
        pytest.skip("this checkout was made without links")
    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == REPOSITORY / name
    assert setuptools_settings()["package-dir"][f"flowedge.{name}"] == name


def test_git_stores_the_links_as_links() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-s", *(f"flowedge/{name}" for name in LINKED)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("this is not a git checkout")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["120000"] * 3


@pytest.mark.parametrize("name", LINKED)
def test_a_root_folder_is_not_importable_under_its_own_name(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert f"No module named '{name}'" in done.stderr


def test_no_code_imports_a_root_folder_under_its_own_name_or_relatively() -> None:
    wrong = re.compile(rf"^\s*(from|import)\s+(\.|({'|'.join(LINKED)})\b)", re.MULTILINE)
    for root in ("flowedge", *LINKED, "tests"):
        for file in (REPOSITORY / root).rglob("*.py"):
            assert not wrong.search(file.read_text(encoding="utf-8")), file


def test_the_installed_version_is_the_packages_own() -> None:
    import flowedge

    assert importlib.metadata.version("flowedge") == flowedge.__version__
