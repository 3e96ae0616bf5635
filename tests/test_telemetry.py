"""Traces: what is a part of what, and what it costs where nobody listens to them."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentmgr import telemetry
from agentmgr.agent import events
from agentmgr.agent.adapt import adapt
from agentmgr.agent.limits import SessionLimits
from agentmgr.agent.runtime import open_runtime
from agentmgr.agent.server import AgentServer
from agentmgr.agent.session_registry import SessionRegistry
from agentmgr.core.routing import Backend, RoutingTable
from agentmgr.fronts import Fronts
from agentmgr.models.host_config import Runtime
from agentmgr.proxy import Gateway, GatewayLimits
from agentmgr.telemetry import Telemetry
from agentmgr.testing.agents import BelievingDoor, bare_client
from tests.fronts.conftest import Stage, request

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
OTHER = f"00-{'1' * 32}-{'2' * 16}-01"


class Traces:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.telemetry = Telemetry(provider, "echo")

    @property
    def spans(self):
        return {span.name: span for span in self.exporter.get_finished_spans()}


@asynccontextmanager
async def stage(agent, traces):
    """A gateway before a hosted agent `echo`; both trace."""
    async with trio.open_nursery() as nursery:
        made = adapt(agent, None, await open_runtime(Runtime.TRIO, nursery))
        sessions = SessionRegistry(made, SessionLimits(), telemetry=traces.telemetry)
        server = AgentServer(made, sessions, door=BelievingDoor())
        await nursery.start(sessions.run)
        (inner,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(server.serve, inner)
        backend = Backend.at("127.0.0.1", inner.socket.getsockname()[1], service="echo")
        fronts = Fronts("openai,http")
        gateway = Gateway(
            RoutingTable((backend,), service_names=frozenset({"echo"})),
            limits=GatewayLimits(close_timeout_s=0.5),
            fronts=fronts,
            telemetry=traces.telemetry,
        )
        (door,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with door:
            nursery.start_soon(gateway.serve, [door])
            yield Stage(gateway, door.socket.getsockname()[1], fronts)
            nursery.cancel_scope.cancel()


async def agent(message, session):
    if message == "fail":
        raise RuntimeError("no")
    yield events.tool_call("search", {"q": "secret"}, step_id="call_1")
    with trace.get_tracer("its own").start_as_current_span("inside"):
        seen = trace.format_span_id(trace.get_current_span().get_span_context().span_id)
    yield events.tool_result("search", "found", step_id="call_1")
    yield events.usage(3, 4, "a-model")
    yield session.client.headers["traceparent"] + " " + seen


def parent_of(span) -> str:
    return trace.format_span_id(span.parent.span_id)


def id_of(span) -> str:
    return trace.format_span_id(span.context.span_id)


async def test_a_turn_is_a_part_of_its_connection_which_is_a_part_of_what_the_client_said():
    traces = Traces()
    async with stage(agent, traces) as at:
        async with bare_client(f"ws://127.0.0.1:{at.port}/services/echo", {"traceparent": PARENT}) as client:
            end = await client.ask("hi")
            await client.ask("more", metadata={"traceparent": OTHER})
        await at.at_base()
    connection = traces.spans["WebSocket echo"]
    turns = [span for span in traces.exporter.get_finished_spans() if span.name == "invoke_agent echo"]
    first, second = turns
    assert trace.format_trace_id(connection.context.trace_id) == TRACE
    assert parent_of(connection) == "b7ad6b7169203331"
    assert parent_of(first) == id_of(connection)
    assert end["content"].split()[0] == f"00-{TRACE}-{id_of(connection)}-01"
    assert parent_of(second) == "2" * 16
    assert first.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert first.attributes["gen_ai.agent.name"] == "echo"
    assert (
        first.attributes["gen_ai.usage.input_tokens"],
        first.attributes["gen_ai.usage.output_tokens"],
    ) == (3, 4)
    assert first.attributes["gen_ai.response.model"] == "a-model"
    tool = next(span for span in traces.exporter.get_finished_spans() if span.name == "execute_tool search")
    assert parent_of(tool) == id_of(first)
    assert tool.attributes["gen_ai.tool.call.id"] == "call_1"
    assert connection.attributes["agentmgr.service"] == "echo"
    assert connection.attributes["client.address"] == "127.0.0.1"
    said = str([dict(span.attributes) for span in traces.exporter.get_finished_spans()])
    assert "secret" not in said
    assert client.session_id not in said


async def test_a_turn_that_fails_and_a_client_that_is_refused_are_errors():
    traces = Traces()
    async with stage(agent, traces) as at:
        async with bare_client(f"ws://127.0.0.1:{at.port}/services/echo") as client:
            await client.ask("fail")
        upgrade = {"Upgrade": "websocket", "Connection": "upgrade", "Sec-WebSocket-Version": "13"}
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        await at.raw(request("GET", "/services/none", None, upgrade | key))
        await at.at_base()
    assert traces.spans["invoke_agent echo"].attributes["error.type"] == "RuntimeError"
    assert not traces.spans["invoke_agent echo"].status.is_ok
    assert traces.spans["WebSocket"].attributes["error.type"] == "service_not_found"


async def test_a_request_to_a_front_is_traced_through_its_door():
    traces = Traces()
    async with stage(agent, traces) as at:
        status, _, _ = await at.say("hi", headers={"traceparent": PARENT})
        assert status == 200
        await at.at_base()
    assert trace.format_trace_id(traces.spans["invoke_agent echo"].context.trace_id) == TRACE


def test_the_environment_switches_it_on():
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}
    assert not telemetry.wanted({})
    assert telemetry.wanted(endpoint)
    assert telemetry.wanted({"OTEL_TRACES_EXPORTER": "otlp"})
    assert not telemetry.wanted(endpoint | {"OTEL_TRACES_EXPORTER": "none"})
    assert not telemetry.wanted(endpoint | {"OTEL_SDK_DISABLED": "true"})


def test_nothing_is_imported_where_it_is_off(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    code = """
import sys
import agentmgr.agent.host, agentmgr.worker.spec, agentmgr.telemetry
from agentmgr.settings import Settings
agentmgr.worker.spec.gateway(Settings())
assert agentmgr.telemetry.begin("a") is None
print(*sorted(name for name in sys.modules if name.startswith("opentelemetry")))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_without_the_packages_it_is_said_how_to_get_them(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert telemetry.begin("a") is None
    assert "pip install 'agentmgr-trio[otel]'" in caplog.text


class Stuck:
    """An exporter whose collector does not answer until it is let go."""

    def __init__(self) -> None:
        self.free, self.called = threading.Event(), threading.Event()

    def export(self, spans):
        self.called.set()
        self.free.wait(30)
        raise OSError("no collector")

    def shutdown(self) -> None:
        pass


async def test_a_collector_that_hangs_costs_nothing_and_is_said_once(caplog):
    stuck = Stuck()
    traces = telemetry.exporting(stuck, "a", max_queue_size=16, max_export_batch_size=4)
    began = trio.current_time()
    for _ in range(1000):
        with traces.turn("session", {}, {}):
            pass
    assert stuck.called.wait(10)
    assert trio.current_time() - began < 5
    stuck.free.set()
    await traces.close()
    began = trio.current_time()
    await traces.close()  # it is known to be gone by now
    assert trio.current_time() - began < 1
    assert [record.name for record in caplog.records] == ["agentmgr.telemetry"]
    assert "does not take our spans" in caplog.text


def test_a_collector_that_comes_back_and_goes_again_is_said_again(caplog):
    results = iter(
        [SpanExportResult.FAILURE] * 2 + [SpanExportResult.SUCCESS] + [SpanExportResult.FAILURE] * 2
    )

    class Exporter:
        def export(self, spans):
            return next(results)

    exporter = telemetry._SaidOnce(Exporter())
    for _ in range(5):
        exporter.export([])
    assert len(caplog.records) == 2


@contextmanager
def collector() -> Iterator[tuple[str, list[str]]]:
    got: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            got.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


async def test_a_process_exports_what_it_has_before_it_ends(monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    with collector() as (url, got):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        traces = telemetry.begin("a")
        with traces.connection("GET /", {}, {}):
            pass
        await traces.close()
        assert got == ["/v1/traces"]
