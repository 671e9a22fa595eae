"""The requests that the page answers: those of its own fields, of a form's size."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rfdit.playground.form import LARGEST_FILE

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LARGEST_BODY = 2**20  # bytes; the fields of a form, with a long prompt, take some thousand
LARGEST_WITH_FILE = (
    LARGEST_BODY + LARGEST_FILE * 4 // 3
)  # of the one request that may have an image, in base64
MOST_HELD = 2**27  # bytes of larger bodies at one time, of all visitors together
API = "/gradio_api/"
JOIN = f"{API}queue/join"
# The POST requests of a browser: a button that was pressed, its end, and the closing of the tab.
POSTED = ("queue/join", "run/", "cancel", "reset")
# Reads that write files, or make this machine request others.
REFUSED = ("deep_link", "proxy=")


class Guard:
    """ASGI middleware that refuses everything else, since gradio takes files and calls whatever a page has.

    A body is read whole before it is passed on, and answered with 413 if it is too large, or with 503 if it is
    large and there is no room for it now; other requests are answered with 404.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self._held = 0  # bytes, as many as each large body may have

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http" or not is_answered(scope["method"], scope["path"]):
            await _refuse(send, 404)
        else:
            await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers with the application's answer to a request whose body has been read."""
        most = LARGEST_WITH_FILE if scope["path"] == JOIN else LARGEST_BODY
        messages: list[Message] = []
        size = held = 0
        try:
            while not messages or messages[-1].get("more_body", False):
                messages.append(await receive())
                size += len(messages[-1].get("body", b""))
                if size > most:
                    return await _refuse(send, 413)
                if size > LARGEST_BODY and not held:
                    if self._held + most > MOST_HELD:
                        return await _refuse(send, 503)
                    held = most
                    self._held += held
            waiting = iter(messages)

            async def replay() -> Message:
                return next(waiting, None) or await receive()

            await self.app(scope, replay, send)
        finally:
            self._held -= held


def is_answered(method: str, path: str) -> bool:
    """True for requests that the page's own fields send."""
    within = path.removeprefix(API) if path.startswith(API) else None
    if method in ("GET", "HEAD", "OPTIONS"):
        return within is None or not within.startswith(REFUSED)
    return method == "POST" and within is not None and within.startswith(POSTED)


async def _refuse(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
