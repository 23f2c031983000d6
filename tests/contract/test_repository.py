"""Workflows, issue templates, citation and the contents of the sdist fit the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flowedge.version import __version__

REPOSITORY = Path(__file__).resolve().parents[2]
yaml: Any = pytest.importorskip("yaml", reason="reading the workflows needs PyYAML, which timm brings")
YAML_FILES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in (*REPOSITORY.glob(".github/**/*.yml"), REPOSITORY / "CITATION.cff", REPOSITORY / "mkdocs.yml")
)


def loaded(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))


def python_versions() -> list[str]:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)


@pytest.mark.parametrize("name", YAML_FILES)
def test_a_file_is_yaml(name: str) -> None:
    assert isinstance(loaded(name), dict)


def test_the_workflow_tests_every_python_that_the_package_names() -> None:
    matrix = loaded(".github/workflows/tests.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert matrix == python_versions() == ["3.10", "3.11", "3.12", "3.13"]


@pytest.mark.parametrize("name", [name for name in YAML_FILES if "workflows" in name])
def test_the_steps_of_a_workflow_are_targets_of_the_makefile(name: str) -> None:
    targets = set(
        re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for job in loaded(name)["jobs"].values():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert {word for one in commands for word in re.findall(r"\bmake ([\w-]+)", one)} <= targets
        assert any(step.get("uses", "").startswith("actions/checkout@") for step in job["steps"])


@pytest.mark.parametrize(
    "name", [name for name in YAML_FILES if "ISSUE_TEMPLATE" in name and "config" not in name]
)
def test_an_issue_form_has_the_fields_that_it_needs(name: str) -> None:
    form = loaded(name)
    assert form["name"]
    assert form["description"]
    for field in form["body"]:
        assert field["type"] in ("markdown", "textarea", "input")
        assert field["type"] == "markdown" or field["id"]
        assert field["attributes"]


def test_the_citation_names_the_version_of_the_package() -> None:
    assert str(loaded("CITATION.cff")["version"]) == __version__


def test_the_changelog_has_the_version_and_a_place_for_the_next() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)[:2] == ["Unreleased", __version__]
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_sdist_takes_what_is_at_the_root() -> None:
    listed = (REPOSITORY / "MANIFEST.in").read_text(encoding="utf-8").split()
    left_out = {
        "flowedge",
        "export",
        "runtime",
        "calibration",
        "pyproject.toml",
    }  # setuptools takes these itself
    for path in REPOSITORY.iterdir():
        if path.suffix in (".md", ".cff") or path.name in (
            "deploy",
            "docs",
            "tests",
            "examples",
            "Makefile",
            "mkdocs.yml",
        ):
            assert path.name in listed or path.name in left_out, path.name
