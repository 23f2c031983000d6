"""Open an engine by name or by order, without a check of its answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Final

from flowedge.bundle import Bundle
from flowedge.errors import EngineNotBuiltError, EngineUnavailableError, EngineWrongError
from flowedge.runtime.device.cores import suitable_threads
from flowedge.runtime.opening.choice import faster_first
from flowedge.runtime.opening.contract import graph_of_bundle
from flowedge.runtime.opening.engine import engine_module, engine_spec, engines_in_order
from flowedge.runtime.opening.engine_contract import EngineSpec, Opened, Opening
from flowedge.runtime.protocols import Engine

_LOG: Final = logging.getLogger(__name__)


def open_unproven(
    name: str | None,
    bundle: Bundle,
    precision: str,
    *,
    threads: int | None = None,
    check: Callable[[Opened], None] | None = None,
    load: Callable[[EngineSpec, str], Engine] | None = None,
) -> Opened:
    """Load one graph of a bundle on an engine whose answers were not checked on this machine.

    Only reports on an engine may open it so: ``flowedge verify``, ``flowedge bench`` and the search for a precision.
    Code that judges parts calls `flowedge.runtime.opening.opening.open_engine`.

    Args:
        name: A name of ``ENGINES``. Without a name, the first by ``order`` that opens here and that ``check`` accepts
            is taken. Where ``--precision auto`` has measured the bundle here, a faster engine comes before a slower
            one. The ``reason`` then tells why the engines before it were passed over.
        bundle: A verified bundle.
        precision: The precision of the graph. ``int8`` means the INT8 graph for the engine's device.
        threads: The number of CPU threads of one inference. Without a number the engine decides, or
            `flowedge.runtime.device.cores` where the process may use only a part of the machine.
        check: A function that raises a `FlowEdgeError` to refuse an opened engine. A refused engine is closed.
        load: A function that loads the graph of a precision on an engine. Without one, the bundle's graph is loaded.

    Raises:
        TypeError: ``threads`` is not a whole number.
        ValueError: ``threads`` is below 1.
        EngineUnavailableError: The engine is unknown, not installed, not importable, or cannot run the graph.
        BundleError: There is no graph of this precision, or it is not what the manifest says.
    """
    if threads is not None and not isinstance(threads, Integral):
        raise TypeError(f"threads must be a whole number or None, got {threads!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")

    threads = suitable_threads(threads)

    def load_graph(spec: EngineSpec, exact: str) -> Engine:
        source = graph_of_bundle(bundle, exact)
        return engine_module(spec).load(Opening(spec=spec, source=source, threads=threads))

    def opened(spec: EngineSpec, exact: str, reason: str) -> Opened:
        begun = time.monotonic()
        if spec.covered_by:
            # Nobody calibrates a bundle for an engine that this machine cannot run.
            engine_module(spec).check_device(spec)
            _check_covered(bundle, spec, exact)
        engine = load_graph(spec, exact) if load is None else load(spec, exact)
        found = Opened(engine=engine, spec=spec, precision=exact, reason=reason, threads=threads)
        if check is not None:
            try:
                check(found)
            except BaseException:
                engine.close()
                raise
        _LOG.info("opened %s on %s (%s), %.2f s", exact, spec.name, reason, time.monotonic() - begun)
        return found

    if name is not None:
        spec = engine_spec(name)
        exact = bundle.manifest.precision_on(spec.device, precision)
        bundle.manifest.graph(exact)
        return opened(spec, exact, "named")
    problems: dict[str, EngineUnavailableError] = {}
    have = {graph.precision for graph in bundle.manifest.graphs}
    engines, measured = faster_first(bundle, precision, engines_in_order(), threads)
    if not any(bundle.manifest.precision_on(spec.device, precision) in have for spec in engines):
        bundle.manifest.graph(precision)  # the error lists the graphs that the bundle has
    for spec in engines:
        if spec.order is None:
            continue
        exact = bundle.manifest.precision_on(spec.device, precision)
        if exact not in have:
            problems[spec.name] = EngineUnavailableError(
                f"{spec.name} needs the {exact} graph, which the bundle does not have."
            )
            _LOG.info("passed over %s: %s", spec.name, problems[spec.name])
            continue
        try:
            return opened(spec, exact, ". ".join(part for part in (_reason(problems), measured) if part))
        except EngineUnavailableError as error:
            _LOG.info("passed over %s: %s", spec.name, error)
            problems[spec.name] = error
    wrong = [problem for problem in problems.values() if isinstance(problem, EngineWrongError)]
    others = [problem for problem in problems.values() if problem not in wrong]
    kind = EngineWrongError if wrong else EngineUnavailableError
    raise kind(" ".join(str(problem) for problem in (*wrong, *others)))


def _check_covered(bundle: Bundle, spec: EngineSpec, precision: str) -> None:
    """Check that a bundle passed the gate that covers the rounding of an engine.

    Raises:
        EngineUnavailableError: The engine does not compute this precision, or the gate was not passed in all blocks.
    """
    if precision != "fp32":
        raise EngineUnavailableError(
            f"{spec.name} computes the fp32 graph alone, got {precision}. Name another engine for it."
        )
    gated = next((graph for graph in bundle.manifest.graphs if graph.precision == spec.covered_by), None)
    if gated is None:
        raise EngineUnavailableError(
            f"{spec.name} rounds every factor of a product, and {bundle.path} has no {spec.covered_by} graph, whose "
            f"gate would cover that. Add one with: flowedge calibrate {bundle.path} --data GOOD --{spec.covered_by}"
        )
    if gated.given_back:
        raise EngineUnavailableError(
            f"{spec.name} rounds every factor of a product, and the gate of {spec.covered_by} kept "
            f"{len(gated.given_back)} blocks of {bundle.path} in float32: {', '.join(gated.given_back[:3])}. Take "
            f"--precision {spec.covered_by} with another engine, which keeps them too."
        )


def _reason(problems: Mapping[str, EngineUnavailableError]) -> str:
    """Explain the choice of an engine without a name, with the problems of wrong engines and those to be built."""
    if not problems:
        return "the first choice"
    in_full = (EngineNotBuiltError, EngineWrongError)
    passed_over = (
        f"the first that opens here; {', '.join(problems)} did not (name one as the engine to see why)"
    )
    return ". ".join([passed_over, *(str(one) for one in problems.values() if isinstance(one, in_full))])
