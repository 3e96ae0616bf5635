"""The Responses API's routes: bad input, other owners, clients that leave, services that cannot answer."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, wrap_client_stream

from agentmgr.agent.limits import SessionLimits
from agentmgr.core.routing import RoutingTable
from agentmgr.fronts.response_id import ResponseId
from agentmgr.models.host_config import OnDisconnect
from agentmgr.proxy import GatewayLimits
from tests.fronts.conftest import Tokens, request
from tests.fronts.test_responses_package import agent

UPGRADE = (
    b"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


async def create(stage: Any, text: Any = "hi", headers: dict[str, str] | None = None, **more: Any) -> Any:
    body = {"model": "echo", "input": text, **more}
    return await stage.ask("POST", "/v1/responses", body, headers)


def sse(data: bytes) -> list[dict[str, Any]]:
    lines = [line for line in data.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


@asynccontextmanager
async def socket(stage: Any, **more: Any) -> Any:
    stream = await trio.open_tcp_stream("127.0.0.1", stage.port)
    async with trio.open_nursery() as nursery:
        try:
            client = await wrap_client_stream(nursery, stream, "localhost", "/v1/responses", **more)
            async with client:
                yield client
        finally:
            await trio.aclose_forcefully(stream)


async def receive(client: Any) -> dict[str, Any]:
    with trio.fail_after(60):
        return json.loads(await client.get_message())


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b"[]", 400, "invalid_json", None),
        ({"input": "hi"}, 400, "missing_field", "model"),
        ({"model": "", "input": "hi"}, 400, "invalid_field", "model"),
        ({"model": "nothing", "input": "hi"}, 404, "service_not_found", None),
        ({"model": "echo", "input": []}, 400, "invalid_field", "input"),
        ({"model": "echo", "input": [3]}, 400, "invalid_field", "input[0]"),
        (
            {"model": "echo", "input": "hi", "previous_response_id": "resp_x"},
            400,
            "previous_response_not_found",
            "previous_response_id",
        ),
    ],
)
async def test_bad_input_is_an_error_of_its_own_and_leaves_nothing_behind(
    stage_of, body, status, code, param
):
    async with stage_of(agent) as stage:
        got, _, answer = await stage.ask("POST", "/v1/responses", body)
        assert (got, answer["error"]["code"], answer["error"]["param"]) == (status, code, param)
        await stage.at_base()


async def test_a_body_over_the_limit_is_refused(stage_of):
    async with stage_of(agent, facts={"max_message_bytes": 1000}) as stage:
        status, _, answer = await create(stage, "x" * 2000)
        assert (status, answer["error"]["code"]) == (413, "too_large")
        async with socket(stage) as client:
            await client.send_message(
                json.dumps({"type": "response.create", "model": "echo", "input": "x" * 2000})
            )
            with pytest.raises(ConnectionClosed) as closed:
                await client.get_message()
            assert closed.value.reason.code == 1009
        await stage.at_base()


async def test_an_empty_model_is_no_choice_by_the_rules(stage_of):
    async with stage_of(agent) as stage:
        status, _, answer = await stage.say(model="")
        assert (status, answer["error"]["param"]) == (400, "model")


@pytest.mark.parametrize(
    "query", ["stream=maybe", "starting_after=-1", "starting_after=x", "starting_after=1.5"]
)
async def test_a_bad_query_is_refused(stage_of, query):
    async with stage_of(agent) as stage:
        _, _, made = await create(stage)
        status, _, answer = await stage.ask("GET", f"/v1/responses/{made['id']}?{query}")
        assert (status, answer["error"]["code"]) == (400, "invalid_field")


async def test_nothing_is_behind_the_end_of_a_response(stage_of):
    async with stage_of(agent) as stage:
        whole = sse((await create(stage, stream=True))[2])
        last = whole[-1]["sequence_number"]
        path = f"/v1/responses/{whole[0]['response']['id']}?stream=true&starting_after="
        status, _, answer = await stage.ask("GET", f"{path}{last + 1}")
        assert (status, answer["error"]["param"]) == (400, "starting_after")
        assert f"must be {last} at most" in answer["error"]["message"]
        assert (await stage.ask("GET", f"{path}{last}"))[0] == 200


async def test_what_is_not_there_is_not_found(stage_of):
    async with stage_of(agent) as stage:
        _, _, made = await create(stage)
        known = ResponseId.parse(made["id"])
        words = ["resp_", "resp_x", "x", made["id"][:-8], made["id"].replace("resp_", "mcpr_")]
        for changed in (
            {"model": "nothing"},
            {"session_id": "ses_" + "0" * 40},
            {"step_id": "req_other"},
            {"session_id": ""},
        ):
            fields = {
                name: getattr(known, name)
                for name in ("model", "session_id", "step_id", "after_seq", "created")
            }
            words.append(str(ResponseId(**(fields | changed))))
        for word in words:
            for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", "")):
                body = {} if method == "POST" else None
                status, _, answer = await stage.ask(method, f"/v1/responses/{word}{path}", body)
                assert (status, answer["error"]["code"]) in (
                    (404, "response_not_found"),
                    (404, "unknown_url"),
                )
        await stage.at_base()


async def test_responses_of_other_owners_are_not_found(stage_of):
    async with stage_of(agent, names=["echo"], authenticator=Tokens()) as stage:
        good, one, two = ({"Authorization": f"Bearer {token}"} for token in ("good", "one", "two"))
        _, _, made = await create(stage, headers=good)
        path = f"/v1/responses/{made['id']}"
        assert (await stage.ask("GET", path, headers=good))[0] == 200
        for other in (one, two):
            assert (await stage.ask("GET", path, headers=other))[0] == 404
            assert (await stage.ask("DELETE", path, headers=other))[0] == 404
            status, _, answer = await create(stage, headers=other, previous_response_id=made["id"])
            assert (status, answer["error"]["code"]) == (400, "previous_response_not_found")
        assert (await stage.ask("GET", path))[0] == 401
        assert b" 401 " in await stage.raw(UPGRADE)
        async with socket(stage, extra_headers=[("Authorization", "Bearer good")]) as client:
            await client.send_message(json.dumps({"type": "response.create", "model": "echo", "input": "hi"}))
            assert (await receive(client))["type"] == "response.created"
        async with socket(stage, subprotocols=["bearer.good"]) as client:
            await client.send_message(json.dumps({"type": "response.create", "model": "echo", "input": "hi"}))
            assert (await receive(client))["type"] == "response.created"
        await stage.at_base()


async def test_what_is_not_stored_is_not_kept(stage_of):
    async with stage_of(agent) as stage:
        _, _, made = await create(stage, store=False)
        assert made["store"] is False
        await stage.at_base()
        assert (await stage.ask("GET", f"/v1/responses/{made['id']}"))[0] == 404
        status, _, answer = await create(stage, previous_response_id=made["id"])
        assert (status, answer["error"]["code"]) == (400, "previous_response_not_found")


async def test_a_conversation_has_one_turn_at_a_time(stage_of):
    async with stage_of(agent) as stage:
        _, _, made = await create(stage, "one", conversation="c")
        assert made["conversation"] == {"id": "c"}
        _, _, made = await create(stage, "history", conversation={"id": "c"})
        assert made["output"][0]["content"][0]["text"] == "one Hello"
        _, _, hanging = await create(stage, "hang", conversation="c", background=True)
        status, _, answer = await create(stage, "two", conversation="c")
        assert (status, answer["error"]["code"]) == (409, "busy")
        status, _, answer = await create(stage, "two", previous_response_id=hanging["id"])
        assert (status, answer["error"]["code"]) == (409, "response_in_progress")
        status, _, answer = await stage.ask("POST", f"/v1/responses/{hanging['id']}/cancel", {})
        assert (status, answer["status"]) == (200, "cancelled")
        # The session has the message of the turn that was cancelled; nothing was taken of the other two.
        _, _, made = await create(stage, "history", conversation="c")
        assert made["output"][0]["content"][0]["text"] == "one Hello history one Hello hang"
        await stage.at_base()


async def test_an_older_response_is_not_deleted_alone(stage_of):
    async with stage_of(agent) as stage:
        _, _, first = await create(stage)
        _, _, second = await create(stage, previous_response_id=first["id"])
        status, _, answer = await stage.ask("DELETE", f"/v1/responses/{first['id']}")
        assert (status, answer["error"]["code"]) == (409, "not_the_newest")
        status, _, answer = await stage.ask("DELETE", f"/v1/responses/{second['id']}")
        assert (status, answer["deleted"]) == (200, True)
        assert (await stage.ask("GET", f"/v1/responses/{first['id']}"))[0] == 404
        await stage.at_base()


def approval(made: dict[str, Any], approve: bool) -> list[dict[str, Any]]:
    question = made["output"][-1]["id"]
    return [{"type": "mcp_approval_response", "approval_request_id": question, "approve": approve}]


async def test_a_question_is_answered_once_in_text_too(stage_of):
    async with stage_of(agent) as stage:
        _, _, asking = await create(stage, "delete")
        _, _, said = await create(stage, "well, yes", previous_response_id=asking["id"])
        assert said["output"][0]["content"][0]["text"] == " kept"  # only yes is yes
        status, _, answer = await create(stage, "yes", previous_response_id=asking["id"])
        assert (status, answer["error"]["code"]) == (409, "answered")
        _, _, said = await create(stage, approval(asking, True))
        assert said["output"][0]["content"][0]["text"] == " kept"  # the first answer counts
        _, _, plain = await create(stage)
        forged = [{"type": "mcp_approval_response", "approval_request_id": plain["id"], "approve": True}]
        status, _, answer = await create(stage, forged)
        assert (status, answer["error"]["code"]) == (400, "approval_not_found")
        await stage.at_base()


async def test_a_turn_that_asks_before_it_says_anything_is_read_from_its_beginning(stage_of):
    asked = trio.Event()

    async def asking(message, session):
        await asked.wait()
        return "gone" if await session.confirm("rm", {}, message="Really?") else "kept"

    async with stage_of(asking) as stage:
        _, _, made = await create(stage, background=True)
        async with await stage.send(request("GET", f"/v1/responses/{made['id']}?stream=true")) as stream:
            data = b""
            while b"response.queued" not in data:
                data += await stream.receive_some(4096)
            asked.set()
            with trio.fail_after(60):
                while b"mcp_approval_request" not in data:
                    data += await stream.receive_some(4096)
        _, _, seen = await stage.ask("GET", f"/v1/responses/{made['id']}")
        _, _, said = await create(stage, approval(seen, False))
        assert said["output"][0]["content"][0]["text"] == "kept"
        await stage.at_base()


async def test_two_responses_of_one_key_at_once_are_one_and_an_error(stage_of):
    async with stage_of(agent) as stage:
        key = {"X-Session-Id": "k"}
        _, _, first = await create(stage, "hang", headers=key, background=True)
        status, _, answer = await create(stage, "two", headers=key)
        assert (status, answer["error"]["code"]) == (409, "busy")
        assert (await stage.ask("POST", f"/v1/responses/{first['id']}/cancel", {}))[0] == 200
        await stage.at_base()


async def test_a_question_of_what_is_stored_waits_for_days_and_has_a_seat_for_minutes(stage_of, monkeypatch):
    monkeypatch.setattr("agentmgr.fronts.cache.MOST_PATIENCE_S", 0.1)

    async def asking(message, session):
        yield "gone" if await session.confirm("rm", {}, message="Really?") else "kept"

    async with stage_of(asking) as stage:
        _, _, made = await create(stage)
        await stage.at_base()  # the seat is free
        _, _, said = await create(stage, approval(made, True))
        assert said["output"][0]["content"][0]["text"] == "gone"
        await stage.at_base()


async def test_a_question_waits_without_a_client_where_a_turn_would_be_cancelled(stage_of):
    async with stage_of(agent, host={"limits": SessionLimits(on_disconnect=OnDisconnect.CANCEL)}) as stage:
        _, _, asking = await create(stage, "delete")
        _, _, said = await create(stage, approval(asking, True))
        assert said["output"][0]["content"][0]["text"] == " gone"
        await stage.at_base()


async def test_a_background_response_goes_on_without_its_client_and_any_other_one_does_not(stage_of):
    async with stage_of(agent, host={"limits": SessionLimits(on_disconnect=OnDisconnect.CANCEL)}) as stage:
        for background, status in ((True, "completed"), (False, "incomplete")):
            body = {"model": "echo", "input": "slow", "stream": True, "background": background}
            async with await stage.send(request("POST", "/v1/responses", body)) as stream:
                data = b""
                while b"output_text.delta" not in data:
                    data += await stream.receive_some(4096)
            known = sse(data)[0]["response"]["id"]
            with trio.fail_after(60):
                while True:
                    _, _, answer = await stage.ask("GET", f"/v1/responses/{known}")
                    if answer["status"] not in ("in_progress", "queued"):
                        break
                    await trio.sleep(0.02)
            assert answer["status"] == status
            await stage.at_base()


async def test_a_client_that_leaves_at_any_point_leaves_nothing_behind(stage_of):
    async with stage_of(agent) as stage:
        whole = request("POST", "/v1/responses", {"model": "echo", "input": "hi", "stream": True})
        for cut in range(0, len(whole), 40):
            async with await stage.send(whole[:cut]):
                pass
        for size in (1, 200, 2000, 4000):
            async with await stage.send(whole) as stream:
                await stream.receive_some(size)
        await stage.at_base()


async def test_a_stream_that_is_cut_anywhere_is_taken_up_without_a_hole(stage_of):
    async with stage_of(agent) as stage:
        _, _, data = await create(stage, stream=True, background=True)
        whole = sse(data)
        path = f"/v1/responses/{whole[0]['response']['id']}?stream=true"
        assert sse((await stage.ask("GET", path))[2]) == [
            each | ({"response": again["response"]} if "response" in each else {})
            for each, again in zip(whole, sse((await stage.ask("GET", path))[2]), strict=True)
        ]
        for cut in range(0, len(data), len(data) // 40):
            seen = sse(data[:cut].rpartition(b"\n\n")[0])
            after = f"&starting_after={seen[-1]['sequence_number']}" if seen else ""
            rest = sse((await stage.ask("GET", path + after))[2])
            assert [each["type"] for each in seen + rest] == [each["type"] for each in whole]
            assert [each["sequence_number"] for each in seen + rest] == list(range(len(whole)))
            deltas = [(each.get("delta"), each.get("item_id"), each.get("text")) for each in seen + rest]
            assert deltas == [(each.get("delta"), each.get("item_id"), each.get("text")) for each in whole]
        await stage.at_base()


async def test_a_service_that_is_full_or_away_says_so(stage_of):
    limits = GatewayLimits(close_timeout_s=0.5, queue_timeout_s=0.1)
    async with stage_of(agent, facts={"max_sessions": 1}, limits=limits) as stage:
        _, _, hanging = await create(stage, "hang", background=True)
        status, _, answer = await create(stage)
        assert (status, answer["error"]["code"]) == (503, "at_capacity")
        table = stage.gateway.lobby.router.table
        stage.gateway.update(type(table)(service_names=table.service_names))
        status, _, answer = await stage.ask("GET", f"/v1/responses/{hanging['id']}")
        assert (status, answer["error"]["code"]) == (503, "no_service_available")
        async with socket(stage) as client:
            await client.send_message(json.dumps({"type": "response.create", "model": "echo", "input": "hi"}))
            answer = await receive(client)
            assert (answer["type"], answer["status"]) == ("error", 503)


async def test_a_service_that_speaks_text_answers_and_keeps_nothing(stage_of, lab):
    async def shout(request):
        websocket = await request.accept()
        with suppress(ConnectionClosed):
            while True:
                await websocket.send_message((await websocket.get_message()).upper())

    async with stage_of() as stage:
        stage.gateway.update(RoutingTable((await lab.instance("echo", shout),)))
        status, _, made = await create(stage)
        assert (status, made["store"]) == (200, False)
        assert made["output"][0]["content"][0]["text"] == "HI"
        assert (await stage.ask("GET", f"/v1/responses/{made['id']}"))[0] == 404
        for more in ({"background": True}, {"conversation": "c"}):
            status, _, answer = await create(stage, **more)
            assert (status, answer["error"]["code"]) == (400, "no_sessions")
        await stage.at_base()


async def test_a_message_that_is_sent_again_is_answered_once(stage_of):
    turns = []

    async def counting(message, session):
        turns.append(str(message))
        return f"{len(turns)}"

    async with stage_of(counting) as stage:
        for key in ({"Idempotency-Key": "a"}, {"Idempotency-Key": "b"}):
            _, _, one = await create(stage, headers=key)
            _, _, two = await create(stage, headers=key)
            assert (
                one["output"] == two["output"] or one["output"][0]["content"] == two["output"][0]["content"]
            )
        _, _, next_one = await create(stage, previous_response_id=one["id"])
        again = {"X-Stainless-Retry-Count": "1"}
        _, _, same = await create(stage, previous_response_id=one["id"], headers=again)
        assert same["output"][0]["content"] == next_one["output"][0]["content"]
        assert len(turns) == 3
        await stage.at_base()


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("{", None),
        ("[]", None),
        ("3", None),
        ("{}", "type"),
        ('{"type": "response.steer"}', "type"),
        ('{"type": "response.create", "model": "echo", "input": "hi", "generate": false}', "generate"),
        ('{"type": "response.create", "model": "echo", "input": "hi", "stream_id": 3}', "stream_id"),
        ('{"type": "response.create", "model": "echo"}', "input"),
    ],
)
async def test_a_bad_message_on_a_websocket_is_an_error_and_the_connection_goes_on(stage_of, message, param):
    async with stage_of(agent) as stage:
        async with socket(stage) as client:
            await client.send_message(message)
            answer = await receive(client)
            assert (answer["type"], answer["status"], answer["error"]["param"]) == ("error", 400, param)
            await client.send_message(json.dumps({"type": "response.create", "model": "echo", "input": "hi"}))
            assert (await receive(client))["type"] == "response.created"
        await stage.at_base()


async def test_frames_that_no_client_may_send_end_the_websocket(stage_of):
    async with stage_of(agent) as stage:
        async with socket(stage) as client:
            await client.send_message(b"binary")
            with pytest.raises(ConnectionClosed) as closed:
                await client.get_message()
            assert closed.value.reason.code == 1008
        answer = await stage.raw(UPGRADE, b"\x81\x02hi")  # without a mask
        assert b"101 Switching" in answer
        assert b"\x88" in answer.partition(b"\r\n\r\n")[2]
        await stage.at_base()


async def test_streams_of_a_websocket_go_on_side_by_side_and_each_in_order(stage_of):
    async with stage_of(agent) as stage:
        async with socket(stage) as client:
            for stream, text in (("a", "slow"), ("b", "hi"), ("a", "hi")):
                frame = {"type": "response.create", "model": "echo", "input": text, "stream_id": stream}
                await client.send_message(json.dumps(frame))
            ends = []
            while len(ends) < 3:
                event = await receive(client)
                if event["type"] == "response.completed":
                    ends.append((event["stream_id"], event["response"]["output"][-1]["content"][0]["text"]))
            assert ends == [("b", "lo"), ("a", "0 1 2 3 4 "), ("a", "lo")]
        await stage.at_base()


async def test_a_websocket_that_is_left_amid_a_response_leaves_nothing_behind(stage_of):
    async with stage_of(agent) as stage:
        with trio.CancelScope() as scope:
            async with socket(stage) as client:
                for store in (True, False):
                    frame = {"type": "response.create", "model": "echo", "input": "hang", "store": store}
                    await client.send_message(json.dumps(frame))
                assert (await receive(client))["type"] == "response.created"
                scope.cancel()
                await trio.lowlevel.checkpoint()
        await stage.at_base()


async def test_a_client_that_refers_to_what_was_said_goes_on_in_that_session(stage_of):
    """As the Vercel AI SDK does: its later requests have the answers as references."""

    async def counting(message, session):
        return f"{message} {len(session.history)}"

    async with stage_of(counting) as stage:
        said = []
        for text, answer in (("one", "one 0"), ("two", "two 2"), ("three", "three 4")):
            said.append({"role": "user", "content": [{"type": "input_text", "text": text}]})
            status, _, response = await create(stage, said)
            assert (status, response["output"][0]["content"][0]["text"]) == (200, answer)
            said.append({"type": "item_reference", "id": response["output"][0]["id"]})
        branch = [*said[:2], {"role": "user", "content": "other"}]  # an edited message
        _, _, response = await create(stage, branch)
        assert response["output"][0]["content"][0]["text"] == "other 2"
        await stage.at_base()
