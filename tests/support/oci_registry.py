"""Run Debian's docker-registry with a user and a password."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

USER, PASSWORD = "user", "a password"


@dataclass(frozen=True)
class Registry:
    """A registry that runs.

    Attributes:
        host: Its host and port.
        folder: The folder of its data.
    """

    host: str
    folder: Path

    def blob(self, sha256: str) -> Path:
        """Return the file in which the registry keeps a blob."""
        return self.folder / "docker/registry/v2/blobs/sha256" / sha256[:2] / sha256 / "data"


@contextmanager
def registry(folder: Path) -> Iterator[Registry]:
    """Run a registry in a folder. The test is skipped where there is none."""
    for program in ("docker-registry", "htpasswd"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt-get install docker-registry apache2-utils)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    line = subprocess.run(["htpasswd", "-BbnC", "4", USER, PASSWORD], check=True, capture_output=True).stdout
    (folder / "htpasswd").write_bytes(line)
    (folder / "config.yml").write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{host}'}}\n"
        f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}\n"
    )
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            _wait(host)
            yield Registry(host, folder / "data")
        finally:
            process.terminate()


def _wait(host: str) -> None:
    """Wait until the registry answers."""
    for _ in range(200):
        try:
            urllib.request.urlopen(f"http://{host}/v2/").close()
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the registry does not start")
