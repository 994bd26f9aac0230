"""What Kaggle has of a dataset, by download and by list."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from lumbar.bundle.manifest import FILE_NAME as MANIFEST
from lumbar_publish.kaggle.client import Client, KaggleError, Trouble

_METADATA = "dataset-metadata.json"
# Of a weight file's bytes. Kaggle may count bytes as stored, and weights hardly compress: less was cut off.
_WHOLE_SHARE = 0.8


def newest_hash(client: Client, dataset: str) -> str | None:
    """Manifest hash of the newest version that Kaggle serves; None when it has no manifest, or shows us no dataset.

    Raises:
        KaggleError: no answer, or a refusal that leaves open what is there.
    """
    with tempfile.TemporaryDirectory(prefix="lumbar-remote-") as scratch:
        try:
            client.ask("datasets", "download", dataset, "-f", MANIFEST, "-p", scratch, "-o", "-q")
        except KaggleError as error:
            if error.trouble in (Trouble.MISSING, Trouble.FORBIDDEN):  # Kaggle does not say which
                return None
            raise
        # The file is named after the last part of the address that it came from, and large ones come zipped.
        files = [path for path in Path(scratch).iterdir() if path.is_file() and path.suffix != ".kaggle-partial"]
        if len(files) != 1:
            raise KaggleError(
                f"{dataset}: download of {MANIFEST} left {len(files)} files, expected one: run this again"
            )
        data = files[0].read_bytes()
        if zipfile.is_zipfile(files[0]):
            with zipfile.ZipFile(files[0]) as archive:
                inside = [name for name in archive.namelist() if Path(name).name == MANIFEST]
                if not inside:
                    return None
                data = archive.read(inside[0])
        return hashlib.sha256(data).hexdigest()


def missing_files(client: Client, dataset: str, sealed: Path) -> list[str]:
    """Files of the sealed folder that Kaggle does not list, and weights that it lists cut short.

    A folder counts as there when it or its archive is listed, or each of its files is: below other folders, without
    its own folder's name, or (where no folder is listed at all) by the file's name alone.

    Raises:
        KaggleError: no answer.
    """
    listed = _listed(client, dataset)
    endings: dict[str, list[int | None]] = {}
    for name, size in listed.items():
        parts = name.split("/")
        for start in range(len(parts)):
            endings.setdefault("/".join(parts[start:]), []).append(size)
    is_flat = not any("/" in name for name in listed)
    lacking = []
    for path in sorted(p for p in sealed.rglob("*") if p.is_file() and p.name != _METADATA):
        inside = path.relative_to(sealed)
        if len(inside.parts) > 1 and any(f"{inside.parts[0]}{kind}" in listed for kind in ("", ".zip", ".tar")):
            continue
        known = ("/".join(inside.parts[1:]) or inside.name, *([inside.name] if is_flat else []))
        sizes = [size for name in known for size in endings.get(name, [])]
        # Several places may hold a file of this name; one that is whole is enough.
        enough = _WHOLE_SHARE * path.stat().st_size if path.suffix == ".safetensors" else 0
        if not any(size is None or size >= enough for size in sizes):
            lacking.append(inside.as_posix())
    return lacking


def _listed(client: Client, dataset: str) -> dict[str, int | None]:
    """Names and bytes (None where Kaggle does not say) of all files."""
    sizes: dict[str, int | None] = {}
    token, seen = "", set[str]()
    while token not in seen:
        seen.add(token)
        more = ("--page-token", token) if token else ()
        reply = client.ask("datasets", "files", dataset, "--format", "json", "--page-size", "200", *more)
        for row in parse_json(reply.out) or []:
            size = str(row.get("size") or "")
            sizes[str(row.get("name")).strip("/")] = int(size) if size.isdigit() else None
        next_page = re.search(r"Next Page Token = (\S+)", reply.out)
        token = next_page[1] if next_page else ""
    return sizes


def parse_json(text: str) -> Any:
    """The JSON list in the client's words, which may stand before and after it; None when there is none."""
    for start in [match.start() for match in re.finditer(r"^\s*\[", text, re.MULTILINE)]:
        try:
            return json.JSONDecoder().raw_decode(text[start:].lstrip())[0]
        except ValueError:
            continue
    return None
