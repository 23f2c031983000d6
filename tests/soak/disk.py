"""Give a small disk of its own to a station, which can be filled to the last byte."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path


class SmallDisk:
    """An ext4 file system in a file, mounted in a folder. Root alone can mount it.

    Args:
        folder: The folder of the image and of the mount.
        megabytes: The size.
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.path = folder / "disk"
        self.path.mkdir()
        self._filler = self.path / "filler"
        self.problem = "" if os.geteuid() == 0 else "only root can mount a small disk"
        if self.problem:
            return
        self._image = folder / "disk.img"
        with self._image.open("wb") as file:
            file.truncate(megabytes << 20)
        for command in (
            ["mkfs.ext4", "-q", "-m", "0", str(self._image)],
            ["mount", "-o", "loop", str(self._image), str(self.path)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                self.problem = f"{command[0]} failed: {done.stderr.strip()}"
                return

    @property
    def free_bytes(self) -> int:
        """The free space."""
        facts = os.statvfs(self.path)
        return facts.f_bavail * facts.f_frsize

    def fill(self) -> None:
        """Take all space that is left."""
        with self._filler.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, self.free_bytes)
            for size in (1 << 20, 4096, 1):
                file.seek(0, os.SEEK_END)
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def empty(self) -> None:
        """Give the space back."""
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Remove the disk, even where a process still uses it."""
        if not self.problem:
            subprocess.run(["umount", "--lazy", str(self.path)], check=False)
            self._image.unlink()
