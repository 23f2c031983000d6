"""Compare limits of the number of false alarms with fitted thresholds, on two trained CFLOWs.

    PYTHONPATH=tests python tests/bench/table_nfa.py [DEMO]      prints two tables in Markdown

The first model is the magnetic tile checkpoint of ``../shared``. The second is the one that ``flowedge demo --out
DEMO`` trains, in about three minutes, where DEMO (a temporary folder by default) does not hold it already. Both are
exported with ``--nfa``, calibrated on good images, and evaluated on their test images.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import flowedge
from flowedge.bundle import Bundle
from flowedge.calibration.calibrate import calibrate_bundle, decide_by_nfa
from flowedge.calibration.dataset import good_images, read_dataset
from flowedge.calibration.evaluation import evaluate
from flowedge.calibration.evaluation_result import Decision
from flowedge.calibration.threshold import ThresholdRequest
from flowedge.export.demo.end_to_end import CHECKPOINT, PHOTOS, run_demo
from flowedge.export.pipeline import ExportOptions, export_bundle
from flowedge.manifest import NfaForm, NfaThreshold

SHARED = Path(__file__).resolve().parents[3] / "shared"
STRICT = -2.0  # one expected false alarm in a hundred images
FORMS: tuple[NfaForm, ...] = ("tree", "block")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A trained model, the good images to calibrate on, and the dataset to test on."""

    name: str
    checkpoint: Path
    good: Sequence[Path]
    dataset: Path


def decisions(subject: Subject, folder: Path) -> Iterator[Decision]:
    """Decide by each rule: fitted quantiles, the best F1 of the test images, and both forms of the NFA."""
    exported = export_bundle(subject.checkpoint, folder / "nfa.flowedge", ExportOptions(nfa=True)).bundle
    bundle = calibrate_bundle(exported, subject.good, request=ThresholdRequest()).bundle
    for form in FORMS:
        bundle = decide_by_nfa(bundle, NfaThreshold(form=form, log_nfa=STRICT))
        found = evaluated(bundle, subject)
        yield from found if form == FORMS[0] else found[-2:]


def evaluated(bundle: Bundle, subject: Subject) -> tuple[Decision, ...]:
    with flowedge.load(bundle.path) as detector:
        return evaluate(detector, read_dataset(subject.dataset), thresholds=detector.thresholds).decisions


def print_table(subject: Subject) -> None:
    print(f"\n{subject.name}\n")
    print("| rule | false alarms on good images | anomalous images detected | pixel IoU |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for one in decisions(subject, Path(folder)):
            limit = "" if one.log_nfa is None else f", log NFA < {one.log_nfa:g}"
            rates = (one.false_alarm_rate, one.detection_rate, one.pixel_iou)
            cells = ("-" if rate is None else f"{rate:.3f}" for rate in rates)
            print(f"| {one.rule}{limit} | {' | '.join(cells)} |", flush=True)


def main(demo: Path) -> None:
    tiles = SHARED / "data" / "magnetic_tile"
    tile = SHARED / "checkpoints" / "cflow_magnetic_tile.ckpt"
    if tile.is_file():
        print_table(Subject(name="magnetic_tile", checkpoint=tile, good=good_images(tiles), dataset=tiles))
    else:
        print(f"{tile} is not beside this checkout: no table for it", file=sys.stderr)
    if not (demo / CHECKPOINT).is_file():
        run_demo(demo)
    photos = demo / PHOTOS
    good = sorted((photos / "train" / "good").glob("calibration_*.png"))
    print_table(Subject(name="demo", checkpoint=demo / CHECKPOINT, good=good, dataset=photos))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
