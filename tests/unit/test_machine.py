"""The facts of a machine are read from trees of files, as JetPack 5, 6 and 7 and a PC have them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import flowedge.runtime.opening.doctor as doctor_of_runtime
from flowedge.cli import doctor
from flowedge.runtime.device.cores import Cores
from flowedge.runtime.device.machine import (
    Memory,
    NvidiaDriver,
    cpu_extensions,
    find_jetson,
    find_memory,
    find_nvidia_driver,
    overflows_in_eight_bits,
    slow_precisions,
    without_driver,
)
from support.command_line import flowedge

RELEASE = "# R{major} (release), REVISION: {revision}, GCID: 1234, BOARD: generic, EABI: aarch64, DATE: Mon\n"
MODES = """
# A comment with < POWER_MODEL ID=9 NAME=NOT_THIS > in it
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online

< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MODE_30W >

# mandatory section to configure the default mode
< PM_CONFIG DEFAULT=2 >
"""


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def jetson_tree(root: Path, major: int, revision: str, model: str, **more: str) -> Path:
    files = {
        "etc/nv_tegra_release": RELEASE.format(major=major, revision=revision),
        "proc/device-tree/model": model + "\0",
        "etc/nvpmodel.conf": MODES,
        "var/lib/nvpmodel/status": "pmode:0001 fmode:quiet\n",
        **more,
    }
    return tree(root, files)


@pytest.mark.parametrize(
    ("major", "revision", "jetpack"),
    [
        (35, "4.1", "5.1.2"),
        (35, "6.0", "5"),
        (36, "3.0", "6.0"),
        (36, "4.0", "6.1"),
        (36, "4.3", "6.2"),
        (36, "5.0", "6"),
        (38, "2.0", "7.0"),
        (38, "4.0", "7.1"),
        (39, "2.0", "7.2"),
        (50, "1.0", "unknown"),
    ],
)
def test_a_jetson_names_its_jetpack_and_power_mode(
    tmp_path: Path, major: int, revision: str, jetpack: str
) -> None:
    root = jetson_tree(tmp_path, major, revision, "NVIDIA Jetson Orin Nano Developer Kit")
    found = find_jetson(root)
    assert found is not None
    assert (found.model, found.l4t, found.jetpack) == (
        "NVIDIA Jetson Orin Nano Developer Kit",
        f"{major}.{revision}",
        jetpack,
    )
    assert (found.power_mode, found.power_modes) == ("15W", ("MAXN", "15W", "MODE_30W"))


def test_until_a_mode_was_chosen_it_is_the_default(tmp_path: Path) -> None:
    root = jetson_tree(tmp_path, 38, "2.0", "NVIDIA Jetson AGX Thor Developer Kit")
    (root / "var/lib/nvpmodel/status").unlink()
    found = find_jetson(root)
    assert found is not None
    assert found.power_mode == "MODE_30W"


def test_a_container_shows_the_release_alone(tmp_path: Path) -> None:
    root = tree(tmp_path, {"etc/nv_tegra_release": RELEASE.format(major=36, revision="4.3")})
    found = find_jetson(root)
    assert found is not None
    assert (found.model, found.power_mode, found.power_modes) == ("Jetson", "", ())


def test_a_pc_is_no_jetson_and_names_its_driver_and_gpus(tmp_path: Path) -> None:
    gpu = "Model: \t\t NVIDIA RTX A2000 12GB\nIRQ:   \t\t 142\nGPU UUID: \t GPU-0\n"
    version = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)\n"
        "GCC version:  gcc version 12.3.0\n"
    )
    root = tree(
        tmp_path,
        {
            "proc/driver/nvidia/version": version,
            "proc/driver/nvidia/gpus/0000:01:00.0/information": gpu,
            "proc/driver/nvidia/gpus/0000:02:00.0/information": gpu.replace("A2000 12GB", "4090"),
        },
    )
    assert find_jetson(root) is None
    found = find_nvidia_driver(root)
    assert (found.version, found.names) == ("580.65.06", ("NVIDIA RTX A2000 12GB", "NVIDIA RTX 4090"))
    assert not without_driver(root)


def test_an_empty_tree_has_nothing(tmp_path: Path) -> None:
    assert find_jetson(tmp_path) is None
    assert find_nvidia_driver(tmp_path) == NvidiaDriver(version="", names=())
    assert "No NVIDIA driver" in without_driver(tmp_path)
    assert find_memory(tmp_path) is None
    assert cpu_extensions(tmp_path) == ()


def test_memory_is_in_bytes(tmp_path: Path) -> None:
    root = tree(
        tmp_path, {"proc/meminfo": "MemTotal:  7629456 kB\nMemFree: 1 kB\nMemAvailable:  5000000 kB\n"}
    )
    assert find_memory(root) == Memory(total=7629456 * 1024, available=5000000 * 1024)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "flags\t\t: fpu avx512f amx_bf16 avx512_vnni amx_tile amx_int8 avx512_bf16",
            "avx512_vnni amx_int8 avx512_bf16 amx_bf16",
        ),
        ("Features\t: fp asimd asimddp bf16", "asimddp bf16"),
        ("bugs\t\t: amx_bf16", ""),
    ],
)
def test_extensions_are_what_the_processor_names(tmp_path: Path, line: str, expected: str) -> None:
    root = tree(tmp_path, {"proc/cpuinfo": f"processor\t: 0\n{line}\n"})
    assert cpu_extensions(root) == tuple(expected.split())


@pytest.mark.parametrize(
    ("machine_name", "line", "expected"),
    [
        ("x86_64", "flags : avx2 fma", True),  # AMD's Zen 1 to 3, Intel before Cascade Lake
        ("x86_64", "flags : avx2 avx512f avx512bw", True),
        ("x86_64", "flags : avx2 avx_vnni", False),
        ("x86_64", "flags : avx512f avx512_vnni", False),
        ("AMD64", "", True),
        ("aarch64", "Features : asimddp", False),
        ("aarch64", "", False),
    ],
)
def test_x86_without_vnni_overflows_in_eight_bits(
    machine_name: str, line: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine_name)
    assert overflows_in_eight_bits(tree(tmp_path, {"proc/cpuinfo": f"{line}\n"})) is expected


@pytest.mark.parametrize(
    ("machine_name", "line", "slow"),
    [
        ("x86_64", "flags : avx2 fma", ("bf16", "int8-cpu")),
        ("x86_64", "flags : avx512f avx512_vnni", ("bf16",)),  # Cascade Lake
        ("x86_64", "flags : avx512f avx512_vnni avx512_bf16", ()),  # Zen 4: no AMX, and bfloat16 is faster
        ("x86_64", "flags : avx512_vnni amx_bf16", ()),
        ("x86_64", "flags : avx_vnni", ("bf16",)),
        ("aarch64", "Features : asimddp", ("bf16",)),
        ("aarch64", "Features : asimddp bf16", ()),
    ],
)
def test_precisions_that_a_processor_computes_in_wider_numbers_are_slow(
    machine_name: str, line: str, slow: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine_name)
    root = tree(tmp_path, {"proc/cpuinfo": f"model name : Old One\n{line}\n"})
    found = slow_precisions(root)
    assert tuple(found) == slow
    assert all("on this processor (Old One)" in sentence for sentence in found.values())


def test_doctor_names_the_precisions_that_are_slow_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_of_runtime, "available_engines", lambda: ())
    monkeypatch.setattr(doctor_of_runtime, "slow_precisions", lambda: {"bf16": "bfloat16 is slow here."})
    assert "bfloat16 is slow here." in flowedge("doctor").stdout
    assert json.loads(flowedge("doctor", "--json").stdout)["slow_precisions"] == {
        "bf16": "bfloat16 is slow here."
    }


def test_doctor_shows_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Cores(
        cpus=(0, 1, 2, 3), physical=3, fast_cpus=(0, 1), fast_physical=1, quota=1.5, whole_machine=False
    )
    monkeypatch.setattr(doctor_of_runtime, "available_engines", lambda: ())
    monkeypatch.setattr(doctor_of_runtime, "find_cores", lambda: found)
    words = " ".join(flowedge("doctor").stdout.split())
    assert "3 cores with 4 hyperthreads, 1 of them fast, a quota of 1.5 CPUs" in words
    machine = json.loads(flowedge("doctor", "--json").stdout)["machine"]
    assert machine["cores"]["fast_cpus"] == [0, 1]


def test_doctor_shows_the_machine_and_every_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = jetson_tree(tmp_path, 36, "4.3", "NVIDIA Jetson Orin NX")
    found = find_jetson(root)
    monkeypatch.setattr("flowedge.runtime.opening.doctor.find_jetson", lambda: found)
    monkeypatch.setattr("flowedge.runtime.opening.engine.find_jetson", lambda: found)
    shown = flowedge("doctor")
    assert shown.status == 0
    assert "Orin NX, JetPack 6.2 (L4T 36.4.3), power mode 15W" in " ".join(shown.stdout.split())
    printed = json.loads(flowedge("doctor", "--json").stdout)
    assert printed["machine"]["jetson"]["jetpack"] == "6.2"
    engines = {engine["name"]: engine for engine in printed["engines"]}
    assert engines["onnxruntime-cpu"]["works"]
    assert engines["openvino"]["works"]
    works = [name for name in printed["order"] if engines[name]["works"]]
    assert printed["default"] in works
    assert f"Here that is {printed['default']}" in shown.stdout
    assert printed["order"][-2:] == ["onnxruntime-cpu", "openvino"]
    if not engines["tensorrt"]["installed"]:
        assert "sudo apt install python3-libnvinfer" in engines["tensorrt"]["problem"]
    assert all(engine["works"] or engine["problem"] for engine in engines.values())
    assert printed["ready"]
    assert shown.stdout.splitlines()[0].strip() == printed["verdict"]
    assert printed["verdict"].startswith(
        "This machine is ready to run bundles on the CPU with onnxruntime-cpu or"
    )


def test_doctor_says_first_that_a_machine_without_an_engine_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(spec: object) -> bool:
        return False

    monkeypatch.setattr("flowedge.runtime.opening.engine.is_installed", absent)
    monkeypatch.setattr("flowedge.runtime.opening.engine_status.is_installed", absent)
    monkeypatch.setattr("flowedge.packages.installed_version", lambda name: None)
    monkeypatch.setattr("flowedge.runtime.opening.doctor.installed_version", lambda name: None)
    done = flowedge("doctor")
    assert done.status == 1
    first, *others = done.stdout.splitlines()
    assert first.strip().startswith("This machine cannot run bundles yet")
    assert "pip install 'onnxruntime>=1.18'" in first
    (lower,) = (line for line in others if line.startswith("adding lower precisions lacks"))
    assert "onnx>=1.17" in lower
    assert "torch" not in lower


def test_doctor_says_that_no_engine_works_on_the_gpu_of_a_machine() -> None:
    found = doctor_of_runtime.doctor()
    driver = NvidiaDriver(version="550", names=("Orin",))
    with_gpu = dataclasses.replace(found, machine=dataclasses.replace(found.machine, nvidia=driver))
    assert "no engine works on its GPU (Orin)" in with_gpu.verdict
    working = tuple(
        dataclasses.replace(one, works=True) if one.spec.name == "tensorrt" else one for one in found.engines
    )
    assert "on the GPU with tensorrt" in dataclasses.replace(with_gpu, engines=working).verdict


def test_every_fact_of_the_machine_has_words() -> None:
    assert doctor._described(None) == "-"
    assert doctor._described(()) == "-"
    assert doctor._described(("amx_int8", "amx_bf16")) == "amx_int8, amx_bf16"
    assert doctor._described(NvidiaDriver(version="", names=())) == "no driver"
    assert (
        doctor._described(Memory(total=8_000_000_000, available=5_000_000_000)) == "8.0 GB, 5.0 GB available"
    )
