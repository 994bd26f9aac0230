"""Several images at one place: copies, echoes, phase beside magnitude, times. Which of them make the volume.

Mixing them slice by slice would make a volume of no one kind, so one kind is chosen for the whole stack, attribute by
attribute: of ImageType magnitude before other kinds, real before imaginary part before phase, water before fat,
ORIGINAL before DERIVED; then the kind that covers most places; then the shortest EchoTime (the longest where
``prefers_long_echo``), the first echo, time or acquisition. An attribute is only used where one of its kinds covers
nearly all places: acquisitions that share the places between them are no repeats of each other.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lumbar.dicom.assembly.placing import Image, PlacedImage, listed

SAME_POSITION_MM = 1e-2
NEARLY_ALL = 0.8
_MOST_KINDS = 64  # that are each compared with all others; more than that at nearly all places repeat for certain
_MIN_CLASS = 3  # images of each kind, where no place tells that they repeat each other
_ATTRIBUTES = {
    "image_type": "ImageType",
    "complex_image_component": "ComplexImageComponent",
    "echo_time": "EchoTime",
    "echo_number": "EchoNumbers",
    "temporal_position_identifier": "TemporalPositionIdentifier",
    "acquisition_number": "AcquisitionNumber",
    "repetition_time": "RepetitionTime",
    "series_instance_uid": "SeriesInstanceUID",
}
# Acquisitions and times may number the slices themselves, so they split only where places repeat
_ATTRIBUTES_WITHOUT_PLACES = ("image_type", "complex_image_component", "echo_time", "echo_number")
_PHASE = {"P", "PHASE", "PHASE MAP", "PHASE_MAP", "VELOCITY"}
_REAL, _IMAGINARY = {"R", "REAL"}, {"I", "IMAGINARY"}
_LATER = {"F", "FAT", "OP", "OUT_PHASE", "OPP_PHASE", "OPPOSED_PHASE", "ADC", "EADC", "FA"}  # than what comes with them
_MAGNITUDE = {"M", "MAGNITUDE", "M_SE", "M_FFE", "M_IR"}
_RANKED: tuple[set[str], ...] = (_MAGNITUDE, set(), _REAL, _IMAGINARY, _PHASE)  # the second: nothing is said
_TERMS = {"ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "OTHER", "ND", "NORM", "DIS2D", "DIS3D", "W", "WATER", "F"}
_TERMS |= {"FAT", "IP", "OP", "IN_PHASE", "OUT_PHASE", "SE", "FFE", "IR", "NONE", "DIFFUSION", "TRACEW", "TRACE"}
_TERMS |= {*_PHASE, *_REAL, *_IMAGINARY, *_MAGNITUDE, *_LATER}


@dataclass(slots=True)
class Excluded:
    """Images that a series' stacks do without, and why."""

    copies: list[tuple[Image, Image]] = field(default_factory=list)  # each with the one that is kept
    doubles: list[tuple[Image, Image]] = field(default_factory=list)
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)  # what they are, and what is kept

    def lines(self) -> list[str]:
        """One line for each reason."""
        lines = []
        for pairs, reason, word in (
            (self.copies, "copies of others", "of"),
            (self.doubles, "at the same place as others", "as"),
        ):
            if pairs:
                names = listed([f"{image.name} ({word} {kept.name})" for image, kept in pairs])
                lines.append(f"{_slices(len(pairs))} left out, {reason}: {names}")
        if self.kinds:
            kinds = [f"{count} of {left} (kept: {kept})" for (left, kept), count in self.kinds.items()]
            lines.append(f"{_slices(self.kinds.total())} left out, at the same places as others: {listed(kinds)}")
        return lines


def place_ids(places: list[float]) -> list[int]:
    """For each place, in mm, the number of its cluster; clusters count up along the axis."""
    ids = [0] * len(places)
    cluster, start = -1, -math.inf
    for index in sorted(range(len(places)), key=places.__getitem__):
        if places[index] - start >= SAME_POSITION_MM:
            cluster, start = cluster + 1, places[index]
        ids[index] = cluster
    return ids


def one_per_position(
    slices: list[PlacedImage], places: list[int], left: Excluded, prefers_long_echo: bool
) -> list[int]:
    """Indices of the items that make the volume, one for each of ``places`` (a cluster's number for each item).

    Items are in the order of their instance numbers; of several at a place that nothing tells apart the first is kept.
    """
    kept = _without_copies(slices, places, left, [slice_.image.header.instance_number for slice_ in slices])
    for attribute in _ATTRIBUTES:
        if len({places[index] for index in kept}) == len(kept):
            return kept
        kept = _keep_best_kind(slices, kept, attribute, left, prefers_long_echo, places)
    first: dict[int, int] = {}
    for index in kept:
        same = first.setdefault(places[index], index)
        if same != index:
            left.doubles.append((slices[index].image, slices[same].image))
    return list(first.values())


def choose_kind(slices: list[PlacedImage], left: Excluded, prefers_long_echo: bool) -> list[int]:
    """Indices of the items that make the volume where no place tells which repeat each other.

    Copies are known by their instance number; kinds are told apart where each has as many images.
    """
    numbers = [slice_.image.header.instance_number for slice_ in slices]
    if len(set(numbers)) == 1:  # says nothing, so that files' names may
        numbers = [slice_.image.instance_number for slice_ in slices]
    kept = _without_copies(slices, [0] * len(slices), left, numbers)
    for attribute in _ATTRIBUTES_WITHOUT_PLACES:
        sizes = Counter(_value(slices[index], attribute) for index in kept)
        if len(sizes) > 1 and len(set(sizes.values())) == 1 and min(sizes.values()) >= _MIN_CLASS:
            kept = _keep_best_kind(slices, kept, attribute, left, prefers_long_echo)
    return kept


def _without_copies(
    slices: list[PlacedImage], places: list[int], left: Excluded, numbers: list[int | None]
) -> list[int]:
    """Indices of all items but those that agree with an earlier one in all that tells images apart."""
    seen: dict[tuple[Any, ...], int] = {}
    kept = []
    for index, (slice_, number) in enumerate(zip(slices, numbers, strict=True)):
        if number is not None:
            header = slice_.image.header
            kinds = [_value(slice_, attribute) for attribute in _ATTRIBUTES]
            first = seen.setdefault((places[index], number, slice_.image.frame, header.slice_location, *kinds), index)
            if first != index:
                left.copies.append((slice_.image, slices[first].image))
                continue
        kept.append(index)
    return kept


def _keep_best_kind(
    slices: list[PlacedImage],
    kept: list[int],
    attribute: str,
    left: Excluded,
    prefers_long_echo: bool,
    places: list[int] | None = None,
) -> list[int]:
    """The indices among ``kept`` whose items are of the best kind, or all of them where the attribute tells nothing.

    With ``places`` a kind has to cover nearly all of them, and most of the other images have to repeat it.
    """
    kinds: dict[Any, list[int]] = {}
    for index in kept:
        kinds.setdefault(_value(slices[index], attribute), []).append(index)
    if len(kinds) < 2:
        return kept
    complete = {kind: len(members) for kind, members in kinds.items()}
    if places is not None:
        covered = {kind: {places[index] for index in members} for kind, members in kinds.items()}
        n_places = len({places[index] for index in kept})
        complete = {kind: len(own) for kind, own in covered.items() if len(own) >= NEARLY_ALL * n_places}
        for kind in list(complete):
            if len(complete) <= _MOST_KINDS and not _is_repeated(kinds[kind], kept, covered[kind], places):
                del complete[kind]
    if not complete:
        return kept
    best = min(complete, key=lambda kind: _rank(attribute, kind, complete[kind], prefers_long_echo))
    for kind, members in kinds.items():
        if kind != best:
            left.kinds[_shown(attribute, kind), _shown(attribute, best)] += len(members)
    return kinds[best]


def _is_repeated(members: list[int], kept: list[int], covered: set[int], places: list[int]) -> bool:
    """Whether more than half of the images of ``kept`` that are no members lie at the members' places."""
    own = set(members)
    others = [index for index in kept if index not in own]
    return 2 * sum(places[index] in covered for index in others) > len(others)


def _value(slice_: PlacedImage, attribute: str) -> Any:
    """An attribute as it is compared: texts in capitals, times to 0.01 ms."""
    value = getattr(slice_.image.header, attribute)
    if isinstance(value, str):
        return value.strip().upper()
    return round(value, 2) if isinstance(value, float) else value


def _rank(attribute: str, kind: Any, n_covered: int, prefers_long_echo: bool) -> tuple[Any, ...]:
    """The smallest is the best kind."""
    if attribute == "image_type":
        values = [part.strip() for part in (kind or "").split("\\")]
        names = set(values[2:])
        part = next((rank for rank, some in enumerate(_RANKED) if names & some), 1)
        return part, bool(names & _LATER), values[0] != "ORIGINAL", -n_covered, kind or ""
    if attribute == "complex_image_component":
        part = next((rank for rank, some in enumerate(_RANKED) if kind in some), 1)
        return part, -n_covered, kind or ""
    if kind is None:
        return (-n_covered, "") if attribute == "series_instance_uid" else (-n_covered, math.inf)
    is_reversed = prefers_long_echo and attribute in ("echo_time", "echo_number")
    return -n_covered, -kind if is_reversed else kind


def _shown(attribute: str, kind: Any) -> str:
    """An attribute for a line; of a text only the values that are defined terms."""
    if isinstance(kind, str) and not kind.replace(".", "0").isdecimal():  # no UID
        kind = "\\".join(part if part in _TERMS else "other" for part in map(str.strip, kind.split("\\")[:8]))
    return f"{_ATTRIBUTES[attribute]} {'absent' if kind is None else kind}"


def _slices(count: int) -> str:
    return f"{count} slice{'s' if count > 1 else ''}"
