"""What a client asked for, as rules see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from http.cookies import CookieError, SimpleCookie
from ipaddress import IPv6Address, ip_address
from urllib.parse import parse_qsl, unquote

from attrs import field, frozen


def _lower_names(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def normal_path(path: str) -> str:
    """A path in its one spelling: percent-decoded once, `//` merged, `.` and `..` resolved.

    nginx compares its locations with that. With the raw text, another spelling of a path would meet no rule.
    """
    decoded = unquote(path, errors="replace") if "%" in path else path
    if not decoded.startswith("/") or ("//" not in decoded and "/." not in decoded):
        return decoded
    segments: list[str] = []
    for segment in decoded.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    open_end = bool(segments) and decoded.endswith(("/", "/.", "/.."))
    return "/" + "/".join(segments) + ("/" if open_end else "")


def normal_host(host: str) -> str:
    """A host in its one spelling: in lower case, without the dot of the DNS root; a port stays."""
    if host.startswith("["):
        return host.lower()
    name, colon, port = host.partition(":")
    return f"{unquote(name).lower().rstrip('.')}{colon}{port}"


def normal_address(text: str) -> str:
    """An IP address in its one spelling, IPv4 in IPv6 as IPv4; what is none stays as it is."""
    try:
        address = ip_address(text)
    except ValueError:
        return text
    return str((isinstance(address, IPv6Address) and address.ipv4_mapped) or address)


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
    def cookies(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        # One bad cookie must not hide the others from a rule, as it would in `SimpleCookie.load(header)`.
        for part in self.headers.get("cookie", "").split(";"):
            try:
                for name, morsel in SimpleCookie(part.strip()).items():
                    found[name] = (*found.get(name, ()), morsel.value)
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
        read = reader(name)
        if read is None:
            raise KeyError(name)
        return read(self)

    def first(self, name: str) -> str | None:
        """The field's first value; None where it has none."""
        return next(iter(self.values(name)), None)

    @property
    def session_id(self) -> str | None:
        """The session that the client wants to return to, when it names one."""
        return None if self.named_session is None else self.named_session[0]

    @cached_property
    def named_session(self) -> tuple[str, bool] | None:
        """The session that it names, and whether on purpose: a browser sends a cookie to all services."""
        headers = self.headers
        if (
            "session_id" not in self.path
            and "x-session-id" not in headers
            and "session_id" not in headers.get("cookie", "")
        ):
            return None  # nearly always, and parsing is what costs
        for source in ("query.session_id", "header.x-session-id", "cookie.session_id"):
            if value := self.first(source):
                return value, not source.startswith("cookie.")
        return None


Reader = Callable[[ClientRequest], tuple[str, ...]]


def reader(name: str) -> Reader | None:
    """What reads a condition field from a request, `()` when it is absent; None for an unknown field."""
    kind, dot, key = name.partition(".")
    if not dot:
        return _PLAIN_FIELDS.get(name)
    match kind:
        case "query" if key:
            return lambda request: request.query.get(key, ())
        case "header" if key:
            return _header(key.lower())
        case "cookie" if key:
            return lambda request: request.cookies.get(key, ())
    return None


def _header(name: str) -> Reader:
    return lambda request: (request.headers[name],) if name in request.headers else ()


def _hosts(request: ClientRequest) -> tuple[str, ...]:
    """The host without its port, which is what a rule usually means, and with it where it was given."""
    if not (host := normal_host(request.headers.get("host", ""))):
        return ()
    name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return (name,) if name == host else (name, host)


def _subprotocols(request: ClientRequest) -> tuple[str, ...]:
    offered = request.headers.get("sec-websocket-protocol", "").split(",")
    return tuple(name for part in offered if (name := part.strip()))


_PLAIN_FIELDS: Mapping[str, Reader] = {
    "client_ip": lambda request: (normal_address(request.client_ip),),
    "client_port": lambda request: (str(request.client_port),),
    "user_agent": _header("user-agent"),
    "path": lambda request: (normal_path(request.bare_path),),
    "host": _hosts,
    "origin": _header("origin"),
    "subprotocol": _subprotocols,
}
