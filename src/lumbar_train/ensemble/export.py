"""What of an ensemble is sealed: the members' weights as their runs shipped them, one localiser, one aggregator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lumbar.bundle.manifest import FILE_NAME, Manifest, verify, write_manifest
from lumbar.bundle.own_localisers import KEY, LOCALISERS, OwnSet
from lumbar.config import CLASSIFIERS, CONFIGS, OPTIONAL_STAGES, STAGES, from_dict
from lumbar.stages.classifiers import Classifier
from lumbar_train.data.folds import FULL, fold_name
from lumbar_train.data.tables import Cohort
from lumbar_train.ensemble.members import Source
from lumbar_train.errors import TrainingError
from lumbar_train.export import manifest_head, prior_rows, weight_entry
from lumbar_train.files import make_folder, read_object

_LOCALISERS = (*(stage for stage in STAGES if stage not in CLASSIFIERS and stage != "aggregator"), *OPTIONAL_STAGES)


@dataclass(frozen=True)
class Shipped:
    """The fits of one stage that a run ships.

    Attributes:
        source: whose they are.
        folder: the export.
        entries: of its manifest.
    """

    source: Source
    folder: Path
    entries: tuple[dict[str, Any], ...] = field(default=())

    @property
    def config_json(self) -> dict[str, Any]:
        """The configuration of the network as the manifest holds it."""
        return dict(self.entries[0]["config"])

    @cached_property
    def config(self) -> Any:
        """The configuration of the network."""
        return from_dict(CONFIGS[self.entries[0]["model"]], self.config_json)


def verified_export(path: Path) -> Manifest:
    """The manifest of what a run ships, whose files were compared with their hashes.

    Raises:
        TrainingError: the run has exported nothing.
        ManifestError: the export is damaged.
    """
    if not (path / "export" / FILE_NAME).is_file():
        raise TrainingError(f"{path}: found no export, expected a run with weights that ship (--folds with full)")
    return verify(path / "export")


def shipped_by(source: Source, manifest: Manifest) -> Shipped:
    """The fits of a member, or of another stage of a run, that ship.

    Args:
        source: whose they are.
        manifest: of the run's export (``verified_export``).

    Raises:
        TrainingError: there are none.
    """
    if not source.classifier:
        raise TrainingError(f"{source.path}: found logits without a network, expected weights that can be sealed")
    entries = tuple(entry for entry in manifest.data["weights"] if entry["stage"] == source.classifier)
    if not entries:
        raise TrainingError(f"{manifest.folder}: found no weights of {source.classifier}, expected those that ship")
    return Shipped(source, manifest.folder, entries)


def export_ensemble(
    out: Path,
    shipped: Sequence[Shipped],
    names: Sequence[str],
    listed: Sequence[Classifier],
    base: Manifest,
    aggregator: Any,
    *,
    cohort: Cohort,
    fingerprint: str,
    shed: Sequence[str],
    notes: dict[str, Any],
    own: Mapping[str, OwnLocalisers] | None = None,
) -> Path:
    """Write ``ENS/export``, which is sealed like that of any run.

    Args:
        out: the run folder, with the aggregator's fit on all studies.
        shipped: the members' fits.
        names: of the members in the bundle, in the order of the aggregator's input.
        listed: what each member reads and answers.
        base: what the run ships whose localisers ship.
        aggregator: configuration of its network.
        cohort: labels that the prior is of.
        fingerprint: of the cohort.
        shed: names of members in the order in which they are left out near the deadline.
        notes: about the choice, for the manifest.
        own: by set the localisers that only some members look through; None: all share those of ``base``.
    """
    folder = out / "export"
    entries = [
        _copied(base.folder, folder, entry, entry["stage"])
        for stage in _LOCALISERS
        for entry in base.data["weights"]
        if entry["stage"] == stage
    ]
    for further in (own or {}).values():
        entries += further.copied(folder)
    for one, name in zip(shipped, names, strict=True):
        entries += [_copied(one.folder, folder, entry, name) for entry in one.entries]
    weights = out / "aggregator" / f"{fold_name(FULL)}.safetensors"
    entries.append(weight_entry(weights, folder, "aggregator", FULL, aggregator))
    data = manifest_head("ensemble") | {
        "cohort": base.data["cohort"] | {"fingerprint": fingerprint, "studies": len(cohort)},
        "prior": prior_rows(cohort.prior()),
        "oof": read_object(out / "aggregator" / "metrics.json").get("oof", {}),
        "training": json.loads(json.dumps(notes)),
        "weights": entries,
        "classifiers": [one.as_json() for one in listed],
        "shed": list(shed),
    }
    for name in ("numbering", "point_probability"):  # how levels and points are judged goes with the localisers
        if name in base.data:
            data[name] = base.data[name]
    if own:
        data[KEY] = [further.listed.as_json() for further in own.values()]
    write_manifest(folder / FILE_NAME, data)
    return folder


@dataclass(frozen=True)
class OwnLocalisers:
    """A further set of localisers that ships.

    Attributes:
        listed: its name, members and numbering, as the manifest lists them.
        manifest: of the export that it comes from.
    """

    listed: OwnSet
    manifest: Manifest

    def copied(self, folder: Path) -> list[dict[str, Any]]:
        """The entries of its weights, whose files are copied into an export."""
        return [
            _copied(self.manifest.folder, folder, entry, self.listed.stage(localiser))
            for localiser in LOCALISERS
            for entry in self.manifest.data["weights"]
            if entry["stage"] == localiser
        ]


def own_localisers(
    base: str, members: Mapping[str, Sequence[str]], manifests: Mapping[str, Manifest]
) -> dict[str, OwnLocalisers]:
    """The further sets that members need which keep the localisers of their runs; equal weights are one set.

    Args:
        base: the run whose localisers ship for all others, the aggregator and the report.
        members: of each run, those that are kept.
        manifests: of each run's export; one without localisers, as of external models, leaves its members to ``base``.

    Raises:
        TrainingError: a run that is an ensemble whose members have localisers of their own.
    """
    taken = {_hashes(manifests[base]): ""}
    names: dict[str, tuple[str, list[str]]] = {}  # of a set: the run that it comes from, and its members
    for run, kept in members.items():
        manifest = manifests[run]
        if KEY in manifest.data:
            raise TrainingError(f"{manifest.folder}: found several sets of localisers, expected one a run")
        hashes = _hashes(manifest)
        if not kept or not all(hashes):
            continue
        name = taken.setdefault(hashes, f"localisers_{len(taken)}")
        if name:
            names.setdefault(name, (run, []))[1].extend(kept)
    return {
        name: OwnLocalisers(OwnSet(name, tuple(kept), tuple(manifests[run].data.get("numbering", ()))), manifests[run])
        for name, (run, kept) in names.items()
    }


def _hashes(manifest: Manifest) -> tuple[tuple[str, ...], ...]:
    """Of each localiser the hashes of its weights."""
    weights = manifest.data["weights"]
    return tuple(tuple(entry["sha256"] for entry in weights if entry["stage"] == stage) for stage in LOCALISERS)


def _copied(source: Path, folder: Path, entry: dict[str, Any], stage: str) -> dict[str, Any]:
    """The entry of a fit under another name, its file copied: the probe and the hash stay."""
    file = f"weights/{stage}.{fold_name(int(entry['fold']))}.safetensors"
    listed = source / entry["file"]
    make_folder((folder / file).parent)
    shutil.copyfile(listed if listed.is_file() else source / Path(entry["file"]).name, folder / file)
    return {**entry, "file": file, "stage": stage}
