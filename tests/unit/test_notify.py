"""The messages to the service manager reach a real datagram socket, and a hanging stage gives no sign of life."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowedge.runtime.station.notify import Notifier, Watchdog


class ServiceManager:
    """Listen on a datagram socket as systemd does."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(10)
        self.address = address

    def environment(self, watchdog_s: float = 0) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address} | (
            {"WATCHDOG_USEC": str(round(watchdog_s * 1e6)), "WATCHDOG_PID": str(os.getpid())}
            if watchdog_s
            else {}
        )

    def message(self) -> str:
        return self.socket.recv(4096).decode()

    def is_silent(self, seconds: float) -> bool:
        self.socket.settimeout(seconds)
        try:
            self.socket.recv(4096)
        except TimeoutError:
            return True
        return False


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


def test_the_station_is_ready_and_stops(manager: ServiceManager) -> None:
    notifier = Notifier(manager.environment())
    notifier.ready("judges with onnxruntime-cpu")
    notifier.status("12 frames")
    notifier.stopping()
    assert manager.message() == "READY=1\nSTATUS=judges with onnxruntime-cpu"
    assert manager.message() == "STATUS=12 frames"
    assert manager.message() == "STOPPING=1"


def test_an_abstract_socket_is_reached() -> None:
    manager = ServiceManager(f"@flowedge-test-{os.getpid()}")
    Notifier(manager.environment()).ready()
    assert manager.message() == "READY=1"
    manager.socket.close()


def test_a_line_break_in_the_status_begins_no_message(manager: ServiceManager) -> None:
    Notifier(manager.environment()).status("part 7\nSTOPPING=1")
    assert manager.message() == "STATUS=part 7\\nSTOPPING=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/no/such/socket"}])
def test_a_message_that_nobody_takes_is_no_error(environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    notifier.ready()
    notifier.stopping()


def test_a_service_manager_that_reads_nothing_holds_nobody_up(manager: ServiceManager) -> None:
    notifier = Notifier(manager.environment())
    for number in range(2_000):  # more than the socket's queue holds
        notifier.status(f"frame {number}")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_the_time_of_the_watchdog_is_that_of_this_process(
    environment: dict[str, str], expected: float
) -> None:
    assert Notifier(environment).watchdog_s == expected


def test_signs_of_life_come_while_the_stages_move(manager: ServiceManager) -> None:
    with Watchdog(Notifier(manager.environment(watchdog_s=0.02)), lambda: "3 frames", limit_s=60) as watchdog:
        with watchdog.working("infer"):
            assert manager.message() == "WATCHDOG=1\nSTATUS=3 frames"
        assert manager.message() == "WATCHDOG=1\nSTATUS=3 frames"
        assert not watchdog.hanging()


def test_a_hanging_stage_ends_the_signs_of_life_until_it_moves_again(manager: ServiceManager) -> None:
    hangs, moves = threading.Event(), threading.Event()

    def infer(watchdog: Watchdog) -> None:
        with watchdog.working("infer"):
            hangs.set()
            moves.wait()

    with Watchdog(Notifier(manager.environment(watchdog_s=0.1)), limit_s=1e-6) as watchdog:
        stage = threading.Thread(target=infer, args=(watchdog,))
        stage.start()
        hangs.wait()
        # A sign of life that was sent before the stage hung may still be on its way.
        while (message := manager.message()) == "WATCHDOG=1":
            pass
        assert message.startswith("STATUS=The stage infer has been busy")
        assert manager.is_silent(0.3)
        assert set(watchdog.hanging()) == {"infer"}
        moves.set()
        stage.join()
        manager.socket.settimeout(10)
        assert manager.message() == "WATCHDOG=1"


def test_without_a_service_manager_a_hanging_stage_is_still_known() -> None:
    with Watchdog(Notifier({}), limit_s=1e-9) as watchdog, watchdog.working("journal"):
        assert set(watchdog.hanging()) == {"journal"}


def test_the_log_shows_where_a_process_hung_that_the_watchdog_ends(manager: ServiceManager) -> None:
    program = """
import threading
from flowedge.runtime.station.notify import Notifier, Watchdog
def stuck_in_the_driver():
    notifier.ready()
    threading.Event().wait()
notifier = Notifier()
with Watchdog(notifier) as watchdog, watchdog.working("infer"):
    stuck_in_the_driver()
"""
    environment = os.environ | manager.environment() | {"WATCHDOG_USEC": "60000000"}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert manager.message() == "READY=1"
        process.send_signal(signal.SIGABRT)  # the signal of systemd's watchdog
        assert process.stderr is not None
        assert "stuck_in_the_driver" in process.stderr.read()
    assert process.returncode == -signal.SIGABRT
