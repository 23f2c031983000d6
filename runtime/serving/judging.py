"""Answer the requests that judge frames: they wait for a batch, a deadline or the end of their client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Final, cast, get_args

from flowedge.runtime.serving.batching import Batcher, Job, late_error
from flowedge.runtime.serving.compression import chosen_coding, compressed, decompressed
from flowedge.runtime.serving.exchange import ClientGoneError, Exchange
from flowedge.runtime.serving.messages import HEADER_LENGTH, Answer, parse_request
from flowedge.runtime.serving.pictures import Picture, PictureInspection
from flowedge.runtime.serving.refusal import RequestError
from flowedge.runtime.serving.repository import Entry, Repository
from flowedge.runtime.serving.settings import LimitSettings
from flowedge.runtime.serving.tensors import Inference
from flowedge.text import shown

_SMALL: Final = 64 << 10


class Judging:
    """The requests that judge frames."""

    def __init__(self, repository: Repository, limits: LimitSettings) -> None:
        """Take the models and the limits."""
        self._repository, self._limits = repository, limits
        # One thread decompresses and parses, so that at most one body is unpacked at a time.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="serve-reading")

    def close(self) -> None:
        """End the thread."""
        self._reading.shutdown(wait=False, cancel_futures=True)

    async def infer(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """Judge the frames of an inference request."""
        entry, _ = self._repository.ready(names["model"], names.get("version"))
        with _Counted(entry) as counted:
            body = await self._opened(exchange)
            request = await self._read(
                len(body), parse_request, memoryview(body), exchange.headers.get(HEADER_LENGTH)
            )
            # The model may have been loaded again while the body came.
            entry, batcher = self._repository.ready(entry.name)
            inference = Inference(entry.name, batcher.model, request, self._limits)
            exchange.hold(inference.answer_bytes)
            deadline = _deadline(request.message.parameters.get("timeout"), 1e6, self._limits.deadline_ms)
            job = Job(inference.products, inference.load, inference.finish, deadline)
            answer = await self._judged(exchange, batcher, job)
            counted.outcome = "ok"
        coding = chosen_coding(exchange.headers.get("accept-encoding", ""), answer.size)
        if not coding:
            return answer
        small = await asyncio.get_running_loop().run_in_executor(
            self._reading, compressed, answer.parts, coding
        )
        return Answer(parts=(small,), headers={**answer.headers, "Content-Encoding": coding})

    async def inspect(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """Judge one picture."""
        wanted = exchange.query("model", "product", "map", "deadline_ms")
        picture = _picture(wanted.get("map"))
        entry, _, _ = self._chosen(wanted.get("model"), wanted.get("product"))
        with _Counted(entry) as counted:
            body = await self._opened(exchange)
            # The model may have been loaded again while the body came.
            entry, batcher, product = self._chosen(wanted.get("model"), wanted.get("product"))
            one = PictureInspection(entry.name, batcher.model, product, bytes(body), picture, self._limits)
            deadline = _deadline(wanted.get("deadline_ms"), 1e3, self._limits.deadline_ms)
            job = Job((product,), one.load, one.finish, deadline)
            answer = await self._judged(exchange, batcher, job)
            counted.outcome = "ok"
            return answer

    def _chosen(self, model: str | None, product: str | None) -> tuple[Entry, Batcher, str | None]:
        """Choose the model of a picture: by its name, by its product, or the only one.

        Raises:
            RequestError: There is no such model or product, or there are several.
        """
        loaded = {name: one for name, one in self._repository.entries.items() if one.batcher is not None}
        if model is None and product is not None:
            fitting = [
                name
                for name, one in loaded.items()
                if one.batcher is not None and product in (one.batcher.model.products or (name,))
            ]
        else:
            fitting = list(loaded) if model is None else [model]
        if len(fitting) != 1:
            listed = ", ".join(fitting or loaded) or "none"
            if product is None:
                problem = f"name the model by the parameter model. Loaded are: {listed}."
            elif fitting:
                problem = f"the models {listed} all have the product {shown(product)}. Name one by the parameter model."
            else:
                problem = (
                    f"no model has the product {shown(product)}. Loaded are: {listed}. The address "
                    "/v2/models/MODEL lists the products of one."
                )
            raise RequestError(
                problem,
                HTTPStatus.NOT_FOUND if not fitting else HTTPStatus.BAD_REQUEST,
                reason="unknown_model",
            )
        entry, batcher = self._repository.ready(fitting[0])
        if model is None and product == entry.name and not batcher.model.products:
            product = None  # the name of a bundle is the name of its product
        return entry, batcher, batcher.model.product_of(product)

    async def _opened(self, exchange: Exchange) -> bytes | bytearray:
        """Read a body and decompress it."""
        body = await exchange.body()
        coding = exchange.headers.get("content-encoding", "")
        if not coding:
            return body
        most = int(self._limits.body_mb * 1e6)
        opened = await asyncio.get_running_loop().run_in_executor(
            self._reading, decompressed, bytes(body), coding, most
        )
        exchange.hold(len(opened))
        return opened

    async def _read(self, size: int, read: Callable[..., Any], *given: Any) -> Any:
        """Parse a request, in the thread where it has much JSON."""
        if given[1] is not None or size < _SMALL:
            return read(*given)
        return await asyncio.get_running_loop().run_in_executor(self._reading, read, *given)

    async def _judged(self, exchange: Exchange, batcher: Batcher, job: Job[Answer]) -> Answer:
        """Wait for the answer of a job, until its deadline or until the client has gone."""
        batcher.submit(job)
        gone = asyncio.ensure_future(exchange.gone())
        waited: set[asyncio.Future[Any]] = {job.answer, gone}
        try:
            await asyncio.wait(
                waited,
                timeout=max(0.0, job.deadline - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if job.answer.done():
                answer = job.answer.result()
                self._trace(exchange, job)
                return answer
            if gone.done():
                raise ClientGoneError
            raise late_error()
        finally:
            gone.cancel()
            if not job.answer.done():
                batcher.withdraw(job)
                job.answer.cancel()

    def _trace(self, exchange: Exchange, job: Job[Answer]) -> None:
        ago = time.monotonic() - job.entered
        exchange.span.stage("queue", ago, job.queue_s, {})
        exchange.span.stage("judge", ago - job.queue_s, ago - job.queue_s, {})


class _Counted:
    """The count of one request of a model, by how it ends."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self.outcome = "failed"

    def __enter__(self) -> _Counted:
        self._begun = time.monotonic()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RequestError):
            self.outcome = error.reason
        elif isinstance(error, ClientGoneError):
            self.outcome = "client_gone"
        self._entry.counts.ended(self.outcome, time.monotonic() - self._begun)


def _picture(wanted: str | None) -> Picture | None:
    """Return the picture of the map that a request asks for.

    Raises:
        RequestError: There is no such picture.
    """
    if wanted is None:
        return None
    for known in get_args(Picture):
        if wanted == known:
            return cast(Picture, known)
    raise RequestError(f"map is png or overlay, got {shown(wanted)}.")


def _deadline(wanted: Any, per_second: float, most_ms: float) -> float:
    """Return the time of `time.monotonic` by which a request must be answered.

    Args:
        wanted: The time that the client allows, as a number or its text. None and 0 mean the most that the server
            allows.
        per_second: The number of the client's units in a second.
        most_ms: The most that the server allows, in ms.
    """
    seconds = most_ms / 1000
    if wanted is not None:
        text = str(wanted)
        if isinstance(wanted, bool) or not text.isdecimal() or len(text) > 15:
            raise RequestError(f"the time for a request is a whole number, got {shown(wanted)}.")
        seconds = min(seconds, int(text) / per_second or seconds)
    return time.monotonic() + seconds
