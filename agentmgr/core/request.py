"""What a client asked for, as rules see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, unquote

from attrs import field, frozen


def _lower_names(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@frozen(slots=False)  # cached_property needs a dict; one is made per handshake
class ClientRequest:
    """A client's handshake, or a sample of one for `rules test`.

    `client_ip` is the resolved address: nothing that the client says can stand in for it. A header that
    came several times is one value, joined with `, ` (RFC 9110 section 5.2).
    """

    path: str = "/"  #: as in the request line: percent-encoded, with the query
    client_ip: str = "127.0.0.1"
    client_port: int = 0
    headers: Mapping[str, str] = field(factory=dict, converter=_lower_names)  #: names in any case

    @cached_property
    def bare_path(self) -> str:
        return self.path.partition("?")[0]

    @cached_property
    def query(self) -> Mapping[str, tuple[str, ...]]:
        _, mark, text = self.path.partition("?")
        found: dict[str, tuple[str, ...]] = {}
        if mark:
            for name, value in parse_qsl(text, keep_blank_values=True):
                found[name] = (*found.get(name, ()), value)
        return found

    @cached_property
    def cookies(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        # One bad cookie must not hide the others from a rule, as it would in `SimpleCookie.load(header)`.
        for part in self.headers.get("cookie", "").split(";"):
            try:
                for name, morsel in SimpleCookie(part.strip()).items():
                    found.setdefault(name, morsel.value)
            except CookieError:
                continue
        return found

    @cached_property
    def address(self) -> tuple[str | None, str]:
        """The service named by `/services/NAME…`, and the path that is left for it, with the query."""
        prefix, _, rest = self.bare_path.removeprefix("/services/").partition("/")
        if not self.bare_path.startswith("/services/") or not prefix:
            return None, self.path
        _, mark, query = self.path.partition("?")
        return unquote(prefix), f"/{rest}{mark}{query}"

    def values(self, name: str) -> tuple[str, ...]:
        """The values of a condition field, `()` when absent. Raises `KeyError` for an unknown field."""
        kind, dot, key = name.partition(".")
        if dot:
            if kind == "query":
                return self.query.get(key, ())
            source = {"header": self.headers, "cookie": self.cookies}[kind]
            value = source.get(key.lower() if kind == "header" else key)
            return () if value is None else (value,)
        return _PLAIN_FIELDS[name](self)

    def _header(self, name: str) -> tuple[str, ...]:
        value = self.headers.get(name)
        return () if value is None else (value,)

    def first(self, name: str) -> str | None:
        return next(iter(self.values(name)), None)

    @property
    def session_id(self) -> str | None:
        """The session that the client wants to return to, when it names one."""
        headers = self.headers
        if "session_id" not in self.path and "x-session-id" not in headers and "cookie" not in headers:
            return None  # nearly always, and parsing is what costs
        for source in ("query.session_id", "header.x-session-id", "cookie.session_id"):
            if value := self.first(source):
                return value
        return None


_PLAIN_FIELDS: Mapping[str, Callable[[ClientRequest], tuple[str, ...]]] = {
    "client_ip": lambda r: (r.client_ip,),
    "client_port": lambda r: (str(r.client_port),),
    "user_agent": lambda r: r._header("user-agent"),
    "path": lambda r: (r.bare_path,),
    "host": lambda r: r._header("host"),
    "origin": lambda r: r._header("origin"),
    "subprotocol": lambda r: tuple(
        item
        for part in r._header("sec-websocket-protocol")
        for item in part.replace(" ", "").split(",")
        if item
    ),
}


def is_field(name: str) -> bool:
    """Is this the name of something that a condition can look at?"""
    kind, dot, key = name.partition(".")
    return (kind in {"query", "header", "cookie"} and bool(key)) if dot else name in _PLAIN_FIELDS
