"""Every terminal can show what the commands print, and a stream that cannot be written ends them in one line."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from rich.table import Table

from flowedge.cli.output import EscapingConsole
from flowedge.cli.streams import OUTPUT_LOST, READER_GONE
from flowedge.manifest_json import json_from_manifest
from support.command_line import flowedge
from support.tiny_bundle import tiny_manifest, write_tiny_bundle

RAW = "\x1b[31m\x9bx\x07\r\n\u202e"
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
COMMAND = shlex.join([sys.executable, "-c", "from flowedge.cli import main; main()"])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("streams") / "tiny.flowedge").path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(4):
        assert cv2.imwrite(str(folder / f"{number}.png"), np.full((16, 24, 3), 60 * number, np.uint8))
    return folder


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``flowedge`` is this checkout's. A pipe's status is that of its first failure."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'flowedge() {{ {COMMAND} "$@"; }}; {line}'],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{} >/dev/full", "standard output cannot be written: No space left on device"),
        ("{} >&-", "standard output is closed"),
        ("flowedge --help >/dev/full", "standard output cannot be written"),
        ("flowedge cache list --json >/dev/full", "standard output cannot be written"),
    ],
)
def test_a_lost_output_is_said_on_standard_error(line: str, says: str, bundle: Path, images: Path) -> None:
    done = shell(line.format(f"flowedge run {bundle} {images} --json"))
    assert (done.returncode, done.stdout) == (OUTPUT_LOST, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("flowedge verify /no/such/file 2>/dev/full", ("No space left on device", "/no/such/file")),
        ("flowedge info --no-such-option 2>/dev/full", ("No space left on device", "--no-such-option")),
        ("flowedge doctor 2>&-", ("standard error is closed",)),
    ],
)
def test_a_lost_standard_error_is_said_on_standard_output(line: str, says: tuple[str, ...]) -> None:
    done = shell(line)
    assert (done.returncode, done.stderr) == (OUTPUT_LOST, "")
    assert done.stdout.count("\n") == 1
    for text in says:
        assert text in done.stdout


def test_results_are_whole_where_only_messages_are_lost(bundle: Path, images: Path) -> None:
    done = shell(f"flowedge run {bundle} {images} --json 2>/dev/full")
    assert done.returncode == OUTPUT_LOST
    *results, last = done.stdout.splitlines()
    assert [json.loads(line)["verdict"] for line in results] == ["unknown"] * 4
    assert "No threshold is set" in last, "what was to be said"


def test_nothing_to_write_to_ends_quietly(bundle: Path) -> None:
    for line in (f"flowedge info {bundle} >/dev/full 2>/dev/full", f"flowedge info {bundle} >&- 2>&-"):
        done = shell(line)
        assert (done.returncode, done.stdout, done.stderr) == (OUTPUT_LOST, "", "")


@pytest.mark.parametrize("line", ["{} --json | true", "{} 2>&1 | true", "flowedge --help | true"])
def test_a_reader_that_leaves_is_a_status_and_no_message(line: str, bundle: Path, images: Path) -> None:
    done = shell(line.format(f"flowedge run {bundle} {images}"))
    assert (done.returncode, done.stderr) == (READER_GONE, "")


def test_a_closed_standard_input_changes_nothing(bundle: Path, images: Path) -> None:
    done = shell(f"flowedge run {bundle} {images} --json <&-")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4


def test_a_deleted_current_folder_is_said(tmp_path: Path, bundle: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = shell(f"cd {gone} && rmdir {gone} && flowedge calibrate {bundle} --data .")
    assert (done.returncode, done.stdout) == (2, "")
    assert "current folder" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_ascii_terminal_gets_names_and_tables_escaped(bundle: Path, images: Path, tmp_path: Path) -> None:
    picture = tmp_path / "Prüfling→.png"
    shutil.copy(images / "0.png", picture)
    done = shell(
        f"flowedge run {bundle} {picture}; flowedge info {bundle}; flowedge info {tmp_path}/ö", **ASCII
    )
    assert "Traceback" not in done.stderr
    assert "Pr\\udcc3\\udcbcfling" in done.stdout, "Python sees bytes in an ASCII locale"
    assert "0000..." in done.stdout, "an ellipsis of ours has a form in ASCII"
    assert (done.stdout + done.stderr).isascii()


def test_json_is_json_on_an_ascii_terminal_too(bundle: Path, images: Path, tmp_path: Path) -> None:
    picture = tmp_path / "Prüfling.png"
    shutil.copy(images / "0.png", picture)
    done = shell(f"flowedge run {bundle} {picture} --json", PYTHONIOENCODING="ascii")
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["image"] == str(picture)


def test_json_of_a_name_that_is_not_utf_8(bundle: Path, tmp_path: Path) -> None:
    done = shell(
        f"mv {shutil.copytree(bundle, tmp_path / 'b')} {tmp_path}/$'\\xff' && flowedge info {tmp_path}/? --json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["family"] == "fastflow"


def test_control_characters_of_a_manifest_are_shown_escaped(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    manifest = tiny_manifest(files=bundle.manifest.files)
    source = msgspec.structs.replace(manifest.source, file=f"tiny{RAW}.ckpt")
    changed = msgspec.structs.replace(manifest, source=source, licence_note=f"note{RAW}")
    (bundle.path / "manifest.json").write_bytes(json_from_manifest(changed))
    for options in ((), ("--json",)):
        done = flowedge("info", bundle.path, *options)
        text = done.stdout + done.stderr
        assert all(one.isprintable() or one == "\n" for one in text), text
        assert "[31m" in text, "it was shown or refused, escaped"


def test_a_cell_a_title_and_a_line_are_escaped_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = EscapingConsole(width=200)
    made = Table(f"head{RAW}", title=f"title{RAW}")
    made.add_row(f"cell{RAW}")
    console.print(made)
    console.print(f"line{RAW}", soft_wrap=True)
    printed = capsys.readouterr().out
    for name in ("head", "title", "cell", "line"):
        assert f"{name}\\x1b[31m\\x9bx\\x07\\r\\n\\u202e" in printed


def test_the_words_of_a_command_are_escaped_where_they_are_repeated() -> None:
    for arguments in ((f"/no/{RAW}",), ("--" + RAW,), ("one", RAW)):
        done = flowedge("info", *arguments)
        assert done.status == 2
        assert "\\x1b[31m" in done.stderr
        assert all(one.isprintable() or one == "\n" for one in done.stderr)
