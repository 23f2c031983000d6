"""Keep what a campaign on a GPU measures, in a JSON file that is whole after each stage and in a Markdown page."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class Report:
    """The results of a campaign, stage by stage, within a limit of time."""

    def __init__(self, folder: Path, limit_s: float) -> None:
        """Begin the campaign.

        Args:
            folder: The folder of ``gpu-report.json`` and ``gpu-report.md``.
            limit_s: The time in which the campaign must end, in seconds.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._limit_s, self._begun = folder, limit_s, time.monotonic()
        self.results: dict[str, Any] = {}

    @property
    def left_s(self) -> float:
        """The time that is left, in seconds."""
        return self._limit_s - (time.monotonic() - self._begun)

    def stage(self, name: str, work: Callable[..., object], *arguments: object, needs_s: float = 15) -> None:
        """Run one stage and keep its result. A stage that fails is a result too, and the next one follows.

        Args:
            name: The name of the stage.
            work: The function that measures.
            arguments: The arguments of the function.
            needs_s: The time below which the stage is not begun, in seconds.
        """
        begun = time.monotonic()
        if self.left_s < needs_s:
            self.keep(
                name, {"skipped": f"{self.left_s:.0f} s were left of the {needs_s:.0f} s that it needs"}
            )
            return
        try:
            result = work(*arguments)
        except Exception as error:
            result = {"failed": f"{type(error).__name__}: {error}"[-600:]}
        self.keep(name, result, seconds=time.monotonic() - begun)

    def keep(self, name: str, result: object, *, seconds: float = 0.0) -> None:
        """Keep a result, write the file anew and print one line."""
        self.results[name] = result
        temporary = self.folder / ".gpu-report.json"
        temporary.write_text(json.dumps(self.results, indent=1, default=str), encoding="utf-8")
        os.replace(temporary, self.folder / "gpu-report.json")
        line = json.dumps(result, default=str)
        print(f"[{time.monotonic() - self._begun:4.0f} s] {name} ({seconds:.0f} s): {line[:300]}", flush=True)

    def write_tables(self, title: str) -> None:
        """Write the Markdown page: the speed of each model, the parity, and the other stages as they are."""
        parts = [f"# {title}", ""]
        speeds = {name: found for name, found in self.results.items() if name.startswith("speed ")}
        if speeds:
            parts += _table(
                ("model", "what", "batch", "ms", "images/s", "as fast as PyTorch eager fp32"),
                _speed_rows(speeds),
            )
        parities = {name: found for name, found in self.results.items() if name.startswith("parity ")}
        if parities:
            parts += _table(
                ("model", "precision", "batch", "worst relative difference"), _parity_rows(parities)
            )
        built = {name: found for name, found in self.results.items() if name.startswith("built ")}
        if built:
            head = (
                "model",
                "engine",
                "precision",
                "build s",
                "MiB",
                "worst relative difference",
                "ms",
                "state",
            )
            parts += _table(head, _built_rows(built))
        shares = self.results.get("peaks")
        if isinstance(shares, list):
            columns = (
                "engine",
                "precision",
                "ms by batch",
                "of the product's peak",
                "of the copy's bandwidth",
                "peaks",
            )
            parts += _table(columns, [_share_row(row) for row in shares])
        for name, found in self.results.items():
            if name not in speeds and name not in parities and name not in built and found is not shares:
                parts += [f"## {name}", "", "```json", json.dumps(found, indent=1, default=str), "```", ""]
        (self.folder / "gpu-report.md").write_text("\n".join(parts), encoding="utf-8")


def is_bad(found: object) -> bool:
    """True when a stage failed, or one of its answers is wrong."""
    if isinstance(found, dict):
        return "failed" in found or found.get("wrong", 0) > 0 or any(is_bad(one) for one in found.values())
    return isinstance(found, Sequence) and not isinstance(found, str) and any(is_bad(one) for one in found)


def _share_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of one engine and precision beside the peaks of its device."""
    shares = [
        f"{row[name]:.1%}" if row[name] is not None else "-" for name in ("peak_share", "bandwidth_share")
    ]
    peaks = (
        f"{row['device_gflops']:.0f} GFLOP/s, {row['device_copy_gb_s']:.0f} GB/s"
        if row["device_gflops"]
        else "-"
    )
    times = row["problem"] or ", ".join(f"{batch}: {ms:.3f}" for batch, ms in row["ms"].items() if ms)
    return row["engine"], row["precision"], times, *shares, peaks


def _speed_rows(speeds: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, found in speeds.items():
        if not isinstance(found, dict) or "rows" not in found:
            rows.append((name, json.dumps(found, default=str), "", "", "", ""))
            continue
        eager = {
            row["batch"]: row["ms"]
            for row in found["rows"]
            if row["what"] == "PyTorch eager, fp32" and "ms" in row
        }
        for row in found["rows"]:
            ms = row.get("ms")
            beside = f"{eager[row['batch']] / ms:.2f}x" if ms and row["batch"] in eager else ""
            rate = f"{1000 * row['batch'] / ms:.0f}" if ms else ""
            rows.append(
                (
                    name.removeprefix("speed "),
                    row["what"],
                    str(row["batch"]),
                    f"{ms:.3f}" if ms else row["problem"],
                    rate,
                    beside,
                )
            )
    return rows


def _parity_rows(parities: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, found in parities.items():
        model = name.removeprefix("parity ")
        if not isinstance(found, dict) or "rows" not in found:
            rows.append((model, json.dumps(found, default=str), "", ""))
            continue
        rows += [
            (
                model,
                row["precision"],
                str(row["batch"]),
                row.get("problem") or f"{row['worst']:.1e} ({row['output']})",
            )
            for row in found["rows"]
        ]
    return rows


def _built_rows(built: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each engine that was built, and one for each library that is not installed or failed."""
    rows: list[tuple[str, ...]] = []
    for name, found in built.items():
        _, engine, model = name.split(" ", 2)
        if "rows" not in found:
            state = "not installed" if "not installed" in found else json.dumps(found, default=str)
            rows.append((model, engine, *[""] * 5, state))
            continue
        rows += [
            (
                model,
                f"{engine} {found['library']}",
                row["precision"],
                str(row.get("build s", "")),
                str(row.get("MiB", "")),
                f"{row['worst']:.1e}" if "worst" in row else "",
                f"{row['ms']:.3f}" if "ms" in row else "",
                row.get("state") or f"failed: {row['failed']}",
            )
            for row in found["rows"]
        ]
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return [*lines, ""]
