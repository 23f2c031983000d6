"""A hint installs what is missing, and nothing that is not needed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from flowedge.errors import MissingPackageError
from flowedge.packages import REQUIREMENTS, explain_missing, installed_version, pip_install
from flowedge.runtime.device.machine import Jetson, NvidiaDriver
from flowedge.runtime.opening import engine
from support.tiny_bundle import write_tiny_bundle

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_hints_name_what_the_extras_hold() -> None:
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]

    def packages(extra: str) -> set[str]:
        found: set[str] = set()
        for line in extras[extra]:
            inner = re.fullmatch(r"flowedge\[(.+)]", line)
            found |= packages(inner[1]) if inner else {line.partition(";")[0].strip()}
        return found

    assert {extra: set(needed) for extra, needed in REQUIREMENTS.items()} == {
        extra: packages(extra) for extra in extras
    }


def test_a_hint_leaves_out_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_version("numpy") is not None
    monkeypatch.setattr(
        "flowedge.packages.installed_version", lambda name: None if name in ("onnx", "torch") else "1"
    )
    assert pip_install("export") == "pip install 'torch>=2.6' 'onnx>=1.17'"
    assert pip_install("calibrate") == "pip install 'onnx>=1.17'"
    assert pip_install("ort-gpu").startswith("pip install 'onnxruntime-gpu[cuda,cudnn]"), "all, to be sure"


def test_a_missing_package_is_an_error_that_says_what_to_install() -> None:
    with (
        pytest.raises(MissingPackageError, match=r"no_such_package.*pip install"),
        explain_missing("calibrate"),
    ):
        import_module("no_such_package")


def test_a_missing_module_of_ours_is_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError), explain_missing("calibrate"):
        import_module("flowedge.no_such_module")


def test_no_message_asks_for_flowedge_from_an_index_that_does_not_have_it() -> None:
    for root in ("flowedge", "runtime", "calibration", "export"):
        for file in (REPOSITORY / root).rglob("*.py"):
            assert not re.search(r"pip install '?\"?flowedge", file.read_text(encoding="utf-8")), file


def test_lower_precision_without_onnx_asks_for_onnx_and_not_for_pytorch(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge").path
    images = tmp_path / "good"
    images.mkdir()
    (images / "1.png").write_bytes(b"a picture by its name")
    code = (
        "import sys; sys.modules['onnx'] = None; import importlib.metadata as m; old = m.version\n"
        "def version(name):\n"
        "    if name == 'onnx': raise m.PackageNotFoundError(name)\n"
        "    return old(name)\n"
        "m.version = version\n"
        "from flowedge.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "calibrate", str(bundle), "--data", str(images), "--int8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs the package onnx," in done.stderr
    assert "pip install 'onnx>=" in done.stderr
    assert "torch" not in done.stderr


@pytest.mark.parametrize("extra", REQUIREMENTS)
def test_every_hint_can_be_typed_as_it_is(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowedge.packages.installed_version", lambda name: None)
    program, verb, *named = shlex.split(pip_install(extra))
    assert (program, verb) == ("pip", "install")
    assert [str(Requirement(one)) for one in named] == [str(Requirement(one)) for one in REQUIREMENTS[extra]]


def test_every_command_in_a_message_names_packages_of_an_extra() -> None:
    # The environment of a peer is its owner's, and no extra brings what is installed there.
    known = {Requirement(one).name for needed in REQUIREMENTS.values() for one in needed} | {"nncf"}
    found = 0
    for root in ("flowedge", "runtime", "calibration", "export"):
        for file in (REPOSITORY / root).rglob("*.py"):
            for line in file.read_text(encoding="utf-8").splitlines():
                for package in re.findall(r"pip (?:un)?install '?([^' ]+)", line):
                    found += 1
                    assert re.match(r"[\w-]+", package), f"{file}: {line}"
                    assert re.match(r"[\w-]+", package)[0] in known, f"{file}: {line}"  # type: ignore[index]
    assert found >= 2


@pytest.mark.parametrize(
    ("driver", "cuda"), [("", 12), ("570.86.10", 12), ("580.65.06", 13), ("unknown", 12)]
)
def test_tensorrt_is_installed_for_the_cuda_of_the_driver(
    monkeypatch: pytest.MonkeyPatch, driver: str, cuda: int
) -> None:
    monkeypatch.setattr(engine, "find_jetson", lambda: None)
    monkeypatch.setattr(engine, "find_nvidia_driver", lambda: NvidiaDriver(version=driver, names=()))
    hint = engine.how_to_install(engine.ENGINES["tensorrt"])
    assert f"tensorrt-cu{cuda}>=" in hint
    assert f"tensorrt-cu{25 - cuda}" not in hint


@pytest.mark.parametrize(("jetpack", "cuda"), [("6.2", 12), ("7.0", 13)])
def test_a_jetson_gets_the_binding_of_its_jetpack(
    monkeypatch: pytest.MonkeyPatch, jetpack: str, cuda: int
) -> None:
    jetson = Jetson(model="Orin", l4t="", jetpack=jetpack, power_mode="", power_modes=())
    monkeypatch.setattr(engine, "find_jetson", lambda: jetson)
    assert f"'cuda-bindings=={cuda}.*'" in engine.how_to_install(engine.ENGINES["tensorrt"])


@pytest.mark.parametrize(("python", "has_gpu_build"), [((3, 10), False), ((3, 11), True)])
def test_no_command_installs_what_the_package_index_lacks_for_arm(
    monkeypatch: pytest.MonkeyPatch, python: tuple[int, int], has_gpu_build: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("flowedge.packages.sys", SimpleNamespace(version_info=python))
    monkeypatch.setattr(engine, "find_jetson", lambda: None)
    for name in ("tensorrt", "tensorrt-rtx"):
        hint = engine.how_to_install(engine.ENGINES[name])
        assert "the package index has it for x86-64 alone" in hint
        assert "pip install" not in hint
    assert ("pip install" in engine.how_to_install(engine.ENGINES["onnxruntime-cuda"])) == has_gpu_build
    assert "pip install" in engine.how_to_install(engine.ENGINES["onnxruntime-cpu"])
