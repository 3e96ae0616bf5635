"""Which services need which: in what order they end, and whether they can ever start.

`needs` maps the name of each service to the names of the services that it starts after. Names that are not in
it are ignored: they may be registered later.

In `ServiceConfig.after` a word is a name, or `NAME:completed` for a job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import frozen

Needs = Mapping[str, Iterable[str]]

COMPLETED = "completed"


@frozen
class Dependency:
    name: str
    completed: bool = False  #: it has to end well; else it has to be ready, or to have ended well

    @classmethod
    def parse(cls, word: str) -> Dependency:
        """Raises `ValueError` where something else than `completed` follows the colon."""
        name, colon, what = word.partition(":")
        if colon and what != COMPLETED:
            raise ValueError(word)
        return cls(name, bool(colon))


def named(after: Iterable[str]) -> list[str]:
    """The services that these words name."""
    return [word.partition(":")[0] for word in after]


def cycle(needs: Needs) -> tuple[str, ...] | None:
    """Services that wait for each other, as in `("a", "b", "a")`; None when there are none."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> tuple[str, ...] | None:
        if name in path:
            return (*path[path.index(name) :], name)
        if name in done:
            return None
        for needed in needs.get(name, ()):
            if found := visit(needed, (*path, name)):
                return found
        done.add(name)
        return None

    return next((found for name in needs if (found := visit(name, ()))), None)


def stop_order(needs: Needs) -> list[list[str]]:
    """In waves: each service ends after all that need it, otherwise in the reverse order of `needs`."""
    waves: list[list[str]] = []
    left = list(needs)[::-1]
    while left:
        needed = {name for other in left for name in needs[other]}
        wave = [name for name in left if name not in needed] or left  # a cycle must not keep us from stopping
        waves.append(wave)
        ended = set(wave)
        left = [name for name in left if name not in ended]
    return waves
