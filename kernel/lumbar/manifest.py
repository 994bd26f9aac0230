"""The weights' manifest: what belongs to a bundle, and whether what lies on disk is it. Needs no torch.

``weights_manifest.json`` lists each file with hash, size, and the config that rebuilds its network; the kernel
verifies all of it before any compute. Hash of a manifest = sha256 of the file's bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lumbar.errors import ManifestError
from lumbar.files import write_atomically
from lumbar.labels import COLUMNS

FILE_NAME = "weights_manifest.json"
SCHEMA = 1

_CHUNK = 1 << 20
_TOP_LEVEL: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "dataset": dict,
    "code_sha256": str,
    "recipe": str,
    "created_by": str,
    "cohort": dict,
    "prior": dict,
    "oof": dict,
    "versions": dict,
    "training": dict,
    "forced": list,
    "weights": list,
}
_WEIGHT: dict[str, type | tuple[type, ...]] = {
    "file": str,
    "sha256": str,
    "bytes": int,
    "stage": str,
    "model": str,
    "config": dict,
    "fold": int,
    "metrics": dict,
    "probe": dict,
}


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """One file of weights: where it lies, what it must be, and what rebuilds and proves its network."""

    file: str  # relative to the manifest, with forward slashes
    sha256: str
    bytes: int
    stage: str
    model: str
    config: dict[str, Any]
    fold: int  # -1: fitted on all data
    metrics: dict[str, Any]
    probe: dict[str, Any]  # seed, inputs, expected, tolerance


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as read; ``prior`` holds (normal_mild, moderate, severe) for each of the 25 columns, summing to 1."""

    folder: Path
    hash: str
    dataset: dict[str, Any]
    code_sha256: str
    recipe: str
    created_by: str
    cohort: dict[str, Any]
    prior: dict[str, tuple[float, float, float]]
    oof: dict[str, Any]
    versions: dict[str, Any]
    training: dict[str, Any]
    forced: list[Any]
    weights: tuple[WeightEntry, ...]
    data: dict[str, Any] = field(repr=False)  # the JSON as it stands, for those who write the next one

    def of_stage(self, stage: str) -> list[WeightEntry]:
        """The entries of one stage, in the manifest's order."""
        return [entry for entry in self.weights if entry.stage == stage]

    def path(self, entry: WeightEntry) -> Path:
        """Where an entry's file lies; a mount that unpacked the folder flat is found too."""
        listed = self.folder / entry.file
        flat = self.folder / PurePosixPath(entry.file).name
        return flat if flat.is_file() and not listed.is_file() else listed


def manifest_hash(folder: str | Path) -> str:
    """sha256 of the manifest file's bytes, in hex.

    Raises:
        ManifestError: there is no manifest.
    """
    return hashlib.sha256(_read_bytes(_manifest_path(folder))).hexdigest()


def write_manifest(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write canonical JSON (sorted keys, indent 1, final newline): equal data give equal bytes and thus one hash.

    Raises:
        ManifestError: the data are not a valid manifest, or hold a value that JSON cannot.
    """
    target = Path(path)
    try:
        text = json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ManifestError(f"{target}: cannot be written ({error}), expected JSON values") from None
    _check(target, json.loads(text))
    write_atomically(target, text, ManifestError)


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check the manifest of a bundle, without looking at the weights.

    Args:
        folder: the bundle, or the manifest file itself.

    Raises:
        ManifestError: no manifest, not JSON, another schema, or a field that is missing or of the wrong kind.
    """
    path = _manifest_path(folder)
    content = _read_bytes(path)
    try:
        data = json.loads(content)
    except ValueError as error:
        raise ManifestError(f"{path}: not JSON ({error}), expected a weights manifest") from None
    _check(path, data)
    return Manifest(
        folder=path.parent,
        hash=hashlib.sha256(content).hexdigest(),
        prior={column: (row[0], row[1], row[2]) for column, row in data["prior"].items()},
        weights=tuple(WeightEntry(**{key: entry[key] for key in _WEIGHT}) for entry in data["weights"]),
        data=data,
        **{key: data[key] for key in _TOP_LEVEL if key not in ("schema", "prior", "weights")},
    )


def verify(folder: str | Path, expected_hash: str | None = None) -> Manifest:
    """Read the manifest and compare every file that it names: present, size, sha256.

    Args:
        folder: the bundle.
        expected_hash: the manifest hash that the caller was made for; None takes any.

    Raises:
        ManifestError: as ``read_manifest``, another hash, or a file that is missing or differs; the message names it.
    """
    manifest = read_manifest(folder)
    if expected_hash is not None and manifest.hash != expected_hash:
        raise ManifestError(
            f"{manifest.folder / FILE_NAME}: found manifest {manifest.hash[:12]}…, expected {expected_hash[:12]}…: "
            f"another version of dataset {manifest.dataset.get('id')} is attached; attach the one that was sealed"
        )
    for entry in manifest.weights:
        path = manifest.path(entry)
        if not path.is_file():
            raise ManifestError(f"{path}: not found, expected the {entry.stage} weights that {FILE_NAME} names")
        size = path.stat().st_size
        if size != entry.bytes:
            raise ManifestError(f"{path}: found {size} bytes, expected {entry.bytes}")
        found = file_sha256(path)
        if found != entry.sha256:
            raise ManifestError(f"{path}: found sha256 {found[:12]}…, expected {entry.sha256[:12]}…")
    return manifest


def file_sha256(path: str | Path) -> str:
    """sha256 of a file in hex, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _manifest_path(folder: str | Path) -> Path:
    path = Path(folder)
    return path / FILE_NAME if path.is_dir() or path.suffix != ".json" else path


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}), expected the weights' manifest") from None


def _check(path: Path, data: Any) -> None:
    """Raise unless ``data`` has every field, of the right kind, with a usable prior and safe file names."""
    if not isinstance(data, dict):
        raise ManifestError(f"{path}: found {type(data).__name__}, expected an object with {', '.join(_TOP_LEVEL)}")
    if data.get("schema") != SCHEMA:
        raise ManifestError(f"{path}: found schema {data.get('schema')!r}, expected {SCHEMA}")
    _check_fields(path, "", data, _TOP_LEVEL)
    _check_prior(path, data["prior"])
    seen: set[str] = set()
    for index, entry in enumerate(data["weights"]):
        if not isinstance(entry, dict):
            raise ManifestError(f"{path}: weights[{index}]: found {type(entry).__name__}, expected an object")
        _check_fields(path, f"weights[{index}].", entry, _WEIGHT)
        file = PurePosixPath(entry["file"])
        if file.is_absolute() or ".." in file.parts or "\\" in entry["file"] or file.suffix != ".safetensors":
            raise ManifestError(
                f"{path}: weights[{index}].file: found {entry['file']!r}, expected a .safetensors inside the folder"
            )
        if entry["file"] in seen:
            raise ManifestError(f"{path}: {entry['file']} is listed twice, expected once")
        seen.add(entry["file"])


def _check_fields(path: Path, where: str, data: dict[str, Any], kinds: Mapping[str, Any]) -> None:
    for key, kind in kinds.items():
        if key not in data:
            raise ManifestError(f"{path}: {where}{key} missing, expected {', '.join(kinds)}")
        if not isinstance(data[key], kind) or isinstance(data[key], bool):
            found = type(data[key]).__name__
            raise ManifestError(f"{path}: {where}{key}: found {found}, expected {kind.__name__}")


def _check_prior(path: Path, prior: dict[str, Any]) -> None:
    if missing := [column for column in COLUMNS if column not in prior]:
        raise ManifestError(f"{path}: prior of {missing[0]} missing, expected the 25 label columns")
    for column, row in prior.items():
        numbers = isinstance(row, list) and all(isinstance(p, int | float) and math.isfinite(p) for p in row)
        if not numbers or len(row) != 3 or min(row) < 0 or abs(sum(row) - 1.0) > 1e-3:
            raise ManifestError(f"{path}: prior of {column}: found {row}, expected 3 probabilities that sum to 1")
