"""CopilotKit's runtime routes, asked as `@copilotkit/core` asks: .ci/copilotkit has that in a browser."""

import pytest
import trio
from attrs import evolve

from agentmgr.core.routing import BackendState, RoutingTable
from tests.fronts.agui import read, text
from tests.fronts.conftest import Stage, Tokens, dechunked, request

THREAD = "5f0c6c53-6ef4-4b0a-8a3c-4b5f7a2f2c11"


async def asking(message, session):
    if message == "delete":
        yield "Looking. "
        yield "gone" if await session.confirm("rm", {}, message="Really?") else "kept"
    elif message == "for ever":
        yield "tick"
        await trio.sleep_forever()
    else:
        yield f"you said {message}"


def run_input(said="hi", *, run="run-1", thread=THREAD, **more):
    """As CopilotKit's client makes it."""
    message = {"id": f"message-of-{run}", "role": "user", "content": said}
    return {
        "threadId": thread,
        "runId": run,
        "tools": [],
        "context": [],
        "forwardedProps": {},
        "state": {},
        "messages": [message] if said else [],
        **more,
    }


def path(what, agent="echo"):
    return f"/copilotkit/agent/{agent}/{what}"


async def events_of(stage: Stage, where, fields, headers=None):
    """The events of a stream, to its end."""
    status, answer, body = await stage.ask("POST", where, fields, headers)
    assert (status, answer["content-type"].partition(";")[0]) == (200, "text/event-stream"), body
    return read(body)


def outcome(events):
    """How the run ended."""
    ends = [event for event in events if event["type"] in ("RUN_FINISHED", "RUN_ERROR")]
    assert [events[-1]] == ends
    return ends[0]


async def begun(stage, fields, what):
    """The stream of a run that is still open, once it has said that."""
    stream = await stage.send(request("POST", path("run"), fields))
    received = b""
    with trio.fail_after(30):
        while what not in received:
            received += await stream.receive_some()
    return stream, received


async def rest_of(stream, received):
    """The events of a whole answer."""
    with trio.fail_after(30):
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += await stream.receive_some()
    return read(dechunked(received.partition(b"\r\n\r\n")[2]))


async def test_info_lists_the_services_as_agents(stage_of):
    async with stage_of(asking, asking) as stage:
        status, headers, info = await stage.ask("GET", "/copilotkit/info")
        assert (status, headers["content-type"]) == (200, "application/json")
        assert list(info["agents"]) == ["default", "echo", "echo2"]
        assert info["agents"]["echo"] == {"name": "echo", "description": "", "className": "agentmgr"}
        assert (info["mode"], info["audioFileTranscriptionEnabled"]) == ("sse", False)
        assert isinstance(info["version"], str)
        # The client asks for more where one of these is there.
        assert not any(info["threadEndpoints"].values())
        assert not any(info.get(name) for name in ("suggestions", "inspectorMetadata", "intelligence"))


async def test_info_has_only_services_that_clients_converse_with(stage_of):
    apart = {"http_services": frozenset({"web"}), "portless_services": frozenset({"job", "job2"})}
    async with stage_of(asking, asking, asking, names=("echo", "web", "worker"), table=apart) as stage:
        table = stage.gateway.lobby.router.table
        echo, web, worker = table.backends
        # A job waits until it listens, which is seen of the second one.
        job = evolve(worker, instance_id="job", service_name="job", state=BackendState.COMING)
        job2 = evolve(worker, instance_id="job2", service_name="job2")
        worker = evolve(worker, state=BackendState.NO_LISTENER)
        names = table.service_names | {"job", "stopped"}
        stage.gateway.update(evolve(table, backends=(echo, web, worker, job, job2), service_names=names))
        _, _, info = await stage.ask("GET", "/copilotkit/info")
        assert list(info["agents"]) == ["default", "echo", "job2", "stopped"]


async def test_a_token_shows_only_what_it_reaches(stage_of):
    async with stage_of(asking, asking, authenticator=Tokens()) as stage:
        _, _, info = await stage.ask("GET", "/copilotkit/info", None, {"Authorization": "Bearer two"})
        assert list(info["agents"]) == ["default", "echo2"]
        status, headers, body = await stage.ask("GET", "/copilotkit/info")
        assert (status, headers["www-authenticate"].split()[0]) == (401, "Bearer")
        assert body["message"]
        for what in ("run", "connect", f"stop/{THREAD}"):
            fields = {} if what.startswith("stop") else run_input()
            status, _, body = await stage.ask("POST", path(what), fields, {"Authorization": "Bearer two"})
            assert (status, body["code"]) == (403, "forbidden")
        await stage.at_base()


async def test_a_run_streams_the_answer(stage_of):
    async with stage_of(asking) as stage:
        events = await events_of(stage, path("run"), run_input())
        assert events[0]["type"] == "RUN_STARTED"
        assert (events[0]["threadId"], events[0]["runId"]) == (THREAD, "run-1")
        assert text(events) == "you said hi"
        assert outcome(events)["type"] == "RUN_FINISHED"
        await stage.at_base()


async def test_the_default_agent_is_the_one_that_the_rules_choose_or_the_service_of_that_name(stage_of):
    async with stage_of(asking) as stage:
        assert text(await events_of(stage, path("run", "default"), run_input())) == "you said hi"

    async def other(message, session):
        return "another"

    async with stage_of(asking, other, names=("echo", "default")) as stage:
        assert text(await events_of(stage, path("run", "default"), run_input())) == "another"
        assert list((await stage.ask("GET", "/copilotkit/info"))[2]["agents"]) == ["default", "echo"]

    async with stage_of(asking, other, names=("echo2", "default"), authenticator=Tokens()) as stage:
        _, _, info = await stage.ask("GET", "/copilotkit/info", None, {"Authorization": "Bearer two"})
        assert list(info["agents"]) == ["echo2"]  # it may not reach that one


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        ({"status": "resolved", "payload": {"approved": True}}, "gone"),
        ({"status": "resolved", "payload": {"approved": False}}, "kept"),
        ({"status": "resolved", "payload": True}, "gone"),
        ({"status": "cancelled"}, "kept"),
    ],
)
async def test_a_question_is_an_interrupt_and_resumes_under_the_same_run_id(stage_of, answer, end):
    async with stage_of(asking) as stage:
        events = await events_of(stage, path("run"), run_input("delete"))
        (interrupt,) = outcome(events)["outcome"]["interrupts"]
        assert interrupt["message"] == "Really?"
        assert text(events) == "Looking. "
        resume = [{"interruptId": interrupt["id"], **answer}]
        events = await events_of(
            stage, path("run"), run_input("delete", resume=resume)
        )  # as useInterrupt does
        assert text(events) == end
        assert "outcome" not in outcome(events) or outcome(events)["outcome"]["type"] == "success"
        await stage.at_base()


async def test_a_page_that_connects_gets_what_was_said_and_the_open_question(stage_of):
    async with stage_of(asking) as stage:
        await events_of(stage, path("run"), run_input())
        await events_of(stage, path("run"), run_input("delete", run="run-2"))
        events = await events_of(stage, path("connect"), run_input("", run="random"))
        (shown,) = [event["messages"] for event in events if event["type"] == "MESSAGES_SNAPSHOT"]
        said = [(message["role"], message["content"]) for message in shown]
        assert said[:3] == [("user", "hi"), ("assistant", "you said hi"), ("user", "delete")]
        (interrupt,) = outcome(events)["outcome"]["interrupts"]
        resume = [{"interruptId": interrupt["id"], "status": "resolved", "payload": {"approved": True}}]
        fields = run_input("", run="random", messages=shown, resume=resume)
        assert text(await events_of(stage, path("run"), fields)) == "gone"


async def test_a_page_that_connects_in_the_middle_of_an_answer_reads_it_to_its_end(stage_of):
    goes_on = trio.Event()

    async def agent(message, session):
        yield "one "
        await goes_on.wait()
        yield "two"

    async with stage_of(agent) as stage:
        stream, _ = await begun(stage, run_input(), b"one ")
        await stream.aclose()  # the page is loaded again
        stream = await stage.send(request("POST", path("connect"), run_input("", run="random")))
        received = b""
        with trio.fail_after(30):
            while b"one " not in received:
                received += await stream.receive_some()
        goes_on.set()
        events = await rest_of(stream, received)
        assert text(events) == "one two"
        assert outcome(events)["type"] == "RUN_FINISHED"
        await stream.aclose()
        await stage.at_base()


async def test_a_thread_that_is_not_there_is_empty_and_stays_so(stage_of):
    async with stage_of(asking, authenticator=Tokens()) as stage:
        ann, bob = ({"Authorization": f"Bearer {token}"} for token in ("good", "one"))
        await events_of(stage, path("run"), run_input(), ann)
        for headers, thread in ((bob, THREAD), (ann, "other")):  # a thread is its owner's
            events = await events_of(stage, path("connect"), run_input("", thread=thread), headers)
            assert not [event for event in events if event.get("messages")]
            _, _, answer = await stage.ask("POST", path(f"stop/{thread}"), {}, headers)
            assert answer["stopped"] is False
        assert "MESSAGES_SNAPSHOT" in {
            event["type"] for event in await events_of(stage, path("connect"), run_input(""), ann)
        }
        await stage.at_base()


@pytest.mark.parametrize("scope", [None, {}, {"runId": "run-1"}])
async def test_a_stop_ends_the_run_and_its_stream(stage_of, scope):
    async with stage_of(asking) as stage:
        stream, received = await begun(stage, run_input("for ever"), b"tick")
        headers = {"Content-Type": "application/json"}
        status, _, answer = await stage.ask("POST", path(f"stop/{THREAD}"), scope or b"", headers)
        assert (status, answer["stopped"]) == (200, True)
        events = await rest_of(stream, received)
        # What it runs on knows no other outcomes than success and interrupt.
        assert outcome(events)["type"] == "RUN_FINISHED"
        assert outcome(events).get("outcome", {"type": "success"})["type"] == "success"
        await stream.aclose()
        _, _, answer = await stage.ask("POST", path(f"stop/{THREAD}"), {})
        assert answer["stopped"] is False
        assert THREAD in answer["message"]
        await stage.at_base()


async def test_a_stop_of_another_run_stops_none(stage_of):
    async with stage_of(asking) as stage:
        stream, received = await begun(stage, run_input("for ever"), b"tick")
        _, _, answer = await stage.ask("POST", path(f"stop/{THREAD}"), {"runId": "run-0"})
        assert answer["stopped"] is False
        for wrong in ({"runid": "run-1"}, {"runId": ""}, {"runId": 3}, []):
            status, _, answer = await stage.ask("POST", path(f"stop/{THREAD}"), wrong)
            assert status == 400
            assert answer["message"]
        assert (await stage.ask("POST", path(f"stop/{THREAD}"), {"runId": "run-1"}))[2]["stopped"] is True
        await rest_of(stream, received)
        await stream.aclose()


async def test_a_single_endpoint_has_all_of_it(stage_of):
    async with stage_of(asking) as stage:

        async def call(method, body=None, **params):
            envelope = {"method": method, "params": params} | ({} if body is None else {"body": body})
            return await stage.ask("POST", "/copilotkit", envelope)

        assert (await call("info"))[2]["agents"].keys() == {"default", "echo"}
        assert text(read((await call("agent/run", run_input(), agentId="echo"))[2])) == "you said hi"
        events = read((await call("agent/connect", run_input(""), agentId="echo"))[2])
        assert [event for event in events if event["type"] == "MESSAGES_SNAPSHOT"]
        stopped = await call("agent/stop", {"runId": "run-1"}, agentId="echo", threadId=THREAD)
        assert stopped[2]["stopped"] is False
        for method, body, params in (
            ("agent/suggest", run_input(), {"agentId": "echo"}),
            ("agent/run", run_input(), {}),
            ("agent/run", None, {"agentId": "echo"}),
            ("agent/run", [], {"agentId": "echo"}),
            ("agent/stop", None, {"agentId": "echo"}),
            (3, None, {}),
        ):
            status, _, answer = await call(method, body, **params)
            assert status == 400
            assert answer["message"]


async def test_bad_input_is_refused_with_a_reason_and_starts_nothing(stage_of):
    ran = []

    async def agent(message, session):
        ran.append(message)

    async with stage_of(agent) as stage:
        for what in ("run", "connect"):
            for body, code in (
                (b"{", "invalid_json"),
                ([], "invalid_json"),
                (run_input(thread=""), "invalid_field"),
                (run_input(thread=7), "invalid_field"),
                (run_input(messages={}), "invalid_field"),
                ({"runId": "r", "messages": []}, "missing_field"),
            ):
                status, _, answer = await stage.ask("POST", path(what), body)
                assert (status, answer["code"]) == (400, code), body
                assert answer["message"]
            status, _, answer = await stage.ask("POST", path(what, "nobody"), run_input())
            assert (status, answer["code"]) == (404, "service_not_found")
        assert (await stage.ask("POST", path(f"stop/{THREAD}", "nobody"), {}))[0] == 404
        status, _, answer = await stage.ask("POST", path("run"), run_input(""))
        assert (status, answer["param"]) == (400, "messages")
        for method, where, expected in (
            ("GET", path("run"), 405),
            ("POST", "/copilotkit/info", 405),
            ("GET", "/copilotkit/threads", 404),
            ("POST", path("suggest"), 404),
            ("GET", "/copilotkitchen", 404),
        ):
            assert (await stage.ask(method, where, run_input() if method == "POST" else None))[0] == expected
        assert ran == []
        await stage.at_base()


async def test_a_page_of_an_allowed_origin_may_do_all_of_it(stage_of):
    page = {"Origin": "https://app.example"}
    async with stage_of(asking, allowed_origins=["https://app.example"]) as stage:
        for method, where in (
            ("GET", "/copilotkit/info"),
            ("POST", path("run")),
            ("POST", path(f"stop/{THREAD}")),
        ):
            asked = page | {
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "authorization, content-type",
            }
            status, headers, _ = await stage.ask("OPTIONS", where, None, asked)
            assert (status, headers["access-control-allow-origin"]) == (200, "https://app.example")
            assert method in headers["access-control-allow-methods"]
        _, headers, _ = await stage.ask("GET", "/copilotkit/info", None, page)
        assert headers["access-control-allow-origin"] == "https://app.example"
        _, headers, _ = await stage.ask("POST", path("run"), run_input(), page)
        assert headers["access-control-allow-origin"] == "https://app.example"
        status, headers, _ = await stage.ask(
            "POST", path("run"), run_input(), {"Origin": "https://evil.example"}
        )
        assert (status, headers.get("access-control-allow-origin")) == (403, None)


async def test_a_thousand_services_are_listed_fast(stage_of):
    async with stage_of(asking) as stage:
        names = frozenset(f"service-{number}" for number in range(1000))
        stage.gateway.update(RoutingTable((), service_names=names))
        began = trio.current_time()
        _, _, info = await stage.ask("GET", "/copilotkit/info")
        assert len(info["agents"]) == 1001
        assert trio.current_time() - began < 1  # 5 ms; a machine may be busy
