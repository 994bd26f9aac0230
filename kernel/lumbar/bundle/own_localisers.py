"""Localisers that only some members of an ensemble look through: ``own_localisers`` in the manifest.

The bundle's usual localisers serve all other members, the aggregator and the report. The weights of a further set have
its name before their stage, as ``localisers_1_sagittal_xy``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumbar.config import CLASSIFIERS, MAX_MODELS, STAGES
from lumbar.errors import ManifestError
from lumbar.rules import ListOf, Object, Real, Rule, Text, require, require_fields, shown
from lumbar.stages.classifiers import classifiers_of

KEY = "own_localisers"
LOCALISERS = tuple(stage for stage in STAGES if stage not in CLASSIFIERS and stage != "aggregator")
_FIELDS: dict[str, Rule] = {
    "name": Text(20, r"localisers_[1-9][0-9]?", "localisers_1, localisers_2, …"),
    "members": ListOf(Text(64), 1, MAX_MODELS, is_set=True),
    "numbering": ListOf(Real(-100.0, 100.0), 0, 7),  # as the bundle's own, or empty
}


@dataclass(frozen=True, slots=True)
class OwnSet:
    """A further set of localisers.

    Attributes:
        name: of the set.
        members: classifiers that look where these localisers point.
        numbering: its numbers for how sure the numbering is, or none.
    """

    name: str
    members: tuple[str, ...]
    numbering: tuple[float, ...] = ()

    def stage(self, localiser: str) -> str:
        """The stage in the list of weights of one of its localisers."""
        return f"{self.name}_{localiser}"

    def as_json(self) -> dict[str, Any]:
        """The manifest's entry."""
        return {"name": self.name, "members": list(self.members), "numbering": list(self.numbering)}


def own_sets(data: Mapping[str, Any]) -> tuple[OwnSet, ...]:
    """The further sets of a manifest that was checked."""
    return tuple(
        OwnSet(entry["name"], tuple(entry["members"]), tuple(entry["numbering"])) for entry in data.get(KEY, ())
    )


def own_stages(data: Mapping[str, Any]) -> dict[str, str]:
    """The stages of all further localisers, and which of the usual stages each one does."""
    return {own.stage(localiser): localiser for own in own_sets(data) for localiser in LOCALISERS}


def check_own_localisers(path: Path, data: Mapping[str, Any], serves: Mapping[str, set[str]]) -> None:
    """Refuse sets whose members or weights the bundle does not have.

    Args:
        path: the manifest file, for the messages.
        data: its JSON, whose classifiers and entries of weights were checked.
        serves: the networks that can serve each of the usual stages.

    Raises:
        ManifestError: "path: own_localisers…: found …, expected …", in one line.
    """
    if KEY not in data:
        return
    where = f"{path}: {KEY}"
    require(where, data[KEY], ListOf(Object(), 0, MAX_MODELS))
    known, taken, names = [one.name for one in classifiers_of(data)], set[str](), set[str]()
    for index, entry in enumerate(data[KEY]):
        place = f"{where}[{index}]"
        if set(entry) != set(_FIELDS):
            raise ManifestError(f"{place}: found {', '.join(map(shown, sorted(entry)))}, expected {', '.join(_FIELDS)}")
        require_fields(f"{place}.", entry, _FIELDS)
        if len(entry["numbering"]) not in (0, 5, 6, 7):
            raise ManifestError(f"{place}.numbering: found {len(entry['numbering'])} numbers, expected none or 5 to 7")
        for name in entry["members"]:
            if name not in known or name in taken:
                reason = "in two sets" if name in taken else "no classifier"
                raise ManifestError(f"{place}.members: found {shown(name)}, {reason}, expected of {', '.join(known)}")
            taken.add(name)
        if entry["name"] in names:
            raise ManifestError(f"{place}.name: found {entry['name']} twice, expected different names")
        names.add(entry["name"])
    for stage, localiser in own_stages(data).items():
        models = {entry["model"] for entry in data["weights"] if entry["stage"] == stage}
        if stage in known or not models or not models <= serves[localiser]:
            told = "a classifier" if stage in known else " and ".join(sorted(map(shown, models))) or "none"
            raise ManifestError(
                f"{where}: weights of {stage}: found {told}, expected {' or '.join(sorted(serves[localiser]))}"
            )
