"""Local HTTP servers that misbehave in every way that image hosts do."""

import asyncio
import io
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable

import numpy as np
from PIL import Image

Handler = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


def encoded_image(seed: int = 0, form: str = "jpeg", side: int = 32) -> bytes:
    """An encoded image, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize((side, side)).save(data, form)
    return data.getvalue()


def bomb(side: int = 30_000) -> bytes:
    """A PNG of some kilobytes that claims, and is, 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side // 8 + 1) * 1000), 9)  # the first rows will do
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def answer(
    body: bytes,
    status: str = "200 OK",
    kind: str | None = "image/jpeg",
    length: int | None = None,
    **headers: str,
) -> bytes:
    """A whole response. kind=None sends no Content-Type; length may lie."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class MisbehavingServer:
    """Serves on an address until closed; `with` starts it.

    contacts: the path of every request that arrived. busy, busiest: requests being answered now, and
    at most. Paths are of the form /BEHAVIOUR/ANYTHING; the number in the last part is the image's seed.

    elsewhere: the URL that /redirect_elsewhere leads to.
    together: how many requests /together waits for: it answers once so many are being answered at once.
    """

    def __init__(self, address: str = "127.0.0.1", *, elsewhere: str = "") -> None:
        self.address, self.elsewhere = address, elsewhere
        self.together = 0
        self.contacts: list[str] = []
        self.connections = self.busy = self.busiest = self.port = 0
        self._seen: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "MisbehavingServer":
        self._thread.start()
        start = asyncio.start_server(self._serve, self.address, 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, path: str, host: str | None = None) -> str:
        return f"http://{host or self.address}:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while request := await reader.readline():
                path = request.split()[1].decode()
                while (await reader.readline()).strip():
                    pass
                self.contacts.append(path)
                self.busy += 1
                self.busiest = max(self.busy, self.busiest)
                try:
                    await self._answer(path, reader, writer)
                finally:
                    self.busy -= 1
                if path.split("/")[1] in ("truncated", "cut_once", "hang_up", "garbage"):
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behaviour = path.split("/")[1]
        self._seen[path] += 1
        special = getattr(self, f"_do_{behaviour}", None)
        if behaviour == "never":
            while not reader.at_eof():  # as long as the client waits
                await asyncio.sleep(0.05)
        elif special is not None:
            await special(path, writer)
        else:
            writer.write(self._plain(behaviour, path))
        await writer.drain()

    def _plain(self, behaviour: str, path: str) -> bytes:
        seed = int(path.rsplit("/", 1)[1] or 0)
        jpg, first = encoded_image(seed), self._seen[path] == 1
        answers: dict[str, Callable[[], bytes]] = {
            "ok": lambda: answer(jpg),
            "png": lambda: answer(encoded_image(seed, "png"), kind="image/png"),
            "webp": lambda: answer(encoded_image(seed, "webp"), kind="image/webp"),
            "large": lambda: answer(encoded_image(seed, "bmp", side=700), kind="image/bmp"),
            "octets": lambda: answer(jpg, kind="application/octet-stream"),
            "untyped": lambda: answer(jpg, kind=None),
            "lies_png": lambda: answer(jpg, kind="image/png"),
            "not_found": lambda: answer(b"no", "404 Not Found"),
            "gone": lambda: answer(b"no", "410 Gone"),
            "forbidden": lambda: answer(b"no", "403 Forbidden"),
            "timed_out": lambda: answer(b"no", "408 Request Timeout"),
            "too_early": lambda: answer(b"no", "425 Too Early"),
            "flaky": lambda: answer(b"no", "500 Oops") if first else answer(jpg),
            "cut_once": lambda: answer(jpg[:-50] if first else jpg, length=len(jpg)),
            "broken": lambda: answer(b"no", "503 Unavailable"),
            "busy": lambda: answer(b"no", "429 Too Many Requests", Retry_After="0"),
            "busy_long": lambda: answer(b"no", "429 Too Many Requests", Retry_After="3600"),
            "text": lambda: answer(jpg, kind="text/plain"),
            "html": lambda: answer(b"<html>", kind="text/html"),
            "html_as_jpg": lambda: answer(b"<html>"),
            "empty": lambda: answer(b""),
            "truncated": lambda: answer(jpg[:-50], length=len(jpg)),
            "huge": lambda: answer(jpg, length=10**12),
            "bomb": lambda: answer(bomb(), kind="image/png"),
            "opted_out": lambda: answer(jpg, X_Robots_Tag="noai, noimageai"),
            "other_bot": lambda: answer(jpg, X_Robots_Tag="googlebot: noindex"),
            "garbage": lambda: b"I speak no HTTP\r\n\r\n",
            "hang_up": lambda: b"",
            "loop": lambda: self._to(self.url("/loop2/0")),
            "loop2": lambda: self._to(self.url("/loop/0")),
            "chain": lambda: self._to(f"/chain/{seed + 1}"),
            "redirect": lambda: self._to(f"/ok/{seed}"),
            "redirect_nowhere": lambda: answer(b"", "302 Found"),
            "redirect_file": lambda: self._to("file:///etc/passwd"),
            "redirect_elsewhere": lambda: self._to(self.elsewhere),
        }
        return answers[behaviour]()

    @staticmethod
    def _to(url: str) -> bytes:
        return answer(b"", "302 Found", Location=url)

    async def _do_slow(self, path: str, writer: asyncio.StreamWriter) -> None:
        """A good image that takes a while."""
        await asyncio.sleep(0.1)
        writer.write(self._plain("ok", path))

    async def _do_together(self, path: str, writer: asyncio.StreamWriter) -> None:
        """A good image that is sent only to a client with enough requests at once."""
        while self.busiest < self.together:
            await asyncio.sleep(0.01)
        await self._do_slow(path, writer)

    async def _do_drip(self, path: str, writer: asyncio.StreamWriter) -> None:
        """A byte now and then: never silent, never done."""
        for byte in answer(encoded_image()):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)

    async def _do_endless(self, path: str, writer: asyncio.StreamWriter) -> None:
        """A chunked body without end."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + encoded_image()[:10] + bytes(0x10000 - 10) + b"\r\n")
            await writer.drain()
