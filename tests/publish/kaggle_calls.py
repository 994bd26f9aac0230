"""The calls of the loopback Kaggle: what they change, and what they refuse (those of models are in ``kaggle_models``).

Each refusal names where it is known from: an issue or pull request of github.com/Kaggle/kaggle-cli ("#N") or of
another repository, or the source of the client (kaggle 2.2.5, ``kaggle_api_extended.py``) or of kagglesdk 0.1.38.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field

from publish.kaggle_models import ModelCalls
from publish.kaggle_refusal import TOKEN, USER, Refusal

REQUIRED = {
    "GetDatasetStatus": ("ownerSlug", "datasetSlug"),
    "StartBlobUpload": ("type", "name", "contentLength", "lastModifiedEpochSeconds"),
    "CreateDataset": ("ownerSlug", "slug", "title", "licenseName", "files"),
    "CreateDatasetVersion": ("ownerSlug", "datasetSlug", "body"),
    "SaveKernel": ("slug", "newTitle", "text", "language", "kernelType"),
    "GetKernel": ("userName", "kernelSlug"),
    "GetKernelSessionStatus": ("userName", "kernelSlug"),
    "ListKernelSessionOutput": ("userName", "kernelSlug"),
    "CreateCodeSubmission": ("competitionName", "kernelOwner", "kernelSlug", "kernelVersion", "fileName"),
    "ListSubmissions": ("competitionName",),
    "GetSubmission": ("ref",),
    "GetSubmissionLimits": ("competitionName",),
    "ListDatasetFiles": ("ownerSlug", "datasetSlug"),
    "DownloadDataset": ("ownerSlug", "datasetSlug"),
    "DownloadDataFiles": ("competitionName",),
    "GetDataset": ("ownerSlug", "datasetSlug"),
    "GetModel": ("ownerSlug", "modelSlug"),
    "CreateModel": ("ownerSlug", "slug", "title", "isPrivate", "description"),
    "UpdateModel": ("ownerSlug", "modelSlug", "updateMask"),
    "GetModelInstance": ("ownerSlug", "modelSlug", "framework", "instanceSlug"),
    "CreateModelInstance": ("ownerSlug", "modelSlug", "body"),
    "UpdateModelInstance": ("ownerSlug", "modelSlug", "framework", "instanceSlug", "updateMask"),
    "CreateModelInstanceVersion": ("ownerSlug", "modelSlug", "framework", "instanceSlug", "body"),
    "ListModelInstanceVersionFiles": ("ownerSlug", "modelSlug", "framework", "instanceSlug"),
    "DownloadModelInstanceVersion": ("ownerSlug", "modelSlug", "framework", "instanceSlug", "versionNumber"),
}
_SLUG = r"[a-z0-9]+(-[a-z0-9]+)*"
_MOST_FILES = 1000  # "The file count exceeds the maximum of 1000" (whirlwide/candlestick_retriever #15)
_MOST_SOURCE_BYTES = 1_000_000
_RUNNING = ("QUEUED", "RUNNING", "NEW_SCRIPT")


@dataclass
class Blob:
    """One upload: ``size`` bytes announced, those that arrived, and whether all did."""

    name: str
    size: int
    data: bytes = b""
    is_whole: bool = False
    is_expired: bool = False
    kind: str = "DATASET"


@dataclass
class Dataset:
    """Versions, each file name to bytes, as mounted.

    ``looks_left`` status questions until the newest is ready; before, ``hidden_looks`` of them are answered 404.
    """

    versions: list[dict[str, bytes]] = field(default_factory=list)
    looks_left: int = 0
    hidden_looks: int = 0


@dataclass
class Kernel:
    """Pushed versions (the request as it came), and the statuses that the newest run still goes through.

    The runs of older versions are complete unless ``older`` says otherwise, by version number.
    """

    versions: list[dict] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    older: dict[int, str] = field(default_factory=dict)


class Calls(ModelCalls):
    """State, and one method a call."""

    def __init__(self) -> None:
        super().__init__()
        self.datasets: dict[str, Dataset] = {}
        self.kernels: dict[str, Kernel] = {}
        self.submissions: list[dict] = []
        self.competitions: dict[str, bytes] = {}  # name -> the archive of all its files
        self.has_accepted_rules = True
        self.allows_internet = False  # for a notebook that trains
        self.shows_any_number = False  # of a notebook's version
        self.blobs: dict[str, Blob] = {}  # token -> what came
        self.token_is_valid = False
        self.processing_looks = 1
        self.hidden_looks = 0
        self.unpacks_into_folder = True  # else an archive's own folder name is lost
        self.run_statuses = ["RUNNING", "COMPLETE"]
        self.failure_message = ""
        self.output: Callable[[dict], dict[str, bytes]] = lambda request: {}
        self.log = '[{"stream_name":"stdout","time":1.0,"data":"all is well\\n"}]'
        self.scores = ("0.355", "0.401")
        self.scoring_looks = 1
        self.submission_status = "COMPLETE"
        self.submission_error = ""
        self.submissions_left = 5
        self.gpu_hours = (17.5, 30.0)  # used, allowed

    # ---- account --------------------------------------------------------------------------------------------------

    def on_IntrospectToken(self, request: dict) -> dict:
        if not self.token_is_valid or request.get("token") != TOKEN:
            raise Refusal(404, "no such token")
        return {"active": True, "username": USER}

    def on_GetAcceleratorQuotaStatistics(self, _: dict) -> dict:
        used, allowed = (f"{hours * 3600:.0f}s" for hours in self.gpu_hours)
        return {
            "quotaRefreshTime": "2026-11-28T00:00:00Z",
            "gpuQuota": {"timeUsed": used, "totalTimeAllowed": allowed},
            "tpuQuota": {"timeUsed": "0s", "totalTimeAllowed": "72000s"},
        }

    # ---- datasets -------------------------------------------------------------------------------------------------

    def on_GetDatasetStatus(self, request: dict) -> dict:
        # 404 for a dataset that there is not, and for those of others (#368: "use this for your own datasets");
        # also for one that was created a moment ago (googlecolab/colabtools #294: 404, "after a while it worked").
        dataset = self._dataset(request, 404, "Dataset not found")
        if dataset.hidden_looks > 0:
            dataset.hidden_looks -= 1
            raise Refusal(404, "Dataset not found")
        if dataset.looks_left > 0:
            dataset.looks_left -= 1
            return {"status": "BLOBS_RECEIVED"}
        return {"status": "READY"}

    def on_GetDataset(self, request: dict) -> dict:
        dataset = self._dataset(request, 403, "Permission 'datasets.get' was denied")
        # client source, dataset_status: "current_version_number"; the version that is served
        return {"ref": f"{request['ownerSlug']}/{request['datasetSlug']}", "title": "t",
                "currentVersionNumber": self._served_index(dataset) + 1}  # fmt: skip

    def on_GetDatasetMetadata(self, request: dict) -> dict:
        self._dataset(request, 403, "Permission 'datasets.get' was denied")
        return {"info": {"datasetSlug": request["datasetSlug"], "licenses": [{"name": "other"}]}}

    def on_StartBlobUpload(self, request: dict) -> dict:
        if request["type"] not in ("DATASET", "MODEL"):  # kagglesdk: ApiBlobType; what else it may be is no bundle's
            raise Refusal(400, f"blob type {request['type']}")
        token = f"blob{len(self.blobs)}"
        self.blobs[token] = Blob(request["name"], int(request["contentLength"]), kind=request["type"])
        return {"token": token, "createUrl": f"http://localhost/upload/{token}"}

    def on_CreateDataset(self, request: dict) -> dict:
        name = f"{request['ownerSlug']}/{request['slug']}"
        # 400 for a name that is none (#381: blanks; #366: underscores in the title)
        if not re.fullmatch(_SLUG, request["slug"]) or "_" in request["title"]:
            raise Refusal(400, "Bad Request")
        if request["ownerSlug"] != USER:  # 200, with these words (#25)
            return _creation_error("You are not allowed to create a dataset as this owner.")
        if not 6 <= len(request["title"]) <= 50:  # client source, dataset_create_new
            return _creation_error("The dataset title must be between 6 and 50 characters")
        if name in self.datasets:  # the words that the client uses for the same, dataset_create_new
            return _creation_error(f'The requested slug "{request["slug"]}" is already in use by a dataset.')
        if request.get("isPrivate") is not True:
            raise Refusal(400, "not Kaggle's refusal: a dataset of this repository is private")
        return self._add_version(name, request["files"], Dataset(hidden_looks=self.hidden_looks))

    def on_CreateDatasetVersion(self, request: dict) -> dict:
        # 403 with these words for a dataset that there is not, or not ours (#642)
        dataset = self._dataset(request, 403, "Permission 'datasets.update' was denied")
        if dataset.looks_left > 0:  # the same while the version before is processed (Kaggle/kagglehub #181)
            raise Refusal(403, "Permission 'datasets.update' was denied")
        if not request["body"].get("versionNotes"):
            raise Refusal(400, "versionNotes missing")
        name = f"{request['ownerSlug']}/{request['datasetSlug']}"
        return self._add_version(name, request["body"].get("files", []), dataset)

    def on_ListDatasetFiles(self, request: dict) -> dict:
        files = sorted(self._served(request).items())
        size = min(int(request.get("pageSize", 20)), 200)  # docs/kernels.md: "max: 200"
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

    def _dataset(self, request: dict, status: int, words: str) -> Dataset:
        name = f"{request['ownerSlug']}/{request['datasetSlug']}"
        if name not in self.datasets:
            raise Refusal(status, words)
        return self.datasets[name]

    def _served_index(self, dataset: Dataset) -> int:
        """While the newest version is processed, the one before is served."""
        return len(dataset.versions) - (2 if dataset.looks_left > 0 else 1)

    def _served(self, request: dict) -> dict[str, bytes]:
        # 403 for what cannot be seen, where 404 was said in former years (#426)
        dataset = self._dataset(request, 403, "Permission 'datasets.get' was denied")
        index = self._served_index(dataset)
        return dataset.versions[index] if index >= 0 else {}

    def _add_version(self, name: str, files: list[dict], dataset: Dataset) -> dict:
        stored = self.stored(files, "DATASET")
        if stored is None:  # words of #373 for files that it does not have
            return _creation_error("Failed to resolve the necessary information from the request.")
        if len(stored) > _MOST_FILES:
            return _creation_error(f"The file count exceeds the maximum of {_MOST_FILES}")
        dataset.versions.append(stored)
        dataset.looks_left = self.processing_looks
        self.datasets[name] = dataset
        return {"status": "Ok", "url": f"https://www.kaggle.com/datasets/{name}", "error": "", "invalidTags": []}

    def stored(self, files: list[dict], kind: str) -> dict[str, bytes] | None:
        """Content of the uploads that tokens name, unpacked; None where one did not arrive, or is of another kind."""
        content: dict[str, bytes] = {}
        for file in files:
            blob = self.blobs.get(file["token"])
            if blob is None or not blob.is_whole or blob.kind != kind:
                return None
            content |= self._unpacked(blob.name, blob.data)
        return content

    def _unpacked(self, name: str, data: bytes) -> dict[str, bytes]:
        """Archives are unpacked by the server into a folder of their name (#111)."""
        if not name.endswith(".zip"):
            return {name: data}
        inside = f"{name[:-4]}/" if self.unpacks_into_folder else ""
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {inside + n: archive.read(n) for n in archive.namelist() if not n.endswith("/")}

    # ---- notebooks ------------------------------------------------------------------------------------------------

    def on_SaveKernel(self, request: dict) -> dict:
        owner, _, slug = request["slug"].partition("/")
        if owner != USER:  # 200, with these words, for another's notebook (#139, #545)
            return {"error": "Notebook not found"}
        if not re.fullmatch(_SLUG, slug):  # kagglesdk, ApiSaveKernelRequest.slug: {username}/{kernel-slug}
            raise Refusal(400, "Bad Request")
        # kagglesdk, ApiSaveKernelRequest: the values named there
        if request["language"] not in ("python", "r", "rmarkdown"):
            raise Refusal(400, "Bad Request")
        if request["kernelType"] not in ("script", "notebook"):
            raise Refusal(400, "Bad Request")
        if request.get("dockerImagePinningType", "latest") not in ("original", "latest"):
            raise Refusal(400, "Bad Request")  # client source, valid_push_pinning_types
        if any(not isinstance(cell.get("source", ""), str) for cell in json.loads(request["text"])["cells"]):
            raise Refusal(500, "Internal Server Error")  # #574: sources in lists
        if len(request["text"]) >= _MOST_SOURCE_BYTES:
            return {"error": "Kernel source must be less than 1 megabyte"}
        runs = _has_run(request)
        gpu = runs and request.get("enableGpu", False)
        if gpu and self.gpu_hours[0] >= self.gpu_hours[1]:
            return {"error": "Maximum weekly GPU quota reached"}
        kernel = self.kernels.get(request["slug"], Kernel())
        if gpu and [*kernel.older.values(), *kernel.statuses[:1]].count("RUNNING") >= 2:
            return {"error": "Maximum batch GPU session count of 2 reached."}  # #185
        is_online = request.get("enableInternet", False) and not self.allows_internet
        if is_online or request.get("isPrivate") is not True:
            raise Refusal(400, "not Kaggle's refusal: a submission of this repository is private, without internet")
        if kernel.statuses and kernel.statuses[0] in _RUNNING:
            kernel.older[len(kernel.versions)] = kernel.statuses[0]
        kernel.versions.append(request)
        kernel.statuses = list(self.run_statuses) if runs else ["COMPLETE"]
        self.kernels[request["slug"]] = kernel
        datasets, models = request.get("datasetDataSources", []), request.get("modelDataSources", [])
        return {
            "url": f"https://www.kaggle.com/code/{request['slug']}",
            "versionNumber": len(kernel.versions),
            "error": "",
            "invalidDatasetSources": [one for one in datasets if one not in self.datasets],
            "invalidKernelSources": [one for one in request.get("kernelDataSources", []) if one not in self.kernels],
            # kagglesdk, ApiSaveKernelResponse: a field of its own, which the client does not print
            "invalidModelSources": [source for source in models if not self.has_model_version(source)],
        }

    def on_GetKernel(self, request: dict) -> dict:
        kernel, number = self._kernel_version(request)
        pushed = kernel.versions[number - 1]
        names = ("language", "kernelType", "isPrivate", "enableGpu", "enableTpu", "enableInternet", "machineShape")
        names += ("datasetDataSources", "competitionDataSources", "kernelDataSources", "modelDataSources")
        metadata = {name: pushed[name] for name in names if name in pushed}
        slug = request["kernelSlug"]
        return {
            "metadata": metadata | {"ref": f"{request['userName']}/{slug}", "title": pushed.get("newTitle", "")},
            "blob": {"source": pushed["text"], "language": "python", "kernelType": "notebook", "slug": slug},
        }

    def on_GetKernelSessionStatus(self, request: dict) -> dict:
        kernel, number = self._kernel_version(request)
        if number < len(kernel.versions):
            status = kernel.older.get(number, "COMPLETE")
        else:
            status = kernel.statuses.pop(0) if len(kernel.statuses) > 1 else kernel.statuses[0]
        return {"status": status} | ({"failureMessage": self.failure_message} if status == "ERROR" else {})

    def on_ListKernelSessionOutput(self, request: dict) -> dict:
        kernel, number = self._kernel_version(request)
        name = f"{request['userName']}/{request['kernelSlug']}/{number}"
        rows = [{"url": f"http://localhost/output/{name}/{f}", "fileName": f} for f in self.output_of(kernel, number)]
        return {"files": rows, "log": self.log if _has_run(kernel.versions[number - 1]) else ""}

    def output_of(self, kernel: Kernel, number: int) -> dict[str, bytes]:
        """What the run of a version left; one that was saved without a run left nothing."""
        pushed = kernel.versions[number - 1]
        return self.output(pushed) if _has_run(pushed) else {}

    def _kernel_version(self, request: dict) -> tuple[Kernel, int]:
        """The notebook and the version that a request names; the newest where it names none."""
        name, label = f"{request['userName']}/{request['kernelSlug']}", request.get("versionLabel", "")
        # 403 for what cannot be seen, a wrong slug being "the most likely cause" (client source, kernels_status);
        # "slug/N" is such a slug (#1200, and the table of #1201)
        if name not in self.kernels:
            raise Refusal(403, "Permission 'kernels.get' was denied")
        kernel = self.kernels[name]
        # 404 for a label that is not "v<N>", the bare number included (#1201, and the same table)
        if label and not (match := re.fullmatch(r"v([1-9]\d*)", label)):
            raise Refusal(404, "Not Found")
        number = int(match[1]) if label else len(kernel.versions)
        if number > len(kernel.versions):
            if not self.shows_any_number:
                raise Refusal(404, "Not Found")
            number = len(kernel.versions)
        return kernel, number

    # ---- competitions ---------------------------------------------------------------------------------------------

    def on_DownloadDataFiles(self, request: dict) -> dict:
        name = request["competitionName"]
        if name not in self.competitions:
            raise Refusal(404, "Competition not found")
        if not self.has_accepted_rules:  # client source, _HTTP_ERROR_HINTS[403]
            raise Refusal(403, "You must accept this competition's rules before you can download its files")
        return {"redirect": f"http://localhost/competition/{name}.zip"}

    def on_CreateCodeSubmission(self, request: dict) -> dict:
        name, version = f"{request['kernelOwner']}/{request['kernelSlug']}", int(request["kernelVersion"])
        if not self.has_accepted_rules:  # #414: "400 - Bad Request": "You need join this competition first"
            raise Refusal(400, "Bad Request")
        # client source, competition_submit_cli: a 404 means competition, notebook or version
        if name not in self.kernels or not 0 < version <= len(self.kernels[name].versions):
            raise Refusal(404, "Not Found")
        if self.submissions_left <= 0:  # floydwch/kaggle-cli #61: 400 at the limit of submissions
            raise Refusal(400, "Submission not allowed: daily limit reached")
        self.submissions_left -= 1
        row = {
            "ref": 1000 + len(self.submissions),
            "fileName": request["fileName"],
            "date": "2024-01-01T00:00:00Z",
            "description": request.get("submissionDescription", ""),
            "status": "PENDING",
        }
        self.submissions.append(row | {"looks_left": self.scoring_looks})
        return {"message": "Successfully submitted", "ref": row["ref"]}

    def on_GetSubmissionLimits(self, _: dict) -> dict:
        return {"numAllowedNow": self.submissions_left}

    def on_ListSubmissions(self, _: dict) -> dict:
        for row in self.submissions:
            row["looks_left"] -= 1
            if row["looks_left"] < 0:
                row["status"] = self.submission_status
                row["publicScore"], row["privateScore"] = self.scores
                row["errorDescription"] = self.submission_error  # in both replies (#1190, #1195)
        return {"submissions": [self._shown(row) for row in reversed(self.submissions)]}

    def on_GetSubmission(self, request: dict) -> dict:
        rows = [row for row in self.submissions if row["ref"] == int(request["ref"])]
        if not rows:  # client source, _poll_submission: 404 also for one that was just made
            raise Refusal(404, "Not Found")
        return self._shown(rows[0])

    def _shown(self, row: dict) -> dict:
        return {name: value for name, value in row.items() if name != "looks_left"}


def _has_run(request: dict) -> bool:
    """Whether a pushed version was run: client source, kernels_push with --no-run."""
    return request.get("kernelExecutionType") != "QUICK_SAVE"


def _creation_error(words: str) -> dict:
    """A refusal with HTTP status 200: client source, dataset_create_new_cli and dataset_create_version_cli."""
    return {"status": "error", "url": "", "error": words, "invalidTags": []}
