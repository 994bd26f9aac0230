"""What a manifest says of a fusion of its classifiers, and that its weights bear it out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lumbar.config import CONFIGS, FUSION, MAX_MODELS, from_dict
from lumbar.errors import ManifestError
from lumbar.rules import ListOf, Object, Text, require, shown
from lumbar.stages.classifiers import MODELS, classifiers_of, feature_width

_MEMBERS = ListOf(Text(64, r"[a-z][a-z0-9_]*", "the name of a classifier"), 1, MAX_MODELS, is_set=True)


def check_fusion(path: Path, data: Mapping[str, Any]) -> None:
    """Refuse a fusion that does not fit its members: each of its fits reads those of the same fit alone.

    Args:
        path: the manifest file, for the messages.
        data: its JSON, whose weights and classifiers were checked.

    Raises:
        ManifestError: "path: …: found …, expected …", in one line.
    """
    names = {one.name for one in classifiers_of(data)}
    entries = [entry for entry in data["weights"] if entry["stage"] == FUSION]
    if FUSION in names:
        raise ManifestError(f"{path}: classifiers: found {FUSION}, expected a name that no other stage has")
    if FUSION not in data:
        if entries:
            raise ManifestError(f"{path}: found weights of {FUSION}, expected a field {FUSION} with its members")
        return
    require(f"{path}: {FUSION}", data[FUSION], Object())
    if set(data[FUSION]) != {"members"}:
        raise ManifestError(f"{path}: {FUSION}: found {shown(sorted(data[FUSION]))}, expected members")
    members = data[FUSION]["members"]
    require(f"{path}: {FUSION}.members", members, _MEMBERS)
    if unknown := [name for name in members if name not in names]:
        raise ManifestError(f"{path}: {FUSION}.members: found {unknown[0]}, expected of {', '.join(sorted(names))}")
    fits = [entry["fold"] for entry in entries]
    for name in members:
        own = [entry for entry in data["weights"] if entry["stage"] == name]
        if (folds := [entry["fold"] for entry in own]) != fits or not fits:
            raise ManifestError(f"{path}: {FUSION}: found fits {fits}, expected those of {name}, {folds}")
        _check_width(path, entries, own, members.index(name))
    for entry in entries:
        if entry["config"]["members"] != members:
            raise ManifestError(
                f"{path}: {entry['file']}: found members {shown(entry['config']['members'])}, expected {members}"
            )


def _check_width(path: Path, heads: list[Mapping[str, Any]], own: list[Mapping[str, Any]], place: int) -> None:
    for head, entry in zip(heads, own, strict=True):
        if entry["model"] not in MODELS.values():
            raise ManifestError(f"{path}: {entry['file']}: found model {entry['model']}, expected a classifier's")
        width = feature_width(from_dict(CONFIGS[entry["model"]], entry["config"]))
        if (widths := head["config"]["widths"][place : place + 1]) != [width]:
            raise ManifestError(
                f"{path}: {head['file']}: found widths {widths}, expected {[width]} of {entry['stage']}"
            )
