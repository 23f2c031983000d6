"""``flowedge compare`` tells what changed between two results of the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flowedge.cli.output import MESSAGES, PROBLEMS, RESULTS, Force, Json, number, print_json, table
from flowedge.targets import check_file_target
from flowedge.text import images_words

NAME = "compare"


def command(
    old: Annotated[
        str,
        typer.Argument(
            metavar="OLD.parquet",
            help="The old result of flowedge batch, a file or a folder, or the journal of flowedge station export.",
            show_default=False,
        ),
    ],
    new: Annotated[
        str,
        typer.Argument(metavar="NEW.parquet", help="The new result of the same images.", show_default=False),
    ],
    by: Annotated[
        Literal["sha256", "image", "picture", "part"] | None,
        typer.Option(
            "--by",
            help="How rows are paired: by the hash of the image, its name, its picture in a station's archive, or its "
            "part.",
            show_default="the first of these that pairs any",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE.csv", help="A CSV file with the columns image and label."),
    ] = None,
    worst: Annotated[
        int, typer.Option("--worst", min=0, metavar="N", help="The flips of each direction to print.")
    ] = 5,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write a page with charts, and pictures of the worst flips."
        ),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option("--archive", metavar="FOLDER", help="The folder of a station's pictures, for the page."),
    ] = None,
    fail_on_flips: Annotated[
        int | None,
        typer.Option(
            "--fail-on-flips",
            min=0,
            metavar="N",
            help="End with status 1 where more than N images changed between ok and anomalous.",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Tell what changed between two results of the same images: verdicts, scores, and errors by labels.

    The exit status is 0 when the results were compared, 1 when more images flipped than --fail-on-flips allows, and 2
    when they could not be compared.
    """
    if html is not None:
        html = html / "compare.html" if html.is_dir() else html
        check_file_target(html, force=force)
    from flowedge.packages import explain_missing

    with explain_missing("batch"):
        from flowedge.runtime.batch.pairing import Pairing
        from flowedge.runtime.batch.what_changed import compare
        from flowedge.runtime.batch.what_changed_page import write_comparison

    with Pairing(old, new, by=by, labels=labels) as pairing:
        one = compare(pairing, worst=worst)
        if html is not None:
            write_comparison(html, pairing, one, archive=archive)
            MESSAGES.print(f"wrote {html}", soft_wrap=True)
    status = 1 if fail_on_flips is not None and one.flips > fail_on_flips else 0
    if json:
        print_json(one)
        raise typer.Exit(status)
    RESULTS.print(f"{images_words(one.images)} in both, paired by {one.by}", soft_wrap=True)
    if one.only_old or one.only_new:
        RESULTS.print(f"only in the old result: {one.only_old}, only in the new one: {one.only_new}")
    changed = table("old verdict", "new verdict", ">images")
    for pair, count in one.verdicts.items():
        changed.add_row(*pair.split(", "), str(count))
    RESULTS.print(changed)
    RESULTS.print(f"flips: {one.flips} ({one.to_anomalous} to anomalous, {one.to_ok} to ok)")
    if one.wrong_flips is not None:
        RESULTS.print(f"the labels call {one.right_flips} flips right and {one.wrong_flips} wrong")
    RESULTS.print(f"correlation of the scores {number(one.pearson)}, of their ranks {number(one.spearman)}")
    if one.labelled:
        errors = table("", ">AUROC", ">false alarms", ">detected")
        for name, side in (("old", one.old), ("new", one.new)):
            rates = (side.auroc, side.false_alarm_rate, side.detection_rate)
            errors.add_row(name, *(number(rate) for rate in rates))
        RESULTS.print(errors)
    if one.difference_quantiles:
        shares = table("scores", *(f">{share:.0%}" for share in one.quantiles))
        for name, values in (
            ("old", one.old.score_quantiles),
            ("new", one.new.score_quantiles),
            ("new minus old", one.difference_quantiles),
        ):
            shares.add_row(name, *(f"{value:.4g}" for value in values))
        RESULTS.print(shares)
    if one.worst:
        flips = table("image", "old", "new", ">old score", ">new score", "label")
        for flip in one.worst:
            scores = (number(flip.old_score), number(flip.new_score))
            flips.add_row(flip.image, flip.old_verdict, flip.new_verdict, *scores, flip.label or "")
        RESULTS.print(flips)
    if status:
        PROBLEMS.print(
            f"{one.flips} images flipped, more than the {fail_on_flips} that --fail-on-flips allows"
        )
    raise typer.Exit(status)
