import asyncio
from typing import Any

import pytest

from drfuse.explore.guard import HEADERS, Guard

HOST = {"host": "127.0.0.1:80"}


async def page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"private")]})
    await send({"type": "http.response.body", "body": b"patients"})


@pytest.fixture
def guard() -> tuple[Guard, list[str]]:
    tokens: list[str] = []
    return Guard(page, tokens.append, 80), tokens


def ask(guard: Guard, query: str = "", headers: dict[str, str] | None = None, **more: Any) -> Any:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [
        (name.encode(), value.encode()) for name, value in (HOST if headers is None else headers).items()
    ]
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": query.encode(), "headers": pairs}
    asyncio.run(guard(scope | more, None, send))
    return sent


def cookie_of(guard: Guard, token: str) -> str:
    (start, _) = ask(guard, f"token={token}")
    assert start["status"] == 200
    return dict(start["headers"])[b"set-cookie"].decode()


def test_the_token_opens_one_browser(guard: tuple[Guard, list[str]]) -> None:
    guarded, tokens = guard
    cookie = cookie_of(guarded, tokens[0])
    assert cookie.endswith("; HttpOnly; SameSite=Strict; Path=/")
    assert ask(guarded, f"token={tokens[0]}")[0]["status"] == 403
    assert len(tokens) == 2
    start, body = ask(guarded, headers=HOST | {"cookie": cookie.split(";")[0]})
    assert (start["status"], body["body"]) == (200, b"patients")
    headers = [name.decode() for name, _ in start["headers"]]
    assert sorted(headers) == sorted(name.lower() for name in HEADERS)
    assert cookie_of(guarded, tokens[1]) == cookie


@pytest.mark.parametrize(
    ("headers", "method"),
    [
        ({}, "GET"),
        ({"cookie": "drfuse_80=wrong"}, "GET"),
        ({"cookie": "drfuse_80=\x01; ,,;="}, "GET"),
        ({"host": "evil.example:80", "cookie": "GOOD"}, "GET"),
        ({"host": "127.0.0.1.evil.example:80", "cookie": "GOOD"}, "GET"),
        ({"host": "", "cookie": "GOOD"}, "GET"),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "cookie": "GOOD"}, "GET"),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors", "cookie": "GOOD"}, "GET"),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate", "cookie": "GOOD"}, "POST"),
    ],
)
def test_anyone_else_is_refused(guard: tuple[Guard, list[str]], headers: dict[str, str], method: str) -> None:
    guarded, tokens = guard
    good = cookie_of(guarded, tokens[0]).split(";")[0]
    asked = HOST | {name: value.replace("GOOD", good) for name, value in headers.items()}
    start, body = ask(guarded, headers=asked, method=method)
    assert start["status"] == 403
    assert b"patients" not in body["body"]


@pytest.mark.parametrize("before", ['a={"x":1}', "b; c d=;", "drfuse_80=wrong", '"'])
def test_cookies_of_other_servers_do_not_lock_the_user_out(
    guard: tuple[Guard, list[str]], before: str
) -> None:
    guarded, tokens = guard
    good = cookie_of(guarded, tokens[0]).split(";")[0]
    start, _ = ask(guarded, headers=HOST | {"cookie": f"{before}; {good}; d=[]; drfuse_80=wrong"})
    assert start["status"] == 200


@pytest.mark.parametrize("query", ["", "token=", "token=wrong", "token=GOOD&token=GOOD", "TOKEN=GOOD"])
def test_only_the_whole_token_is_one(guard: tuple[Guard, list[str]], query: str) -> None:
    guarded, tokens = guard
    assert ask(guarded, query.replace("GOOD", tokens[0]))[0]["status"] == 403
    assert len(tokens) == 1


def test_websockets_are_refused_before_they_open(guard: tuple[Guard, list[str]]) -> None:
    guarded, tokens = guard
    sent = ask(guarded, f"token={tokens[0]}", type="websocket")
    assert sent == [{"type": "websocket.close", "code": 1008}]
