"""OpenTelemetry: a span for each connection and each turn, where its environment variables ask for them.

Nothing of OpenTelemetry is imported unless they do. Spans are exported from a queue by a thread of their own;
what a collector does not take is lost, which is said once.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import trio

from . import protocol

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

logger = logging.getLogger("agentmgr.telemetry")

PROPAGATED = ("traceparent", "tracestate")
"""The headers of a request, and the fields of a message's metadata, that say what it is a part of."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_LAST_SPANS_S = 2.0  #: for what is still to be exported when the process ends
_MOST_TOOLS = 100  #: whose results are awaited at once, in a turn
_MISSING = (
    "OpenTelemetry's environment variables ask for traces, and the packages are not here: "
    "pip install 'agentmgr-trio[otel]', or set OTEL_TRACES_EXPORTER=none"
)
_quiet = threading.local()  # `on` while OpenTelemetry works for us: we say ourselves what fails


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """As OpenTelemetry's specification reads them; the exporter is OTLP over HTTP."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    return exporter == "otlp" or (not exporter and any(environment.get(name) for name in _ENDPOINTS))


def begin(service: str) -> Telemetry | None:
    """None where no traces are wanted. `service`: the name of what this process does."""
    if not wanted():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        logger.warning(_MISSING)
        return None
    return exporting(OTLPSpanExporter(), service)


def exporting(exporter: Any, service: str, **limits: Any) -> Telemetry:
    """`limits`: of the queue, where they are not those of the environment (`BatchSpanProcessor`)."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    said_once: Any = _SaidOnce(exporter)
    processor: Any = _Quiet(BatchSpanProcessor(said_once, **limits))
    resource = Resource({"service.name": service}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("opentelemetry.exporter", "opentelemetry.sdk._shared_internal")):
            logging.getLogger(name).addFilter(_unless_quiet)
    return Telemetry(provider, service, said_once)


def _unless_quiet(record: logging.LogRecord) -> bool:
    return not getattr(_quiet, "on", False)


class Telemetry:
    def __init__(self, provider: TracerProvider, service: str, exporter: _SaidOnce | None = None) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.service = service
        self._provider, self._exporter = provider, exporter
        self._tracer = provider.get_tracer("agentmgr")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def connection(
        self, kind: str, headers: Mapping[str, str], attributes: Mapping[str, str]
    ) -> Iterator[ConnectionSpan]:
        """A client's from its complete request to its end. `kind`: its method, or `WebSocket`."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        span = self._tracer.start_span(
            kind, context=self._propagator.extract(headers), kind=SpanKind.SERVER, attributes=dict(attributes)
        )
        passed_on: dict[str, str] = {}
        self._propagator.inject(passed_on, context=set_span_in_context(span))
        with _until_it_ends(span):
            yield ConnectionSpan(kind, span, passed_on)

    @contextmanager
    def turn(
        self, session_id: str, headers: Mapping[str, str], metadata: Mapping[str, Any]
    ) -> Iterator[TurnSpan]:
        """A turn of a hosted agent. What the agent traces itself are its children."""
        from opentelemetry.context import attach, detach
        from opentelemetry.trace import set_span_in_context

        said = {name: value for name in PROPAGATED if isinstance(value := metadata.get(name), str)}
        parent = self._propagator.extract(said if "traceparent" in said else headers)
        # Whoever knows the id of an anonymous session may take it up.
        conversation = sha256(session_id.encode()).hexdigest()[:16]
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": self.service,
            "gen_ai.conversation.id": conversation,
        }
        span = self._tracer.start_span(f"invoke_agent {self.service}", context=parent, attributes=attributes)
        inner = set_span_in_context(span, parent)
        token = attach(inner)
        turn = TurnSpan(self, span, inner)
        try:
            with _until_it_ends(span):
                yield turn
        finally:
            detach(token)
            turn.close()

    def tool(self, name: str, call_id: str, inner: Any) -> Span:
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.call.id": call_id,
        }
        return self._tracer.start_span(f"execute_tool {name}", context=inner, attributes=attributes)

    async def close(self) -> None:
        """Has exported what was not yet, and waits for that a moment, unless the collector is gone."""
        if self._exporter is not None and self._exporter.failed:
            return
        with trio.move_on_after(_LAST_SPANS_S, shield=True):
            await trio.to_thread.run_sync(self._provider.force_flush, abandon_on_cancel=True)


class ConnectionSpan:
    def __init__(self, kind: str, span: Span, passed_on: Mapping[str, str]) -> None:
        self.passed_on = passed_on  #: the headers by which the instance knows that it is a part of this
        self._kind, self._span = kind, span

    def went_to(self, service: str, instance_id: str, ended_by: str, close_code: int | None) -> None:
        self._span.update_name(f"{self._kind} {service}")
        self._span.set_attribute("agentmgr.service", service)
        self._span.set_attribute("agentmgr.instance_id", instance_id)
        self._span.set_attribute("agentmgr.ended_by", ended_by)
        if close_code is not None:
            self._span.set_attribute("agentmgr.close_code", close_code)


class TurnSpan:
    def __init__(self, telemetry: Telemetry, span: Span, inner: Any) -> None:
        self._telemetry, self._span, self._inner = telemetry, span, inner
        self._tools: dict[str, Span] = {}  # by the step of the call, or the tool's name
        self._tokens = {"input_tokens": 0, "output_tokens": 0}

    def said(self, event: str, content: Any, step_id: str | None) -> None:
        """An event of the turn."""
        fields = content if isinstance(content, Mapping) else {}
        if event in (protocol.TOOL_CALL, protocol.TOOL_RESULT):
            name = str(fields.get("tool"))
            self._tool(event, name, step_id or name, failed=fields.get("success") is False)
        elif event == protocol.USAGE:
            for kind in self._tokens:
                if isinstance(more := fields.get(kind), int):
                    self._tokens[kind] += more
                    self._span.set_attribute(f"gen_ai.usage.{kind}", self._tokens[kind])
            if model := fields.get("model"):
                self._span.set_attribute("gen_ai.response.model", str(model))
        elif event in (protocol.AGENT_ERROR, protocol.TIMEOUT):
            _failed(self._span, str(fields.get("type") or fields.get("code") or event))

    def _tool(self, event: str, name: str, call_id: str, *, failed: bool) -> None:
        if (span := self._tools.pop(call_id, None)) is not None:  # a second call of one id ends the first
            if failed:
                _failed(span, "tool_error")
            span.end()
        if event == protocol.TOOL_CALL and len(self._tools) < _MOST_TOOLS:
            self._tools[call_id] = self._telemetry.tool(name, call_id, self._inner)

    def close(self) -> None:
        """Of calls without a result."""
        for span in self._tools.values():
            span.end()


@contextmanager
def _until_it_ends(span: Span) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _failed(span, str(getattr(error, "code", type(error).__qualname__)))
        raise
    finally:
        span.end()


def _failed(span: Span, kind: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


@contextmanager
def _quietly() -> Iterator[None]:
    _quiet.on = True
    try:
        yield
    finally:
        _quiet.on = False


class _Quiet:
    """A span processor that says nothing, however full its queue is."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def on_end(self, span: Any) -> None:
        with _quietly():
            self._processor.on_end(span)


class _SaidOnce:
    """An exporter that says once that its collector does not take what it is sent, until it does again."""

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter
        self.failed = False  #: the last time

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exporter, name)

    def export(self, spans: Sequence[Any]) -> Any:
        from opentelemetry.sdk.trace.export import SpanExportResult

        with _quietly():
            try:
                result = self._exporter.export(spans)
            except Exception:  # the boundary: whatever is wrong with a collector is no matter of clients
                result = SpanExportResult.FAILURE
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self.failed:
            logger.warning(
                "the collector of OpenTelemetry does not take our spans: those are lost until it does"
            )
        self.failed = failed
        return result
