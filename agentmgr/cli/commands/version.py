"""`agentmgr version`"""

from __future__ import annotations

import platform
from importlib.metadata import version as version_of

from ... import __version__
from ..group import Cli, format_option, subcommand
from ..out import say_json
from ..render import print_fields


@subcommand("version", example="agentmgr version")
@format_option
async def command(cli: Cli, output: str) -> None:
    """Show the version, and those of what it runs on."""
    found = {
        "agentmgr": __version__,
        "python": platform.python_version(),
        **{name: version_of(name) for name in ("trio", "trio-websocket", "hypercorn", "quart-trio")},
        "platform": platform.platform(),
    }
    say_json(found) if output == "json" else print_fields(found.items())
