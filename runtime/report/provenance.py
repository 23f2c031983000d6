"""Tell where the answers of a page come from: bundle, graph, engine, thresholds, versions and machine."""

from __future__ import annotations

import platform

from flowedge.bundle_files import hash_of_bundle
from flowedge.clock import utc_now
from flowedge.manifest import Manifest, Threshold
from flowedge.runtime.detector import Detector
from flowedge.signature import signature_words
from flowedge.text import images_words
from flowedge.version import __version__


def provenance_of(detector: Detector) -> list[tuple[str, str]]:
    """Return names and values that say which detector answered, how it decides, and on what machine."""
    bundle, manifest = detector.bundle, detector.bundle.manifest
    limits = detector.thresholds
    return [
        ("bundle", str(bundle.path)),
        ("SHA-256 of its manifest", hash_of_bundle(bundle.path)),
        *([] if bundle.signature is None else [("signed", signature_words(bundle.path, bundle.signature))]),
        (
            "detector",
            f"{manifest.family}, {manifest.backbone}, {manifest.image_size[1]}x{manifest.image_size[0]} pixels",
        ),
        ("checkpoint", f"{manifest.source.file} ({manifest.source.repository})"),
        ("precision", detector.precision),
        ("engine", f"{detector.engine_name}: {detector.engine_reason}"),
        (
            "number of false alarms",
            "" if limits.nfa is None else f"{limits.nfa.form}, log NFA below {limits.nfa.log_nfa:g}",
        ),
        ("image threshold", threshold_words(limits.image)),
        ("pixel threshold", threshold_words(limits.pixel)),
        (
            "FlowEdge",
            f"{__version__}, and {manifest.flowedge_version} wrote the bundle on {manifest.created}",
        ),
        ("machine", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("written", f"{utc_now():%Y-%m-%d %H:%M} UTC"),
    ]


def _last_change(manifest: Manifest) -> str:
    """Describe the last change of the thresholds in one line. The line is empty without a history."""
    if not manifest.threshold_history:
        return ""
    last = manifest.threshold_history[-1]
    reason = f": {last.reason}" if last.reason else ""
    return f"{last.moment} by {last.by}, with {last.command}{reason}"


def threshold_words(threshold: Threshold | None) -> str:
    """Return the value of a threshold and how it was chosen, as one line to read."""
    if threshold is None:
        return "none was fitted"
    parameter = "" if threshold.parameter is None else f" {threshold.parameter:g}"
    if threshold.method == "manual":
        return f"{threshold.value:.6g}, set by hand"
    images = f" of {images_words(threshold.images)}" if threshold.images else ""
    return f"{threshold.value:.6g}, by {threshold.method}{parameter}{images}"
