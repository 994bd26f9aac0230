"""Kaggle Models on loopback: models, their variations, and the versions of those.

Each refusal names where it is known from: "#N" is of github.com/Kaggle/kagglehub, the other sources are the client
(kaggle 2.2.5, ``kaggle_api_extended.py``), kagglesdk 0.1.38, and the pages in docs/ of github.com/Kaggle/kaggle-cli.
"""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import dataclass, field

from kagglesdk.models.types.model_enums import ModelFramework

from publish.kaggle_refusal import USER, Refusal

_SLUG = r"[a-z0-9]+(-[a-z0-9]+)*"
# docs/models_metadata.md, the first of each family; "other" is none of them
_LICENCES = ("Apache 2.0", "MIT", "CC0: Public Domain", "CC BY-NC-SA 4.0", "CC BY-SA 4.0", "BSD-3-Clause", "GPL 3")
_MODEL_FIELDS = ("title", "subtitle", "isPrivate", "description")
_VARIATION_FIELDS = ("overview", "usage", "licenseName", "fineTunable", "framework")


@dataclass
class Variation:
    """Its card, and its versions, each file name to bytes; ``looks_left`` looks until the newest is processed."""

    card: dict
    versions: list[dict[str, bytes]] = field(default_factory=list)
    looks_left: int = 0
    packed_looks: int = 0  # listings that still show archives

    @property
    def current(self) -> int:
        """Number of the newest version that is processed; 0 without one."""
        return len(self.versions) - (1 if self.looks_left > 0 else 0)


@dataclass
class Model:
    """Its card, and its variations by "framework/slug"."""

    card: dict
    variations: dict[str, Variation] = field(default_factory=dict)


class ModelCalls:
    """State, and one method a call."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.model_looks = 1  # that a new version is processed
        self.packed_looks = 0

    def stored(self, files: list[dict], kind: str) -> dict[str, bytes] | None:
        """Content of uploads."""
        raise NotImplementedError

    # ---- models ---------------------------------------------------------------------------------------------------

    def on_GetModel(self, request: dict) -> dict:
        model = self._model(request)
        card = {name: model.card[name] for name in _MODEL_FIELDS if name in model.card}
        # kagglesdk, ApiModel.publish_time: a date, over which `models get -p` fails (client source, model_get_cli)
        card |= {"publishTime": "2026-11-01T00:00:00Z"}
        return card | {"id": 1, "ref": f"{request['ownerSlug']}/{request['modelSlug']}", "slug": request["modelSlug"]}

    def on_CreateModel(self, request: dict) -> dict:
        name = f"{request['ownerSlug']}/{request['slug']}"
        if not re.fullmatch(_SLUG, request["slug"]):  # client source, _validate_slug_syntax
            return _error("Invalid slug", 400)
        # "does not exist or access is forbidden" (kagglehub, models_helpers.create_model_if_missing)
        if request["ownerSlug"] != USER:
            raise Refusal(403, "Permission 'models.create' was denied")
        if name in self.models:  # HTTP 200 with an error in the reply (#43: "The API doesn't throw on error")
            return _error(f"A model with the slug {request['slug']} already exists", 409)
        if request["isPrivate"] is not True:
            raise Refusal(400, "not Kaggle's refusal: a model of this repository is private")
        self.models[name] = Model(dict(request))
        return _made(f"https://www.kaggle.com/models/{name}")

    def on_UpdateModel(self, request: dict) -> dict:
        _update(self._model(request).card, request)
        return _made(f"https://www.kaggle.com/models/{request['ownerSlug']}/{request['modelSlug']}")

    # ---- variations -----------------------------------------------------------------------------------------------

    def on_GetModelInstance(self, request: dict) -> dict:
        variation = self._variation(request)
        current = variation.current
        variation.looks_left = max(0, variation.looks_left - 1)
        card = {name: variation.card[name] for name in _VARIATION_FIELDS if name in variation.card}
        numbers = {"versionId": 100 + current, "versionNumber": current} if current else {}
        return card | {"id": 2, "slug": request["instanceSlug"], "modelInstanceType": "UNSPECIFIED"} | numbers

    def on_CreateModelInstance(self, request: dict) -> dict:
        model, body = self._model(request), request["body"]
        if body.get("licenseName") not in _LICENCES:  # docs/models_metadata.md; HTTP 200 with an error (#43)
            return _error(f"License {body.get('licenseName')!r} is not valid", 400)
        key = f"{_framework(body)}/{body['instanceSlug']}"
        if key in model.variations:  # kagglehub, models_helpers: 409, whether or not a version is processed (#108)
            return _error("A model instance with this slug already exists", 409)
        variation = Variation(dict(body))
        reply = self._add_model_version(request, variation, body.get("files", []))
        if "id" in reply:
            model.variations[key] = variation
        return reply

    def on_UpdateModelInstance(self, request: dict) -> dict:
        if request.get("licenseName", "Apache 2.0") not in _LICENCES:
            return _error(f"License {request.get('licenseName')!r} is not valid", 400)
        _update(self._variation(request).card, request)
        return _made(f"https://www.kaggle.com/models/{request['ownerSlug']}/{request['modelSlug']}")

    # ---- versions -------------------------------------------------------------------------------------------------

    def on_CreateModelInstanceVersion(self, request: dict) -> dict:
        # a version that is being processed blocks no other (#108)
        return self._add_model_version(request, self._variation(request), request["body"].get("files", []))

    def on_ListModelInstanceVersionFiles(self, request: dict) -> dict:
        variation = self._variation(request)
        files = sorted((name, len(data)) for name, data in self._version(request).items())
        if variation.packed_looks > 0:  # #103: "a zipped archive ... it does eventually decompress"
            variation.packed_looks -= 1
            files = sorted({(name.split("/")[0] + (".zip" if "/" in name else ""), 1) for name, _ in files})
        size = min(int(request.get("pageSize", 20)), 200)
        start = int(request.get("pageToken") or 0)
        rows = [{"name": n, "size": s, "creationDate": "2026-11-01T00:00:00Z"} for n, s in files[start : start + size]]
        return {"files": rows, "nextPageToken": str(start + size) if start + size < len(files) else ""}

    def on_DownloadModelInstanceVersion(self, request: dict) -> dict:
        files, path = self._version(request), request.get("path", "")
        if path and path not in files:  # kagglehub, http_resolver: a file by its path, all of them without one
            raise Refusal(404, f"no file {path}")
        name = f"{request['ownerSlug']}/{request['modelSlug']}/{_framework(request)}/{request['instanceSlug']}"
        return {"redirect": f"http://localhost/model/{name}/{request['versionNumber']}/{path}"}

    def has_model_version(self, source: str) -> bool:
        """Whether ``owner/model/framework/variation/version`` (docs/kernels_metadata.md) can be attached."""
        owner, model, framework, slug, number = source.split("/")
        stored = self.models.get(f"{owner}/{model}")
        variation = stored.variations.get(f"{framework.lower()}/{slug}") if stored else None
        # the server dropped those of the framework "Other" without a word (Kaggle/kaggle-cli #643)
        return variation is not None and 1 <= int(number) <= variation.current and framework.lower() != "other"

    def model_file(self, parts: list[str]) -> bytes | None:
        """Content at a download's address: a file, or all of them in an archive (client source: ".tar.gz")."""
        files = self.models["/".join(parts[:2])].variations["/".join(parts[2:4])].versions[int(parts[4]) - 1]
        if len(parts) > 5 and parts[5]:
            return files.get("/".join(parts[5:]))
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        return packed.getvalue()

    def _add_model_version(self, request: dict, variation: Variation, files: list[dict]) -> dict:
        content = self.stored(files, "MODEL")
        if not content:
            return _error("Failed to resolve the necessary information from the request.", 400)
        variation.versions.append(content)
        variation.looks_left, variation.packed_looks = self.model_looks, self.packed_looks
        return _made(f"https://www.kaggle.com/models/{request['ownerSlug']}/{request['modelSlug']}")

    def _model(self, request: dict) -> Model:
        name = f"{request['ownerSlug']}/{request['modelSlug']}"
        if name not in self.models:  # 404, or 403 for what is not shown (kagglehub, models_helpers)
            raise Refusal(404 if request["ownerSlug"] == USER else 403, "Model not found")
        return self.models[name]

    def _variation(self, request: dict) -> Variation:
        key = f"{_framework(request)}/{request['instanceSlug']}"
        model = self._model(request)
        if key not in model.variations:
            raise Refusal(404, "Model instance not found")
        return model.variations[key]

    def _version(self, request: dict) -> dict[str, bytes]:
        variation = self._variation(request)
        number = int(request.get("versionNumber") or variation.current)
        if not 1 <= number <= variation.current:
            raise Refusal(404, "Model instance version not found")
        return variation.versions[number - 1]


def _framework(request: dict) -> str:
    name = str(request["framework"])
    if name not in ModelFramework.__members__:  # kagglesdk: enums travel by their names
        raise Refusal(400, f"framework {name}")
    return name.removeprefix("MODEL_FRAMEWORK_").replace("_", "").lower()


def _update(card: dict, request: dict) -> None:
    """Take over the fields that the mask names, and no others (client source, model_update)."""
    mask = request["updateMask"]
    for path in mask.split(",") if isinstance(mask, str) else mask["paths"]:
        name = re.sub(r"_(.)", lambda match: match[1].upper(), path)
        card[name] = request.get(name, "")


def _made(url: str) -> dict:
    return {"id": 7, "url": url, "error": ""}


def _error(words: str, code: int) -> dict:
    return {"error": words, "errorCode": code}
