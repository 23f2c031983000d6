"""Define the contract of an engine's file: the facts of the engine, its orders to load and build, and its functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from flowedge.progress import Reports
from flowedge.runtime.device.device_cache import CachedFile, DeviceCache
from flowedge.runtime.opening.contract import GraphSource
from flowedge.runtime.protocols import Buffer, Engine, SelectsOutputs


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """The facts of one engine.

    Attributes:
        name: The name that a user types.
        module: The module to import when the engine is opened.
        needs: The package that must be importable.
        extra: The extra of FlowEdge that installs the package.
        device: The kind of device that the engine computes on.
        order: Without a name, the first engine by this number that opens is taken. An engine with the value None must
            be named.
        compiled: True for an engine that opens only graphs that ``flowedge build`` has compiled for this machine.
        index: The number of the device among the devices of this kind that the machine shows.
        options: Further options of the library, as pairs of a name and a value.
        covered_by: The precision whose gate covers the rounding of this engine. The engine opens the fp32 graph of
            bundles that passed this gate in all blocks. The text is empty for an engine that computes as its graph
            states.
    """

    name: str
    module: str
    needs: str
    extra: str
    device: str
    order: int | None
    compiled: bool = False
    index: int = 0
    options: tuple[tuple[str, str], ...] = ()
    covered_by: str = ""

    @property
    def listed(self) -> str:
        """The name of the engine in ``ENGINES``, without the number of a device."""
        return self.name.removesuffix(f":{self.index}") if self.index else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The order to load one graph on an engine.

    Attributes:
        spec: The engine's facts.
        source: The graph.
        threads: The number of CPU threads of one inference. Without a number the engine decides.
        takes_turns: True for one of several engines that compute one after the other. Its threads must then leave the
            processor when a run ends, and must not wait there for the next one.
    """

    spec: EngineSpec
    source: GraphSource
    threads: int | None
    takes_turns: bool = False

    @property
    def graph(self) -> Path:
        """The graph's file."""
        return self.source.file

    @property
    def precision(self) -> str:
        """The precision of the graph."""
        return self.source.precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An engine that has loaded a graph, with the facts of its opening. An ``Opened`` is itself an engine.

    Attributes:
        engine: The engine of the library.
        spec: The engine's line in ``ENGINES``.
        precision: The precision of the loaded graph.
        reason: The reason why this engine computes. Somebody named it, or the engines before it could not.
        threads: The number of CPU threads of one inference. Without a number the engine decided.
    """

    engine: Engine
    spec: EngineSpec
    precision: str
    reason: str
    threads: int | None = None

    @property
    def name(self) -> str:
        """The engine's name in ``ENGINES``."""
        return self.spec.name

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the graph's outputs, in the graph's order."""
        return self.engine.output_names

    @property
    def batches(self) -> tuple[int, int] | None:
        """The smallest and the largest number of images of a run. The value is None where every number runs."""
        return self.engine.batches

    def infer(
        self, *inputs: NDArray[Any] | Buffer, outputs: Sequence[str] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Run the graph once, see `flowedge.runtime.protocols.Engine`.

        Args:
            inputs: The graph's inputs, as NumPy arrays or as buffers of another library in the host's memory.
            outputs: The outputs that are needed. An engine may give others too. By default all are given.

        Raises:
            EngineUnavailableError: The device stopped.
            BufferError: The buffer is not in the host's memory.
            ValueError: The engine was closed.
        """
        arrays = (one if isinstance(one, np.ndarray) else np.from_dlpack(one) for one in inputs)
        if outputs is not None and isinstance(self.engine, SelectsOutputs):
            return self.engine.infer_only(outputs, *arrays)
        return self.engine.infer(*arrays)

    def close(self) -> None:
        """Free the memory. The engine cannot be used after it."""
        self.engine.close()


DEFAULT_BATCHES: Final = (1, 1, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """The wishes that a user may have of a builder.

    Attributes:
        batches: The smallest, usual and largest number of images of a run. Equal numbers fix it.
        dla: Run every layer of the backbone that fits on a Jetson's deep learning accelerator.
        capabilities: The compute capabilities, such as 8.9, that TensorRT for RTX builds for. An empty tuple builds for
            every capability from Ampere on.
    """

    batches: tuple[int, int, int] = DEFAULT_BATCHES
    dla: bool = False
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Building:
    """The order to build one engine.

    Attributes:
        opening: The graph and the engine.
        options: The user's wishes.
        cache: The cache that the built engine goes to.
        reports: Told of each step, and in sentences of what happens.
    """

    opening: Opening
    options: BuildOptions
    cache: DeviceCache
    reports: Reports


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An engine in the cache.

    Attributes:
        file: The engine's file, with the facts that it was built from.
        was_built: True where it was built just now, False where the cache had it.
        seconds: The time that building took.
        notes: Sentences about the engine, such as which layers do not run on the accelerator.
    """

    file: CachedFile
    was_built: bool
    seconds: float
    notes: tuple[str, ...] = ()


class EngineModule(Protocol):
    """The functions of each module that an ``EngineSpec`` names."""

    def load(self, opening: Opening) -> Engine:
        """Load a graph and check its inputs and outputs with ``check_contract``."""
        ...

    def probe(self, spec: EngineSpec, graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run a graph with one input and one output of the same shape."""
        ...

    def check_device(self, spec: EngineSpec) -> None:
        """Check that the device is here. Only the modules of engines with ``covered_by`` have this function."""
        ...

    def build(self, building: Building) -> Built:
        """Compile a graph for this machine. Only the modules of ``compiled`` engines have this function."""
        ...
