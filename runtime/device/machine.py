"""Find the facts of this computer from files, without a library or a program."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# NVIDIA's Linux for Tegra, major and minor, and the JetPack that brings it.
_JETPACKS: Final = {
    (35, 1): "5.0.2",
    (35, 2): "5.1",
    (35, 3): "5.1.1",
    (35, 4): "5.1.2",
    (35, 5): "5.1.3",
    (36, 3): "6.0",
    (38, 2): "7.0",
    (38, 4): "7.1",
    (39, 2): "7.2",
}
_JETPACKS_BY_MAJOR: Final = {35: "5", 36: "6", 38: "7", 39: "7"}
_JETPACKS_OF_36_4: Final = {"0": "6.1", "3": "6.2", "4": "6.2.1"}
_EXTENSIONS: Final = (
    *("avx_vnni", "avx512_vnni", "amx_int8", "avx512_bf16", "amx_bf16"),
    *("asimddp", "i8mm", "bf16"),  # Arm's
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jetson:
    """A Jetson module.

    Attributes:
        model: The name of the module in its device tree.
        l4t: The release of Linux for Tegra, such as 36.4.3.
        jetpack: The version of JetPack that ``l4t`` belongs to. Only the major version is given where the release is
            not known.
        power_mode: The name of the chosen power mode. The name is empty where the mode cannot be read.
        power_modes: The names of all power modes.
    """

    model: str
    l4t: str
    jetpack: str
    power_mode: str
    power_modes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaDriver:
    """The driver of NVIDIA's GPUs.

    Attributes:
        version: The version of the driver. The version is empty where there is no driver.
        names: The names of the GPUs. There are no names without a driver.
    """

    version: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The machine's memory in bytes: all of it, and what can be had without swapping."""

    total: int
    available: int


def find_jetson(root: Path = Path("/")) -> Jetson | None:
    """Find the facts of the Jetson that this computer is, if it is one."""
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release"))
    if release is None:
        return None
    major, revision = int(release[1]), release[2]
    minor, _, patch = revision.partition(".")
    jetpack = _JETPACKS.get((major, int(minor)), _JETPACKS_BY_MAJOR.get(major, "unknown"))
    if (major, minor) == (36, "4"):
        jetpack = _JETPACKS_OF_36_4.get(patch, jetpack)
    modes = dict(
        re.findall(
            r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", _text(root / "etc/nvpmodel.conf"), re.MULTILINE
        )
    )
    chosen = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status"))
    if chosen is None:  # until a mode is chosen, the default of the list holds
        chosen = re.search(r"^<\s*PM_CONFIG\s+DEFAULT=(\d+)", _text(root / "etc/nvpmodel.conf"), re.MULTILINE)
    return Jetson(
        model=_text(root / "proc/device-tree/model").strip("\0\n ") or "Jetson",
        l4t=f"{major}.{revision}",
        jetpack=jetpack,
        power_mode=modes.get(str(int(chosen[1])), "") if chosen else "",
        power_modes=tuple(modes.values()),
    )


def find_nvidia_driver(root: Path = Path("/")) -> NvidiaDriver:
    """Find NVIDIA's driver and the names of its GPUs in ``/proc``."""
    folder = root / "proc/driver/nvidia"
    version = re.search(r"Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", _text(folder / "version"))
    names = [
        re.search(r"^Model:\s*(.+?)\s*$", _text(file), re.MULTILINE)
        for file in sorted(folder.glob("gpus/*/information"))
    ]
    return NvidiaDriver(
        version=version[1] if version else "", names=tuple(name[1] for name in names if name is not None)
    )


def without_driver(root: Path = Path("/")) -> str:
    """Return a sentence where no NVIDIA driver is found, else an empty text. A Jetson's driver comes with JetPack.

    An error that names a package to install ends with this sentence, because the package alone would not help.
    """
    if find_nvidia_driver(root).version or find_jetson(root) is not None:
        return ""
    return " No NVIDIA driver was found here either. Install it first, since no package reaches a GPU without it."


def cpu_name(root: Path = Path("/")) -> str:
    """Find the processor's name, or the board's where the processor has none."""
    names = [
        line.partition(":")[2].strip()
        for line in _text(root / "proc/cpuinfo").splitlines()
        if line.startswith("model name")
    ]
    return (names[0] if names else _text(root / "proc/device-tree/model").strip("\0 ")) or platform.machine()


def cpu_extensions(root: Path = Path("/")) -> tuple[str, ...]:
    """Name the processor's instructions for eight and sixteen bits, as Linux calls them. Linux may name none.

    Without VNNI or a dot product, INT8 is hardly faster than float32. Without one for bfloat16, bfloat16 is slower.
    """
    flags = cpu_flags(root)
    return tuple(name for name in _EXTENSIONS if name in flags)


def cpu_flags(root: Path = Path("/")) -> tuple[str, ...]:
    """Give all instructions of the processor as Linux names them, sorted. The result is empty where it names none."""
    lines = _text(root / "proc/cpuinfo").splitlines()
    named = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return tuple(sorted({flag for line in named for flag in line.split()}))


def overflows_in_eight_bits(root: Path = Path("/")) -> bool:
    """Return True for an x86 processor without VNNI, which adds two products of eight bits in sixteen that overflow.

    A processor whose instructions Linux does not name counts as one.
    """
    safe = {"avx_vnni", "avx512_vnni", "amx_int8"}
    return platform.machine() in ("x86_64", "AMD64") and safe.isdisjoint(cpu_extensions(root))


def slow_precisions(root: Path = Path("/")) -> Mapping[str, str]:
    """Return a sentence about each precision whose graphs gain nothing on this processor, by the precision.

    A graph of such a precision gives right answers, but an engine on the CPU runs it in wider numbers.
    """
    found: dict[str, str] = {}
    named = cpu_extensions(root)
    if not {"amx_bf16", "avx512_bf16", "bf16"}.intersection(named):
        found["bf16"] = (
            f"bfloat16 is slower than float32 on this processor ({cpu_name(root)}), which has neither AMX nor "
            "AVX512-BF16: OpenVINO took 3.4 times as long as in float32 on such a one."
        )
    if overflows_in_eight_bits(root):
        found["int8-cpu"] = (
            f"INT8 is hardly faster than float32 on this processor ({cpu_name(root)}), which has no VNNI: its products "
            "of eight bits would overflow, so that the engines take wider ones."
        )
    return found


def system_name() -> str:
    """Return the system, its release, its processor's kind and its C library, such as Linux-6.1-aarch64-glibc2.35.

    Python's ``platform.platform`` starts a program for it.
    """
    system = os.uname()
    library = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
    parts = [system.sysname, system.release, system.machine, (library or "").replace(" ", "")]
    return "-".join(part for part in parts if part)


def find_memory(root: Path = Path("/")) -> Memory | None:
    """Find the machine's memory. The value is None where the system does not tell."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE))
    if "MemTotal" not in found:
        return None
    total = int(found["MemTotal"]) * 1024
    return Memory(total=total, available=int(found.get("MemAvailable", 0)) * 1024)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
