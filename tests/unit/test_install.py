"""The install script of the station installs, updates, refuses and removes, on a copy of this machine's files."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from flowedge.packages import REQUIREMENTS
from support.fresh_device import FreshDevice, problem_of_devices

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
INSTALL = DEPLOY / "install.sh"
PYTHON = next(
    (one for one in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(one).exists()), "python3"
)
UNIT = "/etc/systemd/system/flowedge-station.service"


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> str:
    problem = problem_of_devices(tmp_path_factory.mktemp("trial"))
    if problem or shutil.which("systemctl") is None:
        return problem or "this machine has no systemctl"
    device = FreshDevice(tmp_path_factory.mktemp("python"))
    return device.run(PYTHON, "-c", "import ensurepip").stderr


@pytest.fixture
def device(tmp_path: Path, problem: str) -> FreshDevice:
    if problem:
        pytest.skip(problem)
    device = FreshDevice(tmp_path / "device")
    device.run("rm", "-rf", "/opt/flowedge", "/etc/flowedge", "/var/lib/flowedge", UNIT)
    return device


def wheels_with(folder: Path, version: str, program: str = "print(VERSION)") -> Path:
    """Write a folder with a wheel that is called FlowEdge's, whose command runs a line of Python."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    info = f"flowedge-{version}.dist-info"
    files = {
        "flowedge/__init__.py": f"VERSION = '{version}'\ndef main():\n    {program}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: flowedge\nVersion: {version}\nProvides-Extra: station\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nflowedge = flowedge:main\n",
    }
    with zipfile.ZipFile(folder / f"flowedge-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD")))
    return folder


def install(device: FreshDevice, wheels: Path) -> str:
    done = device.run(INSTALL, "--wheels", wheels, "--extras", "station", "--python", PYTHON)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installation_is_updated_kept_and_removed(device: FreshDevice, tmp_path: Path) -> None:
    told = install(device, wheels_with(tmp_path / "wheels", "1.0"))
    assert "FlowEdge 1.0 is installed" in told
    assert device.run("/usr/local/bin/flowedge").stdout == "1.0\n"
    assert "flowedge" in device.run("id", "flowedge").stdout
    settings, state = device.changed("/etc/flowedge"), device.changed("/var/lib/flowedge")
    assert (stat.S_IMODE(settings.stat().st_mode), settings.stat().st_uid) == (0o700, 0)
    assert stat.S_IMODE(state.stat().st_mode) == 0o750
    assert state.stat().st_uid != 0
    assert device.run("systemctl", "is-enabled", "flowedge-station.service").stdout == "enabled\n"
    assert device.run("systemd-analyze", "verify", UNIT).stderr == ""

    first = device.changed("/opt/flowedge/current").readlink()
    assert "so it stays" in install(device, tmp_path / "wheels")
    assert device.changed("/opt/flowedge/current").readlink() == first

    # A release that does not start leaves the old one at work, and nothing of its own.
    broken = wheels_with(tmp_path / "wheels", "2.0", "raise SystemExit(1)")
    done = device.run(INSTALL, "--wheels", broken, "--extras", "station", "--python", PYTHON)
    assert done.returncode == 2
    assert f"The new release does not start. The release {first} is unchanged." in done.stderr
    assert device.run("/usr/local/bin/flowedge").stdout == "1.0\n"
    assert device.run("ls", "/opt/flowedge/releases").stdout.split() == [first.name]

    # An update keeps the settings, and the release before it.
    device.run("touch", "/etc/flowedge/secrets.env", "/var/lib/flowedge/station.toml")
    install(device, wheels_with(tmp_path / "wheels", "3.0"))
    assert device.run("/usr/local/bin/flowedge").stdout == "3.0\n"
    assert len(device.run("ls", "/opt/flowedge/releases").stdout.split()) == 2

    assert device.run(INSTALL, "--uninstall").returncode == 0
    assert device.run("ls", "/etc/flowedge", "/var/lib/flowedge").stdout.split() == [
        "/etc/flowedge:",
        "secrets.env",
        "/var/lib/flowedge:",
        "station.toml",
    ]
    for gone in ("/opt/flowedge", "/usr/local/bin/flowedge", UNIT):
        assert device.run("ls", gone).returncode == 2
    assert device.run(INSTALL, "--uninstall", "--purge").returncode == 0
    assert device.run("ls", "-d", "/etc/flowedge", "/var/lib/flowedge").stdout == ""
    assert device.run("id", "flowedge").returncode == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--wheels", "/no/such"], "There is no folder /no/such."),
        (["--wheels", "/etc"], "/etc has 0 wheels of FlowEdge, and one is needed."),
        (["--extras", "a b; reboot"], "It is a list of names with commas"),
        (["--python", "python2.7"], "There is no python2.7."),
        (["--purge"], "The option --purge goes with --uninstall."),
        (["--wheels"], "The option --wheels needs a value."),
        (["--frobnicate"], "There is no option --frobnicate."),
        (["--uid", "root"], "a user's number has digits alone"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_changes(
    device: FreshDevice, options: list[str], words: str
) -> None:
    done = device.run(INSTALL, *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert not device.changed("/opt/flowedge").is_dir()
    assert not device.changed("/etc/flowedge").is_dir()


@pytest.mark.parametrize(("release", "cuda"), [("36", "cu12"), ("38", "cu13")])
def test_a_jetson_gets_the_bindings_of_its_own_cuda(device: FreshDevice, release: str, cuda: str) -> None:
    file = device.changed("/etc/nv_tegra_release")
    file.parent.mkdir()
    file.write_text(
        f"# R{release} (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n", encoding="utf-8"
    )
    assert f"'.[station,ort,tensorrt-{cuda}]'" in device.run(INSTALL, "--wheels", "/etc").stderr


def test_the_extras_of_the_installation_are_those_of_the_package() -> None:
    named = {
        one
        for file in (INSTALL, *DEPLOY.glob("Dockerfile*"))
        for names in re.findall(r'(?:EXTRAS=|tell "?)(station[a-z0-9,-]*)', file.read_text(encoding="utf-8"))
        for one in names.split(",")
    }
    assert {"station", "ort", "openvino"} < named
    assert named - {"tensorrt-cu"} <= REQUIREMENTS.keys()  # to which the script adds the version of CUDA


def test_a_command_of_somebody_else_is_not_replaced(device: FreshDevice, tmp_path: Path) -> None:
    device.run("touch", "/usr/local/bin/flowedge")
    done = device.run(INSTALL, "--wheels", wheels_with(tmp_path / "wheels", "1.0"), "--python", PYTHON)
    assert done.returncode == 2
    assert "/usr/local/bin/flowedge exists and is not from this script." in done.stderr
