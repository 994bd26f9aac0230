"""External members as a team mate hands them over: a folder with logits, code and weights, read and checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar.bundle.code_hash import BYTECODE, ENTRY, SHIPPED
from lumbar.bundle.listed_classifiers import CODE_PLACE, MAX_CODE_FILES, NAME, WEIGHTS_NAME
from lumbar.bundle.safetensors_file import check_safetensors
from lumbar.errors import CohortError
from lumbar.io.regular_file import file_sha256
from lumbar.io.text import one_line, printable
from lumbar.labels import CONDITIONS, LEVELS
from lumbar.rules import AnyOf, ListOf, Null, Object, Real, Rule, Text, require, require_fields, shown
from lumbar.stages.classifiers import AXIAL, SAGITTAL, Classifier, External, crop_config, crop_of
from lumbar_train.ensemble.budget import MACHINES
from lumbar_train.pipeline.machines import T4

FILE = "member.json"
COLUMNS = ("study_id", "fold", "condition", "level", "logit_normal_mild", "logit_moderate", "logit_severe")
TABLE = "oof.parquet"
_LOGITS = list(COLUMNS[4:])
_NOT_SHIPPED = {FILE, TABLE, "folds.csv"}
_LEFT_OUT = {".md", ".parquet", ".ipynb"}  # notes and logits, which nothing is loaded from
_CONDITION = Text(64, "|".join(CONDITIONS), f"one of {', '.join(CONDITIONS)}")
_FIELDS: dict[str, Rule] = {
    "name": NAME,
    "view": Text(8, f"{SAGITTAL}|{AXIAL}", f"'{SAGITTAL}' or '{AXIAL}'"),
    "conditions": ListOf(_CONDITION, 1, 5, is_set=True),
    "seconds": Real(0.0, 3600.0, above=True),
}
_OPTIONAL: dict[str, Rule] = {
    "crop": AnyOf((Object(), Null())),
    "machine": Text(16, "|".join(one.name for one in MACHINES.values()), "T4 or A100"),
    "cohort": Text(200),
}


@dataclass(frozen=True)
class ExternalFolder:
    """A team mate's folder, checked, or the external member of another ensemble's export.

    Attributes:
        path: of the folder, for messages.
        listed: its entry of the manifest: name, view, crop, conditions, hashes of its code, probe (empty until one is
            recorded) and seconds on a T4.
        code: where each file of its code lies, by its place.
        weights: where each of its safetensors files lies, by the name that its ``load`` knows it by.
        cohort: fingerprint of the cohort that it was trained on, where it says so.
    """

    path: Path
    listed: Classifier
    code: Mapping[str, Path]
    weights: Mapping[str, Path]
    cohort: str = ""

    @property
    def external(self) -> External:
        """What the manifest says of its code."""
        assert self.listed.external is not None
        return self.listed.external

    def named(self, name: str) -> ExternalFolder:
        """The same under another name."""
        return replace(self, listed=replace(self.listed, name=name))


def read_external(path: Path, name: str = "") -> ExternalFolder:
    """Read a folder with ``member.json``, ``member.py`` and ``.safetensors`` files; none of its code runs.

    Args:
        path: the folder.
        name: of the member; empty for the one in ``member.json``.

    Raises:
        CohortError, ManifestError: in one line, what is missing or is not what it should be.
    """
    data = _described(path)
    listed_name = name or data["name"]
    require(f"{printable(path)}: name", listed_name, NAME)
    crop = data.get("crop") or {}
    try:
        filled = crop_of(crop_config(data["view"], crop)) if crop else ()
    except Exception as error:
        raise CohortError(f"{printable(path / FILE)}: {one_line(error)}") from None
    code, weights = _files(path)
    if ENTRY not in code:
        raise CohortError(f"{printable(path / ENTRY)}: not found, expected a module with load and predict")
    if not weights:
        raise CohortError(f"{printable(path)}: found no .safetensors file, expected the weights of its networks")
    for file in weights.values():
        check_safetensors(file)
    machine = MACHINES[data.get("machine", T4.name).lower()]
    external = External(
        files={place: file_sha256(file) for place, file in code.items()},
        probe={},
        seconds=float(data["seconds"]) * machine.rate / T4.rate,
    )
    conditions = tuple(CONDITIONS.index(one) for one in data["conditions"])
    listed = Classifier(listed_name, data["view"], filled, conditions, external)
    return ExternalFolder(path, listed, code, weights, data.get("cohort", ""))


def read_externals(folders: Sequence[tuple[str, Path]], taken: Iterable[str]) -> dict[str, ExternalFolder]:
    """The folders of ``--external`` by the names of their members.

    Args:
        folders: name (empty: the one in ``member.json``) and path of each.
        taken: names that runs have.

    Raises:
        CohortError, ManifestError: as ``read_external``; also a name twice, or one that a run has.
    """
    owners = dict.fromkeys(taken, "a run")
    externals: dict[str, ExternalFolder] = {}
    for name, path in folders:
        one = read_external(path, name)
        if owner := owners.get(one.listed.name):
            raise CohortError(
                f"--external: found {printable(path)} named {one.listed.name}, which {owner} has, expected different "
                f"names; give NAME={printable(path)}"
            )
        owners[one.listed.name] = printable(path)
        externals[one.listed.name] = one
    return externals


def _described(path: Path) -> dict[str, Any]:
    """The content of ``member.json``."""
    file = path / FILE
    if not file.is_file():
        raise CohortError(f"{printable(file)}: not found, expected {', '.join(_FIELDS)} of the external member")
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CohortError(f"{printable(file)}: not readable as JSON ({one_line(error)}), expected an object") from None
    require(printable(file), data, Object())
    known = {**_FIELDS, **_OPTIONAL}
    if unknown := sorted(set(data) - set(known)):
        raise CohortError(f"{printable(file)}: found {shown(unknown[0])}, expected of {', '.join(known)}")
    if missing := [field for field in _FIELDS if field not in data]:
        raise CohortError(f"{printable(file)}: found no {missing[0]}, expected {', '.join(_FIELDS)}")
    require_fields(f"{printable(file)}: ", data, known)
    return dict(data)


def _files(path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The files that ship: code and text by place, weights by name."""
    code: dict[str, Path] = {}
    weights: dict[str, Path] = {}
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if any(part.startswith(".") or part == BYTECODE for part in inside.parts) or file.is_dir():
            continue
        place = inside.as_posix()
        if place in _NOT_SHIPPED or file.suffix in _LEFT_OUT:
            continue
        if file.suffix == ".safetensors":
            if len(inside.parts) > 1 or not WEIGHTS_NAME.accepts(place):
                raise CohortError(
                    f"{printable(file)}: found {shown(place)}, expected {WEIGHTS_NAME.expected}, beside {FILE}"
                )
            weights[place] = file
        elif file.suffix in SHIPPED and CODE_PLACE.accepts(place):
            code[place] = file
        else:
            raise CohortError(
                f"{printable(file)}: found {shown(place)}, expected weights as .safetensors, code as .py, and text as "
                f"{', '.join(sorted(SHIPPED - {'.py', '.typed'}))}; save it as one of these, or move it away"
            )
    if len(code) > MAX_CODE_FILES:
        raise CohortError(f"{printable(path)}: found {len(code)} files of code, expected {MAX_CODE_FILES} at most")
    return code, weights


def read_table(member: ExternalFolder) -> pd.DataFrame:
    """The out-of-fold logits of an external member, in the columns and types that the kit's own tables have.

    Raises:
        CohortError: no table, a column that is missing or of another type, a name that is no condition or level, or
            none of the rows that ``member.json`` promises.
    """
    path = member.path / TABLE
    if not path.is_file():
        raise CohortError(f"{printable(path)}: not found, expected out-of-fold logits: {', '.join(COLUMNS)}")
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow's errors have no common base
        raise CohortError(f"{printable(path)}: not readable as parquet ({one_line(error)}), expected a table") from None
    if missing := [column for column in COLUMNS if column not in frame.columns]:
        raise CohortError(f"{printable(path)}: found no column {missing[0]}, expected {', '.join(COLUMNS)}")
    frame = frame[list(COLUMNS)].reset_index(drop=True)
    for column in ("study_id", "fold"):
        if not pd.api.types.is_integer_dtype(frame[column].dtype) or frame[column].isna().any():
            raise CohortError(
                f"{printable(path)}: found {column} of type {frame[column].dtype}, expected whole numbers"
            )
        frame[column] = frame[column].astype(np.int64)
    for column in _LOGITS:
        if not pd.api.types.is_numeric_dtype(frame[column].dtype):
            raise CohortError(f"{printable(path)}: found {column} of type {frame[column].dtype}, expected numbers")
        frame[column] = frame[column].astype(float)
    _check_names(path, frame, member.listed)
    return frame


def _check_names(path: Path, frame: pd.DataFrame, listed: Classifier) -> None:
    mine = [CONDITIONS[index] for index in listed.conditions]
    for column, known in (("condition", mine), ("level", LEVELS)):
        strange = frame.loc[~frame[column].isin(known), column]
        if len(strange):
            where = f", as {FILE} says" if column == "condition" else ""
            raise CohortError(
                f"{printable(path)}: found {column} {shown(strange.iloc[0])}, expected of {', '.join(known)}{where}"
            )
    if absent := [name for name in mine if not (frame["condition"] == name).any()]:
        raise CohortError(f"{printable(path)}: found no row of {absent[0]}, expected some, since {FILE} names it")
