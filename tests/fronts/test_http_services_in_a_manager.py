"""HTTP services before a whole manager: real servers, and curl."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import trio

from agentmgr import AgentManager
from agentmgr.models import ServiceConfig

STREAMS = """
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for n in range(3):
            data = b"data: %d\\n\\n" % n
            self.wfile.write(b"%x\\r\\n%b\\r\\n" % (len(data), data))
        self.wfile.write(b"0\\r\\n\\r\\n")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[::-1])

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


async def curl(*words: str, data: bytes = b"") -> bytes:
    run = partial(subprocess.run, ["curl", "-sS", "-m", "30", *words], input=data, capture_output=True)
    done = await trio.to_thread.run_sync(run)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_curl_talks_to_pythons_server_and_to_one_that_streams(tmp_path):
    (tmp_path / "a b.txt").write_bytes(bytes(range(256)) * 40_000)
    (tmp_path / "streams.py").write_text(STREAMS)
    commands = {
        "files": (sys.executable, "-m", "http.server", "-b", "127.0.0.1", "-d", str(tmp_path), "{port}"),
        "streams": (sys.executable, str(tmp_path / "streams.py"), "{port}"),
    }
    async with AgentManager(tmp_path / "manager.db") as manager, trio.open_nursery() as nursery:
        for name, command in commands.items():
            ready = "http" if name == "files" else "http:/healthz"
            config = ServiceConfig(command=command, ready=ready, max_message_bytes=2 * 10**6)
            await manager.register_service(name, config=config, auto_start=True)
        port = await nursery.start(manager.serve_proxy, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{port}/services"
        assert await curl(f"{url}/files/a%20b.txt") == bytes(range(256)) * 40_000
        assert b"Content-Length: 10240000\r\n" in await curl("-I", f"{url}/files/a%20b.txt")
        assert (await curl("-i", f"{url}/files/none")).startswith(b"HTTP/1.1 404 File not found\r\n")
        assert await curl("-N", f"{url}/streams/x") == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
        assert await curl(f"{url}/streams/x", "--data-binary", "@-", data=b"ab" * 10**6) == b"ba" * 10**6
        assert await curl(f"{url}/streams/x", "-H", "Expect: 100-continue", "-d", "abc") == b"cba"
        too_much = await curl(f"{url}/streams/x", "--data-binary", "@-", data=b"a" * (2 * 10**6 + 1))
        assert b'"too_large"' in too_much
        await manager.stop_service("streams")
        stopped = await curl("-w", "%{http_code}", f"{url}/streams/x")
        assert b'"no_service_available"' in stopped
        assert stopped.endswith(b"503")
        nursery.cancel_scope.cancel()
