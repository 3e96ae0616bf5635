"""What frameworks hand about, as values that JSON can say."""

from __future__ import annotations

import json
from typing import Any

from ... import jsontext


def plain(value: Any) -> Any:
    """The value itself where JSON can say it; else with `str` for what it cannot, as `"NaN"`."""
    return json.loads(json.dumps(value, default=_shown), parse_constant=str)


def _shown(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)  # pydantic, which they all use
    return dump(mode="json") if callable(dump) else str(value)


def arguments(value: Any) -> Any:
    """A tool's arguments, which a model gives as JSON text."""
    if isinstance(value, str):
        try:
            return jsontext.parse(value)
        except (ValueError, RecursionError):  # not JSON, or nested too deep
            return value
    return plain(value)
