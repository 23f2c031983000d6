"""Write the numbers of a server for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from flowedge.runtime.exposition import MetricsText, Sample, add_process, histogram_samples
from flowedge.runtime.serving.counting import Histogram
from flowedge.runtime.serving.repository import Entry
from flowedge.version import __version__


def metrics_of(
    entries: Mapping[str, Entry],
    answers: Mapping[tuple[str, int], int],
    *,
    connections: int,
    held_bytes: int,
    is_ready: bool,
    started: float,
) -> str:
    """Return the metrics of a server.

    Args:
        entries: The models.
        answers: The number of answers by route and HTTP status.
        connections: The number of open connections.
        held_bytes: The bytes of bodies and answers that are held.
        is_ready: True where the server accepts requests.
        started: The wall time of the start, in seconds since 1970.
    """
    text = MetricsText()
    text.add(
        "flowedge_server_info",
        "gauge",
        "The version of the server, as a label of the constant 1.",
        [("", {"version": __version__}, 1)],
    )
    text.one("flowedge_ready", "gauge", "1 while the server accepts requests.", float(is_ready))
    text.one("flowedge_connections", "gauge", "The open connections.", connections)
    text.one("flowedge_held_bytes", "gauge", "The bytes of bodies and answers that are held.", held_bytes)
    text.add(
        "flowedge_http_answers_total",
        "counter",
        "The answers by route and status.",
        [
            ("", {"route": route, "status": str(status)}, count)
            for (route, status), count in sorted(answers.items())
        ],
    )
    models = list(entries.values())
    text.add(
        "flowedge_model_loaded",
        "gauge",
        "1 while a model is loaded.",
        [("", {"model": one.name}, float(one.batcher is not None)) for one in models],
    )
    text.add(
        "flowedge_requests_total",
        "counter",
        "The requests of a model by their end: ok, or the reason of the failure.",
        [
            ("", {"model": one.name, "outcome": outcome}, count)
            for one in models
            for outcome, count in sorted(one.counts.outcomes.items())
        ],
    )
    text.add(
        "flowedge_verdicts_total",
        "counter",
        "The verdicts.",
        [
            ("", {"model": one.name, "product": product, "verdict": verdict}, count)
            for one in models
            for (product, verdict), count in sorted(one.counts.verdicts.items())
        ],
    )
    text.add(
        "flowedge_queue_frames",
        "gauge",
        "The frames that wait for a model.",
        [("", {"model": one.name}, one.batcher.frames_waiting) for one in models if one.batcher is not None],
    )
    text.add(
        "flowedge_expected_wait_seconds",
        "gauge",
        "The time that a new frame would wait.",
        [("", {"model": one.name}, one.batcher.expected_wait_s) for one in models if one.batcher is not None],
    )
    for name, words, histograms in (
        (
            "flowedge_request_seconds",
            "The time of a request, from the begin of its body to its answer.",
            [(one.name, one.counts.request_s) for one in models],
        ),
        (
            "flowedge_queue_seconds",
            "The time of a request in the queue.",
            [(one.name, one.counts.queue_s) for one in models],
        ),
        (
            "flowedge_batch_frames",
            "The frames of one run of the engine.",
            [(one.name, one.counts.batch_frames) for one in models],
        ),
    ):
        text.add(
            name,
            "histogram",
            words,
            [sample for model, one in histograms for sample in _samples(model, one)],
        )
    add_process(text, started)
    return str(text)


def _samples(model: str, one: Histogram) -> list[Sample]:
    return histogram_samples({"model": model}, one.limits, one.buckets, one.total)
