"""The example page in a real browser, driven over its DevTools protocol."""

import itertools
import json
import shutil
import subprocess
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from trio_websocket import open_websocket_url

from agentmgr.testing.agents import hosted

PAGE = Path(__file__).parents[2] / "examples" / "browser_client.html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0",
    # Without this a page that is loaded again finds its sessionStorage empty, until the next time, where its
    # process asks for that before the browser has heard of the new document: on a busy machine about once in
    # a hundred times (Chromium 156).
    "--disable-features=RenderDocument",
)  # fmt: skip


class Page:
    """A page in the browser."""

    def __init__(self, devtools):
        self._devtools = devtools
        self._ids = itertools.count(1)

    async def command(self, method, **params):
        number = next(self._ids)
        await self._devtools.send_message(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := json.loads(await self._devtools.get_message())).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    async def value(self, expression):
        result = await self.command("Runtime.evaluate", expression=expression, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def load(self, method, **params):
        await self.command("Page.enable")
        number = next(self._ids)
        await self._devtools.send_message(json.dumps({"id": number, "method": method, "params": params}))
        while json.loads(await self._devtools.get_message()).get("method") != "Page.loadEventFired":
            pass

    async def see(self, text, *, times=1, within=10):
        """Waits until the conversation shows a text so often; the page itself watches for it."""
        script = (
            """new Promise((done, fail) => {
            const log = document.getElementById("log"), seen = () => log.innerText.split(TEXT).length > TIMES;
            if (seen()) return done(true);
            new MutationObserver(() => seen() && done(true)).observe(
                log, {childList: true, characterData: true, subtree: true});
            setTimeout(() => done(log.innerText), MS);
        })""".replace("TEXT", json.dumps(text))
            .replace("TIMES", str(times))
            .replace("MS", str(within * 1000))
        )
        outcome = await self.value(script)
        assert outcome is True, f"{text!r} is not in {outcome!r}"

    async def say(self, text):
        await self.value(f"text.value = {json.dumps(text)}; send.click()")

    async def click(self, word):
        buttons = "[...document.querySelectorAll('button')]"
        await self.value(f"{buttons}.filter(b => b.textContent == {json.dumps(word)}).at(-1).click()")


@asynccontextmanager
async def browser(url, directory):
    """The page, open in a browser of its own, with a fresh profile."""
    with trio.fail_after(180):
        process = await trio.lowlevel.open_process(
            [CHROMIUM, *FLAGS, f"--user-data-dir={directory}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            said = b""
            while b"DevTools listening on" not in said or not said.endswith(b"\n"):
                said += await process.stderr.receive_some() or pytest.fail(said.decode())
            endpoint = said.decode().split("DevTools listening on ")[1].split()[0]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_drain, process.stderr)
                async with open_websocket_url(endpoint, max_message_size=2**24) as devtools:
                    found = await Page(devtools).command("Target.getTargets")
                target = next(t["targetId"] for t in found["targetInfos"] if t["type"] == "page")
                page_endpoint = endpoint.rpartition("/devtools/")[0] + f"/devtools/page/{target}"
                async with open_websocket_url(page_endpoint, max_message_size=2**24) as devtools:
                    page = Page(devtools)
                    await page.load("Page.navigate", url=f"file://{PAGE}?url={url}")
                    yield page
                nursery.cancel_scope.cancel()
        finally:
            process.kill()
            await process.wait()


async def _drain(stream):
    async for _ in stream:
        pass


class Line:
    """A way to the agent that can be cut."""

    def __init__(self, url):
        self._target = url.removeprefix("ws://").split(":")
        self._scopes = set()
        self.connections = 0

    def cut(self):
        for scope in self._scopes:
            scope.cancel()

    async def serve(self, near):
        self.connections += 1
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            host, port = self._target
            async with near, await trio.open_tcp_stream(host, int(port)) as far:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_on, near, far, scope)
                    nursery.start_soon(self._pass_on, far, near, scope)

    async def _pass_on(self, source, sink, scope):
        try:
            async for data in source:
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        scope.cancel()


async def agent(message, session):
    if message == "stream":
        for number in range(50):
            yield f"{number} "
            await trio.sleep(0.01)
    elif message == "confirm":
        yield "deleted" if await session.confirm("rm", {"path": "x"}, message="Really?") else "kept"
    elif message == "forever":
        yield "begun"
        await trio.sleep_forever()
    else:
        yield f"<b>{message}</b> {len(session.history) // 2}"


OFF = "new Promise((done) => { const look = () => cancel.disabled ? done() : setTimeout(look, 10); look() })"
NUMBERS = "".join(f"{number} " for number in range(50)).strip()


async def test_a_person_streams_cancels_confirms_and_loses_the_connection(tmp_path):
    async with hosted(agent) as url, trio.open_nursery() as nursery:
        line = Line(url)
        [listener] = await nursery.start(partial(trio.serve_tcp, line.serve, 0, host="127.0.0.1"))
        way = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with browser(way, tmp_path / "profile") as page:
            await page.say("hello")
            await page.see("<b>hello</b> 0")  # as text: what an agent says is never markup

            await page.say("stream")
            await page.see(NUMBERS)

            await page.say("stream")
            for number in (5, 15, 25):
                await page.see(f" {number} ", times=2)
                line.cut()
            await page.see(NUMBERS, times=2)
            await page.say("forever")
            await page.see("begun")
            await page.value("cancel.click()")
            await page.see("cancelled by the client")
            assert await page.value("cancel.disabled") is True

            await page.say("confirm")
            await page.see("Really?")
            line.cut()
            await page.click("Yes")
            await page.see("deleted")
            await page.say("confirm")
            await page.see("Really?", times=2)
            await page.click("No")
            await page.see("kept")

            session_id = await page.value("session.id")
            await page.load("Page.reload")
            await page.say("after the reload")
            await page.see("<b>after the reload</b> 6")
            assert await page.value("session.id") == session_id
            await page.say("confirm")
            await page.see("Really?", times=3)
            await page.load("Page.reload")
            await page.see("<b>after the reload</b> 6")  # all that was said is there again
            await page.see("Really?", times=3)
            assert await page.value("cancel.disabled") is False
            assert await page.value("document.querySelectorAll('.question button').length") == 2
            await page.click("Yes")
            await page.see("deleted", times=2)
            await page.value(OFF)  # with the end of the turn, which comes after the text
        assert line.connections >= 6
        nursery.cancel_scope.cancel()


async def test_a_page_that_is_not_let_in_says_what_lets_it_in(tmp_path):
    async def refuse(stream):
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, refuse, 0, host="127.0.0.1"))
        way = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with browser(way, tmp_path / "profile") as page:
            await page.see("--allow-origin null")
            assert await page.value("cancel.disabled") is True
        nursery.cancel_scope.cancel()
