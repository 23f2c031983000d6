"""``flowedge station drift`` shows what a station watches for drift, and lets it learn anew."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flowedge.cli.output import MESSAGES, RESULTS, Json, StationFile, number, print_json, table
from flowedge.errors import FlowEdgeError


def drift(
    file: StationFile,
    learn: Annotated[
        bool,
        typer.Option(
            "--learn",
            help="Take the next frames as the new reference, since they were found good. No threshold changes.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Show each watched quantity of a running station: its value, its reference and the evidence of a drift.

    The exit status is 1 while a quantity has drifted.
    """
    from flowedge.runtime.station.settings import read_station
    from flowedge.runtime.station.status import ask_station
    from flowedge.runtime.station.watch.drift_keeper import ask_to_learn

    settings = read_station(file)
    if learn:
        try:
            ask_to_learn(settings.station.state)
        except OSError as error:
            raise FlowEdgeError(
                f"{settings.station.state} cannot be written to: {error.strerror}. Run the command as the station's "
                "user."
            ) from error
        MESSAGES.print("the station learns anew within some seconds, or when it starts", soft_wrap=True)
        return
    watched: dict[str, Any] = ask_station(settings.station.state)["watch"]
    drifts = {product: one["drift"] for product, one in watched.items() if one["drift"] is not None}
    if json:
        print_json(drifts)
    for product, one in () if json else drifts.items():
        _print(product, one)
    if not drifts and not json:
        MESSAGES.print("no frame has been inspected yet", soft_wrap=True)
    if any(quantity["drifted"] for one in drifts.values() for quantity in one["quantities"]):
        raise typer.Exit(1)


def _print(product: str, told: dict[str, Any]) -> None:
    if told["phase"] == "learning":
        RESULTS.print(
            f"{product or 'drift'}: {told['learned']} of {told['learn']} frames learned", soft_wrap=True
        )
        return
    rows = table(
        "quantity", "now", "reference", "shift, sd", "evidence, log10", "drifted since", title=product or None
    )
    for one in told["quantities"]:
        rows.add_row(
            one["quantity"],
            number(one["value"]),
            f"{number(one['reference'])} ({one['compared_with']})",
            f"{one['shift_sd']:+.2f}",
            f"{max(one['evidence_log10'], 0):.1f} of {told['limit_log10']:.1f}",
            one["drifted"]["since"] if one["drifted"] else "",
            style="bold red" if one["drifted"] else None,
        )
    RESULTS.print(rows)
    RESULTS.print(
        f"One in {told['spacing']} inspected frames is watched. Neighbours have a correlation of up to "
        f"{told['autocorrelation']:.2f}.",
        soft_wrap=True,
    )
