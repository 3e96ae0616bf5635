"""A child process that honours the contract of `agentmgr.supervisor.launcher`, with faults on request.

Nothing but the lighter half of the standard library, so that hundreds of them start fast. Run as a command
(`child.py --port P`) or, through `hosted`, as the agent host would be (`--fd N`). On SIGUSR1 it crashes, on
SIGUSR2 it hangs: at the test's word, not after a time in which a busy machine may not have come so far.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace


def frame(opcode: int, payload: bytes) -> bytes:
    return struct.pack("!BB", 0x80 | opcode, len(payload)) + payload if len(payload) < 126 else (
        struct.pack("!BBH", 0x80 | opcode, 126, len(payload)) + payload
    )  # fmt: skip


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := sock.recv(count - len(data))):
            raise ConnectionError
        data += more
    return data


def serve_one(sock: socket.socket, options: SimpleNamespace) -> None:
    try:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (more := sock.recv(4096)):
                return
            head += more
        lines = head.decode().split("\r\n")
        _, _, challenge = lines[0].split()[1].partition("?challenge=")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        key = next(line.split(": ", 1)[1] for line in lines if line.lower().startswith("sec-websocket-key"))
        assert headers["upgrade"] == "websocket"
        accept = base64.b64encode(
            hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        )
        sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        if challenge:
            token = os.environ["AGENTMGR_INSTANCE_TOKEN"]
            if options.wrong_proof:
                token = "another"
            mark = hmac.new(token.encode(), challenge.encode(), "sha256").hexdigest()
            answer = {"proof": mark, "status": options.status, "detail": None, "sessions": 0, "turns": 0}
            sock.sendall(frame(1, json.dumps(answer).encode()))
        while True:
            first, second = read_exactly(sock, 2)
            length = second & 127
            if length == 126:
                (length,) = struct.unpack("!H", read_exactly(sock, 2))
            mask = read_exactly(sock, 4)
            payload = bytes(b ^ mask[i % 4] for i, b in enumerate(read_exactly(sock, length)))
            opcode = first & 15
            if opcode == 8:
                sock.sendall(frame(8, payload))
                return
            sock.sendall(frame(10 if opcode == 9 else opcode, payload))
    except OSError:
        pass
    finally:
        sock.close()


DEFAULTS = {
    "fd": None,
    "host": "127.0.0.1",
    "port": None,
    "status": "healthy",
    "wrong-proof": False,
    "ready-after": 0.0,
    "exit-after": None,  # seconds, with --never-listen
    "exit-code": 0,  # also on SIGUSR1
    "ignore-term": False,
    "term-takes": 0.0,
    "say": "",
    "escapee": False,  # starts a grandchild that leaves the session
    "worker": False,  # starts a grandchild in the group
    "never-listen": False,
    "report": None,  # writes what it was given into this file
}
FLAGS = {name for name, default in DEFAULTS.items() if default is False}
NUMBERS = {"fd", "port", "exit-code", "ready-after", "exit-after", "term-takes"}


def parsed(argv: list[str]) -> SimpleNamespace:
    """`--name value`, or `--name` alone for the flags; what it does not know is passed over."""
    options = dict(DEFAULTS)
    words = iter(argv)
    for word in words:
        name = word.removeprefix("--")
        if name in FLAGS:
            options[name] = True
        elif name in DEFAULTS:
            value = next(words)
            options[name] = (float(value) if "." in value else int(value)) if name in NUMBERS else value
    return SimpleNamespace(**{name.replace("-", "_"): value for name, value in options.items()})


def main() -> None:
    options = parsed(sys.argv[1:])
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:

        def leave(*_: object) -> None:
            time.sleep(options.term_takes)
            os._exit(0)

        signal.signal(signal.SIGTERM, leave)

    def hang(*_: object) -> None:
        while True:  # also deaf to what is in flight: like a blocked event loop
            time.sleep(600)

    signal.signal(signal.SIGUSR1, lambda *_: os._exit(options.exit_code))
    signal.signal(signal.SIGUSR2, hang)
    if options.say:
        with suppress(OSError):  # a full disk
            os.write(2, options.say.encode() + b"\n")
    if options.report:
        ignored = [s.name for s in signal.Signals if signal.getsignal(s) is signal.SIG_IGN]
        facts = {
            "environ": dict(os.environ),
            "cwd": os.getcwd(),
            "ignored": ignored,
            "blocked": [signal.Signals(s).name for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
            "sid": os.getsid(0) == os.getpid(),
            "pgrp": os.getpgrp() == os.getpid(),
            "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
            "argv": sys.argv,
        }
        with open(options.report, "w") as file:
            json.dump(facts, file)
    if options.escapee:
        # Twice forked, with a session of its own, all descriptors closed: a proper daemon.
        code = (
            "import os, time; os.closerange(0, 100); os.setsid(); os.fork() and os._exit(0); time.sleep(600)"
        )
        os.waitpid(os.spawnl(os.P_NOWAIT, sys.executable, sys.executable, "-c", code), 0)
    if options.worker:
        os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "600")
    time.sleep(options.ready_after)
    if options.never_listen:
        if options.exit_after is not None:
            time.sleep(options.exit_after)
            os._exit(options.exit_code)
        while True:
            signal.pause()
    if options.fd is not None:
        listener = socket.socket(fileno=options.fd)
    else:
        listener = socket.create_server((options.host, options.port or int(os.environ["PORT"])), backlog=128)
    # A signal that came just before `accept` would be heard when the next client has come.
    awake, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    while True:
        if listener not in select.select([listener, awake], [], [])[0]:
            continue  # it ends, or hangs, here
        sock, _ = listener.accept()
        threading.Thread(target=serve_one, args=(sock, options), daemon=True).start()


if __name__ == "__main__":
    main()
