"""The ARM device under QEMU is kept in a folder of its own, and a difference of its answers is found."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from aarch64.run import LIMIT, compared, cpu_precisions, told, verified
from aarch64.userland import apt_settings, cpuinfo, starter, wanted_wheels
from flowedge.runtime.device.machine import cpu_extensions

GOOD = {
    "score": np.array([1.0, 2.0]),
    "anomaly_map": np.ones((2, 4, 4), np.float32),
    "verdict": np.array(["ok", "anomalous"]),
}


@pytest.mark.skipif(not Path("/usr/bin/apt-config").exists(), reason="this machine has no apt")
def test_apt_works_in_the_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "apt.conf").write_text(apt_settings(folder), encoding="utf-8")
    done = subprocess.run(
        ["apt-config", "dump"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"APT_CONFIG": str(folder / "apt.conf")},
    )
    values = dict(line.rstrip(";").split(" ", 1) for line in done.stdout.splitlines())
    assert values["APT::Architecture"] == '"arm64"'
    assert [value for key, value in values.items() if key == "APT::Architectures::"] == ['"arm64"']
    # apt reads every other place below these ones.
    for key in ("Dir", "Dir::State", "Dir::Cache", "Dir::Etc", "Dir::State::status", "Dir::Etc::sourcelist"):
        assert values[key].strip('"').startswith(str(folder)), key


def test_the_file_of_processors_is_read_as_one_of_arm(tmp_path: Path) -> None:
    text = cpuinfo("cortex-a76", 2)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(text, encoding="utf-8")
    assert cpu_extensions(tmp_path) == ("asimddp",)
    processors = [dict(line.split("\t: ") for line in part.splitlines()) for part in text.split("\n\n")]
    assert [one["processor"] for one in processors] == ["0", "1"]
    assert {one["CPU part"] for one in processors} == {"0xd0b"}
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo("cortex-a72", 2), encoding="utf-8")
    assert cpu_extensions(tmp_path) == ()


def test_the_devices_python_is_started_by_the_script_that_it_takes_for_itself(tmp_path: Path) -> None:
    root = tmp_path / "a root"
    qemu = tmp_path / "a qemu"
    qemu.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    script = tmp_path / "python"
    script.write_text(starter(str(qemu), "cortex-a76", root), encoding="utf-8")
    for file in (qemu, script):
        file.chmod(0o755)
    done = subprocess.run([script, "-c", "print('a b')"], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        *("-0", str(script), "-cpu", "cortex-a76", "-L", str(root), f"{root}/usr/bin/python3.11"),
        *("-S", "-c", "print('a b')"),
    ]


def test_the_wheels_have_the_given_versions() -> None:
    wanted = wanted_wheels("1.23.2", "2.2.6", ["numpy>=1.26", "pillow>=11"])
    assert wanted == ["onnxruntime==1.23.2", "numpy==2.2.6", "pillow>=11"]


def test_a_difference_is_a_share_of_the_largest_value() -> None:
    other = GOOD | {"anomaly_map": GOOD["anomaly_map"] + np.float32(0.25)}
    assert compared(GOOD, GOOD) == (0.0, True)
    assert compared(other, GOOD) == (0.25, True)
    assert compared(GOOD | {"verdict": np.array(["ok", "ok"])}, GOOD) == (0.0, False)
    lost, _ = compared(GOOD | {"score": np.array([np.nan, 2.0])}, GOOD)
    assert not lost <= LIMIT


def test_only_precisions_of_a_cpu_are_tried() -> None:
    graphs = [{"precision": name} for name in ("fp32", "fp16", "int8-gpu", "int8-cpu")]
    assert cpu_precisions({"graphs": graphs}) == ["fp32", "int8-cpu"]


def ended(status: int, answer: object) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], status, json.dumps(answer), "")


def test_outcomes_are_told() -> None:
    checks: dict[str, list[object]] = {"checks": [{}, {}]}
    assert verified(ended(0, checks)) == "2 checks passed"
    assert verified(ended(1, checks)) == "FAILED"
    orin = {"ready": True, "machine": {"jetson": {"jetpack": "6.2"}}}
    assert told(ended(0, orin)) == "ready, JetPack 6.2"
    assert told(ended(0, {"ready": False, "machine": {"jetson": None}})) == "not ready, JetPack not found"
    assert told(ended(2, orin)) == "FAILED"
