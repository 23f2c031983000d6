"""The shell completes commands, options and values by the protocol of its own, in a process that loads no engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowedge.bundle import Bundle, open_bundle
from flowedge.calibration.precision.calibrators import CALIBRATORS
from flowedge.cli import completion
from flowedge.runtime.opening.engine import ENGINES
from support.tiny_bundle import write_tiny_bundle

COMMAND = "import sys; sys.argv[0] = 'flowedge'; from flowedge.cli import main; main()"
BLOCKED = "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnxruntime', 'cv2', 'numpy'))); "


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.flowedge")


def completed(shell: str, line: str) -> list[str]:
    """Return the first word of each proposal for the last word of a line, as the shell itself asks for them."""
    words = line.split(" ")
    asked = {
        "_FLOWEDGE_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "\n".join(words) if shell == "bash" else line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + COMMAND],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **asked},
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_command_an_option_and_a_value_are_completed(shell: str, bundle: Bundle) -> None:
    for line, expected in (
        ("flowedge ex", "export"),
        ("flowedge cache cl", "clear"),
        ("flowedge run --eng", "--engine"),
        (f"flowedge run {bundle.path} . --engine openvino:G", "openvino:GPU"),
        ("flowedge build b --engine tensorrt-", "tensorrt-rtx"),
        ("flowedge calibrate b --calibrator ent", "entropy"),
        (f"flowedge threshold set {bundle.path} --precision a", "all"),
    ):
        words = completed(shell, line)
        assert any(expected in word.replace("\\", "") for word in words), (line, words)


def test_the_precisions_are_those_of_the_bundle(bundle: Bundle) -> None:
    assert [graph.precision for graph in open_bundle(bundle.path).manifest.graphs] == ["fp32"]
    assert completed("bash", f"flowedge verify {bundle.path} --precision ") == ["fp32"]
    assert completed("bash", f"flowedge run {bundle.path} . --precision ") == ["fp32", "auto"]
    assert completed("bash", "flowedge run missing . --precision f") == ["fp32", "fp16"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_shown_and_installed(shell: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    shown, installed = (
        subprocess.run(
            [sys.executable, "-c", COMMAND, option, shell],
            capture_output=True,
            text=True,
            check=True,
            env={**environment, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        ).stdout
        for option in ("--show-completion", "--install-completion")
    )
    assert "_FLOWEDGE_COMPLETE=complete_" in shown
    assert f"{shell} completion installed in {tmp_path}" in installed


def test_the_names_are_those_of_the_engines_and_the_calibrators() -> None:
    assert set(completion.ENGINE_NAMES) == set(ENGINES)
    assert set(completion.COMPILED_NAMES) == {name for name, spec in ENGINES.items() if spec.compiled}
    assert set(completion.CALIBRATOR_NAMES) == {"auto", *CALIBRATORS}
