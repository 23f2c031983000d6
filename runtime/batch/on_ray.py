"""Make parts by actors of Ray Data, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from flowedge.errors import EngineUnavailableError, FlowEdgeError
from flowedge.packages import explain_missing
from flowedge.runtime.batch.chunks import Chunk
from flowedge.runtime.batch.part_maker import Job, PartDone, PartMaker
from flowedge.signature import ENVIRONMENT
from flowedge.text import printable

LOCAL: Final = "local"
_OWN_TASKS: Final = 2
"""The CPUs that Ray's own tasks need beside the actors. Without them Ray waits for ever, without a message."""

_STORE_BYTES: Final = 256 << 20


def parts_by_ray(
    job: Job, chunks: Iterator[Chunk], workers: int, address: str, *, gpus: float = 0
) -> Iterator[PartDone]:
    """Make the parts of chunks by actors, and give the outcomes as they come.

    The actors read the images and write the parts themselves, so only names go through Ray. An actor that dies is
    started again, and finds the parts that are there.

    Args:
        job: The job. Every node must have the bundle and the output at the places that the job names.
        chunks: The chunks.
        workers: The number of actors.
        address: ``local`` for this machine, or the address of a cluster.
        gpus: The number of GPUs of each actor.

    Raises:
        EngineUnavailableError: The cluster cannot be reached, or has not enough CPUs.
        FlowEdgeError: A part cannot be made.
        MissingPackageError: The package ray is not installed.
    """
    with explain_missing("ray"):
        import ray
        import ray.data
    cpus = job.threads or 1
    listed = [{"chunk": msgspec.json.encode(chunk)} for chunk in chunks]
    if not listed:
        return
    with _started(ray, address, workers * cpus + _OWN_TASKS):
        have = ray.cluster_resources()
        if have.get("CPU", 0) < workers * cpus + 1 or have.get("GPU", 0) < workers * gpus:
            raise EngineUnavailableError(
                f"the cluster has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs, and {workers} actors "
                f"with {cpus} CPUs and {gpus:g} GPUs each need {workers * cpus + 1} CPUs, one of them for Ray's own "
                "tasks, or else they would wait for ever. Give fewer --workers or --threads."
            )
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        made = ray.data.from_items(listed, override_num_blocks=len(listed)).map_batches(
            PartMaker,
            fn_constructor_args=(msgspec.json.encode(job),),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=cpus,
            num_gpus=gpus or None,
        )
        try:
            for row in made.iter_rows():
                yield msgspec.json.decode(row["done"], type=PartDone)
        except ray.exceptions.RayError as error:
            raise _as_ours(error) from error


@contextlib.contextmanager
def _started(ray: Any, address: str, cpus: int) -> Iterator[None]:
    """Connect to a cluster, or start Ray on this machine so that nobody else can reach it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with contextlib.ExitStack() as stack:
        required = os.environ.get(ENVIRONMENT)
        options: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": "ERROR",
            "runtime_env": {"env_vars": {ENVIRONMENT: required} if required else {}},
        }
        if address == LOCAL:
            # Ray would write a token into the home folder, and listen on the machine's own address.
            os.environ["RAY_AUTH_MODE"] = "disabled"
            folder = tempfile.mkdtemp(prefix="ray-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            options |= {
                "address": "local",  # else Ray would join another job of this machine
                "num_cpus": cpus,
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
            }
        else:
            options["address"] = address
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise EngineUnavailableError(
                f"Ray at {printable(address)} cannot be reached: {printable(str(error))}. Check the address, or give "
                "--ray local."
            ) from error
        stack.callback(ray.shutdown)
        yield


def _as_ours(error: BaseException) -> FlowEdgeError:
    """Return the error of FlowEdge that an actor raised, without Ray's traceback around it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, FlowEdgeError):
        cause = getattr(cause, "cause", None) or cause.__cause__
    if cause is not None:
        return FlowEdgeError(str(cause).splitlines()[-1])
    return FlowEdgeError(f"Ray ended the job: {printable(str(error).strip().splitlines()[-1])}")
