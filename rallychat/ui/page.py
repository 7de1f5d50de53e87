"""The document itself: Gradio's index page with our files in its head, and a policy that keeps it at home.

Every inline script Gradio writes gets the nonce of this response, so that no other inline script or handler can
run; `unsafe-eval` stays, as Gradio compiles its HTML templates in the browser. Of Gradio's own routes only what
the frame needs is open: it has no events, so nobody needs its uploads, files, proxy or queue.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rallychat.api.errors import http_problem
from rallychat.ui.account_door import shown

STATIC: Final = Path(__file__).parent / "static"
_STYLES: Final = (
    "tokens",
    "frame",
    "sidebar",
    "library",
    "transcript",
    "empty",
    "prose",
    "composer",
    "panel",
    "personas",
    "context",
    "dialogs",
    "menu",
    "review",
    "chat_only",
)
_OPEN: Final = ("/assets/", "/static/", "/svelte/")
_OPEN_EXACT: Final = frozenset(
    {"/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/config", "/gradio_api/info"}
)
_BEFORE_PAINT: Final = (
    "try{const t=localStorage.getItem('rallychat.theme');"
    "if(t==='dark'||t==='light')document.documentElement.dataset.theme=t;"
    "if(new URLSearchParams(location.search).has('chat-only'))sessionStorage.setItem('rallychat.only','yes');"
    "if(sessionStorage.getItem('rallychat.only'))document.documentElement.dataset.chatOnly=''}catch{}"
)
_STRANGERS: Final = re.compile(r'\s*<meta\s+(?:property|name)="(?:og|twitter):[^>]*?/>', re.DOTALL)


class Page:
    """Wraps Gradio's application: finishes its index page, and closes the routes nobody needs.

    With `chat_only` the page hides what is beside the chat; its routes stay as they are.
    """

    def __init__(self, gradio_app: ASGIApp, *, chat_only: bool = False) -> None:
        self._app = gradio_app
        self._head = _head()
        if chat_only:
            self._head = f"<script>document.documentElement.dataset.chatOnly=''</script>\n{self._head}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers as Gradio would, where that is wanted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        if path not in _OPEN_EXACT and not path.startswith(_OPEN):
            await _nothing_at(path, scope)(scope, receive, send)
        elif path == "/" and scope["method"] == "GET":
            await self._app(scope, receive, _IndexSend(send, self._head))
        else:
            await self._app(scope, receive, send)


def _nothing_at(path: str, scope: Scope) -> Response:
    """A page for whoever looks at one; an error in the API's shape for programs."""
    if "text/html" not in Headers(scope=scope).get("accept", ""):
        return http_problem(404, "", scope).response()
    text = f"This server has no page {path[:200]}. Its address may be mistyped, or old."
    return shown(Request(scope), "said", 404, title="Nothing here", text=text)


class _IndexSend:
    """Holds the index page back until it is whole, then sends it finished."""

    def __init__(self, send: Send, head: str) -> None:
        self._send = send
        self._head = head
        self._start: Message | None = None
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        assert self._start is not None
        body = bytes(self._body)
        if Headers(raw=self._start["headers"]).get("content-type", "").startswith("text/html"):
            nonce = secrets.token_urlsafe(16)
            body = _finished(body.decode(), self._head, nonce).encode()
            headers = MutableHeaders(raw=self._start["headers"])
            headers["content-length"] = str(len(body))
            headers["cache-control"] = "no-store"
            headers.update(_policy(nonce))
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})


def _finished(index: str, head: str, nonce: str) -> str:
    index = _STRANGERS.sub("", index)
    index = index.replace("</head>", f"{head}\n</head>", 1)  # behind Gradio's reset, which is as specific
    return index.replace("<script", f'<script nonce="{nonce}"')


def _head() -> str:
    """Our part of the head. The version changes with the files, so that a new release is seen at once."""
    files = sorted(STATIC.glob("*"))
    version = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    styles = "\n".join(f'<link rel="stylesheet" href="ui/static/{name}.css?v={version}">' for name in _STYLES)
    return (
        f"<script>{_BEFORE_PAINT}</script>\n{styles}\n"
        '<link rel="icon" type="image/svg+xml" href="ui/static/ball.svg">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<script type="module" src="ui/static/app.js?v={version}"></script>'
    )


def _policy(nonce: str) -> dict[str, str]:
    rules = (
        "default-src 'self'",
        f"script-src 'self' 'nonce-{nonce}' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
    return {
        "content-security-policy": "; ".join(rules),
        "referrer-policy": "same-origin",
        "x-content-type-options": "nosniff",
    }
