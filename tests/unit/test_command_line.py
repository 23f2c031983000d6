"""The manners of the command line: options that every command has, names that are mistyped, and what is imported."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer.main

from flowedge.cli.app import app
from flowedge.cli.group import COMMANDS
from support.command_line import flowedge
from support.tiny_bundle import write_tiny_bundle

ROOT: Any = typer.main.get_command(app)


def all_commands() -> Iterator[tuple[str, ...]]:
    """Give the words of every command and every group, such as ``("cache", "list")``."""
    for name in COMMANDS:
        yield (name,)
        for inner in getattr(ROOT.commands[name], "commands", {}):
            yield (name, inner)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.flowedge").path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with one good picture."""
    assert cv2.imwrite(str(tmp_path / "good.png"), np.full((16, 24, 3), 60, np.uint8))
    return tmp_path


@pytest.mark.parametrize("words", [(), *all_commands()], ids=" ".join)
def test_every_command_has_the_options_of_all(words: tuple[str, ...]) -> None:
    short, long = flowedge(*words, "-h"), flowedge(*words, "--help")
    assert short.status == long.status == 0
    assert short.stdout == long.stdout
    for option in ("-h, --help", "-q, --quiet", "-v, --verbose"):
        assert option in short.stdout
    assert all(ord(one) < 128 for one in short.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_all_has_the_first_line_of_each_command(name: str) -> None:
    command = ROOT.commands[name]
    text = inspect.cleandoc(command.help).split("\n\n")[0]
    assert " ".join(text.split()) == COMMANDS[name].summary


@pytest.mark.parametrize("arguments", [("-q", "run"), ("run", "-q"), ("run", "--quiet")])
def test_quiet_leaves_out_notes_and_keeps_errors_and_results(
    bundle: Path, images: Path, arguments: tuple[str, ...]
) -> None:
    (images / "bad.png").write_bytes(b"no picture")
    (images / "notes.txt").write_text("no image")
    spoken = flowedge("run", bundle, images)
    quiet = flowedge(*arguments, bundle, images)
    assert "notes.txt" in spoken.stderr
    assert "calibrate" in spoken.stderr
    assert "notes.txt" not in quiet.stderr
    assert "calibrate" not in quiet.stderr
    assert "bad.png" in quiet.stderr
    assert "good.png" in quiet.stdout
    assert quiet.status == spoken.status == 1


def test_quiet_of_one_command_does_not_last(bundle: Path, images: Path) -> None:
    flowedge("-q", "run", bundle, images)
    assert "calibrate" in flowedge("run", bundle, images).stderr


def test_quiet_keeps_an_error() -> None:
    done = flowedge("-q", "info", "/missing")
    assert done.status == 2
    assert "/missing" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("rnu",), "Did you mean 'run'?"),
        (("cache", "lst"), "Did you mean 'list'?"),
        (("run", "b", "i", "--jsno"), "Did you mean --json?"),
        (("--versoin",), "Did you mean --version or --verbose?"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_right_one(arguments: tuple[str, ...], meant: str) -> None:
    done = flowedge(*arguments)
    assert done.status == 2
    assert meant in " ".join(done.stderr.split())
