"""A program as users have them, which shows in one way or another that it is ready and well, or does not.

`program.py [--listen PORT] [--after SECONDS] [--answer STATUS | --mute | --websocket PATH] [--notify MESSAGE]
[--watchdog SECONDS] [--record FILE]`. PORT may be `env`. On SIGUSR1 it falls silent: no watchdog, no answers.
`--record`: a line for each connection: the User-Agent, and how the connection ended.
"""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

words = iter(sys.argv[1:])
options = {word: next(words) if word != "--mute" else "yes" for word in words}
silent = threading.Event()
signal.signal(signal.SIGUSR1, lambda *_: silent.set())


def notify(message: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        with suppress(ConnectionRefusedError):  # between two managers
            sock.sendto(message.encode(), "\0" + os.environ["NOTIFY_SOCKET"][1:])


def record(line: str) -> None:
    if "--record" in options:
        with open(options["--record"], "a") as file:
            file.write(line + "\n")


def serve(sock: socket.socket) -> None:
    with sock:
        head = b""
        while b"\r\n\r\n" not in head and (data := sock.recv(4096)):
            head += data
        lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if ": " in line)
        agent = lines.get("User-Agent", "none") if head else "nothing"
        if not head or silent.is_set() or "--mute" in options:
            sock.recv(1)  # until the other side goes
        elif head.split()[1].decode() == options.get("--websocket"):
            key = lines["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
            sock.sendall(
                "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
            )
            while len(frame := sock.recv(1000)) >= 6:  # small masked frames, one at a time
                mask, payload = frame[2:6], frame[6:]
                plain = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
                opcode = {9: 10, 8: 8}.get(frame[0] & 15, 1)
                sock.sendall(bytes([0x80 | opcode, len(plain)]) + plain)
                if opcode == 8:
                    break
        else:
            sock.sendall(f"HTTP/1.1 {options.get('--answer', '403')} x\r\nContent-Length: 0\r\n\r\n".encode())
        try:
            while sock.recv(1000):
                pass
            record(f"{agent} end")
        except OSError as error:
            record(f"{agent} {error.strerror}")


def listen() -> None:
    time.sleep(float(options.get("--after", 0)))
    port = options["--listen"]
    listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"] if port == "env" else port)))
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


record("WATCHDOG_USEC=" + os.environ.get("WATCHDOG_USEC", "none"))
if "--notify" in options:
    notify(options["--notify"])
if "--listen" in options:
    threading.Thread(target=listen, daemon=True).start()
while True:
    if "--watchdog" in options and not silent.is_set():
        notify("WATCHDOG=1")
    time.sleep(float(options.get("--watchdog", 0.05)))
