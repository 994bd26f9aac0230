"""A loopback Kaggle for the real client: stores bytes, checks what Kaggle checks, can be told to fail.

It speaks what the client of kaggle 2.2 speaks: JSON calls under /api/v1 (``kaggle_calls``), raw uploads, redirected
downloads. Requests arrive in absolute form, because the client is pointed here as its HTTP proxy.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from lumbar.labels import COLUMNS
from publish.kaggle_calls import REQUIRED, Calls, Dataset, Kernel
from publish.kaggle_refusal import TOKEN, USER, Refusal

__all__ = ["KEY", "TOKEN", "USER", "Dataset", "KaggleServer", "Kernel", "Refusal", "run_output", "wait_until"]

KEY = "0123456789abcdef0123456789abcdef"


class _Quiet(ThreadingHTTPServer):
    """A server that says nothing of clients that end before their answer."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class KaggleServer(Calls):
    """The HTTP server around the calls, and what to do wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.requests: list[tuple[str, dict]] = []  # method and body of every call
        self.sent: Counter[str] = Counter()  # blob name -> bytes of it that came over the wire
        self.fail: dict[str, list[Callable[[dict], dict | None]]] = {}  # method -> what to do at its next calls
        self.cut_uploads: Counter[str] = Counter()  # blob name -> how many uploads of it to refuse
        self.break_uploads: dict[str, int] = {}  # blob name -> bytes of it that arrive before an interruption, once
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def do_POST(self) -> None:
                server.post(self)

            def do_PUT(self) -> None:
                server.put(self)

            def do_GET(self) -> None:
                server.get(self)

        self.http = _Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self._thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self.http.shutdown()
        self.http.server_close()

    def refuse(self, method: str, status: int, message: str, times: int = 1) -> None:
        """Answer the next calls of ``method`` with an HTTP status."""

        def act(_: dict) -> dict:
            raise Refusal(status, message)

        self.fail[method] = [act] * times

    def answer(self, method: str, reply: dict, times: int = 1) -> None:
        """Answer the next calls of ``method`` with this, doing nothing."""
        self.fail[method] = [lambda _: reply] * times

    # ---- HTTP -----------------------------------------------------------------------------------------------------

    def post(self, http: BaseHTTPRequestHandler) -> None:
        method = urlsplit(http.path).path.rsplit("/", 1)[-1]
        request = json.loads(_body(http) or b"{}")
        try:
            with self._lock:
                self.calls[method] += 1
                self.requests.append((method, request))
                self._check_auth(http, method)
                missing = [name for name in REQUIRED.get(method, ()) if request.get(name) in (None, "", [])]
                if missing:
                    raise Refusal(400, f"{method}: {', '.join(missing)} missing")
                planned = self.fail.get(method)
                reply = planned.pop(0)(request) if planned else None
                if reply is None:
                    handle = getattr(self, f"on_{method}", None)
                    if handle is None:
                        raise Refusal(404, f"no method {method}")
                    reply = handle(request)
        except Refusal as refusal:
            headers = {"Retry-After": "0"} if refusal.status == 429 else {}
            text = json.dumps({"code": refusal.status, "message": str(refusal)})
            _send(http, refusal.status, text.encode(), "application/json", headers)
            return
        if "redirect" in reply:
            _send(http, 302, b"", "text/plain", {"Location": reply["redirect"]})
        else:
            _send(http, 200, json.dumps(reply).encode(), "application/json")

    def put(self, http: BaseHTTPRequestHandler) -> None:
        """A resumable upload, as cloud.google.com/storage/docs/performing-resumable-uploads describes it."""
        blob = self.blobs.get(urlsplit(http.path).path.rsplit("/", 1)[-1])
        if blob is None or blob.is_expired:  # client source, _resume_upload: 404 means that the upload expired
            _body(http)
            _send(http, 404, b"no such upload", "text/plain")
            return
        if self.cut_uploads[blob.name] > 0:
            self.cut_uploads[blob.name] -= 1
            _body(http)
            _send(http, 500, b"broken off", "text/plain")
            return
        place = http.headers.get("Content-Range", "")
        if not place.startswith("bytes */"):  # else a question: how much has arrived?
            start = int(match[1]) if (match := re.match(r"bytes (\d+)-", place)) else 0
            limit = self.break_uploads.pop(blob.name, None)
            data = _body(http)[:limit]
            self.sent[blob.name] += len(data)
            blob.data = blob.data[:start] + data
            if limit is not None:  # client source, upload_complete: 503 means that it can be resumed
                _send(http, 503, b"interrupted", "text/plain")
                return
        if len(blob.data) > blob.size:
            _send(http, 400, b"more bytes than announced", "text/plain")
        elif len(blob.data) < blob.size:
            arrived = {"Range": f"bytes=0-{len(blob.data) - 1}"} if blob.data else {}
            _send(http, 308, b"", "text/plain", arrived)
        else:
            blob.is_whole = True
            _send(http, 200, b"", "text/plain")

    def get(self, http: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(http.path).path.strip("/").split("/")
        data: bytes | None
        if parts[0] == "competition":
            data = self.competitions.get(parts[1].removesuffix(".zip"))
        elif parts[0] == "model":
            data = self.model_file(parts[1:])
        elif parts[0] == "storage":
            data = self.datasets["/".join(parts[1:3])].versions[int(parts[3])].get("/".join(parts[4:]))
        else:
            kernel, version = self.kernels["/".join(parts[1:3])], int(parts[3])
            data = self.output_of(kernel, version).get("/".join(parts[4:]))
        if data is None:
            _send(http, 404, b"", "text/plain")
        else:
            _send(http, 200, data, "application/octet-stream", {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"})

    def _check_auth(self, http: BaseHTTPRequestHandler, method: str) -> None:
        if method == "IntrospectToken":
            return
        sent = http.headers.get("Authorization", "")
        good = {"Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode()}
        if self.token_is_valid:
            good.add(f"Bearer {TOKEN}")
        if sent not in good:
            raise Refusal(401, "Unauthorized")


def _body(http: BaseHTTPRequestHandler) -> bytes:
    if "chunked" not in http.headers.get("Transfer-Encoding", ""):
        return http.rfile.read(int(http.headers.get("Content-Length") or 0))
    parts = []
    while size := int(http.rfile.readline().split(b";")[0], 16):
        parts.append(http.rfile.read(size))
        http.rfile.readline()
    http.rfile.readline()
    return b"".join(parts)


def _send(
    http: BaseHTTPRequestHandler, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None
) -> None:
    http.send_response(status)
    http.send_header("Content-Type", kind)
    http.send_header("Content-Length", str(len(data)))
    for name, value in (headers or {}).items():
        http.send_header(name, value)
    http.end_headers()
    http.wfile.write(data)


def wait_until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Whether ``condition`` came true in time."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        if condition():
            return True
        time.sleep(0.05)
    return False


def run_output(request: dict) -> dict[str, bytes]:
    """What a good run of the pushed notebook leaves."""
    manifest = re.search(r"[0-9a-f]{64}", request["text"])
    assert manifest
    rows = ["row_id,normal_mild,moderate,severe", *(f"7_{column},0.5,0.3,0.2" for column in COLUMNS)]
    record = json.dumps({"manifest_hash": manifest[0]})
    return {"submission.csv": ("\n".join(rows) + "\n").encode(), "record.json": record.encode()}
