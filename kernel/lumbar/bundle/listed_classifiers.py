"""What the list of classifiers in a manifest must say: each has weights, and their configurations bear it out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lumbar.config import CLASSIFIERS, CONFIGS, MAX_MODELS, OPTIONAL_STAGES, STAGES, from_dict
from lumbar.errors import ManifestError
from lumbar.rules import Integer, ListOf, Object, Rule, Text, require, require_fields, shown
from lumbar.stages.classifiers import AXIAL, MODELS, SAGITTAL, Classifier, classifiers_of

NAME = Text(64, r"[a-z][a-z0-9_]*", "a name of small letters, digits and _")
_FIELDS: dict[str, Rule] = {
    "name": NAME,
    "view": Text(8, f"{SAGITTAL}|{AXIAL}", f"'{SAGITTAL}' or '{AXIAL}'"),
    "crop": Object(),
    "conditions": ListOf(Integer(0, 4), 1, 5, is_set=True),
}
_OTHERS = ({*STAGES, *OPTIONAL_STAGES} - {*CLASSIFIERS}) | {"localise", "baseline"}  # stages that no classifier may be


def check_classifiers(path: Path, data: Mapping[str, Any]) -> None:
    """Refuse a list of classifiers that the weights do not bear out; a manifest without a list has the usual three.

    Args:
        path: the manifest file, for the messages.
        data: its JSON, of which the entries of the weights were checked.

    Raises:
        ManifestError: "path: classifiers[…]: found …, expected …", in one line.
    """
    if "classifiers" in data:
        require(f"{path}: classifiers", data["classifiers"], ListOf(Object(), 1, MAX_MODELS))
        for index, entry in enumerate(data["classifiers"]):
            _check_fields(f"{path}: classifiers[{index}]", entry)
        listed = classifiers_of(data)
        names = [one.name for one in listed]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ManifestError(f"{path}: classifiers: found {twice[0]} twice, expected different names")
        for one in listed:
            _check_weights(path, one, data["weights"])
    if "shed" in data:
        require(f"{path}: shed", data["shed"], ListOf(NAME, 0, MAX_MODELS, is_set=True))
        known = {one.name for one in classifiers_of(data)}
        if unknown := [name for name in data["shed"] if name not in known]:
            raise ManifestError(f"{path}: shed: found {unknown[0]}, expected of {', '.join(sorted(known)) or 'none'}")


def _check_fields(where: str, entry: Mapping[str, Any]) -> None:
    if set(entry) != set(_FIELDS):
        raise ManifestError(f"{where}: found {', '.join(map(shown, sorted(entry)))}, expected {', '.join(_FIELDS)}")
    require_fields(f"{where}.", entry, _FIELDS)
    if entry["name"] in _OTHERS:
        raise ManifestError(f"{where}.name: found {entry['name']}, expected a name that no other stage has")


def _check_weights(path: Path, one: Classifier, weights: list[Mapping[str, Any]]) -> None:
    entries = [entry for entry in weights if entry["stage"] == one.name]
    if not entries:
        raise ManifestError(f"{path}: classifiers: found no weights of {one.name}, expected one or more")
    for entry in entries:
        if entry["model"] != MODELS[one.view]:
            raise ManifestError(
                f"{path}: {entry['file']}: found model {shown(entry['model'])}, expected {MODELS[one.view]} for "
                f"{one.name}, which reads the {one.view} view"
            )
        own = Classifier.of(one.name, from_dict(CONFIGS[entry["model"]], entry["config"])).as_json()
        listed = one.as_json()
        pairs = {"conditions": (own["conditions"], listed["conditions"])}
        for key in sorted({*own["crop"], *listed["crop"]}):
            pairs[f"crop {key}"] = (own["crop"].get(key), listed["crop"].get(key))
        for key, (value, wanted) in pairs.items():
            if value != wanted:
                raise ManifestError(
                    f"{path}: {entry['file']}: found {key} {shown(value)}, expected {shown(wanted)} as listed for "
                    f"{one.name}"
                )
