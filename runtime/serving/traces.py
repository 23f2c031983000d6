"""Send traces of requests to an OpenTelemetry collector."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from flowedge.packages import explain_missing
from flowedge.runtime.serving.settings import TraceSettings
from flowedge.version import __version__

_FLUSH_MS: Final = 2000


class Span(Protocol):
    """The trace of one request. A request that is not traced has `NO_SPAN`."""

    def stage(self, name: str, seconds_ago: float, seconds: float, facts: Mapping[str, Any]) -> None:
        """Add a stage that began some seconds ago and took some seconds."""
        ...

    def end(self, status: int, facts: Mapping[str, Any]) -> None:
        """End the trace with the HTTP status and further facts."""
        ...


class _NoSpan:
    def stage(self, name: str, seconds_ago: float, seconds: float, facts: Mapping[str, Any]) -> None:
        pass

    def end(self, status: int, facts: Mapping[str, Any]) -> None:
        pass


NO_SPAN: Final[Span] = _NoSpan()
"""The trace of a request that is not traced."""


class Traces:
    """The traces of one server."""

    def __init__(self, settings: TraceSettings, exporter: Any = None) -> None:
        """Make the parts of OpenTelemetry. A thread of its own sends what was traced.

        Args:
            settings: The settings.
            exporter: An exporter of OpenTelemetry in place of the one that sends to the collector.

        Raises:
            MissingPackageError: OpenTelemetry is not installed.
        """
        with explain_missing("telemetry"):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": settings.service, "service.version": __version__}),
            sampler=ParentBased(TraceIdRatioBased(settings.share)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=settings.endpoint))
        )
        self._tracer = self._provider.get_tracer("flowedge", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, route: str, headers: Mapping[str, str]) -> Span:
        """Begin the trace of a request, as a part of its client's trace where the headers name one.

        Args:
            method: The method of HTTP.
            route: The path with the names of its variable parts, so that all requests of a kind have one name.
            headers: The headers, with names in lower case.
        """
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._propagator.extract(dict(headers)),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        )
        return _TracedRequest(self._tracer, span) if span.is_recording() else NO_SPAN

    def close(self) -> None:
        """Send what is left, for at most two seconds."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()


class _TracedRequest:
    """The span of a request, with a span for each of its stages."""

    def __init__(self, tracer: Any, span: Any) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer, self._span = tracer, span
        self._context = set_span_in_context(span)

    def stage(self, name: str, seconds_ago: float, seconds: float, facts: Mapping[str, Any]) -> None:
        begun = time.time_ns() - int(seconds_ago * 1e9)
        stage = self._tracer.start_span(name, context=self._context, start_time=begun, attributes=dict(facts))
        stage.end(begun + int(seconds * 1e9))

    def end(self, status: int, facts: Mapping[str, Any]) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attributes({"http.response.status_code": status, **facts})
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
