"""The bundle as a dataset of Kaggle's: whether it is there and whole, by download and by list, and its upload."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lumbar.bundle.manifest import FILE_NAME as MANIFEST
from lumbar_publish.kaggle.client import LONG_S, Client, KaggleError, Reply, Trouble
from lumbar_publish.names import DatasetId
from lumbar_publish.sealing.metadata import bundle_sources
from lumbar_publish.sealing.seal import UPLOAD_METADATA

# Of a weight file's bytes. Kaggle may count bytes as stored, and weights hardly compress: less was cut off.
_WHOLE_SHARE = 0.8


_STATUSES = r"^(not_yet_persisted|blobs_\w+|individual_blobs_\w+|ready|failed|error|deleted|reprocessing)$"


@dataclass(frozen=True)
class DatasetStore:
    """The dataset of a bundle (``store.Store``); ``manifest`` is the file whose hash tells versions apart."""

    client: Client
    bundle: DatasetId
    manifest: str = MANIFEST
    kind: ClassVar[str] = "dataset"
    taken: ClassVar[str] = "is being created"
    unpacking_limit_s: ClassVar[float] = 0.0

    @property
    def name(self) -> str:
        """``owner/slug``."""
        return str(self.bundle)

    @property
    def page(self) -> str:
        """Its page on Kaggle."""
        return f"kaggle.com/datasets/{self.name}"

    def prepare(self, sealed: Path) -> None:
        """Nothing more than what is sealed is needed."""

    def is_ready(self) -> bool | None:
        """Whether the newest version is processed; None when there is no such dataset (or none that we may see).

        Raises:
            BrokenVersionError: Kaggle could not process it.
            KaggleError: no answer.
        """
        try:
            reply = self.client.ask("datasets", "status", self.name)
        except KaggleError as error:
            if error.trouble in (Trouble.MISSING, Trouble.FORBIDDEN):  # Kaggle does not say which
                return None
            raise
        words = re.findall(_STATUSES, reply.out, re.MULTILINE | re.IGNORECASE)
        status = words[-1].lower() if words else ""
        if status in ("failed", "error", "deleted"):
            raise BrokenVersionError(
                f"dataset {self.name}: status {status}: remove that version on {self.page}, then run this again"
            )
        return status == "ready"

    def newest_hash(self) -> str | None:
        """Manifest hash of the newest version that Kaggle serves; None without a manifest, or without a dataset.

        Raises:
            KaggleError: no answer, or a refusal that leaves open what is there.
        """
        with tempfile.TemporaryDirectory(prefix="lumbar-remote-") as scratch:
            try:
                self.client.ask("datasets", "download", self.name, "-f", self.manifest, "-p", scratch, "-o", "-q")
            except KaggleError as error:
                if error.trouble in (Trouble.MISSING, Trouble.FORBIDDEN):  # Kaggle does not say which
                    return None
                raise
            return downloaded_hash(self.name, Path(scratch), self.manifest)

    def missing_files(self, sealed: Path) -> list[str]:
        """Files of the sealed folder that Kaggle does not list, and weights that it lists cut short.

        Raises:
            KaggleError: no answer.
        """
        return missing_files(list_files(self.client, "datasets", "files", self.name), sealed)

    def version(self) -> int:
        """Number of the newest version.

        Raises:
            KaggleError: no answer.
        """
        reply = self.client.ask("datasets", "status", self.name, "--format", "json(current_version_number)")
        number = re.search(r'"current_version_number": (\d+)', reply.out)
        if number is None:
            raise reply.error("Kaggle names no version number: run this again")
        return int(number[1])

    def sources(self) -> dict[str, list[str]]:
        """The fields of the notebook's metadata that attach it; Kaggle attaches the newest version."""
        return bundle_sources(self.bundle)

    def upload(self, exists: bool, notes: str, folder: Path, scratch: Path) -> Reply:
        """Send what lies in ``folder``; what the client says is the caller's to believe."""
        verb = ("version", "-p", ".", "-m", notes) if exists else ("create", "-p", ".")
        return self.client.act(
            "datasets", *verb, limit_s=LONG_S, progress=True, check=False, folder=folder, scratch=scratch
        )

    def complete(self, sealed: Path) -> None:
        """Nothing else belongs to a dataset."""


class BrokenVersionError(KaggleError):
    """Kaggle has a version that it could not process."""


def downloaded_hash(name: str, folder: Path, manifest: str = MANIFEST) -> str | None:
    """Hash of the one manifest that a download left in ``folder``; None for an archive without one.

    Raises:
        KaggleError: not exactly one file.
    """
    # The file is named after the last part of the address that it came from, and large ones come zipped.
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".kaggle-partial"]
    if len(files) != 1:
        raise KaggleError(f"{name}: download of {manifest} left {len(files)} files, expected one: run this again")
    data = files[0].read_bytes()
    if zipfile.is_zipfile(files[0]):
        with zipfile.ZipFile(files[0]) as archive:
            inside = [entry for entry in archive.namelist() if Path(entry).name == manifest]
            if not inside:
                return None
            data = archive.read(inside[0])
    return hashlib.sha256(data).hexdigest()


def missing_files(listed: dict[str, int | None], sealed: Path, *, has_archives: bool = True) -> list[str]:
    """Files of the sealed folder that Kaggle does not list, and weights that it lists cut short.

    A folder counts as there when it or its archive is listed, or each of its files is: below other folders, without
    its own folder's name, or (where no folder is listed at all) by the file's name alone.

    Args:
        listed: names and bytes that Kaggle lists (None where it does not say).
        sealed: the sealed folder.
        has_archives: False where an archive that is listed is one that Kaggle has not unpacked yet.
    """
    endings: dict[str, list[int | None]] = {}
    for name, size in listed.items():
        parts = name.split("/")
        for start in range(len(parts)):
            endings.setdefault("/".join(parts[start:]), []).append(size)
    is_flat = not any("/" in name for name in listed)
    kinds = ("", ".zip", ".tar") if has_archives else ()
    lacking = []
    for path in sorted(p for p in sealed.rglob("*") if p.is_file() and p.name not in UPLOAD_METADATA):
        inside = path.relative_to(sealed)
        if len(inside.parts) > 1 and any(f"{inside.parts[0]}{kind}" in listed for kind in kinds):
            continue
        known = ("/".join(inside.parts[1:]) or inside.name, *([inside.name] if is_flat else []))
        sizes = [size for name in known for size in endings.get(name, [])]
        # Several places may hold a file of this name; one that is whole is enough.
        enough = _WHOLE_SHARE * path.stat().st_size if path.suffix == ".safetensors" else 0
        if not any(size is None or size >= enough for size in sizes):
            lacking.append(inside.as_posix())
    return lacking


def list_files(client: Client, *command: str) -> dict[str, int | None]:
    """Names and bytes (None where Kaggle does not say) of all files that a listing command shows, page by page.

    Raises:
        KaggleError: no answer.
    """
    listed: dict[str, int | None] = {}
    token, seen = "", set[str]()
    while token not in seen:
        seen.add(token)
        more = ("--page-token", token) if token else ()
        reply = client.ask(*command, "--format", "json", "--page-size", "200", *more)
        for row in parse_json(reply.out) or []:
            size = str(row.get("size") or "")
            listed[str(row.get("name")).strip("/")] = int(size) if size.isdigit() else None
        next_page = re.search(r"Next Page Token = (\S+)", reply.out)
        token = next_page[1] if next_page else ""
    return listed


def parse_json(text: str) -> Any:
    """The JSON list in the client's words, which may stand before and after it; None when there is none."""
    for start in [match.start() for match in re.finditer(r"^\s*\[", text, re.MULTILINE)]:
        try:
            return json.JSONDecoder().raw_decode(text[start:].lstrip())[0]
        except ValueError:
            continue
    return None
