"""Take the ids of parts from a PLC that writes the registers of a Modbus TCP server.

The holding registers 1 to 50 have the id in UTF-8, two bytes each, the first one in the upper half, with zeros behind
it. Each new value in register 0 is a message. The PLC writes the id first, or all registers in one request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, Final, cast

from flowedge.errors import SourceError
from flowedge.packages import explain_missing
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.settings import ModbusTrigger, TriggerSettings
from flowedge.runtime.sources.triggers import Listener, Take

REGISTERS: Final = 51
"""The number of holding registers: the counter and the id of the part."""

_WRITES: Final = (
    6,
    16,
    22,
    23,
)  # the functions that write holding registers: one, several, by a mask, with a read
_START_S: Final = 10.0


def listen(settings: TriggerSettings, take: Take, opening: Opening) -> Listener:
    """Listen at a port.

    Raises:
        SourceError: The port cannot be taken.
        MissingPackageError: The package pymodbus is not installed.
    """
    return _Registers(cast(ModbusTrigger, settings), take)


class _Registers:
    """A Modbus TCP server in a thread of its own, which answers every unit."""

    def __init__(self, settings: ModbusTrigger, take: Take) -> None:
        with explain_missing("station"):
            import pymodbus.server  # noqa: F401
        # pymodbus logs the packets of every client that makes a mistake.
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
        self._settings = settings
        self._take = take
        self._values = [0] * REGISTERS
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Any = None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="flowedge modbus trigger", daemon=True
        )
        self._thread.start()
        self._ready.wait(_START_S)
        if self._failure is not None or self._server is None:
            raise SourceError(
                f"the trigger cannot listen at {settings.host}:{settings.port}: {self._failure}. Name another port."
            )

    def close(self) -> None:
        if self._loop is not None and self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._server.shutdown(), self._loop).result(_START_S)
        self._thread.join(_START_S)

    async def _serve(self) -> None:
        from pymodbus.simulator import DataType, SimData, SimDevice

        from flowedge.runtime.limited_modbus import LimitedModbusServer, ModbusLimits

        try:
            bits = [SimData(0, count=16, values=False, datatype=DataType.BITS)]
            registers = [SimData(0, count=REGISTERS, values=0, datatype=DataType.REGISTERS)]
            inputs = [SimData(0, count=1, values=0, datatype=DataType.REGISTERS)]
            device = SimDevice(0, simdata=(bits, bits, registers, inputs), action=self._action)
            server = LimitedModbusServer(device, (self._settings.host, self._settings.port), ModbusLimits())
            self._loop = asyncio.get_running_loop()
            await server.serve_forever(background=True)
        except (OSError, RuntimeError) as error:
            self._failure = error
            self._ready.set()
            return
        self._server = server
        self._ready.set()
        await server.serving

    async def _action(
        self, function: int, _start: int, address: int, _count: int, _registers: object, values: Any
    ) -> None:
        """Take the values that a client writes."""
        if values is None or function not in _WRITES:
            return
        before = self._values[0]
        self._values[address : address + len(values)] = list(values)
        if self._values[0] != before:
            text = b"".join(value.to_bytes(2, "big") for value in self._values[1:])
            self._take(text.rstrip(b"\0"))
