"""Judge a folder of images by tasks of Spark: python spark_images.py BUNDLE IMAGES OUT."""

from __future__ import annotations

import os
import sys

from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from flowedge.runtime.batch.inspector import BatchInspector
from flowedge.runtime.batch.rows import ROWS


def main() -> None:
    """Read the images, judge them, and write the rows."""
    bundle, images, out = map(os.path.abspath, sys.argv[1:])
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    session = (
        SparkSession.builder.master(os.environ.get("SPARK_MASTER", "local[2]"))
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "64")
        .getOrCreate()
    )
    read = session.read.format("binaryFile").option("recursiveFileLookup", "true").load(images)
    inspector = BatchInspector(bundle, image="path", threads=1)
    rows = read.select("path", "content").mapInArrow(inspector.map_arrow, from_arrow_schema(ROWS))
    rows.write.parquet(out)
    session.stop()


if __name__ == "__main__":
    main()
