"""A file server that counts requests."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar


class Handler(SimpleHTTPRequestHandler):
    """Serves files without support for ranges. requests: GETs by the file's name; sent: bytes, likewise."""

    requests: ClassVar[Counter[str]] = Counter()
    sent: ClassVar[Counter[str]] = Counter()
    heads: ClassVar[Counter[str]] = Counter()
    busy: ClassVar[Counter[str]] = Counter()  # how often a file is still answered by a 503

    def do_HEAD(self) -> None:
        name = Path(self.path).name
        self.heads[name] += 1
        if not self._is_busy(name):
            super().do_HEAD()

    def do_GET(self) -> None:
        name = Path(self.path).name
        self.requests[name] += 1
        if self._is_busy(name):
            return
        if name == "broken.tar":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(bytes(500))
            return
        file = Path(self.translate_path(self.path))
        self.sent[name] += file.stat().st_size if file.exists() else 0
        super().do_GET()

    def _is_busy(self, name: str) -> bool:
        if self.busy[name] <= 0:
            return False
        self.busy[name] -= 1
        self.send_error(503)
        return True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def counting_server(folder: Path) -> Iterator[str]:
    """Serves a folder; yields the URL."""
    for counts in (Handler.requests, Handler.sent, Handler.heads, Handler.busy):
        counts.clear()
    serving = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{serving.server_port}"
    finally:
        serving.shutdown()
        serving.server_close()
