"""Make the wall clock of a process jump, by a small library that is loaded before all others."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("wallshift.c")


class WallClock:
    """The wall clock of a process that is started with `environment`.

    Args:
        folder: A folder for the library and for the file with the shift.
    """

    def __init__(self, folder: Path) -> None:
        self._shift = folder / "wallshift"
        self._shift.write_bytes(struct.pack("d", 0.0))
        library = folder / "wallshift.so"
        self.problem = "" if shutil.which("gcc") else "the clock jumps by a library that needs gcc"
        self.environment: dict[str, str] = {}
        if not self.problem:
            subprocess.run(
                ["gcc", "-O2", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl", "-lm"], check=True
            )
            self.environment = {"LD_PRELOAD": str(library), "WALLSHIFT_FILE": str(self._shift)}

    def shift(self, seconds: float) -> None:
        """Let the wall clock be wrong by a number of seconds from now on."""
        with self._shift.open("r+b") as file:
            file.write(struct.pack("d", seconds))
