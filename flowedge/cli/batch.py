"""``flowedge batch`` judges archives of images into Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowedge.cli.failing import FailOn, failing_from
from flowedge.cli.output import (
    MESSAGES,
    PROBLEMS,
    RESULTS,
    EngineName,
    Json,
    PrecisionOption,
    Threads,
    print_json,
)
from flowedge.cli.places import check_bundle
from flowedge.cli.products import ProductName, folder_of_product
from flowedge.cli.progress import progress_bar
from flowedge.errors import FlowEdgeError
from flowedge.text import images_words

NAME = "batch"


def command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Folders, patterns, files, and addresses that fsspec reads, such as s3://bucket/folder. They hold "
            "images, WebDataset shards (.tar) or Parquet tables with a column of image files.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT.parquet|OUT/",
            help="One Parquet file, or a folder of Parquet files, here or in an object store.",
            show_default=False,
        ),
    ],
    bundle: Annotated[
        Path, typer.Option("--bundle", "-b", help="The bundle, or a pack.", show_default=False)
    ],
    product: ProductName = None,
    engine: EngineName = None,
    precision: PrecisionOption = "fp32",
    threads: Threads = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            metavar="N",
            help="The number of processes, or of Ray's actors. Each has an engine of its own.",
            show_default="one a core, at most 8; 1 on a GPU",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="local|ADDRESS",
            help="Let Ray do the work: on this machine, or on a cluster such as ray://head:10001.",
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option("--batch", min=1, metavar="N", help="The number of images in one run of the engine."),
    ] = 8,
    readers: Annotated[
        int,
        typer.Option(
            "--readers", min=1, metavar="N", help="The threads of each process that read and decode."
        ),
    ] = 4,
    part: Annotated[
        int,
        typer.Option("--part", min=1, metavar="N", help="The number of images in one part of the output."),
    ] = 1000,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="folders|FILE.csv",
            help="Store a label with each image: the name of its folder, such as good, or the label that a CSV file "
            "with the columns image and label has.",
        ),
    ] = None,
    content_column: Annotated[
        str,
        typer.Option("--content-column", metavar="NAME", help="The column of a table with the image files."),
    ] = "image",
    id_column: Annotated[
        str | None,
        typer.Option(
            "--id-column", metavar="NAME", help="The column of a table with the name of each image."
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            "--label-column",
            metavar="NAME",
            help="The column of a table, or the field of a sample such as cls, with the label of each image.",
        ),
    ] = None,
    source_scale: Annotated[
        bool,
        typer.Option("--source-scale", help="Store the normalised score and the verdict of anomalib."),
    ] = False,
    min_region: Annotated[
        int,
        typer.Option("--min-region", min=1, help="The pixels below which a region is not stored."),
    ] = 1,
    fail_on: FailOn = None,
    json: Json = False,
) -> None:
    """Judge archives of images into Parquet, by many processes or a cluster, with exactly one row an image.

    Give the same command again to go on after an interruption. Images that have a row are not judged again.

    The exit status is 0 when every image was inspected, 1 when an image was not, 2 when the command could not run or
    finish, and 4 when an image is anomalous and --fail-on anomalous is given.
    """
    failing = failing_from(fail_on)
    check_bundle(folder_of_product(bundle, product), *sources)
    if labels is not None and label_column is not None:
        raise FlowEdgeError("--labels and --label-column both give labels. Leave out one of them.")
    from flowedge.packages import explain_missing

    with explain_missing("batch"):
        from flowedge.runtime.batch.chunks import Columns
        from flowedge.runtime.batch.job import BatchSettings, run_batch

    settings = BatchSettings(
        bundle=str(bundle),
        product=product,
        engine=engine,
        precision=precision,
        threads=threads,
        source_scale=source_scale,
        min_region_px=min_region,
        batch=batch,
        readers=readers,
        part_images=part,
        labels=labels,
        columns=Columns(content=content_column, id=id_column, label=label_column),
        workers=workers,
        ray=ray,
    )
    with progress_bar() as display:
        summary = run_batch(sources, out, settings, reports=display)
    if summary.first_problem:
        PROBLEMS.print(f"not inspected, the first of this run: {summary.first_problem}", soft_wrap=True)
    if json:
        print_json(summary)
    else:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in summary.verdicts.items())
        RESULTS.print(
            f"{summary.out}: {images_words(summary.rows)}{': ' if counts else ''}{counts}", soft_wrap=True
        )
        rate = f", {summary.judged / summary.seconds:.1f} images/s" if summary.judged else ""
        RESULTS.print(
            f"judged now: {summary.judged} in {summary.seconds:.1f} s{rate}, by {summary.workers} "
            f"{'process' if summary.workers == 1 else 'processes'} on {summary.engine}, {summary.precision}",
            soft_wrap=True,
        )
    if summary.verdicts.get("unknown"):
        MESSAGES.print("No threshold is set: run flowedge calibrate to get verdicts.")
    raise typer.Exit(failing.status(summary.verdicts))
