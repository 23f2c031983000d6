"""Make the parts of a job's output: read the images of a chunk, judge them, and write their rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np

from flowedge.errors import BundleError
from flowedge.runtime.batch.chunks import Chunk, Columns
from flowedge.runtime.batch.inspector import BatchInspector
from flowedge.runtime.batch.output import IDENTITY, PartFolder
from flowedge.runtime.batch.rows import ROWS


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that the rows of an output depend on. One output has the rows of one identity.

    Attributes:
        bundle_sha256: The SHA-256 of the bundle's manifest.
        product: The product of a pack. The product is empty for a bundle.
        precision: The precision of the graph.
        engine: The engine that was named. The engine is empty where none was named.
        source_scale: True for anomalib's own scale.
        min_region_px: The number of pixels below which a region is left out.
        labels: The place that labels come from. The text is empty without labels.
        id: The column of a table with the name of each image.
        content: The column of a table with the bytes of the images.
    """

    bundle_sha256: str
    product: str = ""
    precision: str = "fp32"
    engine: str = ""
    source_scale: bool = False
    min_region_px: int = 1
    labels: str = ""
    id: str = ""
    content: str = ""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that a process needs to make parts.

    Attributes:
        bundle: The absolute path of the bundle or the pack.
        parts: The folder of the parts.
        identity: The identity of the output.
        columns: The columns of tables.
        threads: The number of CPU threads of one inference. The number is None where the engine decides.
        batch: The largest number of images in one run of the engine.
        readers: The number of threads that read and decode.
    """

    bundle: str
    parts: str
    identity: Identity
    columns: Columns
    threads: int | None
    batch: int
    readers: int


class PartDone(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one chunk.

    Attributes:
        part: The name of the part.
        rows: The number of rows.
        verdicts: The number of rows by verdict.
        problem: The first reason why an image of the chunk was not inspected. The reason is empty where there is none.
    """

    part: str
    rows: int
    verdicts: dict[str, int]
    problem: str = ""


class PartMaker:
    """A callable that makes parts. Each process or actor has one, with one engine."""

    def __init__(self, job: Job | bytes) -> None:
        """Keep the job. The engine is opened by the first chunk.

        Args:
            job: The job, or the job as JSON.
        """
        self._job = msgspec.json.decode(job, type=Job) if isinstance(job, bytes) else job
        identity = self._job.identity
        self._parts = PartFolder(self._job.parts)
        self._inspector = BatchInspector(
            self._job.bundle,
            product=identity.product or None,
            engine=identity.engine or None,
            precision=identity.precision,
            threads=self._job.threads,
            source_scale=identity.source_scale,
            min_region_px=identity.min_region_px,
            batch=self._job.batch,
            readers=self._job.readers,
        )
        self._schema = ROWS.with_metadata({IDENTITY: msgspec.json.encode(identity)})

    def make(self, chunk: Chunk) -> PartDone:
        """Make the part of a chunk, unless the part is there already.

        Raises:
            BundleError: The bundle is not the one that the job began with.
            DataError: The part cannot be written.
            FlowEdgeError: The engine stopped, or a store does not answer.
        """
        if chunk.part in self._parts:
            return PartDone(part=chunk.part, rows=0, verdicts={})
        if self._inspector.bundle_sha256 != self._job.identity.bundle_sha256:
            raise BundleError(
                f"{self._job.bundle} is not the bundle that the job began with: its SHA-256 is "
                f"{self._inspector.bundle_sha256}, and that of the job is {self._job.identity.bundle_sha256}. Copy "
                "the bundle to every node, and do not change it while a job runs."
            )
        rows = self._inspector.table(chunk.images(self._job.columns)).replace_schema_metadata(
            self._schema.metadata
        )
        self._parts.put(chunk.part, rows)
        problems = (
            f"{image}: {problem}"
            for image, problem in zip(rows["image"].to_pylist(), rows["problem"].to_pylist(), strict=True)
            if problem
        )
        return PartDone(
            part=chunk.part,
            rows=len(rows),
            verdicts=dict(Counter(rows["verdict"].to_pylist())),
            problem=next(problems, ""),
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the parts of a batch of Ray Data.

        Args:
            batch: The chunks as JSON, in the column ``chunk``.

        Returns:
            The outcomes as JSON, in the column ``done``.
        """
        done = [
            msgspec.json.encode(self.make(msgspec.json.decode(chunk, type=Chunk))) for chunk in batch["chunk"]
        ]
        return {"done": np.asarray(done, object)}

    def close(self) -> None:
        """Free the engine."""
        self._inspector.close()
