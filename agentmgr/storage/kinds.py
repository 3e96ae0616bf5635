"""The kinds of named, versioned things that are stored, and how each is refused."""

from __future__ import annotations

from attrs import frozen

from ..errors import (
    Conflict,
    NameTaken,
    NotFound,
    RuleNotFound,
    ServiceNotFound,
    TokenNotFound,
    VersionMismatch,
)
from ..models import RoutingRule, ServiceSpec, Token


@frozen
class Kind:
    table: str
    noun: str
    missing: type[NotFound]

    def not_found(self, key: str) -> NotFound:
        return self.missing(f"no {self.noun} has the id {key}")

    def id_taken(self, key: str) -> Conflict:
        return Conflict(f"a {self.noun} with the id {key} is there already")

    def name_taken(self, name: str) -> NameTaken:
        return NameTaken(f"a {self.noun} named {name} is there already: choose another name")

    def stale(self, thing: ServiceSpec | RoutingRule | Token, stored_version: int) -> VersionMismatch:
        return VersionMismatch(
            f"the {self.noun} {thing.name} was changed in between (it is at version {stored_version} now): "
            "read it again and repeat the change"
        )


SERVICES = Kind("services", "service", ServiceNotFound)
RULES = Kind("rules", "routing rule", RuleNotFound)
TOKENS = Kind("tokens", "token", TokenNotFound)
