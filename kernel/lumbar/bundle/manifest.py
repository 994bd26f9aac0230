"""The weights' manifest: what a bundle holds, and whether the files on disk are those. Needs no torch.

``weights_manifest.json`` lists each file of weights with its hash, its size and the configuration that rebuilds its
network, and gives the hash of the code that was sealed with them. All of it is verified before anything is computed.
The hash of a manifest is the sha256 of its file. ``manifest_schema`` says what a manifest must contain.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lumbar.bundle.code_hash import verify_code
from lumbar.bundle.external_code import verify_member
from lumbar.bundle.manifest_schema import SCHEMA, TOP_LEVEL, WEIGHT, check, competition_of
from lumbar.bundle.presence import FILE_NAME, check_presence, unsealed_hint
from lumbar.competitions.contract import Competition
from lumbar.competitions.registry import competition_named
from lumbar.errors import ManifestError
from lumbar.io.files import write_atomically
from lumbar.io.regular_file import file_sha256, read_regular
from lumbar.io.strict_json import MAX_BYTES, read_strictly
from lumbar.stages.classifiers import Classifier, classifiers_of

__all__ = ["FILE_NAME", "SCHEMA", "Manifest", "WeightEntry", "file_sha256", "manifest_hash", "read_manifest", "verify",
           "write_manifest"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """One file of weights: where it lies, its hash and size, and what rebuilds its network and proves it."""

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
    """A manifest as read; ``prior`` holds the values of each of the competition's rows (``Competition.keys``)."""

    folder: Path
    hash: str
    dataset: dict[str, Any]
    code_sha256: str
    recipe: str
    created_by: str
    cohort: dict[str, Any]
    prior: dict[str, tuple[float, ...]]
    oof: dict[str, Any]
    versions: dict[str, Any]
    training: dict[str, Any]
    forced: list[Any]
    weights: tuple[WeightEntry, ...]
    competition_name: str  # a module of lumbar.competitions
    competition: Competition = field(repr=False)
    data: dict[str, Any] = field(repr=False)  # the JSON as it was read, to write the next manifest from
    trusts_members: bool = False  # code of external members may run from the bundle itself; never in the file

    @property
    def classifiers(self) -> tuple[Classifier, ...]:
        """The classifiers, in the order of the aggregator's input."""
        return classifiers_of(self.data)

    @property
    def origin(self) -> str:
        """What the weights were made from, in words for a log: two bundles in one place are told apart by it."""
        studies, description = self.cohort.get("studies", "?"), self.cohort.get("description", "not described")
        return f"recipe {self.recipe}, trained on {studies} studies ({description})"

    def of_stage(self, stage: str) -> list[WeightEntry]:
        """The entries of one stage, in the manifest's order."""
        return [entry for entry in self.weights if entry.stage == stage]

    def path(self, entry: WeightEntry) -> Path:
        """Where an entry's file lies: at its listed place, or beside the manifest where folders were dropped."""
        listed = self.folder / entry.file
        flat = self.folder / PurePosixPath(entry.file).name
        return flat if flat.is_file() and not listed.is_file() else listed


def manifest_hash(folder: str | Path) -> str:
    """Return the sha256 of the manifest file, in hex.

    Raises:
        ManifestError: there is no manifest.
    """
    content = read_regular(_manifest_path(folder), MAX_BYTES, "the weights' manifest")
    return hashlib.sha256(content).hexdigest()


def write_manifest(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write a manifest as canonical JSON (sorted keys, indent 1, final newline): equal data have equal hashes.

    Raises:
        ManifestError: the data are no valid manifest, or hold a value that JSON has no form for.
    """
    target = Path(path)
    try:
        text = json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except RecursionError:
        raise ManifestError(f"{target}: cannot be written (nested too deep), expected JSON values") from None
    except (TypeError, ValueError) as error:
        raise ManifestError(f"{target}: cannot be written ({error}), expected JSON values") from None
    check(target, json.loads(text))
    write_atomically(target, text, ManifestError)


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check the manifest of a bundle, without looking at the weights.

    Args:
        folder: the bundle, or the manifest file itself.

    Raises:
        ManifestError: there is no manifest, it is not JSON, has another schema, or a field that is missing, of the
            wrong type or out of range (``manifest_schema``).
    """
    path = _manifest_path(folder)
    content, data = read_strictly(path)
    return manifest_of(path, hashlib.sha256(content).hexdigest(), data)


def manifest_of(path: Path, digest: str, data: dict[str, Any]) -> Manifest:
    """The manifest whose JSON is ``data``, and whose file ``path`` has the sha256 ``digest``.

    Raises:
        ManifestError: as ``read_manifest``.
    """
    check(path, data)
    return Manifest(
        folder=path.parent,
        hash=digest,
        prior={key: tuple(row) for key, row in data["prior"].items()},
        competition_name=competition_of(data),
        competition=competition_named(competition_of(data)),
        weights=tuple(WeightEntry(**{key: entry[key] for key in WEIGHT}) for entry in data["weights"]),
        data=data,
        **{key: data[key] for key in TOP_LEVEL if key not in ("schema", "prior", "weights")},
    )


def verify(folder: str | Path, expected_hash: str | None = None) -> Manifest:
    """Read the manifest, and compare the size and sha256 of every file, and the code where the bundle has it.

    Args:
        folder: the bundle: weights only (a run's export), or with the code that was sealed with them.
        expected_hash: the manifest hash that the caller was made for; None takes any.

    Raises:
        ManifestError: as ``read_manifest``; also another hash, a file that is missing or differs, or code (of external
            members, too) that is not what was sealed. The message names it.
    """
    check_presence(folder)
    manifest = read_manifest(folder)
    if expected_hash is not None and manifest.hash != expected_hash:
        raise ManifestError(
            f"{manifest.folder / FILE_NAME}: found manifest {manifest.hash[:12]}…, expected {expected_hash[:12]}…: "
            f"another version of dataset {manifest.dataset.get('id')} is attached; attach the one that was sealed"
        )
    verify_code(manifest.folder, manifest.code_sha256, manifest.data.get("code_files"))
    for one in manifest.classifiers:
        if one.external is not None:
            verify_member(manifest.folder, one.name, one.external)
    for entry in manifest.weights:
        _verify_weights(manifest, entry)
    return manifest


def _verify_weights(manifest: Manifest, entry: WeightEntry) -> None:
    path = manifest.path(entry)
    if not os.path.lexists(path):
        raise ManifestError(
            f"{path}: not found, expected the {entry.stage} weights that {FILE_NAME} names"
            + unsealed_hint(manifest.folder)
        )
    # os.path.realpath never raises; Path.resolve does for a link to itself.
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(manifest.folder)):
        raise ManifestError(f"{path}: found a link that leads out of the bundle, expected a file inside it")
    if path.is_file() and (size := path.stat().st_size) != entry.bytes:
        raise ManifestError(f"{path}: found {size} bytes, expected {entry.bytes}")
    digest = file_sha256(path)
    if digest != entry.sha256:
        raise ManifestError(f"{path}: found sha256 {digest[:12]}…, expected {entry.sha256[:12]}…")


def _manifest_path(folder: str | Path) -> Path:
    path = Path(folder)
    # os.path.isdir never raises, whatever the name is; Path.is_dir does for one of thousands of characters.
    return path / FILE_NAME if os.path.isdir(path) or path.suffix != ".json" else path
