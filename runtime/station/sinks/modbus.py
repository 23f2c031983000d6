"""Show the newest record to a PLC over Modbus TCP.

The station is the server. `flowedge.runtime.station.sinks.modbus_map` has the registers.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence

from pymodbus.constants import ExcCodes
from pymodbus.simulator import DataType, SimData, SimDevice

from flowedge.runtime.limited_modbus import LimitedModbusServer, ModbusLimits
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.sinks import SinkError, StationLink
from flowedge.runtime.station.sinks.controllers import Acknowledgement, Shown
from flowedge.runtime.station.sinks.loop_thread import LoopThread, check_address
from flowedge.runtime.station.sinks.modbus_map import (
    ACKNOWLEDGE,
    READ_COUNT,
    TRIGGER,
    TRIGGER_PART,
    WRITE_COUNT,
    bits_of,
    part_from,
    registers_of,
)
from flowedge.runtime.station.sinks.settings import ModbusSettings

# The function codes by which pymodbus chooses one of its four tables.
_COILS, _DISCRETE_INPUTS, _HOLDING, _INPUTS = 15, 2, 16, 4


class ModbusSink:
    """A server whose registers show one record at a time, and optionally wait for the PLC."""

    def __init__(self, settings: ModbusSettings, link: StationLink) -> None:
        """Name the address. The server begins to listen in `open`."""
        self._settings, self._link, self.name = settings, link, settings.cursor
        self._thread: LoopThread | None = None
        self._server: LimitedModbusServer | None = None
        self._shown: Shown | None = None
        self._acknowledgement, self._heartbeat, self._is_ours = Acknowledgement(), 0, False
        self._beat_at = 0.0

    def open(self) -> None:
        """Listen."""
        if self._thread is not None:
            return
        check_address(self._settings.host, self._settings.port)
        # pymodbus logs the packets of every client that makes a mistake.
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
        self._thread = LoopThread(f"modbus {self.name}")
        try:
            self._server = self._thread.call(self._listen())
        except (RuntimeError, OSError) as error:
            self._stop()
            raise SinkError(
                f"the Modbus server cannot listen on {self._settings.host}:{self._settings.port}: {error}"
            ) from error
        self._show()

    def deliver(self, records: Sequence[Record]) -> None:
        """Show one record after the other. With the handshake, each stays until the PLC has acknowledged it."""
        for place, record in enumerate(records):
            # A long backlog must not stop the heartbeat.
            if time.monotonic() - self._beat_at >= self._settings.heartbeat_s:
                self.beat()
            # A record that still waits for its acknowledgement keeps its place.
            if self._shown is None or self._shown.record.id != record.id:
                self._acknowledgement.set(0)
                self._shown = Shown(record, self._link, self._settings.stale_after_s)
                self._show()
            if self._settings.handshake and not self._acknowledgement.wait(
                self._shown.sequence, self._settings.ack_timeout_s, self._settings.heartbeat_s, self.beat
            ):
                raise SinkError(
                    f"the PLC has not acknowledged record {record.number} (sequence {self._shown.sequence}) within "
                    f"{self._settings.ack_timeout_s:g} s.",
                    delivered=place,
                )
        self._show()

    def event(self, event: Event) -> None:
        """Do nothing, since a PLC has no use for words."""

    def beat(self) -> None:
        """Count the heartbeat on, and take back a verdict that has grown old. A hanging stage stops the heartbeat."""
        self._beat_at = time.monotonic()
        if self._link.alive():
            self._heartbeat = (self._heartbeat + 1) % 65536
        if self._thread is not None:
            self._show()

    def close(self) -> None:
        """Stop listening and disconnect all clients."""
        if self._thread is not None and self._server is not None:
            with contextlib.suppress(SinkError):
                self._thread.call(self._server.shutdown())  # type: ignore[no-untyped-call,unused-ignore]
        self._stop()

    def _stop(self) -> None:
        if self._thread is not None:
            self._thread.stop()
        self._thread = self._server = None

    def _show(self) -> None:
        """Write all registers and bits in one step, so that no request sees a part of it."""
        assert self._thread is not None  # the sink is open
        is_waiting = self._settings.handshake and not (
            self._shown is None or self._acknowledgement.has(self._shown.sequence)
        )
        bits = bits_of(self._shown, is_ready=self._link.alive(), is_waiting=is_waiting)
        self._thread.call(self._write(registers_of(self._shown, bits, self._heartbeat), bits))

    async def _write(self, registers: list[int], bits: list[bool]) -> None:
        assert self._server is not None  # the sink is open
        unit = self._settings.unit
        self._is_ours = True
        try:
            # None of these calls waits for anything, so no request comes between them.
            for table in (_HOLDING, _INPUTS):
                await self._server.async_setValues(unit, table, 0, registers)
            for table in (_COILS, _DISCRETE_INPUTS):
                await self._server.async_setValues(unit, table, 0, bits)
        finally:
            self._is_ours = False

    async def _listen(self) -> LimitedModbusServer:
        bits = [SimData(0, count=16, values=False, datatype=DataType.BITS)]
        inputs = [SimData(0, count=READ_COUNT, values=0, datatype=DataType.REGISTERS)]
        writable = SimData(ACKNOWLEDGE, count=WRITE_COUNT, values=0, datatype=DataType.REGISTERS)
        tables = (bits, bits, [*inputs, writable], inputs)
        device = SimDevice(self._settings.unit, simdata=tables, action=self._on_request)
        settings = self._settings
        limits = ModbusLimits(
            connections=settings.connections,
            requests_per_s=settings.requests_per_s,
            idle_s=settings.idle_s,
        )
        server = LimitedModbusServer(device, (settings.host, settings.port), limits)
        await server.serve_forever(background=True)
        return server

    async def _on_request(
        self,
        _function: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        values: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        """Allow a PLC to write the registers that are its own, and look at what it writes."""
        if values is None or self._is_ours:
            return None
        if not (address >= ACKNOWLEDGE and address + count <= ACKNOWLEDGE + WRITE_COUNT):
            return ExcCodes.ILLEGAL_ADDRESS
        own = registers[ACKNOWLEDGE - start : ACKNOWLEDGE - start + WRITE_COUNT]
        before = own[TRIGGER - ACKNOWLEDGE]
        own[address - ACKNOWLEDGE : address - ACKNOWLEDGE + count] = values
        if own[0]:
            self._acknowledgement.set(own[0])
        trigger = own[TRIGGER - ACKNOWLEDGE]
        if trigger not in (0, before) and self._link.trigger is not None:
            self._link.trigger(part_from(own[TRIGGER_PART - ACKNOWLEDGE :]))
        return None


def make(settings: ModbusSettings, link: StationLink) -> ModbusSink:
    """Make the sink of its settings."""
    return ModbusSink(settings, link)


def probe(settings: ModbusSettings, link: StationLink) -> str:
    """Look whether the server can listen, and leave the port free."""
    del link  # nobody is shown anything
    check_address(settings.host, settings.port)
    return f"the Modbus server can listen on {settings.host}:{settings.port}."
