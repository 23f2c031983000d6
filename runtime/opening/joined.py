"""Open the products of a pack: one engine for the backbone, and one for the head of each product."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import BundleError
from flowedge.pack import Feature, Pack, backbone_file, head_file
from flowedge.runtime.device.cores import suitable_threads
from flowedge.runtime.opening.contract import GraphSource, TensorSpec, input_of_graph, outputs_of_graph
from flowedge.runtime.opening.engine import AUTO, engine_module
from flowedge.runtime.opening.engine_contract import EngineSpec, Opened, Opening
from flowedge.runtime.opening.proof import prove
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.protocols import Engine


class Joined:
    """An engine of one product: it runs the backbone, which other products share, and then the product's head.

    Closing it closes the two engines only through ``free``, because other products may use the backbone.
    """

    def __init__(
        self, backbone: Engine, head: Engine, features: int, *, free: Callable[[], None] | None = None
    ) -> None:
        self.name = head.name
        self.output_names = head.output_names
        self.backbone, self.head = backbone, head
        self.batches = _both(backbone.batches, head.batches)
        self._features = [f"feature_{number}" for number in range(features)]
        self._free = free
        self._is_closed = False

    def view(self, free: Callable[[], None] | None = None) -> Joined:
        """Make another engine of the same two, which is closed by itself.

        Args:
            free: Called once, when the new engine is closed.
        """
        return Joined(self.backbone, self.head, len(self._features), free=free)

    def infer(self, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        return self.answers(self.features(*inputs))

    def features(self, *inputs: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        """Run the backbone, and return the features in the order in which every head takes them."""
        if self._is_closed:
            raise ValueError("the engine is closed")
        given = self.backbone.infer(*inputs)
        return tuple(given[name] for name in self._features)

    def answers(self, features: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Run the head."""
        if self._is_closed:
            raise ValueError("the engine is closed")
        return self.head.infer(*features)

    def close(self) -> None:
        is_first, self._is_closed = not self._is_closed, True
        if is_first and self._free is not None:
            self._free()


def open_products(
    pack: Pack,
    products: Sequence[str],
    engine: str | None,
    precision: str,
    *,
    threads: int | None = None,
    is_proven: bool = True,
) -> Mapping[str, Opened]:
    """Load the backbone of a pack once and the heads of some products, all on one engine that is proven for each.

    Args:
        pack: A verified pack.
        products: The names of the products.
        engine: A name of ``ENGINES``. Without a name, the first by ``order`` that opens here and is right is taken.
        precision: The precision of the graphs. ``int8`` means the INT8 graphs for the engine's device.
        threads: The number of CPU threads of one inference. Without a number the engine decides.
        is_proven: False opens engines whose answers were not checked, for a report on them.

    Returns:
        By product, an engine whose ``engine`` is a `Joined`.

    Raises:
        BundleError: The pack has no such product or precision, or its graphs are not what it says.
        EngineUnavailableError: The engine cannot run here.
        EngineWrongError: The engine's answers to the self-test of a product are wrong here.
    """
    threads = suitable_threads(threads)
    if precision == AUTO:
        raise BundleError(
            f"{pack.path}: the precision auto measures the graphs of one bundle. For a pack, name one of "
            f"{', '.join(pack.precisions)}."
        )
    # The name int8 stands for the INT8 graphs of any device, if the pack has some.
    if precision != "int8" or not any(name.startswith("int8") for name in pack.precisions):
        pack.backbone(precision)
    backbones: dict[tuple[str, str], Engine] = {}
    heads: list[Engine] = []
    opened: dict[str, Opened] = {}
    try:
        for product in products:
            bundle = pack.product(product)
            first = next(iter(opened.values()), None)
            found = open_unproven(
                engine if first is None else first.name,
                bundle,
                precision if first is None else first.precision,
                threads=threads,
                check=_proof(pack, product, threads) if is_proven else None,
                load=_loader(pack, product, threads, backbones, heads),
            )
            opened[product] = found if first is None else replace(found, reason=first.reason)
    except BaseException:
        for one in (*backbones.values(), *heads):
            one.close()
        raise
    return opened


def open_product(
    pack: Pack, product: str, engine: str | None, precision: str, *, threads: int | None = None
) -> Opened:
    """Load one product of a pack. Closing the engine frees the backbone too.

    Raises:
        BundleError: The cause is one of `open_products`.
        EngineUnavailableError: The cause is one of `open_products`.
    """
    opened = open_products(pack, [product], engine, precision, threads=threads)[product]
    return separate({product: opened})[product]


def separate(engines: Mapping[str, Opened]) -> dict[str, Opened]:
    """Give each product an engine that is closed by itself. The last one to be closed frees the backbone and all heads.

    Args:
        engines: The engines of some products, as `open_products` gives them.
    """
    lock, in_use = threading.Lock(), set(engines)

    def leave(product: str) -> None:
        with lock:
            in_use.discard(product)
            is_last = not in_use
        if is_last:
            close_engines(engines)

    return {
        product: replace(opened, engine=joined_of(opened).view(partial(leave, product)))
        for product, opened in engines.items()
    }


def close_engines(engines: Mapping[str, Opened]) -> None:
    """Close the backbone and the heads of some products."""
    backbones = set[Engine]()
    for opened in engines.values():
        joined = joined_of(opened)
        joined.close()
        joined.head.close()
        backbones.add(joined.backbone)
    for backbone in backbones:
        backbone.close()


def joined_of(opened: Opened) -> Joined:
    """Return the two engines of a product."""
    assert isinstance(opened.engine, Joined)
    return opened.engine


def backbone_source(pack: Pack, precision: str) -> GraphSource:
    """Describe the graph of the backbone."""
    file = backbone_file(precision)
    return GraphSource(
        file=pack.path / file,
        sha256=pack.hash_of_graph(file),
        owner=pack.path,
        precision=precision,
        inputs=dict([input_of_graph(next(iter(pack.products.values())).manifest)]),
        outputs=type_of_features(pack.backbone(precision).features),
    )


def head_source(pack: Pack, product: str, precision: str) -> GraphSource:
    """Describe the graph of a product's head."""
    file = head_file(product, precision)
    return GraphSource(
        file=pack.path / file,
        sha256=pack.hash_of_graph(file),
        owner=pack.path,
        precision=precision,
        inputs=type_of_features(pack.backbone(precision).features),
        outputs=outputs_of_graph(pack.product(product).manifest),
    )


def type_of_features(features: Sequence[Feature]) -> dict[str, TensorSpec]:
    """Return the names and the types of the features that the backbone gives."""
    return {
        f"feature_{number}": TensorSpec("float32", (None, one.channels, one.height, one.width))
        for number, one in enumerate(features)
    }


def _loader(
    pack: Pack,
    product: str,
    threads: int | None,
    backbones: dict[tuple[str, str], Engine],
    heads: list[Engine],
) -> Callable[[EngineSpec, str], Engine]:
    """Return a function that loads the head of a product, and the backbone where it is not loaded yet."""

    def load(spec: EngineSpec, precision: str) -> Engine:
        module = engine_module(spec)

        def loaded(source: GraphSource) -> Engine:
            return module.load(Opening(spec=spec, source=source, threads=threads, takes_turns=True))

        key = spec.name, precision
        if key not in backbones:
            for other in backbones.values():  # of an engine that was tried before and refused
                other.close()
            backbones.clear()
            backbones[key] = loaded(backbone_source(pack, precision))
        heads.append(loaded(head_source(pack, product, precision)))
        return Joined(backbones[key], heads[-1], len(pack.backbone(precision).features))

    return load


def _proof(pack: Pack, product: str, threads: int | None) -> Callable[[Opened], None]:
    """Return a function that replays the self-test of a product."""

    def check(opened: Opened) -> None:
        parts = _hashes(pack, product, opened.precision)
        prove(pack.product(product), opened, threads=threads, parts=parts)

    return check


def _hashes(pack: Pack, product: str, precision: str) -> tuple[str, str]:
    return pack.hash_of_graph(backbone_file(precision)), pack.hash_of_graph(head_file(product, precision))


def _both(one: tuple[int, int] | None, other: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the batch sizes that both engines take."""
    if one is None or other is None:
        return other if one is None else one
    return max(one[0], other[0]), min(one[1], other[1])
