"""Deliver the records of the journal to files, brokers, controllers and servers.

``SINKS`` is the only list of kinds of sinks. The module of a kind imports its library, and is itself imported only when
a station's file names the kind. So a station needs only the packages of its own sinks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol

from flowedge.errors import FlowEdgeError
from flowedge.packages import explain_missing
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.sinks.settings import SinkSettings

SINKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "jsonl": "flowedge.runtime.station.sinks.jsonl",
        "mqtt": "flowedge.runtime.station.sinks.mqtt",
        "modbus": "flowedge.runtime.station.sinks.modbus",
        "opcua": "flowedge.runtime.station.sinks.opcua",
        "webhook": "flowedge.runtime.station.sinks.webhook",
    }
)
"""The module of each kind of sink. Each module has the functions ``make`` and ``probe``."""


class SinkError(FlowEdgeError):
    """The receiver does not have the records yet. The journal keeps these records, and the delivery tries again.

    Attributes:
        delivered: The number of records of the call that the receiver has, counted from the first one.
        retry_after_s: The shortest time in seconds that the receiver asks to wait.
    """

    def __init__(self, text: str, *, delivered: int = 0, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.delivered = delivered
        self.retry_after_s = retry_after_s


class RefusedError(SinkError):
    """The receiver is there, and refuses the record after the ``delivered`` ones for what is in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StationLink:
    """The facts of a station that its sinks show, and the way back for what a controller writes.

    Attributes:
        station: The name of the station.
        run: The id of this run of the process. A record of another run was journaled before a restart.
        alive: A function that returns False while a stage of the loop hangs. Heartbeats stop then.
        trigger: A function that takes the part id of a trigger by a controller, or None where the controller gave
            none. The function must return at once. Without it, triggers by a controller are ignored.
    """

    station: str
    run: str
    alive: Callable[[], bool] = lambda: True
    trigger: Callable[[str | None], None] | None = None


class RecordSink(Protocol):
    """A receiver of records. `flowedge.runtime.station.sinks.jsonl.JsonLinesSink` is one.

    Only one thread, that of the delivery, calls a sink. Each call ends within the sink's time limits.
    """

    @property
    def name(self) -> str:
        """The name of the sink, by which the journal keeps its cursor."""
        ...

    def open(self) -> None:
        """Connect or listen, and do nothing where that is done already.

        Raises:
            SinkError: The receiver cannot be reached, or the address is taken.
        """
        ...

    def deliver(self, records: Sequence[Record]) -> None:
        """Send the records in order, and return when the receiver has them.

        Raises:
            RefusedError: The receiver refuses one of the records for what is in it.
            SinkError: The receiver does not have all records.
        """
        ...

    def event(self, event: Event) -> None:
        """Send one event, and return when the receiver has it.

        Raises:
            SinkError: The receiver does not have the event.
        """
        ...

    def beat(self) -> None:
        """Show that the station is alive, or that a stage of it hangs.

        Raises:
            SinkError: The connection is lost.
        """
        ...

    def close(self) -> None:
        """Say goodbye to the receiver and free what the sink holds. A closed sink may be opened again."""
        ...


def make_sink(settings: SinkSettings, link: StationLink) -> RecordSink:
    """Make the sink that a table ``[[sinks]]`` describes, without connecting it.

    Raises:
        MissingPackageError: The package of the sink's protocol is not installed.
        SettingsError: A secret that the settings name is not there.
    """
    sink: RecordSink = _module_of(settings).make(settings, link)
    return sink


def probe(settings: SinkSettings, link: StationLink) -> str:
    """Reach the receiver once and leave it as it was, for ``flowedge station check``.

    Returns:
        A sentence that tells what was reached.

    Raises:
        FlowEdgeError: The receiver cannot be reached. The message tells why.
    """
    return str(_module_of(settings).probe(settings, link))


def _module_of(settings: SinkSettings) -> Any:
    with explain_missing("station"):
        return importlib.import_module(SINKS[settings.kind])
