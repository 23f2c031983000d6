"""Run commands as root in a changed copy of a file system, so that an installation changes nothing of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

_MOUNT = """
set -e
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/changes,workdir=$2/work" "$2/root"
mount -t proc proc "$2/root/proc"
mount --rbind /dev "$2/root/dev"
folder=$2
shift 2
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 chroot "$folder/root" "$@"
"""


class FreshDevice:
    """Give a machine with the files of another one, whose changes go into a folder of their own.

    The mounts live in a namespace of each command, so nothing is left when a command ends.

    Args:
        folder: An empty folder for the changes.
        files: The root of the file system that the device begins with.
    """

    def __init__(self, folder: Path, files: Path = Path("/")) -> None:
        self.folder = folder
        self.files = files
        for name in ("changes", "work", "root"):
            (folder / name).mkdir(parents=True)

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one command in the device, and return its status and output."""
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", _MOUNT, "sh"]
            + [str(one) for one in (self.files, self.folder, *command)],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def changed(self, path: str) -> Path:
        """Return the place on this machine of a file that the device has made or changed."""
        return self.folder / "changes" / path.lstrip("/")


def problem_of_devices(folder: Path) -> str:
    """Return why no fresh device can be made here, or an empty string."""
    if os.geteuid() != 0:
        return "a fresh device needs root"
    if shutil.which("unshare") is None:
        return "a fresh device needs the program unshare"
    trial = FreshDevice(folder).run("true")
    return f"no overlay can be mounted: {trial.stderr.strip()}" if trial.returncode else ""
