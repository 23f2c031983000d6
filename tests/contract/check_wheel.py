"""Build the sdist and the wheel, and try the wheel where an edge device would: without torch and onnx.

    python tests/contract/check_wheel.py        from a checkout's environment, in minutes, with the package index

The wheel goes into fresh environments of this Python and of the oldest supported one where that is found. A small
bundle that the checkout exports must give there the answer that it gives here.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = {"flowedge": "flowedge", "export": "flowedge/export", "runtime": "flowedge/runtime"}
ROOTS |= {"calibration": "flowedge/calibration"}
OLDEST = "python3.10"
ABSENT = ("torch", "torchvision", "timm", "FrEIA", "onnx", "onnxscript")
FRAME = "frame.png"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="flowedge-wheel-") as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        check_contents(wheel)
        expected = export_small_bundle(folder)
        for python in interpreters():
            try_wheel(wheel, python, folder, expected)
    print("the wheel is complete, and runs without torch and onnx")


def build(dist: Path) -> Path:
    """Build both archives as a release does: the wheel from the sdist."""
    say("building the sdist and the wheel")
    run([sys.executable, "-m", "build", "--outdir", dist, REPOSITORY])
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    root = {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "Makefile",
        "pyproject.toml",
    }
    folders = ("deploy", "docs", "examples", "tests")
    parts = {
        path.relative_to(REPOSITORY).as_posix()
        for name in folders
        for path in (REPOSITORY / name).rglob("*.*")
    }
    missing = (root | {part for part in parts if not part.endswith((".pyc", "__pycache__"))}) - names
    assert not missing, f"the sdist lacks {missing}"
    return wheel


def check_contents(wheel: Path) -> None:
    """Check that the wheel holds every file of the four folders, by the name of its import, and nothing else."""
    expected = set()
    for root, package in ROOTS.items():
        for file in (REPOSITORY / root).rglob("*"):  # rglob does not follow the links
            if file.is_file() and not file.is_symlink() and file.parent.name != "__pycache__":
                expected.add(f"{package}/{file.relative_to(REPOSITORY / root).as_posix()}")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
    assert found == expected, f"missing {sorted(expected - found)}, too many {sorted(found - expected)}"
    assert len(licences) == 1, "the wheel lacks its licence"


def export_small_bundle(folder: Path) -> dict[str, Any]:
    """Export a small CFLOW with the checkout and return what it answers to a frame."""
    say("exporting a small bundle from the checkout")
    sys.path.insert(0, str(REPOSITORY / "tests"))
    import cv2
    import numpy as np

    from support.small_cflow import write_small_cflow

    frame = np.random.default_rng(3).integers(0, 256, (90, 120, 3), np.uint8)
    cv2.imwrite(str(folder / FRAME), cv2.GaussianBlur(frame, (0, 0), 2))
    flowedge = Path(sys.executable).with_name("flowedge")
    run([flowedge, "export", write_small_cflow(folder / "small.ckpt"), "-o", folder / "small.flowedge"])
    return answer(flowedge, folder)


def interpreters() -> list[str]:
    """Return this Python, and the oldest supported one where it runs (pyenv keeps it off the path)."""
    candidates = [OLDEST, *map(str, Path.home().glob(f".pyenv/versions/*/bin/{OLDEST}"))]
    for candidate in candidates:
        with contextlib.suppress(OSError):
            if subprocess.run([candidate, "-c", ""], check=False, capture_output=True).returncode == 0:
                return [sys.executable, candidate]
    say(f"{OLDEST} is not installed: only {sys.version.split()[0]} is tried")
    return [sys.executable]


def try_wheel(wheel: Path, python: str, folder: Path, expected: dict[str, Any]) -> None:
    """Install the wheel alone and use it. Then use it without an engine, which must be a clear refusal."""
    version = run([python, "-c", "import platform; print(platform.python_version())"]).strip()
    say(f"installing the wheel alone under Python {version}")
    environment = folder / f"venv-{version}"
    run([python, "-m", "venv", environment])
    installed, flowedge = environment / "bin/python", environment / "bin/flowedge"
    run([installed, "-m", "pip", "install", "--quiet", wheel])
    assert "pip install" in run([flowedge, "doctor"], folder, status=1, stream="stdout").splitlines()[0]
    doctor = json.loads(run([flowedge, "doctor", "--json"], folder, status=1, stream="stdout"))
    assert not any(engine["works"] for engine in doctor["engines"]), "an engine works that was not installed"
    refused = run([flowedge, "run", "small.flowedge", FRAME], folder, status=2)
    assert "pip install 'onnxruntime>=" in refused, refused

    run([installed, "-m", "pip", "install", "--quiet", f"{wheel}[ort]"])
    imports = f"import importlib.util; print(*(m for m in {ABSENT} if importlib.util.find_spec(m)))"
    assert run([installed, "-c", imports]).split() == [], "the base install brings export packages"
    assert run([flowedge, "--version"]).strip() in wheel.name
    doctor = json.loads(run([flowedge, "doctor", "--json"], folder))
    assert any(engine["works"] for engine in doctor["engines"]), doctor
    run([flowedge, "verify", "small.flowedge"], folder)
    got = answer(flowedge, folder)
    assert got["verdict"] == expected["verdict"]
    assert math.isclose(got["score"], expected["score"], rel_tol=1e-5), (got, expected)
    # The page's style and script are files of the wheel.
    run([flowedge, "run", "small.flowedge", FRAME, "--html", f"page-{version}.html"], folder)
    assert "<style" in (folder / f"page-{version}.html").read_text()
    refused = run([flowedge, "export", "small.ckpt", "-o", "other.flowedge"], folder, status=2)
    assert "pip install 'torch>=" in refused, refused


def answer(flowedge: Path, folder: Path) -> dict[str, Any]:
    """Return the answer of ``flowedge run`` to the frame."""
    result: dict[str, Any] = json.loads(run([flowedge, "run", "small.flowedge", FRAME, "--json"], folder))
    return result


def run(
    command: Sequence[str | Path], cwd: Path | None = None, *, status: int = 0, stream: str | None = None
) -> str:
    """Run a command away from the checkout and return the stream, by default stderr where it should fail."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd or tempfile.gettempdir(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != status:
        sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return str(getattr(done, stream or ("stderr" if status else "stdout")))


def say(line: str) -> None:
    print(f"wheel: {line}", flush=True)


if __name__ == "__main__":
    main()
