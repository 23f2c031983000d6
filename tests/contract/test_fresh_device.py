"""A device that has nothing but Debian gets the station by the install script, from wheels alone, and a container too.

Debian's packages are fetched once by debootstrap, which takes a minute, and the wheels by pip. Both need a network,
root and minutes, so these tests are slow ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.fresh_device import FreshDevice, problem_of_devices
from support.station_files import write_photos
from support.tiny_bundle import write_tiny_bundle

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = "python3,python3-venv,ca-certificates,systemd"
DEBIAN_PYTHON = (3, 11)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="a fresh device needs root"),
    pytest.mark.skipif(shutil.which("debootstrap") is None, reason="a fresh device needs debootstrap"),
    pytest.mark.skipif(
        sys.version_info[:2] != DEBIAN_PYTHON,
        reason="the wheels are fetched for the Python of Debian 12, 3.11",
    ),
]


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, env=env, cwd=cwd)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a fresh Debian with Python, and with systemd for its tools."""
    root = tmp_path_factory.mktemp("debian") / "root"
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root)
    return root


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FlowEdge and all that a station needs, as wheels."""
    folder, source = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("source")
    copy_sources(source)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", f"{source}[station,ort]", "-w", folder)
    return folder


def copy_sources(target: Path) -> None:
    """Copy what git knows of the checkout, so that building changes nothing there."""
    files = run("git", "-C", REPOSITORY, "ls-files", "-z").split("\0")
    for name in filter(None, files):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, place, follow_symlinks=False)


def test_a_fresh_device_judges_pictures_after_the_install_script(
    debian: Path, wheels: Path, tmp_path: Path
) -> None:
    if problem := problem_of_devices(tmp_path / "trial"):
        pytest.skip(problem)
    device = FreshDevice(tmp_path / "device", debian)
    shutil.copytree(wheels, device.changed("/wheels"))
    shutil.copytree(REPOSITORY / "deploy", device.changed("/deploy"))
    done = device.run("/deploy/install.sh", "--wheels", "/wheels", "--extras", "station,ort")
    assert done.returncode == 0, done.stderr
    home = device.changed("/var/lib/flowedge")
    write_tiny_bundle(home / "tiny.flowedge")
    write_photos(home / "photos", 3)
    assert device.run("chown", "-R", "flowedge:", "/var/lib/flowedge").returncode == 0
    user = ("runuser", "-u", "flowedge", "--", "flowedge", "station")
    file = "/var/lib/flowedge/station.toml"
    for command in (
        ("init", "/var/lib/flowedge/tiny.flowedge", "-o", file, "--source", "/var/lib/flowedge/photos"),
        ("check", file),
        ("run", file, "--until-end"),
    ):
        done = device.run(*user, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = device.run(*user, "records", file, "--json").stdout.splitlines()
    assert [json.loads(line)["source_id"] for line in lines] == [
        f"/var/lib/flowedge/photos/{number:04d}.png" for number in range(3)
    ]
    unit = "/etc/systemd/system/flowedge-station.service"
    assert device.run("systemd-analyze", "verify", unit).stderr == ""


@pytest.mark.skipif(
    shutil.which("buildah") is None or shutil.which("podman") is None,
    reason="building an image without a registry needs buildah and podman",
)
def test_the_container_file_builds_an_image_that_runs_the_station_as_its_user(
    debian: Path, wheels: Path, tmp_path: Path
) -> None:
    context = tmp_path / "context"
    copy_sources(context)
    shutil.copytree(wheels, context / "wheels")
    store = tmp_path / "storage.conf"
    store.write_text(
        f'[storage]\ndriver = "overlay"\nrunroot = "{tmp_path}/run"\ngraphroot = "{tmp_path}/graph"\n'
    )
    env = {**os.environ, "CONTAINERS_STORAGE_CONF": str(store)}
    archive = tmp_path / "base.tar"
    run("tar", "-C", debian, "-cf", archive, ".")
    run("podman", "import", "--quiet", archive, "localhost/base:1", env=env)
    arguments = ("BASE=localhost/base:1", "WHEELS=wheels", "EXTRAS=station,ort")
    run(
        *("buildah", "bud", "--isolation", "chroot", "-f", "deploy/Dockerfile", "-t", "station"),
        *(f"--build-arg={one}" for one in arguments),
        ".",
        env=env,
        cwd=context,
    )
    container = run("buildah", "from", "localhost/station", env=env).strip()
    inside = ("buildah", "run", "--isolation", "chroot", container, "--")
    assert run(*inside, "id", "-u", env=env).strip() == "10001"
    assert "run a station" in run(*inside, "flowedge", "station", "--help", env=env).lower()
    assert run(*inside, "ls", "/", env=env).split().count("src") == 0
    run("buildah", "rmi", "--all", "--force", env=env)
