"""Code, weights and manifest into one folder that Kaggle takes as a dataset: the same inputs, the same bytes."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumbar.bundle import manifest as manifests
from lumbar.bundle.code_hash import FOLDER, PACKAGE, digest, find_package, shipped_files, shipped_hashes
from lumbar.bundle.code_hash import code_sha256 as code_sha256
from lumbar.bundle.manifest import FILE_NAME as MANIFEST
from lumbar.bundle.member_seconds import KEY
from lumbar.competitions.contract import Competition
from lumbar.competitions.lumbar_spine import COMPETITION as LUMBAR_SPINE
from lumbar.competitions.registry import DEFAULT
from lumbar.errors import ManifestError
from lumbar.output.versions import versions
from lumbar_publish.files import replaced_folder, write_text
from lumbar_publish.names import DatasetId, Layout
from lumbar_publish.sealing.completeness import chain_of, completeness_errors, how_to_finish
from lumbar_publish.sealing.member_seconds import is_ensemble
from lumbar_publish.sealing.members import check_size, code_of, image_errors, member_hashes, stage_code
from lumbar_publish.sealing.metadata import (
    configured_machine,
    configured_model_version,
    dataset_metadata,
    kernel_metadata,
    write_json,
)
from lumbar_publish.sealing.model_card import MODEL_METADATA, VARIATION_METADATA, write_model_metadata
from lumbar_publish.sealing.notebook import notebook_json

DATASET_METADATA = "dataset-metadata.json"
UPLOAD_METADATA = (DATASET_METADATA, MODEL_METADATA, VARIATION_METADATA)  # read by the client, never uploaded
MAX_TOP_LEVEL = 50  # entries of a Kaggle dataset's top level
# Time stamps are part of what is uploaded (archives hold them). They follow from the manifest: the same content always
# has the same, and other content another, because the client takes a file of equal name, size and time for one whose
# upload was interrupted, and would keep the old bytes.
_EPOCH_S = 1704067200  # 2024-01-01 UTC
_SPREAD_S = 1 << 24  # half a year


@dataclass(frozen=True)
class Sealed:
    """A staged dataset."""

    folder: Path
    dataset: DatasetId
    manifest_hash: str
    sizes: dict[str, int]  # bytes of each top-level entry
    competition: Competition = LUMBAR_SPINE


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ManifestError: no such file, no JSON, or something else than an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file, expected a manifest") from None
    except (ValueError, OSError, RecursionError) as error:
        raise ManifestError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise ManifestError(f"{path}: holds a {type(data).__name__}, expected a JSON object")
    return data


def read_data(path: Path) -> dict[str, Any]:
    """A manifest's JSON as it stands, checked as the kernel checks it; the caller may change it.

    Raises:
        ManifestError: no such file, or not a manifest.
    """
    if not path.exists():
        raise ManifestError(f"{path}: no such file, expected a manifest")
    return copy.deepcopy(manifests.read_manifest(path).data)


def locked_dataset(layout: Layout) -> str | None:
    """The dataset's id in the lock file; None where there is no lock file."""
    return read_data(layout.lock)["dataset"].get("id") if layout.lock.is_file() else None


def source_of(layout: Layout, run: Path | None) -> tuple[Path, Path]:
    """Manifest and weights' folder to seal: a run's export, or what the lock file names."""
    if run is None:
        return layout.lock, _locked_weights(layout)
    export = run / "export"
    if not export.is_dir():
        raise ManifestError(
            f"{run}: no export/ folder, expected a run that lumbar_train has finished{how_to_finish(run)}"
        )
    return export / MANIFEST, export / "weights"


def _locked_weights(layout: Layout) -> Path:
    """Where the lock file's weights lie: the repository ships the demo's; those of a run sealed since, in ``dist``."""
    is_sealed = (layout.sealed / MANIFEST).is_file()
    if is_sealed and manifests.manifest_hash(layout.sealed) == manifests.manifest_hash(layout.root):
        entries = read_data(layout.lock)["weights"]
        # One that differs among the demo's is a damaged one, and is refused; all differing are another run's.
        if all(_weight_error(entry, layout.demo_weights) for entry in entries):
            return layout.sealed / "weights"
    return layout.demo_weights


def _weight_error(entry: dict[str, Any], weights: Path) -> str:
    """Why an entry's file in ``weights`` cannot be sealed; empty when it is there and complete."""
    source = weights / Path(str(entry.get("file", ""))).name
    if not source.is_file():
        return f"{source}: no such file, named by the manifest as {entry.get('file')!r}"
    actual = manifests.file_sha256(source)
    if actual != entry.get("sha256"):
        return f"{source}: sha256 {actual[:12]}…, the manifest says {str(entry.get('sha256'))[:12]}…"
    return ""


def seal(
    layout: Layout,
    *,
    run: Path | None = None,
    dataset: DatasetId | None = None,
    force: bool = False,
    as_demo: bool = False,
    measure: Callable[[Path], dict[str, Any]] | None = None,
    rehearse: Callable[[Path], None] | None = None,
) -> Sealed:
    """Stage ``dist/dataset`` and write lock file, notebook and kernel metadata to match.

    Args:
        layout: the repository.
        run: a training run's folder; None takes the weights that the lock file names.
        dataset: whose dataset; None keeps what the lock file says (or ``KAGGLE_USERNAME``).
        force: seal an incomplete or mixed run; the manifest then records what was wrong.
        as_demo: also make the weights the ones that the repository ships.
        measure: times the members of an ensemble in the staged folder (``member_seconds``); not called where that is
            known already.
        rehearse: called with the staged folder before it takes its place; an exception from it leaves all unchanged.

    Raises:
        ManifestError: an incomplete or mixed run, a weight that is not what its entry says, a place not writable.
    """
    manifest_path, weights = source_of(layout, run)
    data = read_data(manifest_path)
    if dataset is None:
        dataset = DatasetId.choose(locked_dataset(layout))
    check_size(data, manifest_path)
    members = code_of(data, weights.parent)
    if as_demo and members:
        raise ManifestError(f"{manifest_path}: found external members, expected networks of the kit alone for --demo")
    data["forced"] = _accepted(data, manifest_path, run, force, image_errors(layout.root, members))
    data["dataset"] = {"id": str(dataset), "version": None}
    data["code_files"] = shipped_hashes(layout.kernel) | member_hashes(data)
    _require_module(data, layout)
    data["code_sha256"] = digest(data["code_files"])
    with replaced_folder(layout.sealed) as folder:
        stage_code(folder, members)
        _stage(folder, layout, data, weights, dataset)
        if measure and not data["forced"] and is_ensemble(data) and KEY not in data:
            data[KEY] = measure(folder)
            _write_manifest(folder, data)
        manifests.verify(folder)
        if rehearse:
            rehearse(folder)
    _write_companions(layout, dataset)
    if as_demo:
        _keep_as_demo(layout)
    return describe_sealed(layout.sealed, dataset)


def _require_module(data: dict[str, Any], layout: Layout) -> None:
    """Refuse a competition whose module would not ship: the kernel imports it from the sealed code alone."""
    name = data.get("competition", DEFAULT)
    if name != DEFAULT and f"competitions/{name}.py" not in data["code_files"]:
        place = layout.kernel / "competitions" / f"{name}.py"
        raise ManifestError(f"{place}: no such file, expected the module of competition {name!r}, which must ship")


def describe_sealed(folder: Path, dataset: DatasetId) -> Sealed:
    """Entries, sizes, manifest hash and competition of a sealed folder."""
    sizes = {entry.name: _size(entry) for entry in sorted(folder.iterdir())}
    manifest = manifests.read_manifest(folder)
    return Sealed(folder, dataset, manifest.hash, sizes, manifest.competition)


def verify_against_lock(layout: Layout, folder: Path) -> str:
    """Check any folder against itself (weights, code, nothing besides) and against the lock file; the manifest's hash.

    Raises:
        ManifestError: a file differs from its manifest, or the manifest from the lock file; says what differs.
    """
    manifest = manifests.verify(folder)
    if find_package(folder) is None:
        raise ManifestError(f"{folder / FOLDER / PACKAGE}: not found, expected the sealed code")
    if extra := extra_files(manifest):
        more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
        raise ManifestError(f"{folder}: found {', '.join(map(ascii, extra[:3]))}{more}, expected only what was sealed")
    actual, expected = manifest.hash, manifests.manifest_hash(layout.root)
    if actual != expected:
        there, here = manifest.data, read_data(layout.lock)
        # The list of code files says what its hash says.
        keys = (there.keys() | here.keys()) - {"code_files"}
        differing = sorted(key for key in keys if there.get(key) != here.get(key))
        raise ManifestError(
            f"{folder}: manifest {actual[:12]}, the lock file {layout.lock.name} says {expected[:12]}; "
            f"they differ in {', '.join(differing) or 'formatting'}"
        )
    return actual


def extra_files(manifest: manifests.Manifest) -> list[str]:
    """What lies in a sealed folder beside its code, and was not sealed."""
    known = {manifest.folder / name for name in (MANIFEST, *UPLOAD_METADATA)}
    known |= {manifest.path(entry) for entry in manifest.weights}
    package = find_package(manifest.folder)
    inside = [path for path in manifest.folder.rglob("*") if package is None or package not in (path, *path.parents)]
    strange = [path for path in inside if path not in known and (path.is_symlink() or not path.is_dir())]
    return sorted(path.relative_to(manifest.folder).as_posix() for path in strange)


def _accepted(data: dict[str, Any], path: Path, run: Path | None, force: bool, lacking: list[str]) -> list[str]:
    """Completeness errors that ``--force`` accepted, now or when the lock file was written."""
    known = [str(reason) for reason in data.get("forced") or []]
    new = [reason for reason in [*completeness_errors(data, run), *lacking] if reason not in known]
    if new and not force:
        raise ManifestError(f"{path}: {'; '.join(new)} (--force seals it all the same and records that)")
    return sorted({*known, *new})


def _stage(folder: Path, layout: Layout, data: dict[str, Any], weights: Path, dataset: DatasetId) -> None:
    for source in shipped_files(layout.kernel):
        _copy(source, folder / FOLDER / PACKAGE / source.relative_to(layout.kernel))
    for entry in data.get("weights") or []:
        lacking = _weight_error(entry, weights)
        if lacking:
            hint = f": name the run that {layout.lock.name} was sealed from with --run RUN"
            raise ManifestError(lacking + (hint if weights == layout.demo_weights else ""))
        name = Path(str(entry.get("file", ""))).name
        entry["file"] = f"weights/{name}"
        _copy(weights / name, folder / entry["file"])
    _note_machine(layout, data)
    write_json(folder / DATASET_METADATA, dataset_metadata(dataset))
    _write_manifest(folder, data)
    entries = len(list(folder.iterdir()))
    if entries > MAX_TOP_LEVEL:
        raise ManifestError(f"{folder}: {entries} entries at the top level, Kaggle takes at most {MAX_TOP_LEVEL}")


def _write_manifest(folder: Path, data: dict[str, Any]) -> None:
    """Write the manifest, and give all files of the folder the time that follows from it."""
    manifests.write_manifest(folder / MANIFEST, data)
    stamp_s = _EPOCH_S + int(manifests.manifest_hash(folder), 16) % _SPREAD_S
    for path in [*folder.rglob("*"), folder]:
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
        os.utime(path, (stamp_s, stamp_s))


def _note_machine(layout: Layout, data: dict[str, Any]) -> None:
    """Add what sealing finds out: the versions that a bundle is tried on, for the report of its run to compare with.

    Sealing the same again keeps what the lock file notes, the seconds of an ensemble's members too: the same inputs
    give the same bytes on any machine.
    """
    locked = read_data(layout.lock) if layout.lock.is_file() else {}
    noted = {key: locked.pop(key, None) for key in ("rehearsed", KEY)}
    is_same = locked == {key: value for key, value in data.items() if key not in noted}
    data["rehearsed"] = (noted["rehearsed"] if is_same else None) or versions()
    if is_same and noted[KEY] is not None:
        data.setdefault(KEY, noted[KEY])


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write_companions(layout: Layout, dataset: DatasetId) -> None:
    manifest = manifests.read_manifest(layout.sealed)
    competition, chain = manifest.competition, chain_of(manifest.data)
    write_text(layout.lock, (layout.sealed / MANIFEST).read_text(encoding="utf-8"))
    write_text(layout.notebook, notebook_json(dataset, manifest.hash, chain, competition))
    model_version = configured_model_version(layout.kernel_metadata)
    machine, image = configured_machine(layout.kernel_metadata)
    metadata = kernel_metadata(dataset, machine, image, model_version, competition.slug)
    write_json(layout.kernel_metadata, metadata)
    if model_version is not None:
        write_model_metadata(layout.sealed, dataset)


def _keep_as_demo(layout: Layout) -> None:
    with replaced_folder(layout.demo_weights) as folder:
        for path in sorted((layout.sealed / "weights").iterdir()):
            _copy(path, folder / path.name)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
