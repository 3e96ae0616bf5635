"""The API's own description, and a page to read and try it; both work offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flask_swagger_ui
from quart import Response

from ..operations import Answer, Call, Operations
from ..problems import HttpProblem

api = Operations("docs", base="", scope=None)

_DIST = Path(flask_swagger_ui.__file__).parent / "dist"

_ASSETS = {
    "index.css": "text/css",
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-16x16.png": "image/png",
    "favicon-32x32.png": "image/png",
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>agentmgr API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="stylesheet" href="/docs/index.css">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""

# Not inline: the policy below allows no inline scripts.
_START = (
    'SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", validatorUrl: null, deepLinking: true})'
)

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'"
)


@api.add("GET", "/openapi.json", gives={200: dict[str, Any]})
async def openapi(call: Call) -> Answer:
    """This API as an OpenAPI 3.1 document."""
    from ..openapi import document  # made of the table that this module is part of
    from . import operations

    return Answer(document(operations(control=call.server.control)))


@api.add("GET", "/docs", gives={200: str}, media_type="text/html")
async def docs(call: Call) -> Response:
    """A page to read and try this API."""
    return Response(_PAGE, content_type="text/html", headers={"Content-Security-Policy": _POLICY})


@api.add("GET", "/docs/{ref}", gives={200: bytes}, media_type="*/*", problems=(404,))
async def docs_asset(call: Call) -> Response:
    """A file of that page."""
    if call.ref == "start.js":
        return Response(_START, content_type="text/javascript")
    if call.ref not in _ASSETS:
        raise HttpProblem(404, "not_found", "The page has no such file.")
    return Response(
        (_DIST / call.ref).read_bytes(),
        content_type=_ASSETS[call.ref],
        headers={"Cache-Control": "max-age=3600"},
    )
