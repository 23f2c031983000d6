"""Judge a folder of images by workers of Dask: python dask_images.py BUNDLE IMAGES OUT."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import dask.dataframe as dd
import pandas as pd
from dask.distributed import Client, LocalCluster

from flowedge.runtime.batch.inspector import BatchInspector
from flowedge.runtime.batch.rows import ROWS


def main() -> None:
    """List the images, judge them in partitions, and write the rows."""
    bundle, images, out = map(os.path.abspath, sys.argv[1:])
    names = sorted(str(path) for path in Path(images).rglob("*.*"))
    inspector = BatchInspector(bundle, threads=1)
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
    with cluster, Client(cluster):
        table = dd.from_pandas(pd.DataFrame({"image": names}), npartitions=4)
        rows = table.map_partitions(inspector, meta=ROWS.empty_table().to_pandas(), enforce_metadata=False)
        rows.to_parquet(out, schema=ROWS, write_index=False)


if __name__ == "__main__":
    main()
