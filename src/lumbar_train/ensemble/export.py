"""What of an ensemble is sealed: the members' weights as their runs shipped them, one localiser, one aggregator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from lumbar.bundle.code_hash import MEMBERS
from lumbar.bundle.external_members import load_member, one_line_each
from lumbar.bundle.external_probe import record_member_probe
from lumbar.bundle.manifest import FILE_NAME, Manifest, file_sha256, verify, write_manifest
from lumbar.bundle.own_localisers import KEY, LOCALISERS, OwnSet
from lumbar.config import CLASSIFIERS, CONFIGS, OPTIONAL_STAGES, STAGES, from_dict
from lumbar.stages.classifiers import EXTERNAL, Classifier
from lumbar_train.data.folds import FULL, fold_name
from lumbar_train.data.tables import Cohort
from lumbar_train.ensemble.budget import study_flops
from lumbar_train.ensemble.external import FILE, ExternalFolder
from lumbar_train.ensemble.members import Source
from lumbar_train.errors import TrainingError
from lumbar_train.export import MEASURED, manifest_head, prior_rows, weight_entry
from lumbar_train.files import make_folder, read_object
from lumbar_train.pipeline.counts import CohortCounts
from lumbar_train.pipeline.machines import T4
from lumbar_train.stages.aggregate_folds import with_calibration

_LOCALISERS = (*(stage for stage in STAGES if stage not in CLASSIFIERS and stage != "aggregator"), *OPTIONAL_STAGES)


class Member(Protocol):
    """What ships of a member of an ensemble: fits of the kit's networks, or somebody's own (``ExternalShipped``)."""

    @property
    def source(self) -> Source:
        """Of its logits."""

    def operations(self, counts: CohortCounts, known: dict[str, float]) -> float:
        """Operations for one study, counted or as its maker says; ``known`` keeps what was counted."""

    def listed(self, name: str) -> Classifier:
        """Its entry of the manifest under a name."""

    def copied(self, folder: Path, name: str) -> list[dict[str, Any]]:
        """Copy its files into an export, under a name; their entries in the manifest."""


@dataclass(frozen=True)
class ExternalShipped:
    """What ships of an external member.

    Attributes:
        source: of its logits.
        member: its files, with its probe recorded.
    """

    source: Source
    member: ExternalFolder

    def operations(self, counts: CohortCounts, known: dict[str, float]) -> float:
        """Its seconds on a T4 as operations of that machine."""
        return self.member.external.seconds * T4.rate

    def listed(self, name: str) -> Classifier:
        """Its entry of the manifest under a name."""
        return self.member.named(name).listed

    def copied(self, folder: Path, name: str) -> list[dict[str, Any]]:
        """Copy its code and its weights into an export, under a name; the entries of its weights."""
        for place, path in self.member.code.items():
            make_folder((folder / MEMBERS / name / place).parent)
            shutil.copyfile(path, folder / MEMBERS / name / place)
        entries = []
        for number, (own, path) in enumerate(self.member.weights.items()):
            target = folder / "weights" / f"{name}.{number}.safetensors"
            make_folder(target.parent)
            shutil.copyfile(path, target)
            entries.append(
                {
                    "file": f"weights/{target.name}",
                    "sha256": file_sha256(target),
                    "bytes": target.stat().st_size,
                    "stage": name,
                    "model": EXTERNAL,
                    "config": {"name": own},
                    "fold": FULL,
                    "metrics": {},
                    "probe": {},
                }
            )
        return entries


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

    def operations(self, counts: CohortCounts, known: dict[str, float]) -> float:
        """Operations of all its fits for one study."""
        key = json.dumps(self.config_json, sort_keys=True)
        if key not in known:
            known[key] = study_flops(self.config, counts)
        return known[key] * len(self.entries)

    def listed(self, name: str) -> Classifier:
        """Its entry of the manifest under a name."""
        return Classifier.of(name, self.config)

    def copied(self, folder: Path, name: str) -> list[dict[str, Any]]:
        """Copy its fits into an export, under a name; their entries in the manifest."""
        return [_copied(self.folder, folder, entry, name) for entry in self.entries]


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
        raise TrainingError(
            f"{source.path}: found logits without a network, expected weights that can be sealed; give a folder with "
            f"{FILE} as --external (docs/add-a-model.md)"
        )
    entries = tuple(entry for entry in manifest.data["weights"] if entry["stage"] == source.classifier)
    if not entries:
        raise TrainingError(f"{manifest.folder}: found no weights of {source.classifier}, expected those that ship")
    return Shipped(source, manifest.folder, entries)


def member_of(source: Source, manifest: Manifest) -> Member:
    """What ships of a member that a run has: fits of the kit, or an external member that joined an ensemble before.

    Raises:
        TrainingError: as ``shipped_by``.
    """
    shipped = shipped_by(source, manifest)
    listed = next((one for one in manifest.classifiers if one.name == source.classifier), None)
    if listed is None or listed.external is None:
        return shipped
    code = {place: manifest.folder / MEMBERS / listed.name / place for place in listed.external.files}
    weights = {str(entry.config["name"]): manifest.path(entry) for entry in manifest.of_stage(listed.name)}
    return ExternalShipped(source, ExternalFolder(source.path, listed, code, weights))


def joined(source: Source, member: ExternalFolder) -> ExternalShipped:
    """An external member that joins: its code is run once on a made-up study, and its answer recorded.

    Raises:
        ManifestError: it raises, answers in another form, or answers another time otherwise.
    """
    code = {place: path.read_bytes() for place, path in member.code.items()}
    loaded = load_member(member.listed, member.path, code, member.weights, "cpu")
    with one_line_each(f"external member {member.listed.name}", member.path):
        probe = record_member_probe(loaded)
    external = replace(member.external, probe=probe)
    return ExternalShipped(source, replace(member, listed=replace(member.listed, external=external)))


def export_ensemble(
    out: Path,
    shipped: Sequence[Member],
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
        entries += one.copied(folder, name)
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
    for name in MEASURED:  # how levels and points are judged goes with the localisers
        if name in base.data:
            data[name] = base.data[name]
    if own:
        data[KEY] = [further.listed.as_json() for further in own.values()]
    write_manifest(folder / FILE_NAME, with_calibration(data, out))
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
        manifests: of each run's export; external members have none, and keep to ``base``.

    Raises:
        TrainingError: a run that is an ensemble whose members have localisers of their own.
    """
    taken = {_hashes(manifests[base]): ""}
    names: dict[str, tuple[str, list[str]]] = {}  # of a set: the run that it comes from, and its members
    for run, kept in members.items():
        manifest = manifests.get(run)
        if manifest is None:
            continue
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
