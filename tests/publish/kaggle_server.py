"""A loopback Kaggle for the real client: stores bytes, checks authentication and required fields, can be told to fail.

It speaks what the client of kaggle 2.2 speaks: JSON calls under /api/v1, raw uploads, redirected downloads. Requests
arrive in absolute form, because the client is pointed here as its HTTP proxy.
"""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from lumbar.labels import COLUMNS

USER, KEY, TOKEN = "tester", "0123456789abcdef0123456789abcdef", "KGAT_0123456789abcdef"
REQUIRED = {
    "GetDatasetStatus": ("ownerSlug", "datasetSlug"),
    "StartBlobUpload": ("name", "contentLength", "lastModifiedEpochSeconds"),
    "CreateDataset": ("ownerSlug", "slug", "title", "licenseName", "files"),
    "CreateDatasetVersion": ("ownerSlug", "datasetSlug", "body"),
    "SaveKernel": ("slug", "newTitle", "text", "language", "kernelType"),
    "GetKernel": ("userName", "kernelSlug"),
    "GetKernelSessionStatus": ("userName", "kernelSlug"),
    "ListKernelSessionOutput": ("userName", "kernelSlug"),
    "CreateCodeSubmission": ("competitionName", "kernelOwner", "kernelSlug", "kernelVersion", "fileName"),
    "ListSubmissions": ("competitionName",),
    "ListDatasetFiles": ("ownerSlug", "datasetSlug"),
    "DownloadDataset": ("ownerSlug", "datasetSlug"),
    "DownloadDataFiles": ("competitionName",),
}


class Refusal(Exception):
    """An HTTP status with a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Dataset:
    """Versions, each file name to bytes, as mounted; ``looks_left`` status questions until the newest is ready."""

    versions: list[dict[str, bytes]] = field(default_factory=list)
    looks_left: int = 0


@dataclass
class Kernel:
    """Pushed versions (the request as it came), and the statuses that the newest run still goes through."""

    versions: list[dict] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)


class KaggleServer:
    """State, what to do wrong, and the HTTP server around both."""

    def __init__(self) -> None:
        self.datasets: dict[str, Dataset] = {}
        self.kernels: dict[str, Kernel] = {}
        self.submissions: list[dict] = []
        self.competitions: dict[str, bytes] = {}  # name -> the archive of all its files
        self.has_accepted_rules = True
        self.shows_any_number = False  # of a notebook's version
        self.blobs: dict[str, bytes | None] = {}
        self.blob_names: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        self.fail: dict[str, list[Callable[[dict], dict | None]]] = {}  # method -> what to do at its next calls
        self.cut_uploads: Counter[str] = Counter()  # blob name -> how many uploads of it to break off
        self.token_is_valid = False
        self.processing_looks = 1
        self.unpacks_into_folder = True  # else an archive's own folder name is lost
        self.run_statuses = ["RUNNING", "COMPLETE"]
        self.failure_message = ""
        self.output: Callable[[dict], dict[str, bytes]] = lambda request: {}
        self.log = '[{"stream_name":"stdout","time":1.0,"data":"all is well\\n"}]'
        self.scores = ("0.355", "0.401")
        self.scoring_looks = 1
        self.submission_status = "COMPLETE"
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

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
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
        token = urlsplit(http.path).path.rsplit("/", 1)[-1]
        name = self.blob_names[token]
        if self.cut_uploads[name] > 0:
            self.cut_uploads[name] -= 1
            _body(http)
            _send(http, 500, b"broken off", "text/plain")
            return
        data = _body(http)
        if http.headers.get("Content-Range", "").startswith("bytes */"):  # a question: how much has arrived?
            _send(http, 308 if self.blobs[token] is None else 200, b"", "text/plain")
            return
        self.blobs[token] = data
        _send(http, 200, b"", "text/plain")

    def get(self, http: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(http.path).path.strip("/").split("/")
        if parts[0] == "competition":
            data = self.competitions.get(parts[1].removesuffix(".zip"))
        elif parts[0] == "storage":
            data = self.datasets["/".join(parts[1:3])].versions[int(parts[3])].get("/".join(parts[4:]))
        else:
            data = self.output(self.kernels["/".join(parts[1:3])].versions[-1]).get("/".join(parts[3:]))
        if data is None:
            _send(http, 404, b"", "text/plain")
        else:
            _send(http, 200, data, "application/octet-stream", {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"})

    def _check_auth(self, http: BaseHTTPRequestHandler, method: str) -> None:
        if method == "IntrospectToken":
            return
        found = http.headers.get("Authorization", "")
        good = {"Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode()}
        if self.token_is_valid:
            good.add(f"Bearer {TOKEN}")
        if found not in good:
            raise Refusal(401, "Unauthorized")

    # ---- calls ----------------------------------------------------------------------------------------------------

    def on_IntrospectToken(self, request: dict) -> dict:
        if not self.token_is_valid or request.get("token") != TOKEN:
            raise Refusal(404, "no such token")
        return {"active": True, "username": USER}

    def on_GetDatasetStatus(self, request: dict) -> dict:
        found = self._dataset(request)
        if found.looks_left > 0:
            found.looks_left -= 1
            return {"status": "BLOBS_RECEIVED"}
        return {"status": "READY"}

    def on_GetDatasetMetadata(self, request: dict) -> dict:
        self._dataset(request)
        return {"info": {"datasetSlug": request["datasetSlug"], "licenses": [{"name": "other"}]}}

    def on_StartBlobUpload(self, request: dict) -> dict:
        token = f"blob{len(self.blobs)}"
        self.blobs[token], self.blob_names[token] = None, request["name"]
        return {"token": token, "createUrl": f"http://localhost/upload/{token}"}

    def on_CreateDataset(self, request: dict) -> dict:
        name = f"{request['ownerSlug']}/{request['slug']}"
        if request["ownerSlug"] != USER:
            raise Refusal(403, "Permission 'datasets.create' was denied")
        if name in self.datasets or not 6 <= len(request["title"]) <= 50 or request.get("isPrivate") is not True:
            return {"status": "error", "error": "title in use, too short or long, or not private", "invalidTags": []}
        self.datasets[name] = Dataset()
        return self._add_version(name, request["files"])

    def on_CreateDatasetVersion(self, request: dict) -> dict:
        found = self._dataset(request)
        if found.looks_left > 0:
            raise Refusal(403, "Forbidden: the dataset is still being processed")
        if not request["body"].get("versionNotes"):
            raise Refusal(400, "versionNotes missing")
        return self._add_version(f"{request['ownerSlug']}/{request['datasetSlug']}", request["body"].get("files", []))

    def on_ListDatasetFiles(self, request: dict) -> dict:
        files = sorted(self._served(request).items())
        size = int(request.get("pageSize", 20))
        start = int(request.get("pageToken") or 0)
        rows = [{"name": name, "totalBytes": len(data)} for name, data in files[start : start + size]]
        more = str(start + size) if start + size < len(files) else ""
        return {"datasetFiles": rows, "nextPageToken": more}

    def on_DownloadDataset(self, request: dict) -> dict:
        name, file = f"{request['ownerSlug']}/{request['datasetSlug']}", request.get("fileName", "")
        if file not in self._served(request):
            raise Refusal(404, f"no file {file}")
        index = self._served_index(self.datasets[name])
        return {"redirect": f"http://localhost/storage/{name}/{index}/{file}"}

    def on_DownloadDataFiles(self, request: dict) -> dict:
        name = request["competitionName"]
        if name not in self.competitions:
            raise Refusal(404, "Competition not found")
        if not self.has_accepted_rules:
            raise Refusal(403, "You must accept this competition's rules before you can download its files")
        return {"redirect": f"http://localhost/competition/{name}.zip"}

    def on_SaveKernel(self, request: dict) -> dict:
        if len(request["text"]) >= 1_000_000:
            return {"error": "Kernel source must be less than 1 megabyte"}
        if request.get("enableInternet", False) or request.get("isPrivate") is not True:
            raise Refusal(400, "a submission must be private and without internet")
        kernel = self.kernels.setdefault(request["slug"], Kernel())
        bad = [source for source in request.get("datasetDataSources", []) if source not in self.datasets]
        kernel.versions.append(request)
        kernel.statuses = list(self.run_statuses)
        return {
            "url": f"https://www.kaggle.com/code/{request['slug']}",
            "versionNumber": len(kernel.versions),
            "error": "",
            "invalidDatasetSources": bad,
        }

    def on_GetKernel(self, request: dict) -> dict:
        slug, _, number = request["kernelSlug"].partition("/")
        kernel = self._kernel(request | {"kernelSlug": slug})
        if self.shows_any_number:
            number = ""
        if not 0 <= int(number or 0) <= len(kernel.versions):
            raise Refusal(404, "Kernel version not found")
        pushed = kernel.versions[int(number or 0) - 1]
        names = ("language", "kernelType", "isPrivate", "enableGpu", "enableInternet", "datasetDataSources")
        metadata = {name: pushed[name] for name in (*names, "competitionDataSources") if name in pushed}
        return {
            "metadata": metadata | {"ref": f"{request['userName']}/{slug}", "title": pushed.get("newTitle", "")},
            "blob": {"source": pushed["text"], "language": "python", "kernelType": "notebook", "slug": slug},
        }

    def on_GetKernelSessionStatus(self, request: dict) -> dict:
        kernel = self._kernel(request)
        status = kernel.statuses.pop(0) if len(kernel.statuses) > 1 else kernel.statuses[0]
        return {"status": status} | ({"failureMessage": self.failure_message} if status == "ERROR" else {})

    def on_ListKernelSessionOutput(self, request: dict) -> dict:
        kernel, name = self._kernel(request), f"{request['userName']}/{request['kernelSlug']}"
        files = self.output(kernel.versions[-1])
        rows = [{"url": f"http://localhost/output/{name}/{file}", "fileName": file} for file in files]
        return {"files": rows, "log": self.log}

    def on_CreateCodeSubmission(self, request: dict) -> dict:
        name = f"{request['kernelOwner']}/{request['kernelSlug']}"
        if name not in self.kernels or int(request["kernelVersion"]) > len(self.kernels[name].versions):
            raise Refusal(404, "no such kernel version")
        row = {
            "ref": 1000 + len(self.submissions),
            "fileName": request["fileName"],
            "date": "2024-01-01T00:00:00Z",
            "description": request.get("submissionDescription", ""),
            "status": "PENDING",
        }
        self.submissions.append(row | {"looks_left": self.scoring_looks})
        return {"message": "Successfully submitted", "ref": row["ref"]}

    def on_ListSubmissions(self, _: dict) -> dict:
        for row in self.submissions:
            row["looks_left"] -= 1
            if row["looks_left"] < 0:
                row["status"] = self.submission_status
                row["publicScore"], row["privateScore"] = self.scores
        shown = [{k: v for k, v in row.items() if k != "looks_left"} for row in reversed(self.submissions)]
        return {"submissions": shown}

    # ---- state ----------------------------------------------------------------------------------------------------

    def _dataset(self, request: dict) -> Dataset:
        name = f"{request['ownerSlug']}/{request['datasetSlug']}"
        if name not in self.datasets:
            raise Refusal(404, "Dataset not found")
        return self.datasets[name]

    def _served_index(self, dataset: Dataset) -> int:
        """While the newest version is processed, the one before is served."""
        return len(dataset.versions) - (2 if dataset.looks_left > 0 else 1)

    def _served(self, request: dict) -> dict[str, bytes]:
        dataset = self._dataset(request)
        index = self._served_index(dataset)
        return dataset.versions[index] if index >= 0 else {}

    def _kernel(self, request: dict) -> Kernel:
        name = f"{request['userName']}/{request['kernelSlug']}"
        if name not in self.kernels:
            raise Refusal(404, "Kernel not found")
        return self.kernels[name]

    def _add_version(self, name: str, files: list[dict]) -> dict:
        stored: dict[str, bytes] = {}
        for file in files:
            data = self.blobs.get(file["token"])
            if data is None:
                return {"status": "error", "error": f"file {file['token']} never arrived", "invalidTags": []}
            stored |= self._unpacked(self.blob_names[file["token"]], data)
        self.datasets[name].versions.append(stored)
        self.datasets[name].looks_left = self.processing_looks
        url = f"https://www.kaggle.com/datasets/{name}"
        return {"status": "Ok", "url": url, "error": "", "invalidTags": []}

    def _unpacked(self, name: str, data: bytes) -> dict[str, bytes]:
        if not name.endswith(".zip"):
            return {name: data}
        inside = f"{name[:-4]}/" if self.unpacks_into_folder else ""
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {inside + n: archive.read(n) for n in archive.namelist() if not n.endswith("/")}


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
