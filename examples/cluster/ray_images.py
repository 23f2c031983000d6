"""Judge a folder of images by actors of Ray Data: python ray_images.py BUNDLE IMAGES OUT."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.data

from flowedge.runtime.batch.inspector import BatchInspector

ACTORS = 2


def main() -> None:
    """Read the images, judge them, and write the rows."""
    bundle, images, out = map(os.path.abspath, sys.argv[1:])
    if "RAY_ADDRESS" in os.environ:
        ray.init()
    else:
        # Ray's own tasks need CPUs beside those of the actors. Without them Ray waits for ever.
        ray.init("local", num_cpus=ACTORS + 2, include_dashboard=False, _node_ip_address="127.0.0.1")
    read = ray.data.read_binary_files(images, include_paths=True)
    rows = read.map_batches(
        BatchInspector,
        fn_constructor_args=(bundle,),
        fn_constructor_kwargs={"image": "path", "content": "bytes", "threads": 1},
        batch_format="pyarrow",
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(size=ACTORS),
    )
    rows.write_parquet(out)


if __name__ == "__main__":
    main()
