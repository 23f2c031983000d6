"""Find the processor's cores that this process may use, and the number of threads that suits them.

Engines count the cores of the whole machine. In a container with a quota, in a process that is bound to some CPUs, and
on a processor with two kinds of cores, their own number of threads is too large: threads then wait for each other, for
slow cores, or for the next period of the quota.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CPUS: Final = "sys/devices/system/cpu"
_ALIKE: Final = 0.75  # of the largest capacity, above which a core counts as a fast one


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """The processor's cores that this process may use.

    Attributes:
        cpus: The numbers of the CPUs that this process may run on. A core with hyperthreads is several CPUs.
        physical: The number of physical cores among them.
        fast_cpus: The CPUs of the performance cores of a hybrid processor. Elsewhere these are all CPUs.
        fast_physical: The number of physical cores among the fast CPUs.
        quota: The number of CPUs whose time the container may take. The value is None without a limit.
        whole_machine: True where the process may use every CPU of the machine without a limit.
    """

    cpus: tuple[int, ...]
    physical: int
    fast_cpus: tuple[int, ...]
    fast_physical: int
    quota: float | None
    whole_machine: bool

    @property
    def is_hybrid(self) -> bool:
        """True where some of the CPUs belong to slower cores than others."""
        return len(self.fast_cpus) < len(self.cpus)

    @property
    def usable(self) -> int:
        """The number of physical cores that the process may keep busy."""
        return self._within_quota(self.physical)

    @property
    def threads(self) -> int:
        """The number of threads of one inference that is best before anything is measured."""
        return self._within_quota(self.fast_physical)

    @property
    def choices(self) -> tuple[int, ...]:
        """The numbers of threads that are worth measuring, beginning with `threads`.

        They are the fast physical cores, all physical cores, and all CPUs. A quota that is not whole allows one more.
        """
        counts = [self._within_quota(count) for count in (self.fast_physical, self.physical, len(self.cpus))]
        if self.quota is not None and self.quota < len(self.cpus):
            counts.append(math.ceil(self.quota))
        return tuple(dict.fromkeys(counts))

    def __str__(self) -> str:
        hyperthreads = f" with {len(self.cpus)} hyperthreads" if len(self.cpus) > self.physical else ""
        words = [f"{self.physical} core{'s' * (self.physical > 1)}{hyperthreads}"]
        if self.is_hybrid:
            words.append(f"{self.fast_physical} of them fast")
        if self.quota is not None:
            words.append(f"a quota of {self.quota:g} CPUs")
        return ", ".join(words)

    def _within_quota(self, count: int) -> int:
        return count if self.quota is None else max(1, min(count, int(self.quota)))


def find_cores(root: Path = Path("/")) -> Cores:
    """Find the cores in Linux's files. Elsewhere every CPU counts as a core of its own."""
    online = _numbers(root / _CPUS / "online") or frozenset(range(os.cpu_count() or 1))
    allowed = re.search(r"^Cpus_allowed_list:\s*(\S+)", _text(root / "proc/self/status"), re.MULTILINE)
    cpus = (online & _numbers_in(allowed[1]) if allowed else online) or online
    fast = _fast(root, cpus)
    quota = _quota(root)
    quota = None if quota is not None and quota >= len(cpus) else quota
    return Cores(
        cpus=tuple(sorted(cpus)),
        physical=_physical(root, cpus),
        fast_cpus=tuple(sorted(fast)),
        fast_physical=_physical(root, fast),
        quota=quota,
        whole_machine=cpus == online and quota is None,
    )


def usable_cores() -> int:
    """Count the physical cores that this process may keep busy."""
    return find_cores().usable


def fast_cores() -> int:
    """Count the physical cores that this process may keep busy. Of a hybrid processor only the fast ones count."""
    return find_cores().threads


def suitable_threads(threads: int | None) -> int | None:
    """Return the number of threads to open an engine with, where a user wants the given one.

    Without a wish, the answer is None where the engine's own number is right, which is the whole machine's.
    """
    if threads is not None:
        return threads
    cores = find_cores()
    return None if cores.whole_machine and not cores.is_hybrid else cores.threads


def fast_cpus_for(threads: int) -> tuple[int, ...]:
    """Name the CPUs that threads of one inference should stay on, so that none of them is slower than the others.

    The answer is empty where all cores are alike, and where there are more threads than fast CPUs.
    """
    cores = find_cores()
    return cores.fast_cpus if cores.is_hybrid and threads <= len(cores.fast_cpus) else ()


def _physical(root: Path, cpus: frozenset[int]) -> int:
    """Count the physical cores that CPUs belong to."""
    found = set()
    for cpu in cpus:
        topology = root / _CPUS / f"cpu{cpu}/topology"
        siblings = _numbers(topology / "core_cpus_list") or _numbers(topology / "thread_siblings_list")
        found.add(min(siblings, default=cpu))
    return len(found)


def _fast(root: Path, cpus: frozenset[int]) -> frozenset[int]:
    """Return the CPUs of the fast cores, or all where none is slower.

    Intel's hybrid processors list the CPUs of each kind of core. Arm's tell the capacity of each core.
    """
    fast = cpus & _numbers(root / "sys/devices/cpu_core/cpus")
    if fast:
        return fast
    capacities = {cpu: _text(root / _CPUS / f"cpu{cpu}/cpu_capacity").strip() for cpu in cpus}
    known = {cpu: int(text) for cpu, text in capacities.items() if text.isdecimal()}
    if len(known) < len(cpus):
        return cpus
    least = _ALIKE * max(known.values())
    return frozenset(cpu for cpu, capacity in known.items() if capacity >= least)


def _quota(root: Path) -> float | None:
    """Return the number of CPUs whose time a control group or one of its parents allows, by either version."""
    limits: list[float] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            folders = _with_parents(root / "sys/fs/cgroup", path)
            limits += _limits([_text(folder / "cpu.max").split() for folder in folders])
        elif "cpu" in controllers.split(","):
            folders = _with_parents(root / "sys/fs/cgroup" / controllers, path)
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            limits += _limits([[_text(folder / name).strip() for name in names] for folder in folders])
    return min(limits, default=None)


def _limits(pairs: list[list[str]]) -> list[float]:
    """Return quota divided by period for each pair that has a limit. Without a limit the quota is max or -1."""
    return [
        int(pair[0]) / int(pair[1])
        for pair in pairs
        if len(pair) == 2 and all(text.isdecimal() and int(text) > 0 for text in pair)
    ]


def _with_parents(mount: Path, path: str) -> list[Path]:
    """Return the folders of a control group and its parents. A container may see its own folder as the mount."""
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # outside of what the container sees
        parts = []
    return [mount.joinpath(*parts[:count]) for count in range(len(parts) + 1)]


def _numbers(file: Path) -> frozenset[int]:
    return _numbers_in(_text(file).strip())


def _numbers_in(text: str) -> frozenset[int]:
    """Return the numbers of a list as Linux writes it, such as ``0-3,8``."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
