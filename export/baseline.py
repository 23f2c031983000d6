"""Time a bundle's checkpoint in PyTorch beside the bundle, for the bench."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from flowedge.bundle import open_bundle
from flowedge.export.checkpoint_parity import model_of_bundle
from flowedge.runtime.bench.protocol import Job, Started


class TorchBaseline:
    """The reference network of a checkpoint, from the network's input to the levels, as a subject of the bench.

    The baseline leaves out the map and the score, which a bundle's graph computes as well.
    """

    def __init__(self, job: Job) -> None:
        """Load the checkpoint and run it once.

        Raises:
            CheckpointError: The checkpoint cannot be read, or the bundle was made from another one.
        """
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        start = time.perf_counter()
        weights = None if job.backbone_weights is None else Path(job.backbone_weights)
        bundle = open_bundle(job.path)
        read = model_of_bundle(bundle, Path(job.checkpoint), backbone_weights=weights)
        self._reference = read.reference_network()
        self._size = bundle.manifest.image_size
        loaded = time.perf_counter()
        self.work(1)()
        self.started = Started(
            engine="torch",
            version=str(torch.__version__),
            device="cpu",
            load_ms=1000 * (loaded - start),
            first_ms=1000 * (time.perf_counter() - loaded),
        )

    def work(self, batch: int) -> Callable[[], object]:
        """Return a function that runs one inference on a batch of random numbers."""
        image = torch.rand(batch, 3, *self._size, generator=torch.Generator().manual_seed(0))

        def run() -> object:
            with torch.inference_mode():
                return self._reference(image)

        return run
