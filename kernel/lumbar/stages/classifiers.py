"""Which classifiers a bundle has, what each looks at and what it answers; the external ones too. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lumbar.config import CLASSIFIERS, CONFIGS, AxialClassifierConfig, SagittalClassifierConfig, from_dict
from lumbar.errors import ManifestError
from lumbar.rules import shown

SAGITTAL, AXIAL = "sagittal", "axial"
MODELS = {SAGITTAL: "sagittal_classifier", AXIAL: "axial_classifier"}  # the network that reads a view
EXTERNAL = "external"  # the ``model`` of weights that only an external member's own code can load
Config = SagittalClassifierConfig | AxialClassifierConfig
Crop = tuple[tuple[str, Any], ...]

# The fields of a configuration that decide which pixels a classifier is given; all others are of the network alone.
_FIELDS: dict[str, tuple[str, ...]] = {
    SAGITTAL: ("size", "window", "crop_scale", "min_half_mm", "max_slices", "per_series"),
    AXIAL: ("size", "window", "box_scale", "box_mm", "max_slices", "per_series"),
}


@dataclass(frozen=True, slots=True)
class External:
    """What a manifest says of a network from elsewhere, which joins with code of its own (``stages.external``).

    Attributes:
        files: sha256 of each file of its code, by its place in the member's folder.
        probe: what it answers to a made-up study (``bundle.external_probe``).
        seconds: a study on one T4, as its maker says.
    """

    files: Mapping[str, str]
    probe: Mapping[str, Any]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The part of the manifest's entry that a classifier of the kit does not have."""
        return {"files": dict(self.files), "probe": dict(self.probe), "seconds": self.seconds}


@dataclass(frozen=True, slots=True)
class Classifier:
    """One classifier of a bundle, as the manifest lists it.

    Attributes:
        name: its stage in the list of weights, and its name among the aggregator's ``models``.
        view: ``sagittal`` or ``axial``.
        crop: the fields of its configuration that decide its crops; none for an external member that asks for no crops.
        conditions: which of the five conditions it answers.
        external: of an external member, its code and its probe; None for a network of the kit.
    """

    name: str
    view: str
    crop: Crop
    conditions: tuple[int, ...]
    external: External | None = None

    @classmethod
    def of(cls, name: str, config: Config) -> Classifier:
        """What the configuration of a classifier's network says of it."""
        return cls(name, view_of(config), crop_of(config), tuple(config.conditions))

    def as_json(self) -> dict[str, Any]:
        """The manifest's entry."""
        crop = {name: list(value) if isinstance(value, tuple) else value for name, value in self.crop}
        entry = {"name": self.name, "view": self.view, "crop": crop, "conditions": list(self.conditions)}
        return entry if self.external is None else entry | {EXTERNAL: self.external.as_json()}


def view_of(config: Config) -> str:
    """The view that a classifier reads."""
    return SAGITTAL if isinstance(config, SagittalClassifierConfig) else AXIAL


def crop_of(config: Config) -> Crop:
    """The fields that decide a classifier's crops: two with equal ones are given the same pixels."""
    return tuple((name, getattr(config, name)) for name in _FIELDS[view_of(config)])


def crop_config(view: str, crop: Mapping[str, Any]) -> Config:
    """The configuration that cuts an external member's crops; fields that ``crop`` leaves out have their defaults.

    Raises:
        ManifestError: a field that crops of this view do not have, or a value out of its range.
    """
    if unknown := sorted(set(crop) - set(_FIELDS[view])):
        raise ManifestError(f"crop: found {shown(unknown[0])}, expected of {', '.join(_FIELDS[view])}")
    config: Config = from_dict(CONFIGS[MODELS[view]], {"backbone": {"name": "resnet18"}, **crop})
    return config


def feature_width(config: Config) -> int:
    """How many numbers a classifier's heads read of each part of a level: both directions of its LSTM."""
    return 2 * config.hidden


def classifiers_of(data: Mapping[str, Any]) -> tuple[Classifier, ...]:
    """The classifiers of a manifest that was checked, in the order of the aggregator's input.

    A manifest without a list, of an older version, has those of ``lumbar.config.CLASSIFIERS``.
    """
    if "classifiers" in data:
        return tuple(
            Classifier(
                entry["name"],
                entry["view"],
                _tuples(entry["crop"]),
                tuple(entry["conditions"]),
                External(**entry[EXTERNAL]) if EXTERNAL in entry else None,
            )
            for entry in data["classifiers"]
        )
    first: dict[str, Mapping[str, Any]] = {}
    for entry in data["weights"]:
        if entry["stage"] in CLASSIFIERS and entry["model"] in MODELS.values():
            first.setdefault(entry["stage"], entry)
    return tuple(
        Classifier.of(name, from_dict(CONFIGS[first[name]["model"]], first[name]["config"]))
        for name in CLASSIFIERS
        if name in first
    )


def _tuples(crop: Mapping[str, Any]) -> Crop:
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in crop.items())


def spared(classifiers: Sequence[Classifier], order: Iterable[str] = ()) -> frozenset[str]:
    """The classifiers that do not run when time is shortest; arguments as of ``spared_in_order``."""
    return frozenset(spared_in_order(classifiers, order))


def spared_in_order(classifiers: Sequence[Classifier], order: Iterable[str] = ()) -> tuple[str, ...]:
    """The classifiers that are left out as time becomes short, in the order in which they go.

    One after the other is left out, as long as another one answers the same conditions on the same view. So a patient
    without axial series keeps every answer that the sagittal ones give. An external member, whose code may fail on a
    study, is no such other.

    Args:
        classifiers: of the bundle.
        order: names, those to leave out first; the rest follows, the fewest conditions first.
    """
    by_name = {one.name: one for one in classifiers}
    first = [name for name in order if name in by_name]
    rest = sorted((one for one in classifiers if one.name not in first), key=lambda one: len(one.conditions))
    left, out = dict(by_name), []
    for name in [*first, *(one.name for one in rest)]:
        others = [one for one in left.values() if one.name != name and one.external is None]
        if all((by_name[name].view, c) in _answered(others) for c in by_name[name].conditions):
            del left[name]
            out.append(name)
    return tuple(out)


def _answered(classifiers: Iterable[Classifier]) -> set[tuple[str, int]]:
    return {(one.view, condition) for one in classifiers for condition in one.conditions}
