"""Several images at one position: copies, echoes, phase beside magnitude, times. Which of them make the volume.

A stack must not mix them, so one kind is chosen for all its slices, attribute by attribute. By ImageType, magnitude
comes before real part, imaginary part and phase, water before fat, ORIGINAL before DERIVED; then the kind that covers
most positions is taken; then the shortest EchoTime (the longest with ``prefers_long_echo``), the first echo, time or
acquisition. An attribute is used only if one of its kinds covers nearly all positions: acquisitions that divide the
positions among them do not repeat each other.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lumbar.dicom.assembly.images import Image
from lumbar.dicom.assembly.placing import PlacedImage, listed

SAME_POSITION_MM = 1e-2
NEARLY_ALL = 0.8
_MOST_KINDS = 64  # up to which each kind is compared with all others; if more cover nearly all positions, they repeat
_MIN_CLASS = 3  # images that each kind has at least, where there are no positions to show that kinds repeat each other
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
# Without positions the others are not used: AcquisitionNumber and times may number the slices themselves
_ATTRIBUTES_WITHOUT_PLACES = ("image_type", "complex_image_component", "echo_time", "echo_number")
_PHASE = {"P", "PHASE", "PHASE MAP", "PHASE_MAP", "VELOCITY"}
_REAL, _IMAGINARY = {"R", "REAL"}, {"I", "IMAGINARY"}
_LATER = {"F", "FAT", "OP", "OUT_PHASE", "OPP_PHASE", "OPPOSED_PHASE", "ADC", "EADC", "FA"}  # ranked behind all others
_MAGNITUDE = {"M", "MAGNITUDE", "M_SE", "M_FFE", "M_IR"}
_RANKED: tuple[set[str], ...] = (_MAGNITUDE, set(), _REAL, _IMAGINARY, _PHASE)  # second: images without such a term
_TERMS = {"ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "OTHER", "ND", "NORM", "DIS2D", "DIS3D", "W", "WATER", "F"}
_TERMS |= {"FAT", "IP", "OP", "IN_PHASE", "OUT_PHASE", "SE", "FFE", "IR", "NONE", "DIFFUSION", "TRACEW", "TRACE"}
_TERMS |= {*_PHASE, *_REAL, *_IMAGINARY, *_MAGNITUDE, *_LATER}


@dataclass(slots=True)
class Excluded:
    """Images that are left out because they repeat others."""

    copies: list[tuple[Image, Image]] = field(default_factory=list)  # same in all attributes; each with the one kept
    doubles: list[tuple[Image, Image]] = field(default_factory=list)  # only at the same position; as above
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)  # number by (kind left out, kind kept)

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
    """Number the distinct positions (mm) along the axis, and return the number of each."""
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
    """Choose the slices of a volume, one for each position; returns their indices.

    Args:
        slices: in the order of their instance numbers; of several that differ in nothing the first is kept.
        places: the number of each slice's position (``place_ids``).
        left: receives the slices that are left out.
        prefers_long_echo: take the longest echo, not the shortest.
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
    """Choose the slices of a volume where there are no positions; returns their indices.

    Copies are recognised by their instance numbers. Kinds are taken to repeat each other if each has as many images.
    """
    numbers = [slice_.image.header.instance_number for slice_ in slices]
    if len(set(numbers)) == 1:  # they say nothing, but the files' names may
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
    """Indices of all slices except those that are equal to an earlier one in all attributes."""
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
    """The indices among ``kept`` of the slices of the best kind, or all of them where the attribute decides nothing.

    With ``places`` (each slice's position) a kind must cover nearly all positions, and most of the other images must
    repeat it.
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
    """Whether more than half of the other images of ``kept`` lie at the positions of the members (``covered``)."""
    own = set(members)
    others = [index for index in kept if index not in own]
    return 2 * sum(places[index] in covered for index in others) > len(others)


def _value(slice_: PlacedImage, attribute: str) -> Any:
    """An attribute in the form in which it is compared: texts in capitals, times rounded to 0.01 ms."""
    value = getattr(slice_.image.header, attribute)
    if isinstance(value, str):
        return value.strip().upper()
    return round(value, 2) if isinstance(value, float) else value


def _rank(attribute: str, kind: Any, n_covered: int, prefers_long_echo: bool) -> tuple[Any, ...]:
    """A key by which the best kind is the smallest."""
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
    """An attribute as a line shows it; of a text only the values that are defined terms."""
    if isinstance(kind, str) and not kind.replace(".", "0").isdecimal():  # no UID
        kind = "\\".join(part if part in _TERMS else "other" for part in map(str.strip, kind.split("\\")[:8]))
    return f"{_ATTRIBUTES[attribute]} {'absent' if kind is None else kind}"


def _slices(count: int) -> str:
    return f"{count} slice{'s' if count > 1 else ''}"
