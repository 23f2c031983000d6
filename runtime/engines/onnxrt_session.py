"""Open sessions of ONNX Runtime and run them, with errors in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors  # pyright: ignore[reportAttributeAccessIssue]

from flowedge.errors import BundleError, EngineUnavailableError
from flowedge.files import utf8_name
from flowedge.runtime.device.cores import fast_cpus_for
from flowedge.runtime.device.denormals import flushing_denormals
from flowedge.runtime.device.machine import overflows_in_eight_bits
from flowedge.runtime.engines.onnxrt_tensorrt import Providers
from flowedge.runtime.opening.contract import TensorSpec

CPU: Final = "CPUExecutionProvider"

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}

# The graph asks for an operator or a type that this build lacks, or the machine has not enough of something.
_CANNOT_RUN = (
    ort_errors.NotImplemented,
    ort_errors.EPFail,
    ort_errors.RuntimeException,
    ort_errors.EngineError,
    MemoryError,
)
_BROKEN_GRAPH = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    UnicodeDecodeError,  # a message or a name that quotes bytes of a damaged graph
)

# 1. WeightBiasQuantization would also compute float convolutions between two quantised tensors in eight bits, with one
#    scale for the whole weight. An INT8 graph keeps these convolutions in float because they lose too much.
# 2. QDQPropagationTransformer moves quantisation in front of a pooling of float maps, which then runs 20 times more
#    slowly (a fifth of CFLOW's time in INT8 on resnet18).
DISABLED: Final = ["WeightBiasQuantization", "QDQPropagationTransformer"]

# On x86 processors without VNNI the sum of two products of eight bits overflows its sixteen bits, and the answers are
# wrong. With this option ONNX Runtime takes wider products, which are slower, on every processor. So only those that
# need the option get it.
_WIDER_PRODUCTS: Final = "session.x64quantprecision"

# On a processor with two kinds of cores, all threads of an inference wait for the one that is on a slow core.
_AFFINITIES: Final = "session.intra_op_thread_affinities"


def open_session(
    model: str | bytes,
    providers: Providers,
    *,
    threads: int | None,
    where: str,
    takes_turns: bool = False,
    arena: bool = True,
) -> ort.InferenceSession:
    """Open a session on a graph, with the options of FlowEdge's engines.

    Args:
        model: The graph, or its path.
        providers: The providers with their options, of which the first must compute.
        threads: The number of CPU threads of one inference. Without a number ONNX Runtime decides.
        where: A few words for messages, which name the graph.
        takes_turns: True where sessions run one after the other on the same cores.
        arena: True keeps the memory of a run for the next one.

    Raises:
        BundleError: ONNX Runtime cannot read the graph.
        EngineUnavailableError: ONNX Runtime cannot run the graph, or cannot load the provider.
    """
    options = session_options(providers, threads)
    # A process with many sessions gives back what each of them needs for a run.
    options.enable_cpu_mem_arena = arena
    if takes_turns:
        # Idle threads otherwise hold the cores for a while, and the next session waits for them.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        name = contextlib.nullcontext(model) if isinstance(model, bytes) else utf8_name(model)
        with flushing_denormals(), name as readable:
            session = ort.InferenceSession(
                readable, options, providers=providers, disabled_optimizers=DISABLED, enable_fallback=0
            )
    except _BROKEN_GRAPH as error:
        raise BundleError(
            f"ONNX Runtime {ort.__version__} cannot read {where}: {_one_line(error)}. "
            "Export the bundle again (with a lower --opset, if the reason names the opset)."
        ) from error
    except _CANNOT_RUN as error:
        raise EngineUnavailableError(
            f"ONNX Runtime {ort.__version__} cannot run {where}: {_one_line(error)}. "
            "Take another precision, or install a newer onnxruntime."
        ) from error
    first = session.get_providers()[0]
    if first != providers[0][0]:  # ONNX Runtime only logs that a provider's libraries cannot be loaded
        raise EngineUnavailableError(
            f"ONNX Runtime {ort.__version__} could not load {providers[0][0]} and would compute with {first}. "
            "Its reason is above; check with nvidia-smi, and that CUDA, cuDNN and TensorRT are of the versions that "
            "it was built for."
        )
    return session


def session_options(providers: Providers, threads: int | None) -> ort.SessionOptions:
    """Make the options of a session."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Every fault raises an exception, except that a GPU's libraries cannot be loaded, which is only logged.
    options.log_severity_level = 4 if providers[0][0] == CPU else 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if overflows_in_eight_bits():
        options.add_session_config_entry(_WIDER_PRODUCTS, "1")
    if threads is not None:
        options.intra_op_num_threads = threads
        fast = fast_cpus_for(threads)
        if fast and threads > 1:
            # The calling thread is one of them, so ONNX Runtime starts one less. It counts the CPUs from one.
            named = ",".join(str(cpu + 1) for cpu in fast)
            options.add_session_config_entry(_AFFINITIES, ";".join([named] * (threads - 1)))
    return options


def run_session(
    session: ort.InferenceSession, names: tuple[str, ...] | None, feed: dict[str, NDArray[Any]]
) -> list[NDArray[np.float32]]:
    """Run a session.

    Args:
        session: The session.
        names: The outputs that are wanted, or None for all.
        feed: The inputs by name.

    Raises:
        EngineUnavailableError: The run failed.
    """
    with flushing_denormals(), errors_in_words(tuple(feed.values())):
        answers: list[NDArray[np.float32]] = session.run(names, feed)  # pyright: ignore[reportAssignmentType]
    return answers


@contextlib.contextmanager
def errors_in_words(inputs: Sequence[NDArray[Any]]) -> Iterator[None]:
    """Turn the errors of a run into ones that name the shapes of its inputs.

    Raises:
        EngineUnavailableError: The run failed.
    """
    try:
        yield
    except (*_CANNOT_RUN, *_BROKEN_GRAPH, RuntimeError) as error:  # a bound run raises no type of its own
        shapes = ", ".join(str(array.shape) for array in inputs)
        raise EngineUnavailableError(
            f"ONNX Runtime {ort.__version__} stopped on an input of {shapes}: {_one_line(error)}. "
            "Try a smaller batch."
        ) from error


def specs_of(nodes: list[Any]) -> dict[str, TensorSpec]:
    """Return the types and shapes of a session's inputs or outputs by name."""
    return {
        node.name: TensorSpec(
            _DTYPES.get(node.type, node.type),  # pyright: ignore[reportArgumentType]
            tuple(size if isinstance(size, int) else None for size in node.shape),
        )
        for node in nodes
    }


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
