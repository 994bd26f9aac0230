"""What each member of an ensemble costs a study, as the manifest may tell it: ``member_seconds``.

They were measured when the bundle was sealed, of one set of weights and one view, and projected to the machine that
the notebook asks for. Near the deadline they say how much time is saved without a member (``lumbar.workers.effort``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lumbar.bundle.own_localisers import own_sets
from lumbar.errors import ManifestError
from lumbar.rules import Object, Real, Rule, Text, require, require_fields, shown
from lumbar.stages.classifiers import classifiers_of, spared_in_order
from lumbar.workers.effort import UNKNOWN_TIMES, Spared

KEY = "member_seconds"
FILE = "member_seconds.json"  # in a run folder: the same, and of which weights (``weights_key``)
_VIEWS = 2  # the patient and the mirrored one
_SECONDS = Real(0.0, 1e6)
_FIELDS: dict[str, Rule] = {
    "machine": Text(200),  # that the seconds are meant for
    "rest": _SECONDS,  # localisation, cutting of crops, and all else that runs whoever answers
    "members": Object(),  # seconds by name
    "localisers": Object(),  # seconds of each further set of localisers (``bundle.own_localisers``), by its name
}


def weights_key(data: Mapping[str, Any]) -> str:
    """What measured seconds are of: the bundle's stages with their weights, of a manifest's JSON."""
    parts = sorted(f"{entry['stage']} {entry['sha256']}" for entry in data["weights"])
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def check_member_seconds(path: Path, data: Mapping[str, Any]) -> None:
    """Refuse seconds that are no numbers, or not those of the bundle's classifiers.

    Args:
        path: the manifest file, for the messages.
        data: its JSON, whose list of classifiers was checked.

    Raises:
        ManifestError: "path: member_seconds…: found …, expected …", in one line.
    """
    if KEY not in data:
        return
    where = f"{path}: {KEY}"
    require(where, data[KEY], Object())
    if set(data[KEY]) != set(_FIELDS):
        raise ManifestError(
            f"{where}: found {', '.join(map(shown, sorted(data[KEY]))) or 'nothing'}, expected {', '.join(_FIELDS)}"
        )
    require_fields(f"{where}.", data[KEY], _FIELDS)
    members, names = data[KEY]["members"], [one.name for one in classifiers_of(data)]
    if set(members) != set(names):
        raise ManifestError(
            f"{where}.members: found {', '.join(map(shown, sorted(members))) or 'none'}, expected {', '.join(names)}"
        )
    require_fields(f"{where}.members.", members, dict.fromkeys(names, _SECONDS))
    sets, known = data[KEY]["localisers"], [own.name for own in own_sets(data)]
    if set(sets) != set(known):
        raise ManifestError(
            f"{where}.localisers: found {', '.join(map(shown, sorted(sets))) or 'none'}, "
            f"expected {', '.join(known) or 'none'}"
        )
    require_fields(f"{where}.localisers.", sets, dict.fromkeys(known, _SECONDS))


def spared_members(data: Mapping[str, Any]) -> tuple[list[Spared], tuple[float, ...]]:
    """The members that a bundle can spare, in the order in which they go, and the expected times of the first levels.

    Args:
        data: JSON of a manifest that was checked; without ``member_seconds`` neither shares nor times are known.
    """
    names = spared_in_order(classifiers_of(data), data.get("shed", ()))
    if KEY not in data:
        return [Spared(name) for name in names], UNKNOWN_TIMES
    told = data[KEY]
    seconds = {name: float(value) for name, value in told["members"].items()}
    rest = float(told["rest"]) + sum(map(float, told["localisers"].values()))
    fits = {name: sum(entry["stage"] == name for entry in data["weights"]) for name in seconds}
    all_fits = sum(seconds[name] * fits[name] for name in seconds)
    one_fit = rest + sum(seconds.values())
    if not one_fit > 0:
        return [Spared(name) for name in names], UNKNOWN_TIMES
    times = (rest + _VIEWS * all_fits, rest + all_fits, one_fit)
    saved = _saved(names, seconds, data)
    return [Spared(name, saved[name] / one_fit) for name in names], times


def _saved(names: Sequence[str], seconds: Mapping[str, float], data: Mapping[str, Any]) -> dict[str, float]:
    """What each member saves that goes in this order: the last one of a set of localisers takes these along."""
    saved = {name: seconds[name] for name in names}
    for own in own_sets(data):
        if set(own.members) <= set(names):
            saved[max(own.members, key=names.index)] += float(data[KEY]["localisers"][own.name])
    return saved
