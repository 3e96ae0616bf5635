"""The console: its page, the files of the page, and who has logged in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from urllib.parse import urlsplit

import trio
from attrs import field, frozen
from quart import Response
from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header, parse_etags

from ...codec import to_json
from ...console.files import Asset, Assets, console
from ...core.hosts import authority, is_loopback, is_wildcard
from ...errors import TokenNotFound
from ...manager import AgentManager
from ...manager.console import LOGIN_LIFE_S
from ...models.fields import check_text
from ...websocket.refusal import RefusalCode
from ..auth import check_own_page, login_cookie
from ..operations import Answer, Call, Operations
from ..problems import HttpProblem

api = Operations("console", base="", scope=None)
_rest = Operations("console", scope=None)

_ALL_SCOPES = ("admin", "connect", "read", "sessions")

_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@api.add("GET", "/", gives={302: None}, media_type="*/*")
async def root(call: Call) -> Answer:
    """Leads a browser to the console, and others to the documentation."""
    shows_pages = "text/html" in call.headers.get("Accept", "")
    return Answer(None, 302, {"Location": "/console/" if shows_pages else "/docs", "Vary": "Accept"})


@api.add("GET", "/console", gives={302: None}, media_type="*/*")
async def console_without_slash(call: Call) -> Answer:
    """Leads to the console."""
    return Answer(None, 302, {"Location": "/console/"})


@api.add("GET", "/console/", gives={200: str, 304: None}, media_type="text/html")
async def console_page(call: Call) -> Response:
    """The console: a page to see and steer this manager."""
    page = (await _assets()).page_with(to_json(_state(call)))
    policy = _policy(call)
    # What the browser may reach is kept with the page.
    etag = f"{page.digest}-{sha256(policy.encode()).hexdigest()[:8]}"
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": policy}
    return _sent(call, page, etag, headers, vary="Accept-Encoding, Cookie, Host")


@api.add(
    "GET", "/console/assets/{hash}/{path}", gives={200: bytes, 304: None}, media_type="*/*", problems=(404,)
)
async def console_asset(call: Call) -> Response:
    """A file of that page; it never changes under this name."""
    assets = await _assets()
    asset = assets.files.get(call.params["path"])
    if asset is None or not assets.prefix.endswith(f"/{call.params['hash']}"):
        raise HttpProblem(404, "not_found", "The console has no such file; reload its page.")
    return _sent(call, asset, asset.digest, {"Cache-Control": "public, max-age=31536000, immutable"})


async def _assets() -> Assets:
    return await trio.to_thread.run_sync(console)  # the first time it compresses for some 20 ms


def _sent(
    call: Call, asset: Asset, etag: str, headers: dict[str, str], *, vary: str = "Accept-Encoding"
) -> Response:
    # Weak: it stands for the compressed file and for the plain one.
    headers = {**_HEADERS, **headers, "ETag": f'W/"{etag}"', "Vary": vary}
    if parse_etags(call.headers.get("If-None-Match")).contains_weak(etag):
        response = Response(b"", status=304, headers=headers)
        del response.headers["Content-Type"]
        return response
    accepted = parse_accept_header(call.headers.get("Accept-Encoding"), Accept)
    if asset.compressed is not None and accepted["gzip"] > 0:
        headers["Content-Encoding"] = "gzip"
        return Response(asset.compressed, headers=headers, content_type=asset.content_type)
    return Response(asset.raw, headers=headers, content_type=asset.content_type)


def _policy(call: Call) -> str:
    """What the page may load and reach: its own server, and the gateway."""
    origins = [url for url in gateways(call) if "[" not in url]  # a policy cannot name an IPv6 address
    reachable = "".join(f" {url} {url.replace('ws', 'http', 1)}" for url in origins)
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        f"connect-src 'self'{reachable}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


def gateways(call: Call) -> list[str]:
    """Where the browser that asks reaches the gateway, as in `ws://localhost:9090`."""
    asked = _hostname(call.headers.get("Host", ""))
    return list(dict.fromkeys(_gateways(call.manager, asked)))


def _gateways(manager: AgentManager, asked: str) -> Iterator[str]:
    for listener in manager.get_info()["listeners"]:
        if listener["kind"] == "proxy":
            host = listener["host"]
            # "localhost" is every loopback address, and what the browser's bar says is the better name.
            if asked and (is_wildcard(host) or (host == "localhost" and is_loopback(asked))):
                host = asked
            elif is_wildcard(host) or (":" in host and is_loopback(host)):
                host = "localhost"
            yield f"{'wss' if listener['tls'] else 'ws'}://{authority(host, listener['port'])}"


_NAME = re.compile(r"[a-z0-9._-]+")


def _hostname(host: str) -> str:
    """The name that a browser used, where a policy can name it; else "" ."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
    return name if _NAME.fullmatch(name) else ""


@frozen
class ConsoleState:
    """What the page has to know before it asks anything else."""

    login_required: bool  #: nothing is shown without a login
    authenticated: bool  #: by a login or token, or as this machine's own user where none is required
    scopes: tuple[str, ...] = ()  #: all that it may do: `admin` has the others with it
    token: str | None = None  #: the name of the login or token that asks
    version: str | None = None  #: this and what follows only for those who are authenticated
    database: str | None = None
    gateway: tuple[str, ...] = ()  #: where this browser reaches it, as in `ws://localhost:9090`
    gateway_tokens: bool = False  #: it asks for a token or ticket


@frozen
class NewLogin:
    ticket: str = field(validator=check_text)


@_rest.add("GET", "/console", gives={200: ConsoleState})
async def get_console(call: Call) -> Answer:
    """Whether the console needs a login, and what whoever asks may do."""
    return Answer(_state(call))


def _state(call: Call) -> ConsoleState:
    access = call.server.access
    required = access is not None and not access.lets_in(call.headers, call.peer_uid)
    if required and call.token is None:
        return ConsoleState(login_required=True, authenticated=False)
    scopes = None if call.token is None else call.token.scopes
    info = call.manager.get_info()
    return ConsoleState(
        login_required=required,
        authenticated=True,
        scopes=_ALL_SCOPES if scopes is None or "admin" in scopes else tuple(sorted(scopes)),
        token=None if call.token is None else call.token.name,
        version=info["version"],
        database=info["database"],
        gateway=tuple(gateways(call)),
        gateway_tokens=info["tokens_required"].gateway,
    )


@_rest.add("POST", "/console/login", body=NewLogin, gives={204: None}, problems=(400, 413, 415), scope=None)
async def log_in(call: Call, body: NewLogin) -> Answer:
    """Logs a browser in with a ticket of `agentmgr console`: its cookie is the key of a token of its own."""
    check_own_page(call.headers)
    made = await call.carry_out(lambda: call.manager.console.log_in(body.ticket, call.peer_uid))
    if made is None:
        raise HttpProblem(
            401,
            RefusalCode.UNAUTHORIZED,
            "This link was used already, or is too old; `agentmgr console` makes another one.",
        )
    await _end_login(call)
    return Answer(None, 204, {"Set-Cookie": login_cookie(call.headers, made[1], LOGIN_LIFE_S)})


@_rest.add("POST", "/console/logout", gives={204: None}, scope=None)
async def log_out(call: Call) -> Answer:
    """Logs the browser out; what its login has opened ends."""
    check_own_page(call.headers)
    await _end_login(call)
    return Answer(None, 204, {"Set-Cookie": login_cookie(call.headers, "", 0)})


async def _end_login(call: Call) -> None:
    """Revokes the login that the request came with, if any."""
    if (token := call.token) is not None and token.is_login:
        with trio.CancelScope(shield=True), suppress(TokenNotFound):  # it has opened this very request
            await call.carry_out(lambda: call.manager.delete_token(token.token_id))


api.table += _rest.table
