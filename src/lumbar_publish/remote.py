"""What Kaggle has of a dataset, by download and by list."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from lumbar.manifest import FILE_NAME as MANIFEST
from lumbar_publish.client import Client, KaggleError

_METADATA = "dataset-metadata.json"
# Of a weight file's bytes. Kaggle may count bytes as stored, and weights hardly compress: less was cut off.
_WHOLE_SHARE = 0.8


def newest_hash(client: Client, dataset: str) -> str | None:
    """Manifest hash of the newest version that Kaggle serves; None when it serves no manifest.

    Raises:
        KaggleError: no answer.
    """
    with tempfile.TemporaryDirectory(prefix="lumbar-remote-") as scratch:
        try:
            client.ask("datasets", "download", dataset, "-f", MANIFEST, "-p", scratch, "-o", "-q")
        except KaggleError as error:
            if error.trouble.is_no_answer:
                raise
            return None
        # The file is named after the last part of the address that it came from, and large ones come zipped.
        files = [path for path in Path(scratch).iterdir() if path.is_file() and path.suffix != ".kaggle-partial"]
        if len(files) != 1:
            return None
        data = files[0].read_bytes()
        if zipfile.is_zipfile(files[0]):
            with zipfile.ZipFile(files[0]) as archive:
                data = archive.read(archive.namelist()[0])
        return hashlib.sha256(data).hexdigest()


def missing_files(client: Client, dataset: str, sealed: Path) -> list[str]:
    """Files of the sealed folder that Kaggle does not list, and weights that it lists cut short.

    A folder counts as there when its archive is listed, or each of its files is, with or without the folder's name.

    Raises:
        KaggleError: no answer.
    """
    listed = _listed(client, dataset)
    lacking = []
    for path in sorted(p for p in sealed.rglob("*") if p.is_file() and p.name != _METADATA):
        inside = path.relative_to(sealed)
        names = {inside.as_posix(), "/".join(inside.parts[1:])} - {""}
        is_archived = len(inside.parts) > 1 and f"{inside.parts[0]}.zip" in listed
        sizes = [listed[name] for name in names if name in listed]
        is_short = path.suffix == ".safetensors" and any(
            size is not None and size < _WHOLE_SHARE * path.stat().st_size for size in sizes
        )
        if not is_archived and (not sizes or is_short):
            lacking.append(inside.as_posix())
    return lacking


def _listed(client: Client, dataset: str) -> dict[str, int | None]:
    """Names and bytes (None where Kaggle does not say) of all files."""
    found: dict[str, int | None] = {}
    token: str | None = None
    while True:
        more = ("--page-token", token) if token else ()
        reply = client.ask("datasets", "files", dataset, "--format", "json", "--page-size", "200", *more)
        for row in parse_json(reply.out) or []:
            size = row.get("size")
            found[str(row.get("name"))] = int(size) if str(size or "").isdigit() else None
        next_page = re.search(r"Next Page Token = (\S+)", reply.out)
        if next_page is None or next_page[1] == token:
            return found
        token = next_page[1]


def parse_json(text: str) -> Any:
    """The JSON list in the client's words, which may stand before and after it; None when there is none."""
    for start in [match.start() for match in re.finditer(r"^\s*\[", text, re.MULTILINE)]:
        try:
            return json.JSONDecoder().raw_decode(text[start:].lstrip())[0]
        except ValueError:
            continue
    return None
