"""The cores that a process may use are read from trees of files, as PCs, Arm boards and containers have them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from flowedge.runtime.device import cores as cores_module
from flowedge.runtime.device.cores import Cores, fast_cpus_for, find_cores, suitable_threads, usable_cores
from support.waiting import wait_until

CPU = "sys/devices/system/cpu"


def tree(
    root: Path,
    cores: Iterable[str],
    *,
    allowed: str = "",
    cgroup: str = "",
    files: dict[str, str] | None = None,
) -> Path:
    """Write the files of a machine whose physical cores have the given CPUs, such as ``0,8``."""
    written = dict(files or {})
    for core in cores:
        for cpu in core.split(","):
            written[f"{CPU}/cpu{cpu}/topology/core_cpus_list"] = f"{core}\n"
    count = sum(name.endswith("core_cpus_list") for name in written)
    written[f"{CPU}/online"] = f"0-{count - 1}\n"
    written["proc/self/status"] = f"Name:\tpython\nCpus_allowed_list:\t{allowed or f'0-{count - 1}'}\n"
    written["proc/self/cgroup"] = cgroup
    for name, content in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


PAIRS = [f"{core},{core + 4}" for core in range(4)]


def test_hyperthreads_share_a_core(tmp_path: Path) -> None:
    found = find_cores(tree(tmp_path, PAIRS))
    assert found == Cores(
        cpus=tuple(range(8)),
        physical=4,
        fast_cpus=tuple(range(8)),
        fast_physical=4,
        quota=None,
        whole_machine=True,
    )
    assert (found.threads, found.usable, found.choices) == (4, 4, (4, 8))
    assert str(found) == "4 cores with 8 hyperthreads"
    assert not found.is_hybrid


def test_an_older_kernel_names_the_siblings_of_a_core_otherwise(tmp_path: Path) -> None:
    root = tree(tmp_path, PAIRS)
    for file in root.glob(f"{CPU}/cpu*/topology/core_cpus_list"):
        file.rename(file.with_name("thread_siblings_list"))
    assert find_cores(root).physical == 4


@pytest.mark.parametrize(
    ("allowed", "cpus", "physical"),
    [("0-3", 4, 4), ("0,4", 2, 1), ("1,2,6-7", 4, 3), ("7", 1, 1)],
)
def test_a_process_that_is_bound_to_cpus_has_their_cores(
    tmp_path: Path, allowed: str, cpus: int, physical: int
) -> None:
    found = find_cores(tree(tmp_path, PAIRS, allowed=allowed))
    assert (len(found.cpus), found.physical, found.threads) == (cpus, physical, physical)
    assert not found.whole_machine


@pytest.mark.parametrize(
    ("limit", "quota", "threads", "choices"),
    [
        ("max 100000", None, 4, (4, 8)),
        ("200000 100000", 2.0, 2, (2,)),
        ("150000 100000", 1.5, 1, (1, 2)),
        ("25000 50000", 0.5, 1, (1,)),
        ("600000 100000", 6.0, 4, (4, 6)),
        ("1600000 100000", None, 4, (4, 8)),
        ("damaged", None, 4, (4, 8)),
        ("200000 0", None, 4, (4, 8)),
    ],
)
def test_a_container_with_a_quota_has_fewer_threads(
    tmp_path: Path, limit: str, quota: float | None, threads: int, choices: tuple[int, ...]
) -> None:
    root = tree(tmp_path, PAIRS, cgroup="0::/\n", files={"sys/fs/cgroup/cpu.max": f"{limit}\n"})
    found = find_cores(root)
    assert (found.quota, found.threads, found.choices) == (quota, threads, choices)
    assert found.whole_machine == (quota is None)
    if quota is not None:
        assert f"a quota of {quota:g} CPUs" in str(found)


def test_the_smallest_limit_of_a_control_group_and_its_parents_holds(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/line.slice/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/line.slice/station.service/cpu.max": "max 100000\n",
    }
    root = tree(tmp_path, PAIRS, cgroup="0::/line.slice/station.service\n", files=files)
    assert find_cores(root).quota == 3.0


@pytest.mark.parametrize("path", ["/docker/4711", "/../other", "/"])
def test_a_quota_of_the_first_version_is_found_where_a_container_sees_it(tmp_path: Path, path: str) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct"
    files = {f"{folder}/cpu.cfs_quota_us": "150000\n", f"{folder}/cpu.cfs_period_us": "50000\n"}
    cgroup = f"11:memory:{path}\n4:cpu,cpuacct:{path}\n0::/\n"
    assert find_cores(tree(tmp_path, PAIRS, cgroup=cgroup, files=files)).quota == 3.0
    (tmp_path / folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert find_cores(tmp_path).quota is None


INTEL = ["0,1", "2,3", "4", "5", "6", "7"]
LISTS = {"sys/devices/cpu_core/cpus": "0-3\n", "sys/devices/cpu_atom/cpus": "4-7\n"}


def test_an_intel_processor_with_two_kinds_of_cores_begins_with_the_fast_ones(tmp_path: Path) -> None:
    found = find_cores(tree(tmp_path, INTEL, files=LISTS))
    assert found.is_hybrid
    assert (found.fast_cpus, found.fast_physical, found.physical) == ((0, 1, 2, 3), 2, 6)
    assert (found.threads, found.choices) == (2, (2, 6, 8))
    assert str(found) == "6 cores with 8 hyperthreads, 2 of them fast"


def test_a_process_that_is_bound_to_slow_cores_has_no_fast_ones(tmp_path: Path) -> None:
    found = find_cores(tree(tmp_path, INTEL, allowed="4-6", files=LISTS))
    assert not found.is_hybrid
    assert (found.threads, found.choices) == (3, (3,))


@pytest.mark.parametrize(
    ("capacities", "fast"),
    [
        ((530, 530, 530, 530, 1024, 1024, 1024, 1024), (4, 5, 6, 7)),  # RK3588: Cortex-A55 and A76
        ((250, 250, 250, 250, 870, 870, 870, 1024), (4, 5, 6, 7)),  # two kinds of fast cores
        ((1024, 1024, 1024, 1024), (0, 1, 2, 3)),
        ((1024, 1010, 980, 1024), (0, 1, 2, 3)),  # cores that differ in their clock alone
    ],
)
def test_an_arm_processor_tells_its_fast_cores_by_their_capacity(
    tmp_path: Path, capacities: tuple[int, ...], fast: tuple[int, ...]
) -> None:
    files = {f"{CPU}/cpu{cpu}/cpu_capacity": f"{capacity}\n" for cpu, capacity in enumerate(capacities)}
    found = find_cores(tree(tmp_path, map(str, range(len(capacities))), files=files))
    assert found.fast_cpus == fast
    assert found.threads == len(fast)
    assert found.is_hybrid == (len(fast) < len(capacities))


def test_a_system_without_these_files_has_as_many_cores_as_python_counts(tmp_path: Path) -> None:
    found = find_cores(tmp_path)
    assert (found.physical, found.threads) == (os.cpu_count(), os.cpu_count())
    assert found.whole_machine


def test_this_machine_agrees_with_python() -> None:
    found = find_cores()
    assert set(found.cpus) == os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(found.cpus)


@pytest.mark.parametrize(
    ("wanted", "change", "expected"),
    [
        (None, {}, None),
        (3, {}, 3),
        (None, {"allowed": "0,2"}, 2),
        (5, {"allowed": "0,2"}, 5),
        (None, {"files": LISTS}, 2),
    ],
)
def test_engines_are_given_a_number_only_where_their_own_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: int | None,
    change: dict[str, object],
    expected: int | None,
) -> None:
    found = find_cores(tree(tmp_path, INTEL, **change))  # type: ignore[arg-type]
    monkeypatch.setattr(cores_module, "find_cores", lambda: found)
    assert suitable_threads(wanted) == expected


def test_threads_stay_on_fast_cores_while_there_is_one_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_cores(tree(tmp_path, INTEL, files=LISTS))
    monkeypatch.setattr(cores_module, "find_cores", lambda: found)
    assert [fast_cpus_for(count) for count in (2, 4, 5)] == [(0, 1, 2, 3), (0, 1, 2, 3), ()]
    alike = find_cores(tree(tmp_path / "alike", PAIRS))
    monkeypatch.setattr(cores_module, "find_cores", lambda: alike)
    assert fast_cpus_for(1) == ()


def affinities() -> dict[str, set[int]]:
    """Return the CPUs of each thread of this process."""
    return {one: os.sched_getaffinity(int(one)) for one in os.listdir("/proc/self/task")}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one CPU there is none to stay away from")
def test_the_threads_of_onnx_runtime_stay_on_the_fast_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    ort = pytest.importorskip("onnxruntime")
    from flowedge.runtime.device.denormals import flushing_denormals
    from flowedge.runtime.engines import onnxrt_session
    from flowedge.runtime.opening.engine_status import PROBE_GRAPH

    last = max(os.sched_getaffinity(0))
    monkeypatch.setattr(onnxrt_session, "fast_cpus_for", lambda threads: (last,))
    before = affinities()
    options = onnxrt_session.session_options([("CPUExecutionProvider", {})], 2)
    with flushing_denormals():  # ONNX Runtime would leave this thread flushing them
        session = ort.InferenceSession(PROBE_GRAPH, options, providers=["CPUExecutionProvider"])

    def started() -> list[set[int]]:
        return [cpus for one, cpus in affinities().items() if one not in before]

    wait_until(lambda: started() == [{last}], "the thread of ONNX Runtime on the fast core")
    del session


def test_openvino_is_told_to_take_the_fast_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    ov = pytest.importorskip("openvino")
    from flowedge.runtime.engines import openvino as engine

    assert "SCHEDULING_CORE_TYPE" not in engine._options("CPU", None)
    monkeypatch.setattr(engine, "fast_cpus_for", lambda threads: (0,))
    options = engine._options("CPU", 1)
    assert options["SCHEDULING_CORE_TYPE"] == "PCORE_ONLY"
    core = ov.Core()
    core.set_property("CPU", {"SCHEDULING_CORE_TYPE": options["SCHEDULING_CORE_TYPE"]})
    assert (
        core.get_property("CPU", "SCHEDULING_CORE_TYPE") == ov.properties.hint.SchedulingCoreType.PCORE_ONLY
    )
