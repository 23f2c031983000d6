"""Start a station, watch it and start it again, as systemd does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_WATCHDOG_S = 30.0
_START_S = 120.0


@dataclass
class Life:
    """One process of the station.

    Attributes:
        pid: The number of the process.
        started: The moment of its start on the monotonic clock, in seconds.
        ready: The moment at which it told that it is ready, or None.
        alive: The moment of its last sign of life, or None.
        memory: The samples of its memory: seconds since the start, and resident bytes.
        status: The exit status, negative for a signal, or None while it runs.
        ended_by: The word of the soak for what ended it, or an empty text where the station ended itself.
        said: The last line for ``systemctl status``.
    """

    pid: int
    started: float
    ready: float | None = None
    alive: float | None = None
    memory: list[tuple[float, int]] = field(default_factory=list)
    status: int | None = None
    ended_by: str = ""
    said: str = ""


class Service:
    """The supervisor of one station's process.

    Args:
        command: The command of the station.
        folder: The folder of the socket and the log.
        environment: Further variables of the process.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._command = [str(one) for one in command]
        self.log = folder / "station.log"
        self._environment = {**os.environ, **environment}
        # A socket's path may have 108 characters at most, so it is an abstract one.
        name = f"flowedge-soak-{os.getpid()}-{id(self)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name}")
        self._socket.settimeout(0.2)
        self._environment |= {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": str(round(_WATCHDOG_S * 1e6))}
        self._environment.pop("WATCHDOG_PID", None)
        self.lives: list[Life] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._ending = ""
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="service", daemon=True)
        self._closed = False
        self._thread.start()

    @property
    def life(self) -> Life:
        """The newest process."""
        return self.lives[-1]

    def start(self) -> None:
        """Start the station and keep it running, until `stop`."""
        with self._lock:
            self._wanted = True
            self._spawn()

    def wait_until_ready(self) -> None:
        """Wait until the newest process has told that it is ready.

        Raises:
            RuntimeError: It has ended by itself, or has not within two minutes.
        """
        until = time.monotonic() + _START_S
        while self.life.ready is None:
            if time.monotonic() > until or (self.life.status is not None and not self.life.ended_by):
                raise RuntimeError(f"the station did not become ready. Its log ends with:\n{self.tail()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End the station by SIGKILL. It is started again at once."""
        assert self._process is not None
        lives = len(self.lives)
        self._ending = "kill -9"
        self._process.kill()
        while len(self.lives) == lives:
            time.sleep(0.01)
        self.wait_until_ready()

    def stop(self, timeout_s: float = 60.0) -> None:
        """End the station by SIGTERM, and do not start it again."""
        with self._lock:
            self._wanted = False
        assert self._process is not None
        self._ending = "SIGTERM"
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._ending = "SIGKILL after SIGTERM had no effect"
            self._process.kill()
        while self.life.status is None:
            time.sleep(0.01)

    def wait(self) -> int:
        """Wait until the station has ended by itself, and return its status."""
        with self._lock:
            self._wanted = False
        assert self._process is not None
        return self._process.wait()

    def close(self) -> None:
        """End whatever runs."""
        with self._lock:
            self._wanted = False
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._closed = True
        self._thread.join()
        self._socket.close()

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of the station's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        self.lives.append(Life(pid=self._process.pid, started=time.monotonic()))

    def _watch(self) -> None:
        sampled = 0.0
        while not self._closed:
            self._read_messages()
            if not self.lives or self._process is None:
                continue
            life = self.life
            now = time.monotonic()
            if now - sampled >= 1:
                sampled = now
                if resident := resident_bytes(life.pid):
                    life.memory.append((now - life.started, resident))
            status = self._process.poll()
            if status is None and life.alive is not None and now - life.alive > _WATCHDOG_S:
                self._ending = "the watchdog"
                self._process.send_signal(signal.SIGABRT)
            if status is not None and life.status is None:
                life.ended_by, self._ending = self._ending, ""
                life.status = status
                with self._lock:
                    if self._wanted:
                        self._spawn()

    def _read_messages(self) -> None:
        try:
            message = self._socket.recv(4096).decode()
        except TimeoutError:
            return
        now = time.monotonic()
        for line in message.splitlines():
            if line == "READY=1":
                self.life.ready = self.life.alive = now
            elif line == "WATCHDOG=1":
                self.life.alive = now
            elif line.startswith("STATUS="):
                self.life.said = line.removeprefix("STATUS=")


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes, or 0 where it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
