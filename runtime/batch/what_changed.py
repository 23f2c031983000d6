"""Tell what changed between two results of the same images: verdicts, scores, ranking and errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from flowedge.runtime.batch.pairing import Pairing, Side

QUANTILES: Final = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)

_BOTH: Final = "old_verdict IS NOT NULL AND new_verdict IS NOT NULL"
TO_ANOMALOUS: Final = "old_verdict = 'ok' AND new_verdict = 'anomalous'"
TO_OK: Final = "old_verdict = 'anomalous' AND new_verdict = 'ok'"
_IS_BETTER: Final = "((new_verdict = 'anomalous') = is_bad)"


class SideFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one result.

    Attributes:
        result: The path or the address.
        kind: The word ``batch`` or ``journal``.
        rows: The number of rows.
        images: The number of different images.
        bundles: The SHA-256 of each bundle that judged, with the precision.
        verdicts: The number of paired images by verdict.
        auroc: The area under the ROC curve, over the labelled images that have both scores. The value is None without
            labels of both kinds.
        false_alarm_rate: The share of the labelled good images that were called anomalous, 0..1.
        detection_rate: The share of the labelled bad images that were called anomalous, 0..1.
        score_quantiles: The scores at ``QUANTILES``, over the images that have both scores.
    """

    result: str
    kind: str
    rows: int
    images: int
    bundles: tuple[str, ...]
    verdicts: dict[str, int]
    auroc: float | None
    false_alarm_rate: float | None
    detection_rate: float | None
    score_quantiles: tuple[float, ...]


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """An image whose verdict changed between ``ok`` and ``anomalous``.

    Attributes:
        image: The name of the image.
        old_verdict: The old verdict.
        new_verdict: The new verdict.
        old_score: The old score.
        new_score: The new score.
        margin: The distance from the limit on the side that calls the image anomalous.
        label: The label, where there is one.
        picture: The name of the picture in a station's archive, where there is one.
    """

    image: str
    old_verdict: str
    new_verdict: str
    old_score: float | None
    new_score: float | None
    margin: float | None
    label: str | None
    picture: str | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The differences between two results.

    Attributes:
        old: The old result.
        new: The new result.
        by: The way in which the images were paired.
        images: The number of images that both have.
        only_old: The number of images that only the old result has.
        only_new: The number of images that only the new result has.
        flips: The number of images that changed between ``ok`` and ``anomalous``.
        to_anomalous: The number of images that were ok and are anomalous.
        to_ok: The number of images that were anomalous and are ok.
        right_flips: The number of flips to the verdict that the label asks for. The number is None without labels.
        wrong_flips: The number of flips away from it.
        verdicts: The number of images by the old and the new verdict, such as ``ok, anomalous``.
        pearson: The correlation of the scores.
        spearman: The correlation of the ranks of the scores, which does not depend on their scale.
        difference_quantiles: The differences of the scores, new minus old, at ``quantiles``.
        quantiles: The shares of the images, 0..1.
        scored: The number of images that have both scores.
        labelled: The number of images with a label that have both scores.
        worst: The flips that are the farthest from the limit, of each direction.
    """

    old: SideFacts
    new: SideFacts
    by: str
    images: int
    only_old: int
    only_new: int
    flips: int
    to_anomalous: int
    to_ok: int
    right_flips: int | None
    wrong_flips: int | None
    verdicts: dict[str, int]
    pearson: float | None
    spearman: float | None
    difference_quantiles: tuple[float, ...]
    quantiles: tuple[float, ...] = QUANTILES
    scored: int
    labelled: int
    worst: tuple[Flip, ...]


def compare(pairing: Pairing, *, worst: int = 20) -> Comparison:
    """Compare two results.

    Args:
        pairing: The paired rows.
        worst: The number of flips of each direction to name.
    """
    both, only_old, only_new, to_anomalous, to_ok, right, wrong = pairing.row(
        f"SELECT count(*) FILTER (WHERE {_BOTH}), count(*) FILTER (WHERE new_verdict IS NULL), "
        f"count(*) FILTER (WHERE old_verdict IS NULL), count(*) FILTER (WHERE {TO_ANOMALOUS}), "
        f"count(*) FILTER (WHERE {TO_OK}), "
        f"count(*) FILTER (WHERE (({TO_ANOMALOUS}) OR ({TO_OK})) AND {_IS_BETTER}), "
        f"count(*) FILTER (WHERE (({TO_ANOMALOUS}) OR ({TO_OK})) AND NOT {_IS_BETTER}) FROM pairs"
    )
    pairing.rows(
        "CREATE OR REPLACE TABLE scored AS SELECT old_score, new_score, is_bad FROM pairs "
        "WHERE isfinite(old_score) AND isfinite(new_score)"
    )
    scored, labelled, pearson, has_spread = pairing.row(
        "SELECT count(*), count(is_bad), corr(old_score, new_score), "
        "min(old_score) < max(old_score) AND min(new_score) < max(new_score) FROM scored"
    )
    has_labels = pairing.row("SELECT count(*) > 0 FROM pairs WHERE is_bad IS NOT NULL")[0]
    verdicts = pairing.rows(
        f"SELECT old_verdict || ', ' || new_verdict, count(*) FROM pairs WHERE {_BOTH} GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    return Comparison(
        old=_facts(pairing, pairing.old, "old"),
        new=_facts(pairing, pairing.new, "new"),
        by=pairing.by,
        images=both,
        only_old=only_old,
        only_new=only_new,
        flips=to_anomalous + to_ok,
        to_anomalous=to_anomalous,
        to_ok=to_ok,
        right_flips=right if has_labels else None,
        wrong_flips=wrong if has_labels else None,
        verdicts=dict(verdicts),
        pearson=pearson if has_spread else None,
        spearman=_spearman(pairing) if has_spread else None,
        difference_quantiles=_quantiles(pairing, "new_score - old_score"),
        scored=scored,
        labelled=labelled,
        worst=(*flips_of(pairing, TO_OK, worst), *flips_of(pairing, TO_ANOMALOUS, worst)),
    )


def flips_of(pairing: Pairing, direction: str, most: int) -> Iterator[Flip]:
    """Give the flips of one direction, with those first that are the farthest from the limit.

    Flips away from the verdict that the label asks for come before all others.

    Args:
        pairing: The paired rows.
        direction: ``TO_ANOMALOUS`` or ``TO_OK``.
        most: The largest number of flips.
    """
    margin = "new_margin" if direction == TO_ANOMALOUS else "old_margin"
    rows = pairing.rows(
        f"SELECT name, old_verdict, new_verdict, old_score, new_score, {margin}, label, picture FROM pairs "
        f"WHERE {direction} ORDER BY coalesce(NOT {_IS_BETTER}, false) DESC, {margin} DESC NULLS LAST, name "
        f"LIMIT {most}"
    )
    for row in rows:
        yield Flip(**dict(zip(Flip.__struct_fields__, row, strict=True)))


def _facts(pairing: Pairing, side: Side, prefix: str) -> SideFacts:
    verdicts = pairing.rows(
        f"SELECT {prefix}_verdict, count(*) FROM pairs WHERE {_BOTH} GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    called = f"avg(CAST({prefix}_verdict = 'anomalous' AS INTEGER))"
    false_alarms, detected = pairing.row(
        f"SELECT {called} FILTER (WHERE NOT is_bad), {called} FILTER (WHERE is_bad) FROM pairs WHERE {_BOTH} "
        f"AND {prefix}_verdict IN ('ok', 'anomalous')"
    )
    return SideFacts(
        result=side.name,
        kind=side.kind,
        rows=side.rows,
        images=side.images,
        bundles=side.bundles,
        verdicts=dict(verdicts),
        auroc=_auroc(pairing, f"{prefix}_score"),
        false_alarm_rate=false_alarms,
        detection_rate=detected,
        score_quantiles=_quantiles(pairing, f"{prefix}_score"),
    )


def _auroc(pairing: Pairing, score: str) -> float | None:
    """Compute the area under the ROC curve from the sum of the ranks of the bad images (Mann and Whitney, 1947)."""
    ranks, bad, good = pairing.row(
        f"SELECT sum(r) FILTER (WHERE is_bad), count(*) FILTER (WHERE is_bad), count(*) FILTER (WHERE NOT is_bad) "
        f"FROM (SELECT is_bad, {_rank(score)} AS r FROM scored WHERE is_bad IS NOT NULL)"
    )
    return float((ranks - bad * (bad + 1) / 2) / (bad * good)) if bad and good else None


def _spearman(pairing: Pairing) -> float | None:
    found: float | None = pairing.row(
        f"SELECT corr(a, b) FROM (SELECT {_rank('old_score')} AS a, {_rank('new_score')} AS b FROM scored)"
    )[0]
    return found


def _rank(score: str) -> str:
    """Return SQL for the rank of a score. Equal scores share the mean of their ranks."""
    return f"(rank() OVER (ORDER BY {score}) + (count(*) OVER (PARTITION BY {score}) - 1) / 2.0)"


def _quantiles(pairing: Pairing, value: str) -> tuple[float, ...]:
    found: list[Any] | None = pairing.row(f"SELECT quantile_cont({value}, {list(QUANTILES)}) FROM scored")[0]
    return tuple(map(float, found or ()))
