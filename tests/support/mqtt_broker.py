"""Run a real MQTT broker for tests, and subscribe to it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority

USER, PASSWORD = "st", "secret"


def free_port() -> int:
    """Give a port that no program uses at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Broker:
    """Mosquitto with a plain and a TLS listener, a user, and its database in a folder."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None or shutil.which("mosquitto_passwd") is None:
            pytest.skip("a real broker needs mosquitto: apt-get install mosquitto")
        self.folder, self._program = folder, program
        self.port, self.tls_port = free_port(), free_port()
        self.authority = Authority(folder)
        certificate, key = self.authority.issue("broker")
        subprocess.run(
            ["mosquitto_passwd", "-b", "-c", str(folder / "users"), USER, PASSWORD],
            check=True,
            capture_output=True,
        )
        (folder / "access").write_text(f"user {USER}\ntopic readwrite #\ntopic deny forbidden/#\n")
        (folder / "data").mkdir()
        (folder / "broker.conf").write_text(
            f"""user root
allow_anonymous false
password_file {folder}/users
acl_file {folder}/access
persistence true
persistence_location {folder}/data/
max_queued_messages 0
log_dest stderr
listener {self.port} 127.0.0.1
max_packet_size 20000
listener {self.tls_port} 127.0.0.1
cafile {self.authority.file}
certfile {certificate}
keyfile {key}
"""
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the broker, and return when it listens."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-c", str(self.folder / "broker.conf")], stderr=log
            )
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.01)
            else:
                return

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the broker, such as SIGSTOP."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the broker, which saves nothing then."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


class Subscriber:
    """A client that is independent of the sink and keeps all messages."""

    def __init__(self, broker: Broker, topics: str) -> None:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        self.messages: list[tuple[str, bytes, bool]] = []
        self._ready = threading.Event()
        self._client: Any = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.username_pw_set(USER, PASSWORD)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topics, qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = lambda _client, _data, message: self.messages.append(
            (message.topic, bytes(message.payload), message.retain)
        )
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        assert self._ready.wait(10)

    def payloads(self, topic: str) -> list[bytes]:
        """Give the payloads of one topic in the order in which they came."""
        return [payload for name, payload, _ in list(self.messages) if name == topic]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
