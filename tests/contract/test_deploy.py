"""The unit of systemd, the install script and the container files pass the tools that judge them."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
UNIT = DEPLOY / "flowedge-station.service"
CONTAINER_FILES = ("Dockerfile", "Dockerfile.jetpack")
PROGRAMS = Path(sys.executable).parent

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="judging the unit needs systemd-analyze"
)


def tool(name: str) -> str:
    """Return the path of a program that the environment or the machine has, or skip."""
    found = shutil.which(name, path=str(PROGRAMS)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def judged(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_systemd
def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    # The program of the unit must exist where the unit is judged.
    program = shutil.which("true")
    text = UNIT.read_text().replace("/opt/flowedge/current/bin/flowedge", str(program))
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    done = judged("systemd-analyze", "verify", unit)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(text.replace("WatchdogSec", "WatchDogs"))
    assert "'WatchDogs'" in judged("systemd-analyze", "verify", unit).stderr


@needs_systemd
def test_the_unit_is_exposed_little() -> None:
    done = judged("systemd-analyze", "security", "--offline=true", "--threshold=25", "--json=short", UNIT)
    assert done.returncode == 0, done.stdout
    facts = {one["name"]: one for one in json.loads(done.stdout)}
    assert facts["NoNewPrivileges="]["set"]
    assert not facts["PrivateDevices="]["set"], "a camera is a device"


def test_the_unit_waits_for_the_station_and_watches_it() -> None:
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    assert settings["Type"] == "notify"
    assert float(settings["WatchdogSec"]) > 0
    assert settings["Restart"] == "always"
    assert settings["StartLimitIntervalSec"] == "0"
    assert settings["ExecStart"].startswith("/opt/flowedge/current/bin/flowedge station run ")


def test_the_install_script_is_clean() -> None:
    done = judged(tool("shellcheck"), DEPLOY / "install.sh")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", CONTAINER_FILES)
def test_a_container_file_is_clean(name: str) -> None:
    done = judged(tool("hadolint"), "--no-color", DEPLOY / name)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", CONTAINER_FILES)
def test_a_container_installs_by_the_script_of_a_device(name: str) -> None:
    text = (DEPLOY / name).read_text()
    assert "\n    /src/deploy/install.sh --no-service" in text
    assert "pip install" not in text
    # The image must not run as root, whatever the script calls its user.
    uid = re.search(r"--uid (\d+)", text)
    assert uid is not None
    assert f"\nUSER {uid[1]}\n" in text


def test_an_image_is_built_from_what_a_wheel_needs_alone() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().split("\n")
    kept = [line[1:] for line in lines if line.startswith("!")]
    for needed in ("pyproject.toml", "README.md", "LICENSE", "flowedge", "export", "runtime", "deploy"):
        assert any(fnmatch.fnmatch(needed, one) for one in kept)
    for unneeded in (".git", ".venv", "tests", "bench-out"):
        assert unneeded not in kept
    assert "*" in lines
