"""What the page does not answer: uploads, large bodies, and gradio's routes that its fields do not use."""

import asyncio
import socket
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rfdit.config.build import register
from rfdit.playground.form import Form
from rfdit.playground.guard import LARGEST_BODY, LARGEST_WITH_FILE, MOST_HELD, Guard
from rfdit.playground.page import Page


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers with the size of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def answer(method: str, path: str, *chunks: bytes) -> tuple[int, bytes, int]:
    """Status and body of the answer, and the number of chunks that were read."""
    sent: list[Any] = []
    read = 0

    async def receive() -> Any:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": chunks[read - 1], "more_body": read < len(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path}
    asyncio.run(Guard(echo)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], read


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", f"/gradio_api/{name}") for name in ("upload", "upload/", "stream/x", "component_server")),
        *(
            ("POST", path)
            for path in ("/upload", "/login", "/gradio_api/process_recording", "/", "/queue/join")
        ),
        *(("GET", f"/gradio_api/{name}") for name in ("deep_link", "proxy=http://127.0.0.1/")),
        *((method, "/gradio_api/queue/join") for method in ("PUT", "DELETE", "PATCH")),
    ],
)
def test_what_no_field_sends_is_refused_unread(method: str, path: str) -> None:
    assert answer(method, path, b"x") == (404, b"", 0)


@pytest.mark.parametrize("path", ["queue/join", "run/predict", "cancel", "reset"])
def test_what_a_field_sends_is_passed_on_whole(path: str) -> None:
    assert answer("POST", f"/gradio_api/{path}", b"12", b"345") == (200, b"5", 2)


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/queue/data", "/assets/index.js"])
def test_the_page_itself_is_read(path: str) -> None:
    assert answer("GET", path, b"") == (200, b"0", 1)


@pytest.mark.parametrize(
    ("path", "largest"),
    [("queue/join", LARGEST_WITH_FILE), ("run/predict", LARGEST_BODY), ("cancel", LARGEST_BODY)],
)
def test_a_large_body_is_refused_and_not_read_to_its_end(path: str, largest: int) -> None:
    half = bytes(largest // 2)
    assert answer("POST", f"/gradio_api/{path}", half, half) == (200, str(len(half) * 2).encode(), 2)
    assert answer("POST", f"/gradio_api/{path}", half, half, b"xx", b"x") == (413, b"", 3)


def test_large_bodies_of_all_visitors_together_are_bounded() -> None:
    async def main() -> list[int]:
        statuses: list[int] = []
        part, forever = bytes(LARGEST_BODY + 1), asyncio.Event()

        async def request(guard: Guard, *chunks: bytes) -> None:
            parts = iter(chunks)

            async def receive() -> Any:
                if (body := next(parts, None)) is None:
                    await forever.wait()
                return {"type": "http.request", "body": body or b"", "more_body": len(chunks) > 1}

            async def send(message: Any) -> None:
                statuses.append(message.get("status", 0))

            await guard({"type": "http", "method": "POST", "path": "/gradio_api/queue/join"}, receive, send)

        guard = Guard(echo)
        slow = [
            asyncio.create_task(request(guard, part, part)) for _ in range(MOST_HELD // LARGEST_WITH_FILE)
        ]
        await asyncio.sleep(0)
        await request(guard, part)
        await request(guard, b"small")
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        await request(guard, part)  # there is room again
        return [status for status in statuses if status]

    assert asyncio.run(main()) == [503, 200, 200]


def test_the_page_is_behind_the_guard(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    register()
    form = Form(classes=None, max_steps=10, max_images=2, leave_out=["guidance/legacy_three_channel"])
    page = Page(model=SimpleNamespace(form=form, title="a model"), folder=tmp_path)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page.launch(host="127.0.0.1", port=port)
    try:
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/config")
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
        connection.request("POST", "/gradio_api/upload", body=b"x" * 100)
        assert connection.getresponse().status == 404
    finally:
        page.blocks.close(verbose=False)
    assert list(tmp_path.iterdir()) == []
