"""Make the user land of an ARM device in a folder: Debian's Python, its C library, the wheels for ARM, and QEMU.

Nothing of it is installed on this machine. apt works with settings of its own, its packages are unpacked into the
folder, and QEMU's user mode (``-L``) lets a program of the device see the files of that folder in the place of this
machine's. Programs that a program of the device starts run under QEMU too, because ``sys.executable`` there is the
script that starts QEMU.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

DEBIAN: Final = "bookworm"
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES: Final = ("python3.11", "libstdc++6", "libgomp1")
PYTHON: Final = "3.11"  # Debian's, since JetPack's own 3.10 is in no archive of Debian
PROGRAMS: Final = ("qemu-aarch64-static", "qemu-aarch64")
PLATFORMS: Final = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
_ARMV8: Final = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_ARMV8_2: Final = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
)
PROCESSORS: Final = {
    "cortex-a57": ("0x1", "0xd07", _ARMV8),  # of the Jetson Nano and TX2
    "cortex-a72": ("0x0", "0xd08", _ARMV8),  # of the Raspberry Pi 4
    "cortex-a76": (
        "0x4",
        "0xd0b",
        _ARMV8_2,
    ),  # of the Raspberry Pi 5, with the instructions of a Jetson Orin's cores
    "neoverse-n1": ("0x4", "0xd0c", _ARMV8_2),
}
"""ARM's variant and part number of QEMU's processors, and the features that Linux names."""
JETSON: Final = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin NX, pretended\0",
}
"""The files by which a Jetson with JetPack 6.2 is known."""
COMPLETE: Final = ".complete"


def apt_settings(folder: Path) -> str:
    """Return settings of apt that keep everything in a folder and know the packages for ARM alone.

    Args:
        folder: The folder of apt's lists, of its state and of the downloaded packages.
    """
    values = {
        "APT::Architecture": "arm64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir": str(folder),
        "Dir::Etc": str(folder / "etc"),
        "Dir::Etc::SourceList": str(folder / "etc" / "sources.list"),
        "Dir::Etc::SourceParts": "-",
        "Dir::State": str(folder / "state"),
        "Dir::State::status": str(folder / "state" / "status"),
        "Dir::Cache": str(folder / "cache"),
    }
    return 'APT::Architectures { "arm64"; };\n' + "".join(
        f'{key} "{value}";\n' for key, value in values.items()
    )


def cpuinfo(processor: str, cores: int) -> str:
    """Return what Linux writes into ``/proc/cpuinfo`` on a processor.

    QEMU 7.2 shows a program of the device this machine's own file. ONNX Runtime from 1.28 on finds no ARM processor in
    it and reads a null pointer when it is imported. QEMU 10 writes such a file itself.

    Args:
        processor: A name of ``PROCESSORS``.
        cores: The number of cores.
    """
    variant, part, features = PROCESSORS[processor]
    lines = {
        "BogoMIPS": "62.50",
        "Features": features,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": variant,
        "CPU part": part,
        "CPU revision": "1",
    }
    rest = "".join(f"{key}\t: {value}\n" for key, value in lines.items())
    return "\n".join(f"processor\t: {core}\n{rest}" for core in range(cores))


def starter(qemu: str, processor: str, root: Path) -> str:
    """Return the script that starts the device's Python under QEMU, and that this Python takes for itself.

    Args:
        qemu: QEMU's program.
        processor: A processor as QEMU calls it.
        root: The folder of the device's files.
    """
    command = shlex.join(["-cpu", processor, "-L", str(root), str(root / "usr/bin" / f"python{PYTHON}")])
    return f'#!/bin/sh\nexec {shlex.quote(qemu)} -0 "$0" {command} -S "$@"\n'


def wanted_wheels(onnxruntime: str, numpy: str, dependencies: list[str]) -> list[str]:
    """Return the requirements of a device: those of FlowEdge, with ONNX Runtime and NumPy in the given versions."""
    others = [one for one in dependencies if Requirement(one).name != "numpy"]
    return [f"onnxruntime=={onnxruntime}", f"numpy=={numpy}", *others]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An ARM device in a folder.

    Attributes:
        folder: The folder of everything.
        qemu: QEMU's program.
        processor: A name of ``PROCESSORS``.
        wheels: The folder of the installed wheels.
    """

    folder: Path
    qemu: str
    processor: str
    wheels: Path

    def run(self, *arguments: str | Path, timeout_s: float = 1800) -> subprocess.CompletedProcess[str]:
        """Run the device's Python with arguments, and return its status and what it printed."""
        root = self.folder / "root"
        script = root / "usr/bin" / f"python-{self.processor}"
        script.write_text(starter(self.qemu, self.processor, root), encoding="utf-8")
        script.chmod(0o755)
        cpus = root / "proc/cpuinfo"
        cpus.write_text(cpuinfo(self.processor, os.cpu_count() or 1), encoding="utf-8")
        repository = Path(__file__).resolve().parents[2]
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder / "home"),
            "PYTHONPATH": os.pathsep.join(map(str, (self.wheels, repository, repository / "tests"))),
            "PYTHONPYCACHEPREFIX": str(self.folder / "pycache"),
            "LC_ALL": "C.UTF-8",
            "COLUMNS": "160",
        }
        return subprocess.run(
            [str(script), *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment,
            cwd=self.folder,
        )


def find_qemu() -> tuple[str, str]:
    """Return QEMU's program for ARM and its version.

    Raises:
        SystemExit: There is none.
    """
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        sys.exit(
            "There is no qemu-aarch64-static and no qemu-aarch64. On Debian: apt-get install qemu-user-static"
        )
    printed = subprocess.run([found, "--version"], check=True, capture_output=True, text=True).stdout
    version = re.search(r"version (\d+\.\d+\.\d+)", printed)
    return found, version[1] if version else "unknown"


def make_root(folder: Path) -> None:
    """Download Debian's packages for ARM and unpack them into ``root``, unless this is done already.

    Raises:
        SystemExit: apt, dpkg or Debian's keys are not on this machine.
        CalledProcessError: A package cannot be downloaded or unpacked.
    """
    root, apt = folder / "root", folder / "apt"
    if (root / COMPLETE).exists():
        return
    lacking = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if lacking or not KEYRING.exists():
        sys.exit(
            f"This machine lacks {', '.join(lacking) or KEYRING}, with which Debian's packages for ARM are had."
        )
    for part in ("etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "state/status").touch()
    source = f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {DEBIAN} main\n"
    (apt / "etc/sources.list").write_text(source, encoding="utf-8")
    settings = apt / "apt.conf"
    settings.write_text(apt_settings(apt), encoding="utf-8")
    environment = os.environ | {"APT_CONFIG": str(settings)}
    install = ["install", "--yes", "--download-only", "--no-install-recommends", *PACKAGES]
    for arguments in (["update"], install):
        subprocess.run(["apt-get", "-qq", *arguments], check=True, env=environment)
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", str(package), str(root)], check=True)
    for name, text in JETSON.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (folder / "home").mkdir(exist_ok=True)
    (root / COMPLETE).touch()


def make_wheels(folder: Path, onnxruntime: str, numpy: str, dependencies: list[str]) -> Path:
    """Install the wheels for ARM into a folder of their own, unless this is done already, and return the folder.

    Raises:
        CalledProcessError: The package index has no such wheel for ARM.
    """
    target = folder / f"wheels-{onnxruntime}-{numpy}"
    if (target / COMPLETE).exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    platforms = [option for name in PLATFORMS for option in ("--platform", name)]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--target",
        str(target),
        *platforms,
    ]
    binary = ["--only-binary=:all:", "--python-version", PYTHON, "--target", str(target)]
    subprocess.run([*pip, *binary, *wanted_wheels(onnxruntime, numpy, dependencies)], check=True)
    (target / COMPLETE).touch()
    return target
