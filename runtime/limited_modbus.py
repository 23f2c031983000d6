"""Serve Modbus TCP by pymodbus, with limits on clients, requests and silence."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final

from pymodbus.constants import ExcCodes
from pymodbus.exceptions import NoSuchIdException
from pymodbus.server import ModbusTcpServer
from pymodbus.server.requesthandler import ServerRequestHandler
from pymodbus.simulator import SimDevice
from pymodbus.simulator.simcore import SimCore

_ALL_UNITS: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModbusLimits:
    """The limits of a server.

    Attributes:
        connections: The most clients at a time. A further one is disconnected.
        requests_per_s: The most requests per second of one client. A faster client is disconnected.
        idle_s: The time in seconds after which a silent client is disconnected.
    """

    connections: int = 8
    requests_per_s: int = 500
    idle_s: float = 60.0


class LimitedModbusServer(ModbusTcpServer):  # type: ignore[misc,unused-ignore]
    """A server with limits on clients, requests and silence."""

    def __init__(self, device: SimDevice, address: tuple[str, int], limits: ModbusLimits) -> None:
        super().__init__(device, address=address)
        self.context = _Units(device)
        self.limits = limits

    def callback_new_connection(self) -> _Client:
        client = _Client(  # type: ignore[no-untyped-call,unused-ignore]
            self, self.trace_packet, self.trace_pdu, self.trace_connect
        )
        client.is_one_too_many = len(self.active_connections) >= self.limits.connections
        return client


class _Client(ServerRequestHandler):  # type: ignore[misc,unused-ignore]
    """The connection of one client."""

    is_one_too_many = False
    _silence: asyncio.TimerHandle | None = None
    _second, _requests = 0, 0

    def callback_connected(self) -> None:
        super().callback_connected()
        if self.is_one_too_many:
            self.loop.call_soon(self.close)
        else:
            self._expect_more()

    def callback_data(self, data: bytes, addr: tuple[Any, ...] | None = None) -> int:
        second = int(time.monotonic())
        self._requests = self._requests + 1 if second == self._second else 1
        self._second = second
        if self._requests > self.server.limits.requests_per_s:
            self.close()
            return len(data)
        self._expect_more()
        return int(super().callback_data(data, addr))

    def callback_disconnected(self, exc: Exception | None) -> None:
        if self._silence is not None:
            self._silence.cancel()
        super().callback_disconnected(exc)

    def _expect_more(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self._silence = self.loop.call_later(self.server.limits.idle_s, self.close)


class _Units(SimCore):  # type: ignore[misc,unused-ignore]
    """The registers by unit id. pymodbus logs a traceback for a unit id that it does not know."""

    async def async_getValues(  # noqa: N802, pymodbus has the name
        self, device_id: int, func_code: int, address: int, count: int = 1
    ) -> list[int] | list[bool] | ExcCodes:
        self._check(device_id)
        return await super().async_getValues(device_id, func_code, address, count)

    async def async_setValues(  # noqa: N802, pymodbus has the name
        self, device_id: int, func_code: int, address: int, values: list[int] | list[bool]
    ) -> ExcCodes | None:
        self._check(device_id)
        return await super().async_setValues(device_id, func_code, address, values)

    def _check(self, device_id: int) -> None:
        if device_id not in self.devices and _ALL_UNITS not in self.devices:
            raise NoSuchIdException
