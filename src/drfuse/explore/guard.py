"""Who may see the pages: whoever opened the printed address, from this machine."""

import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

HOSTS = ("127.0.0.1", "localhost")
"""The names by which a browser may call the server; a page elsewhere whose name leads here has another."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",  # patient data stay out of the browser's files
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_REFUSED = "Refused. Open the address that `drfuse explore` printed last; each opens one browser, once.\n"
# A page of ours that goes on by itself: after a redirect that began on another site, the browser would keep a
# strict cookie back.
_WELCOME = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>drfuse</title>'
    '<link rel="icon" href="/static/icon.svg">'
    '<meta http-equiv="refresh" content="0; url=/"><a href="/">Open</a></html>'
)


class Guard:
    """Answers 403 to every request, of whatever kind, without the session's cookie.

    A request with the token gets the cookie. That token is then void, and `announce` gets the next one.

    Args:
        app: The ASGI application behind it.
        announce: Called with each token, the first one included.
        port: The server's port, part of the cookie's name: cookies of all ports of a host share one jar.
    """

    def __init__(self, app: Any, announce: Callable[[str], None], port: int) -> None:
        self._app, self._announce = app, announce
        self._cookie = f"drfuse_{port}"
        self._session = secrets.token_urlsafe(32)
        self._next_token()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no page has a websocket
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if not _from_here(headers, scope["method"]):
            await _answer(send, 403, _REFUSED)
        elif any(_same(value, self._session) for value in _cookies(headers, self._cookie)):
            await self._app(scope, receive, _with_headers(send))
        elif _same(_token(scope), self._token):
            self._next_token()
            cookie = f"{self._cookie}={self._session}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(send, 200, _WELCOME, "text/html", {"Set-Cookie": cookie})
        else:
            await _answer(send, 403, _REFUSED)

    def _next_token(self) -> None:
        self._token = secrets.token_urlsafe(32)
        self._announce(self._token)


def _from_here(headers: dict[str, str], method: str) -> bool:
    """Return whether a browser called this machine by name, from one of our pages or from none."""
    host = headers.get("host", "").partition(":")[0]  # any port: a tunnel from elsewhere has its own
    site = headers.get("sec-fetch-site", "none")  # browsers send it; other programs need not
    by_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"  # a terminal may be a page
    return host in HOSTS and (site in ("none", "same-origin") or by_link)


def _token(scope: Any) -> str | None:
    given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
    return given[0] if len(given) == 1 else None


def _cookies(headers: dict[str, str], name: str) -> list[str]:
    """Return the values of the cookies with a name, whatever else other servers of this host have set.

    `http.cookies` drops all that follows a cookie that it cannot read.
    """
    pairs = (one.partition("=") for one in headers.get("cookie", "").split(";"))
    return [value.strip() for given, _, value in pairs if given.strip() == name]


def _same(given: str | None, expected: str) -> bool:
    return given is not None and secrets.compare_digest(given.encode(), expected.encode())


def _with_headers(send: Any) -> Any:
    """Return `send`, which adds `HEADERS` that an answer does not have."""

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            kept = [(name, value) for name, value in added if name not in present]
            message = {**message, "headers": [*message["headers"], *kept]}
        await send(message)

    return sending


async def _answer(
    send: Any, status: int, text: str, kind: str = "text/plain", headers: dict[str, str] | None = None
) -> None:
    shown = {"Content-Type": f"{kind}; charset=utf-8", **HEADERS, **(headers or {})}
    pairs = [(name.lower().encode(), value.encode()) for name, value in shown.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": text.encode()})
