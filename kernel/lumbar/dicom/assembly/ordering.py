"""Placed images to stacks: grouped by plane and station, ordered in space, one image for each position.

A station is a block of slices at one position of the scanner's table. Where nearly all images have the same position,
or none, positions say nothing: then SliceLocation orders them if it varies, else the instance number, and the stack is
marked as guessed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from lumbar.dicom.assembly.placing import Notes, PlacedImage, is_same_orientation, is_same_spacing, listed
from lumbar.dicom.assembly.repeats import (
    NEARLY_ALL,
    SAME_POSITION_MM,
    Excluded,
    choose_kind,
    one_per_position,
    place_ids,
)
from lumbar.dicom.header import Header
from lumbar.dicom.stack import plane_normal

_DEFAULT_STEP_MM = 4.0
_MIN_AT_ONE_POSITION = 3  # of only two images at one position, one is a repeat
_MOST = 0.5  # share of the slices at one position that is enough where their SliceLocations differ
_MAX_AT_ONE_POSITION = 512  # more images than any stack of a spine has: they are repeats of one slice
_MAX_STACKS = 128  # of a series; images beyond them are left out with a line
# Slices of one stack may be shifted in their plane, but those of another station are a good part of the image away.
_STATION_SHARE = 0.5  # of the field of view, for slices to belong to another station
_SIDE_SHARE = 0.2  # the same where the two stations overlap along the normal
_STATION_MM = 40.0  # and at least this distance
_MIN_SIDE = 2  # slices that two stations which overlap have at least


@dataclass(slots=True)
class Plan:
    """A stack before its pixels are read: its images, ordered in space, and its geometry as in ``Stack``."""

    slices: list[PlacedImage]
    origins_mm: np.ndarray
    row_mm: np.ndarray
    column_mm: np.ndarray
    step_mm: float
    is_guessed: bool


def arrange(placed: list[PlacedImage], notes: Notes, left: Excluded, prefers_long_echo: bool) -> list[Plan]:
    """Arrange the images of a series into stacks.

    Args:
        placed: the images with their geometry.
        notes: receives a line for each reason why images are left out, and for each guess.
        left: receives the images that are left out because they repeat others.
        prefers_long_echo: of several echoes at the same positions take the longest, not the shortest.
    """
    arranger = _Arranger(left, prefers_long_echo)
    plans = [plan for group in _group(placed, notes) for plan in arranger.plans(group)]
    if len(plans) > _MAX_STACKS:
        plans.sort(key=lambda plan: -len(plan.slices))
        n_left = sum(len(plan.slices) for plan in plans[_MAX_STACKS:])
        notes.problems.append(f"{n_left} slices left out, found {len(plans)} stacks, expected at most {_MAX_STACKS}")
        del plans[_MAX_STACKS:]
    for reason, count in arranger.orders.items():
        notes.guess(f"{count} slices {reason}")
    if arranger.stations:
        notes.problems.append(f"slices far apart in one plane make separate stacks: {listed(arranger.stations)}")
    notes.problems.extend(left.lines())
    return plans


def _group(placed: list[PlacedImage], notes: Notes) -> list[list[PlacedImage]]:
    """Groups of slices with the same size, spacing, orientation and photometric sense, ordered by their first slice."""
    groups: list[list[PlacedImage]] = []
    known: dict[tuple[object, ...], int] = {}  # group by exact geometry, which most slices share with an earlier one
    n_left = 0
    for slice_ in placed:
        key = (slice_.image.shape, slice_.image.is_inverted, slice_.spacing, slice_.cosines)
        index = known.get(key)
        if index is None:
            index = next((k for k, group in enumerate(groups) if _is_same_plane(slice_, group[0])), len(groups))
            if index == _MAX_STACKS:
                n_left += 1
                continue
            if index == len(groups):
                groups.append([])
            known[key] = index
        groups[index].append(slice_)
    if n_left:
        notes.problems.append(
            f"{n_left} slices left out, found more than {_MAX_STACKS} planes and sizes, expected less"
        )
    return groups


def _is_same_plane(one: PlacedImage, other: PlacedImage) -> bool:
    if one.image.shape != other.image.shape or one.image.is_inverted != other.image.is_inverted:
        return False
    return is_same_spacing(one.spacing, other.spacing) and is_same_orientation(one.cosines, other.cosines)


@dataclass(slots=True)
class _Arranger:
    """Makes the stacks of one group after the other, and collects what is to be reported about all of them."""

    left: Excluded
    prefers_long_echo: bool
    orders: Counter[str] = field(default_factory=Counter)  # slices ordered without positions, by reason and order
    stations: list[str] = field(default_factory=list)

    def plans(self, group: list[PlacedImage]) -> list[Plan]:
        """The stacks of slices that lie in parallel planes."""
        group = sorted(group, key=lambda slice_: (slice_.image.instance_number, slice_.image.frame or 0))
        cosines, spacing = np.array(group[0].cosines), group[0].spacing
        row_mm, column_mm = cosines[3:] * spacing[0], cosines[:3] * spacing[1]
        if group[0].origin is None:
            return [self._without_positions(group, row_mm, column_mm, "without ImagePositionPatient")]
        origins = np.array([slice_.origin for slice_ in group], dtype=np.float64)
        places = np.sum(origins * plane_normal(row_mm, column_mm), axis=1)
        is_repeating = _is_repeating(places)
        if is_repeating and _is_one_position(group, origins):
            return [self._without_positions(group, row_mm, column_mm, "at one position")]
        in_plane = origins @ np.stack([cosines[3:], cosines[:3]], axis=1)  # mm along a column, along a row
        view_mm = [n * step for n, step in zip(group[0].image.shape, spacing, strict=True)]
        members = _stations(in_plane, places, view_mm)
        if len(members) > 1:
            apart = float(np.linalg.norm(np.ptp(in_plane, axis=0)))
            counts = listed([len(some) for some in members])
            self.stations.append(f"{counts} slices up to {apart:.0f} mm apart")
        step_mm, is_guessed = _step(group[0].image.header), group[0].is_guessed
        plans = []
        for some in members:
            kept = self._without_repeats(group, some, places) if is_repeating else some
            kept = sorted(kept, key=places.tolist().__getitem__)
            items = [group[index] for index in kept]
            plans.append(Plan(items, origins[kept], row_mm, column_mm, step_mm, is_guessed))
        return plans

    def _without_repeats(self, group: list[PlacedImage], members: list[int], places: np.ndarray) -> list[int]:
        """The indices among ``members`` that are kept, one for each position along the normal (``places`` (n,) mm)."""
        own = places[members]
        if not _is_repeating(own):
            return members
        items = [group[index] for index in members]
        kept = one_per_position(items, place_ids(own.tolist()), self.left, self.prefers_long_echo)
        return [members[index] for index in kept]

    def _without_positions(
        self, group: list[PlacedImage], row_mm: np.ndarray, column_mm: np.ndarray, reason: str
    ) -> Plan:
        """One stack of slices whose positions say nothing, centred on the origin."""
        normal, step_mm = plane_normal(row_mm, column_mm), _step(group[0].image.header)
        locations = _locations(group)
        if locations is not None:
            kept = one_per_position(group, place_ids(locations), self.left, self.prefers_long_echo)
            kept = sorted(kept, key=locations.__getitem__)
            places = np.array([locations[index] for index in kept])
        else:
            kept = choose_kind(group, self.left, self.prefers_long_echo)
            places = step_mm * np.arange(len(kept))
        order = "instance number" if locations is None else "SliceLocation"
        self.orders[f"{reason}, ordered by {order}"] += len(kept)
        rows, columns = group[0].image.shape
        corner = -(rows - 1) / 2 * row_mm - (columns - 1) / 2 * column_mm
        middle = (places[0] + places[-1]) / 2
        origins = np.array([corner + (place - middle) * normal for place in places.tolist()])
        return Plan([group[index] for index in kept], origins, row_mm, column_mm, step_mm, True)


def _is_repeating(places: np.ndarray) -> bool:
    """Whether two of the positions (n,) in mm are the same."""
    return bool(np.any(np.diff(np.sort(places)) < SAME_POSITION_MM))


def _is_one_position(group: list[PlacedImage], origins: np.ndarray) -> bool:
    """Whether nearly all slices have the same position (``origins`` (n, 3) mm), although they are different slices.

    Where their SliceLocations differ, it is enough if most have it.
    """
    steps = np.rint(origins / SAME_POSITION_MM).astype(np.int64)
    _, which, counts = np.unique(steps, axis=0, return_inverse=True, return_counts=True)
    same = [group[index] for index in np.flatnonzero(which.reshape(-1) == np.argmax(counts)).tolist()]
    if len(same) < max(_MIN_AT_ONE_POSITION, _MOST * len(group)):
        return False
    if _locations(same) is not None:  # different SliceLocations show that they are different slices
        return True
    if len(same) < NEARLY_ALL * len(group) or len(same) > _MAX_AT_ONE_POSITION:
        return False
    times = {slice_.image.header.temporal_position_identifier for slice_ in same} - {None}
    return len(times) < NEARLY_ALL * len(same)  # else they are one slice at several times


def _locations(group: list[PlacedImage]) -> list[float] | None:
    """SliceLocation of each slice in mm, if all slices have it and it varies; else ``None``."""
    values = [slice_.image.header.slice_location for slice_ in group]
    known = [value for value in values if value is not None and abs(value) < 1e6]
    if len(known) < len(group) or len(group) < 2:
        return None
    (_, count), *_ = Counter(place_ids(known)).most_common(1)
    return known if count < NEARLY_ALL * len(group) else None


def _stations(in_plane: np.ndarray, places: np.ndarray, view_mm: list[float]) -> list[list[int]]:
    """Group slices into stations: lists of indices, ordered by their first.

    Two stations are separated by a gap in the plane that is wider than a good part of the field of view, so that a slow
    drift does not separate slices. A smaller gap is enough between slices that overlap along the normal.

    Args:
        in_plane: (n, 2) mm, the slices' positions in their plane.
        places: (n,) mm, their positions along the normal.
        view_mm: the field of view along both axes of the plane.
    """
    near_mm = [max(_STATION_MM, _SIDE_SHARE * view) for view in view_mm]
    if np.all(np.ptp(in_plane, axis=0) <= near_mm):
        return [list(range(len(in_plane)))]
    far_mm = [max(_STATION_MM, _STATION_SHARE * view) for view in view_mm]
    parts, whole = [np.arange(len(in_plane))], []
    while parts:
        part = parts.pop()
        for axis in (0, 1):
            order = part[np.argsort(in_plane[part, axis], kind="stable")]
            gaps = np.diff(in_plane[order, axis])
            cuts = [
                cut
                for cut in (np.flatnonzero(gaps > near_mm[axis]) + 1).tolist()
                if gaps[cut - 1] > far_mm[axis] or _are_among(places[order[:cut]], places[order[cut:]])
            ]
            if cuts:
                parts.extend(np.split(order, cuts))
                break
        else:
            whole.append(sorted(part.tolist()))
    return sorted(whole)


def _are_among(some: np.ndarray, others: np.ndarray) -> bool:
    """Whether slices lie side by side: their positions along the normal, (n,) mm, overlap by half of the shorter."""
    if min(some.size, others.size) < _MIN_SIDE:
        return False
    shared = min(some.max(), others.max()) - max(some.min(), others.min())
    return bool(shared > 0.5 * min(np.ptp(some), np.ptp(others)))


def _step(header: Header) -> float:
    """The header's distance between slices, for stacks whose positions do not give it."""
    for value in (header.spacing_between_slices, header.slice_thickness):
        if value is not None and 0.1 <= abs(value) <= 100:
            return abs(value)
    return _DEFAULT_STEP_MM
