"""How sure the numbering is: the column of levels as read, beside the same column one disc higher or lower.

The localiser counts levels from the picture, and where it fails the whole column is mostly off by one. Two things tell
the readings apart: the heat of the levels' channels at the discs that each reading gives them, and where the sacrum
begins in the tissue that the same network segments. Where the network tells S1 and the line of the disc S1/S2 from the
rest of the sacrum, their places are a third; whether the column stays where it is in further looks at the images is the
last (``lumbar.stages.looks``). A bundle may hold five to seven numbers (``NUMBERS``), chosen on phantoms whose images
were made hard to read, that turn this evidence into probabilities; without them nothing here is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from lumbar.dicom import Stack
from lumbar.geometry import plane_distance_mm, project, shows
from lumbar.labels import LEVELS
from lumbar.stages.decode import source_to_heat
from lumbar.stages.heat import STRIDE, SagittalHeat
from lumbar.stages.points import NUMBERING_DOUBT, Localisation, Numbering, Xyz, as_xyz

Array = NDArray[np.float64]

# Of a reading off by one, the logarithm of its odds against the reading as it is is
# -(shift + heat * margin of the heat + sacrum * margin of the tissue + first * margin of S1) + looks * their votes; of
# none of these readings -(chain + height * mean logarithm of the heat along the column) + looks * their votes. The
# number ``first`` is 0 or left out where S1 has no segment or tells nothing; without ``looks`` there is but one look.
NUMBERS = ("shift", "heat", "sacrum", "chain", "height", "first", "looks")
DOUBTFUL = 0.7  # below this probability the numbering is said to be in doubt, and the other readings count as well
MOVED = 0.7  # from this probability on the column is moved to the other reading
MIN_READING = 0.05  # a reading of less probability is not looked at
MIN_LEVELS = 3  # with fewer levels there is no column to shift
_STEP_UP, _STEP_DOWN = 0.97, 0.9  # the next disc beyond the ends, in steps between the last two
_MAX_BEND = 0.6  # radians from one step to the next
_RADIUS = 0.15  # around a disc, in which its heat is sought, in steps
_AHEAD, _HALF = 0.6, 0.18  # of a vertebra's middle before the canal, and half the side of its box, in steps
_LINE_HALF = 0.25  # half the side of the box in which the line of the disc S1/S2 is sought
_NO_HEAT, _NO_TISSUE = 0.01, 0.03  # added before logarithms
_EDGE_MM = 10.0  # a level that was not seen is not put nearer to the edge of the images: half a disc is no disc
NOT_LOOKED = (0.0, 0.0, 0.0)  # the evidence of further looks where there were none
_HIGHER, _AS_READ, _LOWER = -1, 0, 1


@dataclass(frozen=True)
class Evidence:
    """What speaks for the column as read.

    Attributes:
        heat: margin of the log heat over the column one disc higher, and one lower.
        sacrum: the same of the tissue: L5 is no sacrum; the vertebra below L5/S1 is one.
        height: mean log heat along the column.
        first: the margins of S1 and of the line below it, where the networks tell them; else 0.
        looks: log of the votes of further looks for one disc higher, one lower, and elsewhere, over those for the
            column as read; 0 where there were none.
    """

    heat: tuple[float, float]
    sacrum: tuple[float, float]
    height: float
    first: tuple[float, float] = (0.0, 0.0)
    looks: tuple[float, float, float] = NOT_LOOKED


def column_mm(levels_mm: dict[str, Xyz]) -> Array | None:
    """Seven discs (7, 3) in mm, from the one above L1/2 to the one below L5/S1; None with too few levels.

    Levels that were not found are put between or beyond the others; the ends continue the spine's bend.
    """
    known = [k for k, level in enumerate(LEVELS) if level in levels_mm]
    if len(known) < MIN_LEVELS:
        return None
    seen = np.array([levels_mm[LEVELS[k]] for k in known])
    inner = np.empty((len(LEVELS), 3))
    for k in range(len(LEVELS)):
        # Between levels as they bend, a curve to the side included; beyond them a cubic would run away
        degree = min(3 if known[0] < k < known[-1] else 2, len(known) - 1)
        inner[k] = seen[known.index(k)] if k in known else _curve_at(k, known, seen, degree)
    steps = np.diff(inner, axis=0)
    before, last = (float(np.arctan2(step[2], step[1])) for step in steps[-2:])
    bend = float(np.clip((last - before + np.pi) % (2 * np.pi) - np.pi, -_MAX_BEND, _MAX_BEND))
    turn = np.array([[1, 0, 0], [0, np.cos(bend), -np.sin(bend)], [0, np.sin(bend), np.cos(bend)]])
    return np.vstack([inner[0] - _STEP_UP * steps[0], inner, inner[-1] + _STEP_DOWN * turn @ steps[-1]])


def _curve_at(k: int, known: list[int], seen: Array, degree: int) -> Array:
    """The place (3,) of level ``k`` on the polynomial that fits those that were seen (n, 3) best."""
    fits = [np.polynomial.Polynomial.fit(known, seen[:, axis], degree) for axis in range(3)]
    return np.array([float(fit(k)) for fit in fits])


def shifted_levels(levels_mm: dict[str, Xyz], by: int) -> dict[str, Xyz]:
    """The levels one disc higher (``by`` -1) or lower (1)."""
    column = column_mm(levels_mm)
    assert column is not None
    return {level: as_xyz(column[k + 1 + by]) for k, level in enumerate(LEVELS)}


def fill_absent(stacks: Sequence[Stack], localisation: Localisation, confidence: dict[str, float]) -> list[str]:
    """Give levels that were not seen, beside one that was, the place that the column leaves them, if an image shows it.

    So the level is graded by a crop of where it must be, and not by the prior. What lies two levels from all others, or
    outside of the images, stays absent.

    Args:
        stacks: the sagittal ones.
        localisation: receives the places.
        confidence: of each level in 0..1; receives the lowest.

    Returns:
        The levels that got a place.
    """
    column = column_mm(localisation.levels_mm)
    if column is None:
        return []
    filled, lowest = [], min(confidence.values())
    for k, level in enumerate(LEVELS):
        beside = [LEVELS[n] for n in (k - 1, k + 1) if 0 <= n < len(LEVELS)]
        is_beside_seen = level not in confidence and any(name in confidence for name in beside)
        if is_beside_seen and any(shows(stack, column[k + 1], _EDGE_MM) for stack in stacks):
            filled.append(level)
    for level in filled:
        localisation.levels_mm[level] = as_xyz(column[LEVELS.index(level) + 1])
        confidence[level] = lowest
    localisation.levels_mm = dict(sorted(localisation.levels_mm.items(), key=lambda entry: LEVELS.index(entry[0])))
    return filled


def say_of(stacks: Sequence[Stack], column: Array) -> Array:
    """The say (stacks, 7) that each stack has in each disc of a column (7, 3): the stacks that show it share it alike.

    So a station of another part of the spine, or slices far beside the canal, do not speak against the column. In a
    disc that no stack shows all have the same say.
    """
    is_shown = np.array([[shows(stack, xyz) for xyz in column] for stack in stacks])
    is_shown[:, ~is_shown.any(axis=0)] = True
    return np.asarray(is_shown / is_shown.sum(axis=0))


def evidence_of(
    maps: Sequence[SagittalHeat], levels_mm: dict[str, Xyz], looks: tuple[float, float, float] = NOT_LOOKED
) -> Evidence | None:
    """The evidence of the sagittal series that show the column, averaged, with that of further looks.

    None with too few levels.
    """
    column = column_mm(levels_mm)
    if column is None:
        return None
    n, say = len(LEVELS), say_of([stack_heat.stack for stack_heat in maps], column)
    log = np.einsum("sd,sdl->dl", say, np.array([_log_heat(stack_heat, column) for stack_heat in maps]))
    total = {by: float(sum(log[k + 1 + by, k] for k in range(n))) for by in (_HIGHER, _AS_READ, _LOWER)}
    heat = (total[_AS_READ] - total[_HIGHER], total[_AS_READ] - total[_LOWER])
    junction = say[:, n]  # L5/S1
    sacrum, first = np.einsum("s,smk->mk", junction, np.array([_tissue_margins(one, column) for one in maps]))
    return Evidence(heat, _pair(sacrum), total[_AS_READ] / n, _pair(first), looks)


def _pair(values: Array) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _places_of(stack_heat: SagittalHeat, column: Array) -> tuple[Array, float]:
    """A column's discs (7, 2) in pixels of the heatmap, and the distance of neighbouring ones there."""
    source = np.array([project(stack_heat.stack, xyz)[1:] for xyz in column])
    places = source_to_heat(stack_heat.grid, STRIDE, source)
    return places, float(np.median(np.linalg.norm(np.diff(places, axis=0), axis=1)))


def _log_heat(stack_heat: SagittalHeat, column: Array) -> Array:
    """Logarithm (7, 5) of the heat of each level's channel at each disc of a column, as one series shows it."""
    places, step = _places_of(stack_heat, column)
    heat = stack_heat.heat[:, : len(LEVELS)]
    highest = [_box(heat, place, _RADIUS * step).max(axis=(0, 2, 3)) for place in places]
    return np.asarray(np.log(np.array(highest) + _NO_HEAT))


def _tissue_margins(stack_heat: SagittalHeat, column: Array) -> Array:
    """The margins (2, 2) of the sacrum, and of S1 and the line below it, as one series shows them."""
    if stack_heat.tissue is None:
        return np.zeros((2, 2))
    places, step = _places_of(stack_heat, column)
    n = len(LEVELS)
    near = np.abs(plane_distance_mm(stack_heat.stack, column[n]))
    tissue = stack_heat.tissue[np.flatnonzero(near <= max(6.0, float(near.min())))]
    ratios = [_sacrum_ratio(tissue, places[k], places[k + 1], step) for k in (n - 1, n)]
    return np.array([(-ratios[0], ratios[1]), _first_margins(tissue, places, step)])


def _sacrum_ratio(tissue: NDArray[np.float32], upper: Array, lower: Array, step: float) -> float:
    """Log of how much more sacrum than vertebral body lies between two discs, before the canal.

    Args:
        tissue: (S, 2 or more, h, w), body and sacrum in 0..1.
        upper: (2,) canal point of the upper disc in pixels of the heatmap.
        lower: (2,) that of the lower one.
        step: distance of neighbouring discs there.
    """
    body, sacrum = _box(tissue[:, :2], _ahead(upper, lower, 0.5, step), _HALF * step).mean(axis=(0, 2, 3))
    return float(np.log((sacrum + _NO_TISSUE) / (body + _NO_TISSUE)))


def _first_margins(tissue: NDArray[np.float32], places: Array, step: float) -> Array:
    """How much more S1 and the line below it lie where the column has them than one vertebra higher, and lower.

    Args:
        tissue: (S, 4, h, w), of which the last two are S1 and the line; with two there is no margin.
        places: (7, 2) the column's discs in pixels of the heatmap.
        step: distance of neighbouring discs.
    """
    if tissue.shape[1] < 4:
        return np.zeros(2)
    before, last = places[-2] - places[-3], places[-1] - places[-2]
    bend = np.arctan2(before[0] * last[1] - before[1] * last[0], before @ last)
    bend = float(np.clip(bend, -_MAX_BEND, _MAX_BEND))
    turned = np.array([[np.cos(bend), -np.sin(bend)], [np.sin(bend), np.cos(bend)]]) @ last
    below = np.vstack([places, places[-1] + _STEP_DOWN * turned])
    scores = []
    for k in range(len(places) - 3, len(places)):  # the vertebra below L4/5, L5/S1, and the next one
        vertebra = _box(tissue[:, 2:3], _ahead(below[k], below[k + 1], 0.5, step), _HALF * step).mean()
        line = _box(tissue[:, 3:4], _ahead(below[k], below[k + 1], 1.0, step), _LINE_HALF * step).max()
        scores.append(np.log(vertebra + _NO_TISSUE) + np.log(line + _NO_TISSUE))
    return np.array([scores[1] - scores[0], scores[1] - scores[2]])


def _ahead(upper: Array, lower: Array, share: float, step: float) -> Array:
    """(2,) before the canal, at a share of the way from the upper disc to the lower; on the grid the front is left."""
    course = (lower - upper) / max(float(np.linalg.norm(lower - upper)), 1e-6)
    return np.asarray(upper + share * (lower - upper) + _AHEAD * step * np.array([-course[1], course[0]]))


def _box(values: NDArray[np.float32], centre: Array, half: float) -> NDArray[np.float32]:
    """The part of (S, C, h, w) in a square around ``centre``, at least one pixel; zeros where it lies outside."""
    x, y = (round(float(v)) for v in centre)
    k = max(0, int(half))
    part = values[:, :, max(0, y - k) : max(0, y + k + 1), max(0, x - k) : max(0, x + k + 1)]
    return part if part.size else np.zeros((1, values.shape[1], 1, 1), np.float32)


def asks_for_looks(numbers: Sequence[float]) -> bool:
    """Whether the numbers of a bundle have a use for further looks."""
    return len(numbers) == len(NUMBERS) and numbers[-1] != 0.0


def numbering_of(evidence: Evidence, numbers: Sequence[float]) -> Numbering:
    """The probabilities of the readings, by the ``NUMBERS`` of a bundle, the last two of which it may lack."""
    shift, heat, sacrum, chain, height, first, looks = (*numbers, 0.0, 0.0)[: len(NUMBERS)]
    off = [
        -(shift + heat * evidence.heat[k] + sacrum * evidence.sacrum[k] + first * evidence.first[k]) for k in range(2)
    ]
    logits = np.array([0.0, *off, -(chain + height * evidence.height)])
    logits[1:] += looks * np.array(evidence.looks)
    shares = np.exp(logits - logits.max())
    return Numbering(*(float(share) for share in shares / shares.sum()))


def settle_numbering(
    maps: Sequence[SagittalHeat],
    localisation: Localisation,
    confidence: dict[str, float],
    numbers: Sequence[float],
    looks: tuple[float, float, float] = NOT_LOOKED,
) -> dict[str, float]:
    """Set ``localisation.numbering``, and move the column by one disc where that is far likelier.

    Args:
        maps: the heatmaps of all sagittal series.
        localisation: has the levels; they change where the column moves, and ``moved`` says by how much.
        confidence: of each level.
        numbers: of the bundle; empty where it does not tell the numbering.
        looks: what further looks say (``lumbar.stages.looks.look_again``).

    Returns:
        The confidence of each level.
    """
    evidence = evidence_of(maps, localisation.levels_mm, looks) if numbers else None
    if evidence is None:
        return confidence
    numbering = numbering_of(evidence, numbers)
    by = _HIGHER if numbering.one_higher > numbering.one_lower else _LOWER
    if max(numbering.one_higher, numbering.one_lower) >= MOVED:
        _move(localisation, by, [stack_heat.stack for stack_heat in maps])
        confidence = dict.fromkeys(localisation.levels_mm, min(confidence.values()))
        numbering = _seen_from(numbering, by)
    localisation.numbering = numbering
    return confidence


def _move(localisation: Localisation, by: int, stacks: Sequence[Stack]) -> None:
    """Move the column by one disc.

    A level that comes to lie on a disc which was not seen is ``filled``. Where no stack shows its disc, the one at the
    end, which lay beyond the column, is absent, and so is a filled one.
    """
    before = [LEVELS[k + by] if 0 <= k + by < len(LEVELS) else None for k in range(len(LEVELS))]
    seen = {level for level, former in zip(LEVELS, before, strict=True) if former in localisation.levels_mm}
    localisation.levels_mm = {
        level: xyz
        for level, xyz in shifted_levels(localisation.levels_mm, by).items()
        if level in seen or any(shows(stack, np.array(xyz), _EDGE_MM) for stack in stacks)
    }
    within = {level for level, former in zip(LEVELS, before, strict=True) if former is not None}
    localisation.filled = [level for level in localisation.levels_mm if level in within - seen]
    localisation.moved = by


def _seen_from(numbering: Numbering, by: int) -> Numbering:
    """The probabilities once the column was moved: what was two discs away counts as elsewhere."""
    if by == _HIGHER:
        return Numbering(numbering.one_higher, 0.0, numbering.confidence, numbering.elsewhere + numbering.one_lower)
    return Numbering(numbering.one_lower, numbering.confidence, 0.0, numbering.elsewhere + numbering.one_higher)


def is_in_doubt(numbering: Numbering | None) -> TypeGuard[Numbering]:
    """Whether the numbering is in doubt; never where the bundle does not tell it."""
    return numbering is not None and numbering.confidence < DOUBTFUL


def other_readings(localisation: Localisation) -> list[tuple[float, Localisation]]:
    """The column one disc higher and lower with their probabilities, where the numbering is in doubt."""
    numbering = localisation.numbering
    if not is_in_doubt(numbering):
        return []
    return [
        (share, Localisation(levels_mm=shifted_levels(localisation.levels_mm, by)))
        for by, share in ((_HIGHER, numbering.one_higher), (_LOWER, numbering.one_lower))
        if share >= MIN_READING
    ]


def numbering_move(localisation: Localisation) -> list[str]:
    """The line that all levels were moved by one disc, with the probability that this is right; or nothing."""
    if not localisation.moved or localisation.numbering is None:
        return []
    direction = "higher" if localisation.moved == _HIGHER else "lower"
    return [f"all levels moved one disc {direction} ({localisation.numbering.confidence:.0%})"]


def numbering_doubt(numbering: Numbering | None) -> list[str]:
    """The warning that the numbering is in doubt; nothing where it is not, or where the bundle does not tell."""
    if not is_in_doubt(numbering):
        return []
    others = {
        "one higher": numbering.one_higher, "one lower": numbering.one_lower, "elsewhere": numbering.elsewhere
    }  # fmt: skip
    shares = ", ".join(f"{share:.0%} {name}" for name, share in others.items())
    return [f"{NUMBERING_DOUBT}: {numbering.confidence:.0%} as given, {shares}"]
