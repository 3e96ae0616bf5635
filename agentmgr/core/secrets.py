"""Values that no interface may show; and whose key it is: by its digest, as keys themselves are not kept."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from urllib.parse import urlsplit

from ..errors import FieldProblem, InvalidRequest
from ..models import ServiceConfig, Token
from ..models.fields import is_url

HIDDEN = "***"
"""Stands where a value is. Given back in a change, it means: as it was."""


def shown(env: Mapping[str, str], public: Collection[str]) -> dict[str, str]:
    """Environment variables as they may be shown: their names, and the values of those that are `public`.

    A name does not show what the value is: `DB_PASS`, `JWT` and `SLACK_WEBHOOK` are secrets too.
    """
    return {name: value if name in public else HIDDEN for name, value in env.items()}


def restored(env: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """What `env` means, where it was `shown` before: hidden values are those that are known.

    Raises `InvalidRequest` for a hidden value that is not known: it must not become a value itself.
    """
    if lost := sorted(name for name, value in env.items() if value == HIDDEN and name not in known):
        problem = f'hides {", ".join(lost)} ("{HIDDEN}"), and there is no value to keep: give it'
        raise InvalidRequest(f"env {problem}", fields=[FieldProblem("env", problem)])
    return {name: known[name] if value == HIDDEN else value for name, value in env.items()}


def shown_hook(hook: str | None) -> str | None:
    """Of a URL only the host: user, path and query are often keys, as in Slack's `/services/T0/B0/X`."""
    if hook is None or not is_url(hook):
        return hook
    url = urlsplit(hook)
    host = url.netloc.rpartition("@")[2]
    rest = url.path not in ("", "/") or url.query or "@" in url.netloc
    return f"{url.scheme}://{host}/{HIDDEN}" if rest else hook


def restored_hook(hook: str | None, known: str | None) -> str | None:
    """What `hook` means, where it was shown before. Raises `InvalidRequest` where that is not known."""
    if hook is None or not is_url(hook) or not hook.endswith(f"/{HIDDEN}"):
        return hook
    if known is None or hook not in (known, shown_hook(known)):
        problem = f'hides its address ("{HIDDEN}"), and there is none to keep: give it'
        raise InvalidRequest(f"on_failure {problem}", fields=[FieldProblem("on_failure", problem)])
    return known


def has_secrets(config: ServiceConfig) -> bool:
    """Whether it has a value that is not shown. `config`: in full."""
    hidden = shown(config.env, config.env_public) != config.env
    return hidden or shown_hook(config.on_failure) != config.on_failure


def key_digest(key: str) -> str:
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def token_of(tokens: Iterable[Token], key: str) -> Token | None:
    """Whose key this is. Takes the same time whatever is compared."""
    wanted = key_digest(key)
    found = None
    for token in tokens:
        if hmac.compare_digest(token.digest, wanted):
            found = token
    return found
