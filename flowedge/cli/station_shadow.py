"""``flowedge station shadow`` compares the verdicts of a second bundle with those of the first."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from flowedge.cli.output import MESSAGES, RESULTS, Json, StationFile, number, print_json, table
from flowedge.cli.places import check_bundle
from flowedge.cli.progress import progress_bar
from flowedge.errors import FlowEdgeError, ImageError
from flowedge.targets import check_file_target

if TYPE_CHECKING:
    from flowedge.runtime.station.settings import StationSettings
    from flowedge.runtime.station.watch.comparison import Compared, Pair, Summary

_NAMED: Final = 20
_MOST_PICTURES: Final = 500


def shadow(
    file: StationFile,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="SECOND",
            help="The second bundle. Both bundles then judge the pictures of --data now. Without it, the command "
            "reports on the bundle of [shadow], which judges beside the first one while the station runs.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="The pictures that both bundles judge, with --bundle. By default the frames in the station's archive.",
        ),
    ] = None,
    product: Annotated[
        str | None, typer.Option("--product", help="The product, for a station of several products.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="The precision of the second bundle, with --bundle.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a report as one HTML page.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a page that is there.")] = False,
    json: Json = False,
) -> None:
    """Compare a second bundle with the station's own, and list every frame whose verdict flips.

    The station goes on as it is: nothing is promoted, recorded or delivered.
    """
    from flowedge.runtime.station.settings import read_station
    from flowedge.runtime.station.watch.comparison import read_compared, read_pair, summary_of

    settings = read_station(file)
    if html is not None:
        check_file_target(html, force=force)
    with tempfile.TemporaryDirectory() as temporary:
        if bundle is None:
            if data is not None or precision is not None:
                raise FlowEdgeError("--data and --precision go with --bundle SECOND.")
            folder = _folder_of_live(settings)
            note = "The second bundle took the newest frame whenever it was free, and left out the frames between."
        else:
            check_bundle(bundle)
            folder, note = _judge_pictures(settings, bundle, data, product, precision, Path(temporary))
        pair, compared = read_pair(folder), list(read_compared(folder))
        summary = summary_of(compared)
        if html is not None:
            _write_page(html, folder, pair, compared, summary, note, str(bundle or _shadow_bundle(settings)))
        if json:
            import msgspec

            flips = [msgspec.to_builtins(one) for one in compared if one.is_flipped]
            print_json({**msgspec.to_builtins(summary), "pair": msgspec.to_builtins(pair), "flips": flips})
        else:
            _print(summary, [one for one in compared if one.is_flipped])
    if html is not None:
        MESSAGES.print(f"wrote {html}", soft_wrap=True)


def _shadow_bundle(settings: StationSettings) -> Path:
    if settings.shadow is None:
        raise FlowEdgeError(
            "the station's file has no table [shadow]. Name a second bundle by --bundle with pictures by --data, or by "
            "bundle in [shadow] to let it judge while the station runs."
        )
    return settings.shadow.bundle


def _folder_of_live(settings: StationSettings) -> Path:
    """Return the newest comparison of the bundle in ``[shadow]``, as it is now."""
    from flowedge.bundle_files import hash_of_bundle
    from flowedge.runtime.station.watch.comparison import comparisons_in
    from flowedge.runtime.station.watch.shadow import FOLDER

    bundle = _shadow_bundle(settings)
    check_bundle(bundle)
    sha256 = hash_of_bundle(bundle)
    found = [
        folder
        for folder, pair in comparisons_in(settings.station.state / FOLDER)
        if pair.second.bundle_sha256 == sha256
    ]
    if not found:
        raise FlowEdgeError(
            f"{bundle} has judged no frame beside the first bundle yet. Start the station and wait for frames, or name "
            "pictures with --bundle and --data."
        )
    return found[-1]


def _judge_pictures(
    settings: StationSettings,
    bundle: Path,
    data: Path | None,
    product: str | None,
    precision: str | None,
    parent: Path,
) -> tuple[Path, str]:
    """Let both bundles judge pictures, and return the folder of the comparison and a sentence on the choice."""
    import msgspec

    from flowedge.runtime.frames.images import read_image
    from flowedge.runtime.station.fitting import Fitting
    from flowedge.runtime.station.judges import engines_of, open_judge
    from flowedge.runtime.station.overrides import Overrides
    from flowedge.runtime.station.settings import ProductSettings
    from flowedge.runtime.station.watch.comparison import (
        Compared,
        ComparisonFolder,
        Pair,
        side_of,
        subject_of,
    )

    images, note = _pictures(settings, data)
    products = {one.name: one for one in settings.all_products}
    name = next(iter(products)) if product is None else product
    if name not in products or (product is None and len(products) > 1):
        raise FlowEdgeError(f"name one of the station's products by --product: {', '.join(products)}.")
    inspect = settings.inspect
    second = ProductSettings(name=name, bundle=bundle)
    other = msgspec.structs.replace(inspect, precision=precision or inspect.precision)
    engine = engines_of(inspect)[0]
    fit = Fitting(settings.area, Overrides(settings.station.state))
    first_judge = open_judge(products[name], engine, inspect, fit)
    try:
        second_judge = open_judge(second, engine, other, fit)
    except BaseException:
        first_judge.detector.close()
        raise
    left_out = 0
    with first_judge.detector as first, second_judge.detector as beside, progress_bar() as display:
        kept = ComparisonFolder(parent, Pair(first=subject_of(first_judge), second=subject_of(second_judge)))
        display.step("comparing", len(images))
        for place, path in enumerate(images, 1):
            display.advance()
            try:
                frames = [read_image(path, one.bundle.manifest.pixel_range) for one in (first, beside)]
            except ImageError as error:
                MESSAGES.print(f"left out: {error}", soft_wrap=True)
                left_out += 1
                continue
            results = [
                one.detect_batch([frame])[0] for one, frame in zip((first, beside), frames, strict=True)
            ]
            compared = Compared(
                number=place, source_id=str(path), first=side_of(results[0]), second=side_of(results[1])
            )
            kept.add(compared, results[0], results[1], most_pictures=_MOST_PICTURES)
    return kept.folder, f"{note} {left_out} pictures could not be read." if left_out else note


def _pictures(settings: StationSettings, data: Path | None) -> tuple[list[Path], str]:
    """Find the pictures of a folder or of the archive, and return them with a sentence on their choice."""
    from flowedge.runtime.frames.finding import find_images

    if data is not None:
        return find_images(data).images, f"Both bundles judged the pictures of {data}."
    archive = settings.archive.folder or settings.station.state / "archive"
    # The archive also has pictures in which findings are drawn.
    frames = (
        [path for path in find_images(archive).images if ".frame." in path.name] if archive.is_dir() else []
    )
    if not frames:
        raise FlowEdgeError(
            f"{archive} holds no frames that a second bundle could judge. Name pictures by --data FOLDER, or let the "
            "station keep frames by [archive]."
        )
    return frames, (
        f"Both bundles judged the {len(frames)} frames in {archive}, which the policy of the archive has chosen. "
        "Rejected frames are among them more often than on the line."
    )


def _write_page(
    html: Path,
    folder: Path,
    pair: Pair,
    compared: Sequence[Compared],
    summary: Summary,
    note: str,
    name: str,
) -> None:
    from flowedge.runtime.report.pages import write_page
    from flowedge.runtime.station.watch.comparison import read_pictures
    from flowedge.runtime.station.watch.shadow_report import shadow_page

    about = [("second bundle", name)]
    for words, subject in (("first", pair.first), ("second", pair.second)):
        about += [
            (f"SHA-256 of the manifest, {words}", subject.bundle_sha256),
            (f"precision, {words}", subject.precision),
            (f"engine, {words}", subject.engine),
            (
                f"image threshold, {words}",
                number(subject.threshold, 6) if subject.threshold is not None else "",
            ),
            (
                f"log NFA limit, {words}",
                number(subject.log_nfa_limit, 3) if subject.log_nfa_limit is not None else "",
            ),
        ]
    page = shadow_page(summary, compared, lambda one: read_pictures(folder, one.number), about, note=note)
    write_page(html, page)


def _print(summary: Summary, flipped: Sequence[Compared]) -> None:
    counts = table("first", "second", "frames", title="Verdicts of both bundles")
    for first, seconds in summary.verdicts.items():
        for second, count in seconds.items():
            counts.add_row(first, second, str(count), style=None if first == second else "bold red")
    RESULTS.print(counts)
    shares: list[Any] = [summary.anomalous_first, summary.anomalous_second]
    words = ["-" if one is None else f"{one:.1%}" for one in shares]
    RESULTS.print(
        f"{summary.frames} frames, {summary.flipped} flipped. Anomalous: {words[0]} by the first, {words[1]} by the "
        f"second. Rank correlation of the scores: {number(summary.rank_correlation, 3)}.",
        soft_wrap=True,
    )
    for one in flipped[:_NAMED]:
        RESULTS.print(f"{one.source_id}: {one.first.verdict}, now {one.second.verdict}", soft_wrap=True)
    if len(flipped) > _NAMED:
        MESSAGES.print(f"and {len(flipped) - _NAMED} more. --html and --json list all.", soft_wrap=True)
