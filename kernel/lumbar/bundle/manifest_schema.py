"""What a weights manifest must contain: fields, types, ranges and names. Checked once, before any use."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lumbar.bundle.code_hash import digest
from lumbar.bundle.listed_classifiers import check_classifiers
from lumbar.bundle.listed_fusion import check_fusion
from lumbar.bundle.member_seconds import check_member_seconds
from lumbar.bundle.own_localisers import check_own_localisers
from lumbar.competitions.contract import Competition
from lumbar.competitions.registry import DEFAULT, competition_named
from lumbar.config import CONFIGS, from_dict
from lumbar.errors import ManifestError
from lumbar.io.strict_json import require_printable
from lumbar.labels import GROUPS
from lumbar.rules import AnyOf, Integer, ListOf, Null, Number, Object, Real, Rule, Text, require, require_fields, shown

SCHEMA = 1
MAX_WEIGHTS = 1000
MAX_WEIGHT_BYTES = 1 << 34  # 16 GiB, more than the memory of Kaggle's GPUs

_SHA256 = Text(64, r"[0-9a-f]{64}", "64 hexadecimal digits")
_NAME = Text(64, r"[A-Za-z][A-Za-z0-9_]*", "a name of letters, digits and _")
_LINE, _COUNT = Text(200), Integer(0, 10**12)
_PROBE: dict[str, Rule] = {
    "seed": Integer(0, 2**32 - 1),
    "inputs": Object(),
    "expected": ListOf(Real(-1e6, 1e6), 1, 64),
    # a share of 1 + |expected|; a wide tolerance would prove nothing
    "tolerance": Real(0.0, 0.1),
}

# Fields that must be there: the JSON type (for the message), then the rule for the value.
TOP_LEVEL: dict[str, tuple[type, Rule]] = {
    "schema": (int, Integer(SCHEMA, SCHEMA)),
    "dataset": (dict, Object({"id": _LINE, "version": AnyOf((Null(), _COUNT, _LINE))})),
    "code_sha256": (str, AnyOf((_SHA256, Text(0, "", "nothing (not sealed)")))),
    "recipe": (str, _LINE),
    "created_by": (str, _LINE),
    "cohort": (dict, Object({"fingerprint": _LINE, "studies": _COUNT, "description": _LINE})),
    "prior": (dict, Object()),
    "oof": (dict, Object()),
    "versions": (dict, Object()),
    "training": (dict, Object()),
    "forced": (list, ListOf(Text(4000), 0, 1000)),
    "weights": (list, ListOf(Object(), 0, MAX_WEIGHTS)),
}
WEIGHT: dict[str, tuple[type, Rule]] = {
    "file": (str, Text(200)),
    "sha256": (str, _SHA256),
    "bytes": (int, Integer(1, MAX_WEIGHT_BYTES)),
    "stage": (str, _NAME),
    "model": (str, _NAME),
    "config": (dict, Object()),
    "fold": (int, Integer(-1000, 1000)),
    "metrics": (dict, Object()),
    "probe": (dict, Object(_PROBE)),
}
# A field that a bundle may have: the numbers that tell how sure the numbering is (``lumbar.stages.numbering.NUMBERS``).
NUMBERING = ListOf(Real(-100.0, 100.0), 5, 7)
# Another one: offset and slope for the probability of each kind of point (``lumbar.stages.point_probability``).
POINT_PROBABILITY = dict.fromkeys(("canal", "foramen", "axial"), ListOf(Real(-100.0, 100.0), 2, 2))
# And one: temperature, and share of the prior, of each group of conditions (``lumbar.stages.grade_calibration``).
GRADE_CALIBRATION: dict[str, tuple[Rule, ...]] = dict.fromkeys(GROUPS, (Real(0.05, 20.0), Real(0.0, 1.0)))
# Which networks can serve a stage. With another one every study would fail, and nothing before it.
SERVES: dict[str, set[str]] = {
    "sagittal_xy": {"heatmap", "sagittal_regression"},
    "sagittal_z": {"slice_role"},
    "axial_xy": {"heatmap", "axial_regression"},
    "sagittal_classifier": {"sagittal_classifier"},
    "axial_subarticular": {"axial_classifier"},
    "axial_all": {"axial_classifier"},
    "aggregator": {"aggregator", "level_sequence"},
    "fusion": {"fusion"},
    "baseline": {"baseline"},
    "series_contrast": {"series_contrast"},
}

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}"
_FILE = Text(200, rf"(?:{_PART}/){{0,4}}{_PART}\.safetensors")
_RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def check(path: Path, data: Any) -> None:
    """Refuse a JSON value that is not a manifest as the tables above describe it.

    Args:
        path: the manifest file, for the messages.
        data: the JSON value.

    Raises:
        ManifestError: "path: field: found …, expected …", in one line.
    """
    if not isinstance(data, dict):
        raise ManifestError(f"{path}: found {type(data).__name__}, expected an object with {', '.join(TOP_LEVEL)}")
    require_printable(path, data)
    if isinstance(data.get("schema"), bool) or data.get("schema") != SCHEMA:
        raise ManifestError(f"{path}: found schema {shown(data.get('schema'))}, expected {SCHEMA}")
    _check_fields(path, "", data, TOP_LEVEL)
    require(f"{path}: competition", competition_of(data), _NAME)
    try:
        competition = competition_named(competition_of(data))
    except ManifestError as error:
        raise ManifestError(f"{path}: competition: {error}") from None
    _check_prior(path, data["prior"], competition)
    _check_code_files(path, data)
    _check_rehearsed(path, data)
    if "numbering" in data:
        require(f"{path}: numbering", data["numbering"], NUMBERING)
    if "point_probability" in data:
        _check_point_probability(path, data["point_probability"])
    if "grade_calibration" in data:
        _check_grade_calibration(path, data["grade_calibration"])
    names: set[str] = set()
    for index, entry in enumerate(data["weights"]):
        _check_entry(path, index, entry)
        _check_once(path, entry["file"], names)
    check_classifiers(path, data)
    check_own_localisers(path, data, SERVES)
    check_fusion(path, data)
    check_member_seconds(path, data)


def _check_fields(path: Path, where: str, data: Mapping[str, Any], kinds: Mapping[str, tuple[type, Rule]]) -> None:
    for key, (kind, _) in kinds.items():
        if key not in data:
            raise ManifestError(f"{path}: {where}{key} missing, expected {', '.join(kinds)}")
        if not isinstance(data[key], kind) or isinstance(data[key], bool):
            raise ManifestError(f"{path}: {where}{key}: found {type(data[key]).__name__}, expected {kind.__name__}")
    if kinds is TOP_LEVEL:
        for index, entry in enumerate(data["weights"][: MAX_WEIGHTS + 1]):
            if not isinstance(entry, dict):
                raise ManifestError(f"{path}: weights[{index}]: found {type(entry).__name__}, expected an object")
    require_fields(f"{path}: {where}", data, {key: rule for key, (_, rule) in kinds.items()})


def _check_entry(path: Path, index: int, entry: Mapping[str, Any]) -> None:
    where = f"weights[{index}]."
    _check_fields(path, where, entry, WEIGHT)
    _check_file_name(path, where, entry["file"])
    stage, model = entry["stage"], entry["model"]
    if model not in CONFIGS:
        return  # ``models.build`` refuses it: a manifest with networks of a later version can still be read
    if model not in SERVES.get(stage, {model}):
        expected = " or ".join(sorted(SERVES[stage]))
        raise ManifestError(f"{path}: {where}model: found {model!r} for stage {stage!r}, expected {expected}")
    try:
        from_dict(CONFIGS[model], entry["config"])
    except ManifestError as error:
        raise ManifestError(f"{path}: {where}config: {error}") from None


def _check_file_name(path: Path, where: str, name: str) -> None:
    """Refuse a file name unless it is a relative path that means the same file on every system."""
    parts = PurePosixPath(name).parts
    is_plain = _FILE.accepts(name) and "/".join(parts) == name and not any(part.endswith(".") for part in parts)
    if not is_plain or any(part.split(".")[0].lower() in _RESERVED_NAMES for part in parts):
        raise ManifestError(
            f"{path}: {where}file: found {shown(name)}, expected a .safetensors inside the folder, such as "
            "weights/name.safetensors (letters, digits, . _ + = - and at most 200 of them)"
        )


def _check_once(path: Path, name: str, names: set[str]) -> None:
    """Refuse two files with the same last name: where a mount drops the folders, only one of them would be left."""
    key = unicodedata.normalize("NFC", PurePosixPath(name).name).casefold()
    if key in names:
        raise ManifestError(f"{path}: {name} is listed twice, expected once (upper and lower case are the same)")
    names.add(key)


def competition_of(data: Mapping[str, Any]) -> Any:
    """The name of a manifest's competition, a module of ``lumbar.competitions``; the lumbar spine where it has none."""
    return data.get("competition", DEFAULT)


def _check_prior(path: Path, prior: dict[str, Any], competition: Competition) -> None:
    keys, n_values = competition.keys, len(competition.values)
    expected = f"the {len(keys)} label columns" if len(keys) > 1 else keys[0]
    if missing := [key for key in keys if key not in prior]:
        raise ManifestError(f"{path}: prior of {missing[0]} missing, expected {expected}")
    each = ListOf(Real(0.0, 1.0), n_values, n_values)
    probabilities = f"{n_values} probabilities{' that sum to 1' if competition.sums_to_one else ''}"
    for key, row in prior.items():
        if key not in keys:
            raise ManifestError(f"{path}: prior: found column {shown(key)}, expected {expected}")
        if not each.accepts(row) or (competition.sums_to_one and abs(sum(row) - 1.0) > 1e-3):
            raise ManifestError(f"{path}: prior of {key}: found {shown(row)}, expected {probabilities}")


def _check_point_probability(path: Path, data: Any) -> None:
    where = f"{path}: point_probability"
    require(where, data, Object())
    if missing := [kind for kind in POINT_PROBABILITY if kind not in data]:
        raise ManifestError(f"{where}: {missing[0]} missing, expected {', '.join(POINT_PROBABILITY)}")
    require_fields(f"{where}.", data, POINT_PROBABILITY)


def _check_grade_calibration(path: Path, data: Any) -> None:
    where = f"{path}: grade_calibration"
    require(where, data, Object())
    for group in data:
        if group not in GRADE_CALIBRATION:
            raise ManifestError(f"{where}: found {shown(group)}, expected {', '.join(GRADE_CALIBRATION)}")
    for group, rules in GRADE_CALIBRATION.items():
        if group not in data:
            raise ManifestError(f"{where}: {group} missing, expected {', '.join(GRADE_CALIBRATION)}")
        require(f"{where}.{group}", data[group], ListOf(Number(), len(rules), len(rules)))
        for name, value, rule in zip(("temperature", "share of the prior"), data[group], rules, strict=True):
            require(f"{where}.{group}: {name}", value, rule)


def _check_rehearsed(path: Path, data: Mapping[str, Any]) -> None:
    """The versions on which the bundle was tried when it was sealed, where they are noted."""
    if "rehearsed" not in data:
        return
    require(f"{path}: rehearsed", data["rehearsed"], Object())
    require_fields(f"{path}: rehearsed.", data["rehearsed"], dict.fromkeys(data["rehearsed"], _LINE))


def _check_code_files(path: Path, data: Mapping[str, Any]) -> None:
    """Check the list of sealed code files, if there is one: its hash must be ``code_sha256``."""
    files = data.get("code_files")
    if files is None:
        return
    where = f"{path}: code_files"
    require(where, files, Object())
    for place, sha256 in files.items():
        require(f"{where}: {shown(place)}", sha256, _SHA256)
    if digest(files) != data["code_sha256"]:
        raise ManifestError(f"{where}: found hash {digest(files)[:12]}…, expected code_sha256 {data['code_sha256']!r}")
