"""Read the processor, the memory and the used energy of the machine that a benchmark runs on."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
import time
from pathlib import Path
from typing import Final

from flowedge.children import clean_environment, find_program
from flowedge.runtime.bench.timing_report import Environment
from flowedge.runtime.device.cores import usable_cores
from flowedge.runtime.device.machine import cpu_name, system_name

_SYS: Final = Path("/sys")
_SAMPLE_SECONDS: Final = 0.05
# The names that Jetsons give to the rail of the whole module.
_INPUT_RAILS: Final = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")


def find_environment() -> Environment:
    """Return the facts of this machine. The fields for measured speeds are None."""
    return Environment(
        cpu=cpu_name(),
        cores=usable_cores(),
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        platform=system_name(),
        python=platform.python_version(),
    )


class EnergyMeter:
    """Measure the joules of the device between two moments, by a processor's counters (RAPL) or a Jetson's sensors.

    Neither the counters nor the sensors need a library. Usually only root may read the counters. A counter that cannot
    be read reports nothing.
    """

    def __init__(self, sys: Path = _SYS) -> None:
        zones = sorted(sys.glob("class/powercap/intel-rapl:?"))  # whole packages, not their parts
        self._counters = [zone / "energy_uj" for zone in zones if _number(zone / "energy_uj") is not None]
        self._ranges = [_number(counter.with_name("max_energy_range_uj")) or 0 for counter in self._counters]
        # A machine has counters or sensors. Where it has both, the counters are exact and need no thread.
        self._rail = None if self._counters else _input_rail(sys)
        self._joules, self._before = 0.0, [0.0 for _ in self._counters]
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def reports(self) -> bool:
        """True where there is a counter or a sensor to read."""
        return bool(self._counters) or self._rail is not None

    def start(self) -> None:
        """Begin to count."""
        self._joules = 0.0
        self._before = [_number(counter) or 0 for counter in self._counters]
        if self._rail is not None:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._sample, args=(*self._rail, self._stop), daemon=True)
            self._thread.start()

    def stop(self) -> float | None:
        """Return the joules since ``start``. The value is None where the device reports no energy."""
        if self._thread is not None and self._stop is not None:
            self._stop.set()
            self._thread.join()
        elif self._counters:
            # A counter that has passed its largest value begins again at zero.
            for counter, before, wraps_at in zip(self._counters, self._before, self._ranges, strict=True):
                used = (_number(counter) or before) - before
                self._joules += (used if used >= 0 else used + wraps_at) / 1e6
        return self._joules if self.reports else None

    def _sample(self, volts: Path, amperes: Path, stop: threading.Event) -> None:
        """Add up the energy, in joules, from samples of millivolts times milliamperes."""
        # The stop is looked at after the sample, so that the rest of the last interval counts too.
        last = time.perf_counter()
        while True:
            ended = stop.wait(_SAMPLE_SECONDS)
            now = time.perf_counter()
            self._joules += (_number(volts) or 0) * (_number(amperes) or 0) * 1e-6 * (now - last)
            last = now
            if ended:
                return


def device_memory_mb(pid: int) -> float | None:
    """Return the memory of a process on NVIDIA's GPUs in 10^6 bytes.

    The value is None where ``nvidia-smi`` is missing or reports no memory of the process.
    """
    tool = find_program("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(
        query, capture_output=True, text=True, check=False, timeout=30, env=clean_environment()
    )
    used = [line.split(",")[1] for line in done.stdout.splitlines() if line.startswith(f"{pid},")]
    found = [float(mib) for mib in used if mib.strip().isdigit()]
    # A process may use several cards. The tool reports MiB.
    return sum(found) * 1.048576 if found else None


def _input_rail(sys: Path) -> tuple[Path, Path] | None:
    """Find the INA3221's hwmon files for the millivolts and the milliamperes of the rail that feeds the module."""
    for label in sorted(sys.glob("class/hwmon/hwmon*/in*_label")):
        if _text(label) in _INPUT_RAILS:
            number = label.name.removeprefix("in").removesuffix("_label")
            volts, amperes = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
            if _number(volts) is not None and _number(amperes) is not None:
                return volts, amperes
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    return float(text) if text is not None and text.isdigit() else None
