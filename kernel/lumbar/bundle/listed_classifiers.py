"""What the list of classifiers in a manifest must say: each has weights, and their configurations bear it out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lumbar.bundle.code_hash import ENTRY, MEMBERS, SHIPPED
from lumbar.config import CLASSIFIERS, CONFIGS, MAX_MODELS, OPTIONAL_STAGES, STAGES, from_dict
from lumbar.errors import ManifestError
from lumbar.rules import Integer, ListOf, Object, Real, Rule, Text, require, require_fields, shown
from lumbar.stages.classifiers import AXIAL, EXTERNAL, MODELS, SAGITTAL, Classifier, classifiers_of, crop_config

NAME = Text(64, r"[a-z][a-z0-9_]*", "a name of small letters, digits and _")
_FIELDS: dict[str, Rule] = {
    "name": NAME,
    "view": Text(8, f"{SAGITTAL}|{AXIAL}", f"'{SAGITTAL}' or '{AXIAL}'"),
    "crop": Object(),
    "conditions": ListOf(Integer(0, 4), 1, 5, is_set=True),
}
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}"
CODE_PLACE = Text(
    200, rf"(?:{_PART}/){{0,4}}{_PART}", "a file of code or text inside the member's folder, such as nets/unet.py"
)
WEIGHTS_NAME = Text(100, rf"{_PART}\.safetensors", "the name of a .safetensors file (letters, digits, . _ + = -)")
MAX_CODE_FILES = 200
_EXTERNAL: dict[str, Rule] = {
    "files": Object(),
    "probe": Object(
        {"seed": Integer(0, 2**32 - 1), "expected": ListOf(Real(-1e6, 1e6), 0, 64), "tolerance": Real(0.0, 0.1)}
    ),
    "seconds": Real(0.0, 1e5),
}
_SHA256 = Text(64, r"[0-9a-f]{64}", "64 hexadecimal digits")
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
            check = _check_weights if one.external is None else _check_external
            check(path, one, data)
    _check_owners(path, data)
    if "shed" in data:
        require(f"{path}: shed", data["shed"], ListOf(NAME, 0, MAX_MODELS, is_set=True))
        known = {one.name for one in classifiers_of(data)}
        if unknown := [name for name in data["shed"] if name not in known]:
            raise ManifestError(f"{path}: shed: found {unknown[0]}, expected of {', '.join(sorted(known)) or 'none'}")


def _check_fields(where: str, entry: Mapping[str, Any]) -> None:
    if set(entry) - {EXTERNAL} != set(_FIELDS):
        raise ManifestError(f"{where}: found {', '.join(map(shown, sorted(entry)))}, expected {', '.join(_FIELDS)}")
    require_fields(f"{where}.", entry, _FIELDS)
    if entry["name"] in _OTHERS:
        raise ManifestError(f"{where}.name: found {entry['name']}, expected a name that no other stage has")
    if EXTERNAL in entry:
        _check_external_fields(f"{where}.{EXTERNAL}", entry)


def _check_external_fields(where: str, entry: Mapping[str, Any]) -> None:
    own = entry[EXTERNAL]
    require(where, own, Object())
    if set(own) != set(_EXTERNAL):
        raise ManifestError(f"{where}: found {', '.join(map(shown, sorted(own)))}, expected {', '.join(_EXTERNAL)}")
    require_fields(f"{where}.", own, _EXTERNAL)
    probe: Object = _EXTERNAL["probe"]  # type: ignore[assignment]
    if missing := sorted(set(probe.optional) - set(own["probe"])):
        raise ManifestError(f"{where}.probe: found no {missing[0]}, expected {', '.join(probe.optional)}")
    files = own["files"]
    if ENTRY not in files or len(files) > MAX_CODE_FILES:
        raise ManifestError(
            f"{where}.files: found {len(files)} files, {ENTRY} {'' if ENTRY in files else 'not '}among them, expected "
            f"{ENTRY} and at most {MAX_CODE_FILES - 1} others"
        )
    for place, sha256 in files.items():
        require(f"{where}.files", place, CODE_PLACE)
        require(f"{where}.files: {place}", sha256, _SHA256)
        if any(part.endswith(".") for part in place.split("/")) or Path(place).suffix not in SHIPPED:
            raise ManifestError(f"{where}.files: found {shown(place)}, expected {CODE_PLACE.expected}")
    if entry["crop"]:
        try:
            crop_config(entry["view"], entry["crop"])
        except ManifestError as error:
            raise ManifestError(f"{where}: {error}") from None


def _check_external(path: Path, one: Classifier, data: Mapping[str, Any]) -> None:
    """The weights of an external member, and that its code is among the sealed files of a bundle that is sealed."""
    assert one.external is not None
    names = []
    for entry in _entries_of(path, one, data):
        if entry["model"] != EXTERNAL:
            raise ManifestError(
                f"{path}: {entry['file']}: found model {shown(entry['model'])}, expected {EXTERNAL} for {one.name}"
            )
        require(f"{path}: {entry['file']}: config.name", entry["config"].get("name"), WEIGHTS_NAME)
        names.append(entry["config"]["name"])
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ManifestError(f"{path}: {one.name}: found weights {twice[0]} twice, expected different names")
    sealed = data.get("code_files")
    if sealed is None:  # an export, whose code lies beside its weights
        return
    for place, sha256 in one.external.files.items():
        if sealed.get(f"{MEMBERS}/{one.name}/{place}") != sha256:
            raise ManifestError(
                f"{path}: code_files: found no {MEMBERS}/{one.name}/{place} of the listed sha256, expected the code of "
                "the external member"
            )


def _check_owners(path: Path, data: Mapping[str, Any]) -> None:
    known = {entry["name"] for entry in data.get("classifiers", ()) if EXTERNAL in entry}
    for entry in data["weights"]:
        if entry["model"] == EXTERNAL and entry["stage"] not in known:
            raise ManifestError(
                f"{path}: {entry['file']}: found weights of {entry['stage']} with model {EXTERNAL}, expected an "
                "external member among the classifiers"
            )


def _entries_of(path: Path, one: Classifier, data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    entries = [entry for entry in data["weights"] if entry["stage"] == one.name]
    if not entries:
        raise ManifestError(f"{path}: classifiers: found no weights of {one.name}, expected one or more")
    return entries


def _check_weights(path: Path, one: Classifier, data: Mapping[str, Any]) -> None:
    for entry in _entries_of(path, one, data):
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
