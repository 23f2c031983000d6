"""Compare many products as single bundles with the same products as one pack: memory, changes of product, speed.

``make packs`` runs it and writes ``bench-out/packs/packs.md``. Each form is measured in a process of its own. The forms
take turns, and the best round of each counts, since other work on the machine only makes a form slower or larger.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.full_size import MODELS, FullSize, write_checkpoint
from bench.turns import processor
from flowedge.bundle import Bundle, open_bundle
from flowedge.export.pack import pack_bundles
from support.product_bundles import write_product

MODELS_OF_TABLE = ("cflow-anomalib-resnet18", "fastflow-official-resnet18")


def exported(model: FullSize, folder: Path) -> Bundle:
    """Export a model of full size with random weights, or take the one that is there."""
    target = folder / f"{model.name}.flowedge"
    if not target.is_dir():
        checkpoint = write_checkpoint(model, folder)
        command = [
            str(Path(sys.executable).with_name("flowedge")),
            "export",
            str(checkpoint),
            "-o",
            str(target),
        ]
        subprocess.run([*command, *model.export_options(folder)], check=True)
    return open_bundle(target)


def measured(form: str, paths: Sequence[Path]) -> dict[str, float]:
    """Measure a process of one form."""
    command = [sys.executable, "-m", "bench.pack_worker", form, *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ))
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def best(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Take the best value of every quantity."""
    return {name: min(one[name] for one in rounds) for name in rounds[0]}


def main() -> None:
    """Make the products, measure them and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-out/packs"))
    parser.add_argument("--products", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--models", nargs="+", default=MODELS_OF_TABLE, choices=sorted(MODELS))
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    os.environ["FLOWEDGE_CACHE_DIR"] = str(out / "cache")
    lines = [
        f"{processor()}, {os.cpu_count()} cores. ONNX Runtime on one thread. Times are those of the processor.",
        "",
        "| model | products | form | disk | memory | loading | change of product | one product | products in turn | "
        "one frame, 8 products |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in arguments.models:
        source = exported(MODELS[name], out)
        for count in arguments.products:
            bundles = {f"p{number}": out / name / f"p{number}.flowedge" for number in range(count)}
            (out / name).mkdir(exist_ok=True)
            for number, path in enumerate(bundles.values()):
                if not path.is_dir():
                    write_product(source, path, flow=number)
            pack = out / name / f"{count}.flowedgepack"
            pack_bundles(bundles, pack, overwrite=True)
            forms = {"bundles": list(bundles.values()), "pack": [pack]}
            rounds: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
            for _ in range(arguments.rounds):
                for form, paths in forms.items():
                    rounds[form].append(measured(form, paths))
            for form, paths in forms.items():
                one = best(rounds[form])
                disk = sum(
                    file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file()
                )
                change = "none" if form == "pack" else f"{one['reload_ms']:.0f} ms, or none"
                lines.append(
                    f"| {name} | {count} | {form} | {disk / 1e6:.0f} MB | {one['memory_mb']:.0f} MB | "
                    f"{one['load_s']:.1f} s | {change} | {one['same_ms']:.1f} ms | {one['alternate_ms']:.1f} ms | "
                    f"{one['eight_ms']:.1f} ms |"
                )
                print(lines[-1], flush=True)
    (out / "packs.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
