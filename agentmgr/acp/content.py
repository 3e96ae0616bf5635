"""An editor's prompt, as a message to an agent. Pure.

text                        the text
resource_link               `[name](uri)` in the text, and an attachment
resource with a text        `[name](uri)` in the text, and what it says at the end, as `<context ref="uri">`
resource with a blob        `[name](uri)` in the text, and an attachment
image                       an attachment
audio                       refused: `initialize` says so

The agent finds attachments in `message.attachments`, and the editor's directory in `message.metadata["cwd"]`.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error
from collections.abc import Mapping
from typing import Any

from .rpc import invalid, required

MOST_ATTACHMENTS = 32
_MIME_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(;[\w.+-]+=[\w.+-]+)*")


def said(blocks: object) -> tuple[str, dict[str, Any]]:
    """The text of a message, and its metadata. Raises `RpcError` for what no agent could read."""
    if not isinstance(blocks, list) or not blocks:
        raise invalid("prompt must be a list of content blocks, at least one")
    text, behind = "", ""
    attachments: list[dict[str, str]] = []
    for place, block in enumerate(blocks):
        where = f"prompt[{place}]."
        if not isinstance(block, dict):
            raise invalid(f"prompt[{place}] must be an object")
        match required(block, "type", str, where):
            case "text":
                text = _joined(text, required(block, "text", str, where))
            case "resource_link":
                uri, name = required(block, "uri", str, where), required(block, "name", str, where)
                text = _joined(text, f"[{name}]({uri})")
                attachments.append({"kind": "file", "url": uri, "name": name})
            case "resource":
                resource = required(block, "resource", dict, where)
                where += "resource."
                uri = required(resource, "uri", str, where)
                name = uri.rstrip("/").rpartition("/")[2] or uri
                text = _joined(text, f"[{name}]({uri})")
                if "text" in resource:
                    inside = required(resource, "text", str, where)
                    behind += f'\n\n<context ref="{uri}">\n{inside}\n</context>'
                else:
                    url = _data_url(resource, "blob", where)
                    attachments.append({"kind": "file", "url": url, "name": name})
            case "image":
                attachments.append({"kind": "image", "url": _data_url(block, "data", where)})
            case kind:
                raise invalid(f"{where}type: {kind[:40]!r} is not supported; send text, images or resources")
    if len(attachments) > MOST_ATTACHMENTS:
        raise invalid(f"prompt has {len(attachments)} images and files, and may have {MOST_ATTACHMENTS}")
    if not (text + behind).strip() and not attachments:
        raise invalid("prompt is empty")
    return text + behind, {"attachments": attachments} if attachments else {}


def text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _joined(text: str, more: str) -> str:
    """A link is a block of its own inside a sentence; other blocks begin a line."""
    apart = not text or not more or text[-1].isspace() or more[0].isspace()
    return text + more if apart else f"{text}\n{more}"


def _data_url(block: Mapping[str, Any], name: str, where: str) -> str:
    data = required(block, name, str, where)
    kind = block.get("mimeType") or "application/octet-stream"
    if not isinstance(kind, str) or not _MIME_TYPE.fullmatch(kind):
        raise invalid(f"{where}mimeType must be a media type, as in image/png")
    try:
        b64decode(data, validate=True)
    except (Error, ValueError):
        raise invalid(f"{where}{name} must be base64") from None
    return f"data:{kind};base64,{data}"
