"""A signal ends a command at once, with all finished records, no half-written file and the right status."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from flowedge.bundle import open_bundle
from flowedge.cli import signals
from flowedge.cli.progress import progress_bar
from flowedge.drafts import PREFIX
from support.tiny_bundle import write_tiny_bundle
from support.waiting import rest_of

COMMAND = [sys.executable, "-c", "from flowedge.cli import main; main()"]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of so many images that no test sees them all inspected."""
    folder = tmp_path_factory.mktemp("images")
    frame = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    cv2.imwrite(str(folder / "0.png"), frame)
    for number in range(1, 3000):
        os.link(folder / "0.png", folder / f"{number}.png")
    return folder


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    # A session of its own: its signals are not ours. Jobs in the background ignore Ctrl-C, and nohup ignores SIGHUP.
    restore = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); signal.signal(signal.SIGQUIT, signal.SIG_DFL); "
    )
    command = [*COMMAND[:2], restore + COMMAND[2]]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_lines_of_what_was_inspected_are_whole(number: signal.Signals, images: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    with start("run", bundle.path, images, "--json") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(number)
        rest, said = rest_of(process)
    assert process.returncode == 128 + number
    lines = [json.loads(line) for line in (first + rest).splitlines()]
    assert len({line["image"] for line in lines}) == len(lines) < 3000
    assert (first + rest).endswith("\n")
    assert f"ended by {number.name}" in said
    assert "Traceback" not in said


def test_rows_come_at_once_and_a_signal_ends_them_with_the_totals(images: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    with start("run", bundle.path, images, "--out", tmp_path / "out") as process:
        assert process.stdout is not None
        head, first = process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)  # a row is there while most of the images still wait
        shown, said = rest_of(process)
    assert process.returncode == 128 + signal.SIGINT
    assert head.split() == ["verdict", "score", "ms", "image"]
    assert first.endswith("0.png\n")
    totals = re.search(r"^(\d+) images?: (\d+) unknown, [\d.]+ images/s$", shown, re.MULTILINE)
    assert totals is not None
    assert totals[1] == totals[2]
    # The signal may come between a count and its row.
    assert int(totals[1]) - 1 <= (first + shown).count(".png") <= int(totals[1])
    assert int(totals[1]) < 3000
    assert re.search(r"^inspecting: \d+ of 3000 done\.$", said, re.MULTILINE)


@pytest.mark.parametrize("seed", range(8))
def test_a_signal_at_any_time_leaves_a_whole_bundle_and_no_draft(
    seed: int, images: Path, tmp_path: Path
) -> None:
    choice = random.Random(seed)
    number = choice.choice(SIGNALS)
    few = tmp_path / "few"
    few.mkdir()
    for name in ("0.png", "1.png"):
        os.link(images / name, few / name)
    bundle = write_tiny_bundle(tmp_path / "b")
    with start("calibrate", bundle.path, "--data", few) as process:
        time.sleep(0.3 + 1.5 * choice.random())
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 128 + number, -number)
    assert "Traceback" not in said
    assert sorted(os.listdir(tmp_path)) == ["b", "few"]
    opened = open_bundle(bundle.path)
    assert not [name for name in os.listdir(bundle.path) if name.startswith(".")]
    fitted = opened.manifest.graphs[0].thresholds.image
    assert (fitted is not None) == ("calibration.json" in os.listdir(bundle.path))


def test_a_killed_command_leaves_a_draft_that_the_next_one_removes(images: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    with start("calibrate", bundle.path, "--data", images) as process:
        while not list(tmp_path.glob(f"{PREFIX}*")) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 1
    done = subprocess.run(
        [*COMMAND, "calibrate", bundle.path, "--data", images / "0.png"], capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr
    few = tmp_path / "few"
    few.mkdir()
    os.link(images / "0.png", few / "0.png")
    subprocess.run([*COMMAND, "calibrate", bundle.path, "--data", few], capture_output=True, check=True)
    assert sorted(os.listdir(tmp_path)) == ["b", "few"]


def test_a_reader_that_does_not_read_keeps_no_command_from_ending(images: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    with start("run", bundle.path, images, "--json") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        time.sleep(1)  # a pipe holds 64 KB, some hundred lines
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM


def test_a_signal_that_is_ignored_stays_ignored(images: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    command = f"trap '' HUP; exec {sys.executable} -c '{COMMAND[2]}' run {bundle.path} {images} --json"
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        for _ in range(20):
            assert json.loads(process.stdout.readline())
        process.kill()


# A process of its own: where unwinding takes too long, as on a busy machine, the process ends at once.
CAUGHT = """
import contextlib, os, signal, sys, time
from flowedge.cli import signals
from flowedge.cli.progress import progress_bar

signals.raise_on_signals()
with progress_bar() as reports:
    reports.step("working", 2)
    with contextlib.suppress(BaseException):  # as a library's bare except
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    try:
        reports.advance()
    except signals.EndedBySignal as end:
        sys.exit(100 + end.number)
"""


def test_a_signal_that_a_library_caught_ends_the_command_at_the_next_step() -> None:
    done = subprocess.run([sys.executable, "-c", CAUGHT], check=False, capture_output=True)
    assert done.returncode in (100 + signal.SIGTERM, 128 + signal.SIGTERM), done.stderr


FAILS_LATER = """
import contextlib, os, signal
from flowedge.cli import app, main

def command(**options):
    with contextlib.suppress(BaseException):  # as an import of a compiled module does
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass
    raise AttributeError("the module has no such name, since its import was interrupted")

app.app = command
main()
"""


def test_an_error_that_a_caught_signal_led_to_is_an_end_by_the_signal() -> None:
    done = subprocess.run([sys.executable, "-c", FAILS_LATER], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "flowedge: ended by SIGTERM.\n")


def test_a_command_without_a_result_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with progress_bar() as reports:
            reports.step("evaluating", 3000)
            reports.advance(7)
            raise signals.EndedBySignal(signal.SIGTERM)

    with pytest.raises(signals.EndedBySignal):
        work()
    assert "evaluating: 7 of 3000 done" in capsys.readouterr().err
