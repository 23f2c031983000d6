"""Receive the verdicts of a station as the systems of a factory do, and note the order in which they came."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any, NamedTuple

from support.mqtt_broker import PASSWORD, USER, Broker


class Received(NamedTuple):
    """A verdict as a receiver has got it.

    Attributes:
        id: The id by which a repeated verdict is known.
        number: The number in the journal.
        digest: The hash of what came, by which a repeat is compared with the first one.
    """

    id: str
    number: int
    digest: bytes


def received(line: bytes) -> Received:
    """Read what a receiver keeps of a verdict from its JSON."""
    facts = json.loads(line)
    return Received(facts["id"], facts["number"], hashlib.blake2b(line, digest_size=8).digest())


class Subscriber:
    """A client of the broker that keeps its session, so that the broker keeps its messages while it reconnects."""

    def __init__(self, broker: Broker, topic: str) -> None:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        self.verdicts: list[Received] = []
        self._topic = topic
        self._subscribed = threading.Event()
        self._client: Any = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="soak-receiver", clean_session=False
        )
        self._client.username_pw_set(USER, PASSWORD)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda _client, _data, message: self.verdicts.append(
            received(bytes(message.payload))
        )
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        if not self._subscribed.wait(30):
            raise RuntimeError("the broker lets nobody subscribe")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def verdicts_of_file(path: Path) -> list[Received]:
    """Read the verdicts of a file with JSON lines, and of the full files before it."""
    files = sorted(path.parent.glob(f"{path.stem}*{path.suffix}"), key=lambda file: file.stat().st_mtime_ns)
    return [received(line) for file in files for line in file.read_bytes().splitlines()]
