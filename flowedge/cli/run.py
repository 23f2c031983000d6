"""``flowedge run`` inspects images."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from flowedge.cli.build import build_first
from flowedge.cli.failing import FailOn, failing_from
from flowedge.cli.output import (
    MESSAGES,
    Build,
    EngineName,
    Force,
    PrecisionOption,
    Threads,
    print_json,
)
from flowedge.cli.places import check_bundle, check_images, check_output_folder
from flowedge.cli.products import ProductName, folder_of_product
from flowedge.cli.progress import progress_bar
from flowedge.cli.rows import Rows, Totals
from flowedge.cli.signals import EndedBySignal
from flowedge.errors import FlowEdgeError, ImageError
from flowedge.source_addresses import is_camera, kind_of, without_password
from flowedge.targets import check_file_target, check_separate_targets
from flowedge.text import printable

if TYPE_CHECKING:
    from flowedge.cli.progress import Display
    from flowedge.runtime.detector import Detector
    from flowedge.runtime.image_files import DecodeNoted
    from flowedge.runtime.protocols import Sink, Source

NAME = "run"

_CSV_MARK: Final = b"image,verdict,"
_NAMED: Final = 5


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle, or a pack.", show_default=False)],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Images, folders of images and patterns. Each image is inspected once, in the order of the names. "
            "A video file or a camera, such as rtsp://HOST/PATH or v4l2:///dev/video0, is named alone.",
            show_default=False,
        ),
    ] = None,
    list_file: Annotated[
        str | None,
        typer.Option(
            "--list",
            metavar="FILE|-",
            help="Inspect the images that a file or, with -, standard input names, one on each line.",
        ),
    ] = None,
    recursive: Annotated[
        bool,
        typer.Option("--recursive/--no-recursive", help="Search folders with their subfolders."),
    ] = True,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="End after so many images or frames."),
    ] = None,
    batch: Annotated[
        int,
        typer.Option("--batch", min=1, metavar="N", help="The number of images in one run of the engine."),
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="A folder for pictures of the findings and masks, named after the images."
        ),
    ] = None,
    style: Annotated[
        Literal["overlay", "side-by-side", "mask"],
        typer.Option(
            "--style",
            help="The pictures of --out: findings on the frame, the bare frame beside them, or the mask alone.",
        ),
    ] = "overlay",
    area: Annotated[
        Path | None,
        typer.Option(
            "--area",
            metavar="FILE",
            help="A TOML file with the area of each image that is judged: polygons, a mask or tiles.",
        ),
    ] = None,
    product: ProductName = None,
    engine: EngineName = None,
    precision: PrecisionOption = "fp32",
    threads: Threads = None,
    build: Build = False,
    jpeg_decoder: Annotated[
        Literal["cpu", "gpu"],
        typer.Option(
            "--jpeg-decoder",
            help="Decode JPEG files on the CPU, or on an NVIDIA GPU, whose pixels differ by rounding.",
        ),
    ] = "cpu",
    source_scale: Annotated[
        bool,
        typer.Option(
            "--source-scale",
            help="Report the normalised score, map and verdict of anomalib instead of FlowEdge's own.",
        ),
    ] = False,
    min_region: Annotated[
        int,
        typer.Option(
            "--min-region",
            min=1,
            help="The pixels below which a region is not listed. Verdict, score and mask do not depend on it.",
        ),
    ] = 1,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE|-",
            help="Write a line of CSV for each image. With - it is all of the output.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a report as one HTML page.")
    ] = None,
    fail_on: FailOn = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each image and nothing else.")
    ] = False,
    force: Force = False,
) -> None:
    """Inspect images and print a row with the verdict of each as soon as it is known.

    The exit status is 0 when every image was inspected, 1 when an image was not inspected or a picture could not be
    written, 2 when the command could not run or its only image cannot be read, and 4 when an image is anomalous and
    --fail-on anomalous is given.
    """
    failing = failing_from(fail_on)
    csv_is_output = csv is not None and str(csv) == "-"
    if json and csv_is_output:
        raise FlowEdgeError("--json and --csv - both fill standard output. Name a file for one of them.")
    if style != "overlay" and out is None:
        raise FlowEdgeError(f"--style {style} draws no picture without a folder. Add --out FOLDER.")
    bundle = folder_of_product(bundle, product)
    check_bundle(bundle, *(sources or ()))
    camera = _camera(sources or [], list_file)
    if camera and jpeg_decoder == "gpu":
        raise FlowEdgeError(
            "--jpeg-decoder gpu is for image files, and a camera or a video has none. Leave it out."
        )
    for source in sources or ():
        if source != "-" and not is_camera(source):
            check_images(source)
    check_separate_targets(csv, html)
    if csv is not None and not csv_is_output:
        check_file_target(csv, force=force, mark=_CSV_MARK)
    if html is not None:
        check_file_target(html, force=force)
    if out is not None:
        check_output_folder(out)
    import flowedge
    from flowedge.runtime.area.detector import AreaDetector
    from flowedge.runtime.area.settings import AreaSettings
    from flowedge.runtime.csv_file import HEADER, CsvFile, csv_line
    from flowedge.runtime.inspection import batch_of, inspect_source
    from flowedge.runtime.lanes import lanes_of, threads_for_many
    from flowedge.runtime.report.run_report import RunReport
    from flowedge.runtime.settings import read_settings

    drawn = None if area is None else read_settings(area, AreaSettings)
    images = [] if camera else _images(sources or [], list_file, recursive=recursive)[:limit]
    count = limit if camera else len(images)
    comes_one_by_one = is_camera(camera) or count == 1
    if build:
        build_first(bundle, engine, precision)
    totals = Totals()
    with (
        flowedge.load(
            bundle,
            engine=engine,
            precision=precision,
            threads=threads if comes_one_by_one else threads_for_many(threads),
            source_scale=source_scale,
            build=build,
            min_region_px=min_region,
            levels=False,
        ) as loaded,
        contextlib.ExitStack() as stack,
    ):
        detector = loaded if drawn is None else stack.enter_context(AreaDetector(loaded, drawn))
        if failing.anomalous and detector.thresholds.image is None and detector.thresholds.nfa is None:
            raise FlowEdgeError(
                f"--fail-on anomalous never fails: {bundle} has no threshold. Run flowedge calibrate first."
            )
        decode_jpeg = None
        if jpeg_decoder == "gpu":
            from flowedge.runtime.frames.decoders.gpu_jpeg import GpuJpegs

            decode_jpeg = GpuJpegs(detector.engine.spec.index).noted
        at_once = batch_of(detector, batch)[1]
        if at_once != batch:
            MESSAGES.print(f"the engine runs {at_once} images at a time, not {batch}")
        # Each file that an option names is a sink. All of them are closed also where a signal ends the command.
        sinks: list[Sink] = []
        if csv is not None and not csv_is_output:
            sinks.append(CsvFile(csv))
            stack.callback(sinks[-1].close)
        if html is not None:
            name = list_file or ", ".join(without_password(source) for source in sources or [])
            sinks.append(RunReport(html, detector, source=printable(name), images=count))
            stack.callback(sinks[-1].close)
        is_table = not json and not csv_is_output
        if csv_is_output:
            _write(HEADER)
        try:
            # JSON and CSV on a terminal stay as whole as in a file: no bar is drawn below them.
            with progress_bar(is_shown=is_table or not sys.stdout.isatty()) as display:
                rows = Rows(display, by_nfa=detector.thresholds.nfa is not None)
                display.step("inspecting", count)
                opened = _opened(camera, images, detector, display, decode_jpeg)
                for inspection in inspect_source(
                    detector,
                    opened,
                    images,
                    out=out,
                    style=style,
                    sinks=sinks,
                    batch=batch,
                    lanes=1 if comes_one_by_one else lanes_of(detector.engine),
                    limit=limit,
                ):
                    if json:
                        print_json(inspection)
                    elif csv_is_output:
                        _write(csv_line(inspection))
                    # An only image that cannot be read is an error of the command, not one missing result of many.
                    if inspection.latency_ms is None and len(images) == 1 and not camera:
                        raise ImageError(inspection.problem)
                    # Counted first: a reader who ends the command after a row finds the row in the totals.
                    totals.add(inspection)
                    display.advance()
                    if is_table:
                        rows.add(inspection)
                    if inspection.problem:
                        seen = "not inspected" if inspection.verdict == "not_inspected" else "inspected"
                        display.print_problem(f"{seen}: {inspection.problem}")
        except EndedBySignal:
            if is_table:
                totals.print(detector)
            raise
        if is_table:
            totals.print(detector)
    if totals.verdicts["unknown"]:
        MESSAGES.print("No threshold is set: run flowedge calibrate to get verdicts.")
    raise typer.Exit(failing.status(totals.verdicts, file_problems=totals.file_problems))


def _camera(sources: Sequence[str], list_file: str | None) -> str:
    """Return the address of the one camera or video that is named, or an empty text where images are named."""
    cameras = [source for source in sources if is_camera(source)]
    if cameras and (len(sources) > 1 or list_file is not None):
        raise FlowEdgeError(
            f"{without_password(cameras[0])} is a camera, and a camera is inspected alone. Leave out the other names."
        )
    if (
        len(sources) == 1
        and list_file is None
        and kind_of(sources[0]) == "video"
        and not os.path.isdir(sources[0])
    ):
        return sources[0]
    return cameras[0] if cameras else ""


def _opened(
    camera: str,
    images: Sequence[Path],
    detector: Detector,
    display: Display,
    decode_jpeg: DecodeNoted | None,
) -> Source:
    """Open the camera or the video, or else the images."""
    pixel_range = detector.bundle.manifest.pixel_range
    if not camera:
        from flowedge.runtime.image_files import ImageFiles
        from flowedge.runtime.lanes import readers_beside

        readers = readers_beside(detector.engine) if len(images) > 1 else 1
        return ImageFiles(images, pixel_range, readers=readers, decode_jpeg=decode_jpeg)
    from flowedge.runtime.sources import open_source

    return open_source(
        camera, pixel_range=pixel_range, tell=lambda event: display.print_problem(printable(event.text))
    )


def _images(sources: Sequence[str], list_file: str | None, *, recursive: bool) -> list[Path]:
    """Find the images of the command, and print what is left out."""
    from flowedge.runtime.frames.finding import find_all_images, listed_images

    if "-" in sources:
        raise FlowEdgeError("- is no image. To read the names of images from standard input, give --list -.")
    if list_file is not None:
        if sources:
            raise FlowEdgeError(
                "--list names all images. Leave out the other names, or put them into the list."
            )
        try:
            with open(0 if list_file == "-" else list_file, "rb", closefd=list_file != "-") as names:
                return listed_images(names.read())
        except OSError as error:
            raise FlowEdgeError(
                f"{list_file} cannot be read: {error.strerror}. Name a file with a name on each line."
            ) from error
    if not sources:
        raise FlowEdgeError(
            "name images, folders or patterns to inspect, or a list of images with --list FILE."
        )
    found = find_all_images(sources, recursive=recursive)
    for reason, paths in (
        ("a video is inspected alone", [path for path in found.others if kind_of(str(path)) == "video"]),
        ("these files are no images", [path for path in found.others if kind_of(str(path)) != "video"]),
        ("no image is there", found.empty),
        ("--no-recursive was given", found.folders),
    ):
        if paths:
            MESSAGES.print(f"left out, since {reason}: {_names(paths)}", soft_wrap=True)
    if found.repeated:
        times = "once" if found.repeated == 1 else f"{found.repeated} times"
        MESSAGES.print(f"an image was found again {times}. Each image is inspected once.")
    return found.images


def _write(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def _names(paths: Sequence[Path]) -> str:
    """Name a few files and count the rest."""
    named = ", ".join(printable(path.name) for path in sorted(paths)[:_NAMED])
    return f"{named} and {len(paths) - _NAMED} more" if len(paths) > _NAMED else named
