"""Draw a report as one HTML page that opens offline. All text is escaped, since names and errors come from files."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

from flowedge.runtime.bench.plots import accuracy_over_latency, latency_distributions, throughput_over_batch
from flowedge.runtime.bench.table import (
    COLUMNS,
    STAGE_COLUMNS,
    batch_columns,
    batch_rows,
    cells_of,
    environment_line,
    remarks_of,
    shared_columns,
    shared_rows,
    stage_rows,
)
from flowedge.runtime.bench.timing_report import Report

_STYLE: Final = """
body { margin: 0 auto; max-width: 1280px; padding: 32px 24px 64px; color: #1d2430;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 28px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 8px; padding-top: 12px; border-top: 1px solid #dfe3e8; }
.soft { color: #5c6675; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid #dfe3e8; vertical-align: top; }
th { color: #5c6675; font-weight: 600; }
.n { text-align: right; white-space: nowrap; }
tr.wrong td { color: #c22f2f; font-weight: 600; }
tr.absent td { color: #5c6675; }
svg { max-width: 100%; height: auto; }
.key span { margin-right: 16px; white-space: nowrap; font-size: 13px; }
.key i { display: inline-block; width: 11px; height: 11px; margin-right: 5px; border-radius: 2px; }
"""


def page_of(report: Report) -> str:
    """Return the HTML of the page."""
    wrong = ""
    if report.wrong:
        names = ", ".join(html.escape(label) for label in report.wrong)
        wrong = f'<p><strong style="color: #c22f2f">Wrong answers: {names}.</strong></p>'
    classes = ["wrong" if row.is_wrong else "absent" if row.problem else "" for row in report.rows]
    plots = (
        ("Latency", latency_distributions(report)),
        ("Throughput over batch", throughput_over_batch(report)),
        ("Accuracy over latency", accuracy_over_latency(report)),
    )
    remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks_of(report))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="FlowEdge">
<title>FlowEdge bench</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>FlowEdge bench</h1>
<p class="soft">{html.escape(report.date)}, FlowEdge {html.escape(report.flowedge_version)}.
{html.escape(environment_line(report.machine))}.<br>{html.escape(report.command)}</p>
{wrong}
<div class="wide">{_table(COLUMNS, [cells_of(row) for row in report.rows], classes)}</div>
<p class="soft">A latency is the time of one inference at the first batch. "Of peak" is the speed of the
multiply-accumulates, divided by the speed of the fastest float32 matrix product that was seen. "Of bandwidth" is the
share of the machine's bandwidth that reading each weight once takes. The worst error compares the levels of the
self-test with those that the fp32 graph gave at export. The overhead is the time that FlowEdge takes beside the
engine's call.</p>
{"".join(f"<h2>{title}</h2>{plot}" for title, plot in plots if plot)}
<h2>Images per second</h2>
{_table(batch_columns(report), batch_rows(report))}
<h2>Frames per second of threads that share one detector</h2>
{_table(shared_columns(report), shared_rows(report))}
<h2>Where the time of one frame goes</h2>
{_table(STAGE_COLUMNS, stage_rows(report))}
{f"<h2>Remarks</h2><ul>{remarks}</ul>" if remarks else ""}
</body>
</html>
"""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] = ()) -> str:
    kinds = [' class="n"' if column.startswith(">") else "" for column in columns]
    head = "".join(
        f"<th{kind}>{html.escape(column.lstrip('>'))}</th>"
        for kind, column in zip(kinds, columns, strict=True)
    )
    body = "".join(
        f'<tr class="{style}">'
        + "".join(f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row, style in zip(rows, classes or [""] * len(rows), strict=True)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
