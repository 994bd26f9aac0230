"""Chooses members by greedy forward selection on the competition's metric, and scores the choice honestly.

The greedy path (Caruana et al. 2004): the best member first, then again and again the one with which the pool scores
best, also one that is in it already. How far to go is decided by studies that the path was not chosen on: the shortest
path whose held-out score is within one standard error of the best (Breiman et al. 1984). All of that is done once more
without each fold, and what is chosen so answers for the fold: the score of these answers is the selection's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lumbar.errors import CohortError
from lumbar_train.evaluation.pool import Array, Members, Rows, Sum, answer, fit_scales, score
from lumbar_train.evaluation.scoring import draw_counts, resampled

MOST_PICKS = 24
MIN_GAIN = 1e-4  # a pick that gains less on the studies that are chosen on does not count as one that helps
PATIENCE = 3  # picks without a gain until the path ends: once the good ones weigh more, a weak one may help
_N_DRAWS = 200


@dataclass(frozen=True)
class Pick:
    """One step of a greedy path: who was added, and the pool from then on."""

    member: int
    scales: Array
    score: float


@dataclass(frozen=True)
class Selection:
    """What was chosen, and what the choice is worth.

    Attributes:
        picks: members in the order in which they were picked, some of them several times.
        scales: (3,) of the pool of all picks.
        path: the whole greedy path on all studies, longer than ``picks`` where going on did not help.
        path_probs: probabilities (N, 25, 3) after each step of paths that were chosen without the study's fold.
        honest: probabilities (N, 25, 3), each study by members that were chosen without its fold.
        single: the same by the one best member.
        by_fold: what was chosen without each fold.
    """

    picks: tuple[int, ...]
    scales: Array
    path: tuple[Pick, ...]
    path_probs: tuple[Array, ...]
    honest: Array
    single: Array
    by_fold: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def weights(self, n_members: int) -> Array:
        """(M,) the share of each member among the picks."""
        return np.bincount(self.picks, minlength=n_members) / len(self.picks)


def select(members: Members, *, limit_s: float = np.inf, most: int = MOST_PICKS, seed: int = 0) -> Selection:
    """Choose members on all studies, and score the choice on studies that it was not made on.

    Args:
        members: their out-of-fold logits.
        limit_s: seconds a study that the members chosen may take together.
        most: picks of a path.
        seed: of what is drawn at random.

    Raises:
        CohortError: no member, no study, one fold alone, two members of one name, or none that the limit allows.
    """
    check(members, limit_s)
    paths = Paths(members, limit_s, most)
    every = np.arange(len(members))
    n_folds = np.unique(members.folds)
    honest, single = np.zeros((2, len(members), 25, 3))
    by_fold = {}
    for fold in map(int, n_folds):
        rows, out = np.flatnonzero(members.folds != fold), np.flatnonzero(members.folds == fold)
        path = paths.on(rows)
        n = shortest(members, rows, held_out_answers(paths, rows, seed), seed)
        by_fold[fold] = tuple(pick.member for pick in path[:n])
        honest[out] = path_answer(members, path, n, out)
        single[out] = path_answer(members, path, 1, out)
    path = paths.on(every)
    probs = held_out_answers(paths, every, seed)
    n = shortest(members, every, probs, seed)
    n = min(n, len(path))
    picks = tuple(pick.member for pick in path[:n])
    return Selection(picks, path[n - 1].scales, tuple(path), probs, honest, single, by_fold)


def keeping(members: Members, selection: Selection, picks: tuple[int, ...]) -> Selection:
    """A selection whose members are given, not chosen: the pool of these, each fold by factors fitted on the others."""
    honest = np.zeros_like(selection.honest)
    for fold in np.unique(members.folds):
        rows, out = np.flatnonzero(members.folds != fold), np.flatnonzero(members.folds == fold)
        scales = fit_scales(Sum.of(members, picks, rows), members.labels[rows])
        honest[out] = answer(Sum.of(members, picks, out), scales, members.prior[out])
    scales = fit_scales(Sum.of(members, picks, np.arange(len(members))), members.labels)
    by_fold = dict.fromkeys(selection.by_fold, picks)
    return replace(selection, picks=picks, scales=scales, honest=honest, by_fold=by_fold)


def check(members: Members, limit_s: float = np.inf) -> None:
    """Refuse what nothing can be chosen from.

    Raises:
        CohortError: no member, no study, one fold alone, two members of one name, or none that the limit allows.
    """
    names = members.names
    if not names or not len(members):
        raise CohortError(f"found {len(names)} members on {len(members)} studies, expected one or more of both")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CohortError(f"found two members named {twice[0]}, expected different names")
    if len(np.unique(members.folds)) < 2:
        raise CohortError("found one fold, expected two or more, so that what is chosen on one is scored on another")
    if members.seconds.min() > limit_s:
        raise CohortError(
            f"found no member below {members.seconds.min():.3g} s a study, expected one within {limit_s:.3g} s"
        )


def greedy(members: Members, rows: Rows, limit_s: float = np.inf, most: int = MOST_PICKS) -> list[Pick]:
    """The greedy path on some studies; it ends with the last pick that helps."""
    labels, prior = members.labels[rows], members.prior[rows]
    total = Sum.of(members, (), rows)
    path: list[Pick] = []
    n_helping = 0
    while len(path) < min(most, n_helping + PATIENCE + 1):
        picked = {pick.member for pick in path}
        spent = members.seconds[list(picked)].sum()
        tries = []
        for member in range(len(members.names)):
            if member not in picked and spent + members.seconds[member] > limit_s:
                continue
            more = total.plus(members, member, rows)
            scales = fit_scales(more, labels, path[-1].scales if path else None)
            tries.append((score(labels, answer(more, scales, prior)), member, scales))
        best, member, scales = min(tries, key=lambda tried: tried[:2])
        path.append(Pick(member, scales, best))
        total = total.plus(members, member, rows)
        if n_helping == 0 or best <= path[n_helping - 1].score - MIN_GAIN:
            n_helping = len(path)
    return path[:n_helping]


def path_answer(members: Members, path: Sequence[Pick], n: int, rows: Rows) -> Array:
    """Probabilities (n, 25, 3) of the first ``n`` picks of a path, for some studies."""
    n = min(n, len(path))
    total = Sum.of(members, tuple(pick.member for pick in path[:n]), rows)
    return answer(total, path[n - 1].scales, members.prior[rows])


@dataclass
class Paths:
    """Greedy paths of some members, each found once: without two folds is without them in either order.

    Attributes:
        members: to choose among.
        limit_s: seconds a study that those chosen may take together.
        most: picks of a path.
    """

    members: Members
    limit_s: float = np.inf
    most: int = MOST_PICKS
    _known: dict[bytes, list[Pick]] = field(default_factory=dict)

    def on(self, rows: Rows) -> list[Pick]:
        """The path on some studies."""
        key = rows.tobytes()
        if key not in self._known:
            self._known[key] = greedy(self.members, rows, self.limit_s, self.most)
        return self._known[key]


def held_out_answers(paths: Paths, rows: Rows, seed: int) -> tuple[Array, ...]:
    """After each step, probabilities (n, 25, 3) of studies by paths that were chosen without their part.

    The parts are the folds; where all studies are of one, two halves at random (all logits are out of fold anyway). A
    path that ends early stays as it is.
    """
    members = paths.members
    parts = members.folds[rows]
    if len(np.unique(parts)) < 2:
        parts = np.random.default_rng(seed).permutation(len(rows)) % 2
    by_part = {int(k): paths.on(rows[parts != k]) for k in np.unique(parts)}
    steps = []
    for n in range(1, max(map(len, by_part.values())) + 1):
        probs = np.zeros((len(rows), 25, 3))
        for part, path in by_part.items():
            probs[parts == part] = path_answer(members, path, n, rows[parts == part])
        steps.append(probs)
    return tuple(steps)


def shortest(members: Members, rows: Rows, steps: Sequence[Array], seed: int) -> int:
    """The fewest picks whose held-out score is within one standard error of the best one's, paired over studies."""
    labels = members.labels[rows]
    scores = [score(labels, probs) for probs in steps]
    best = int(np.argmin(scores))
    counts = draw_counts(len(rows), _N_DRAWS, seed)
    wanted = resampled(labels, steps[best], counts)[:, 0]
    for n, probs in enumerate(steps[:best]):
        error = float(np.nanstd(resampled(labels, probs, counts)[:, 0] - wanted))
        if scores[n] - scores[best] <= error:
            return n + 1
    return best + 1


@dataclass(frozen=True)
class Shed:
    """A member that is left out when time is short: what the metric loses without it, and the seconds that it saves."""

    member: int
    adds: float
    seconds: float


def shedding_order(members: Members, picks: Sequence[int]) -> list[Shed]:
    """The order in which members are left out near the deadline: whatever adds least a second goes first.

    One member after the other goes; the last one stays, so that it is not listed.
    """
    rows = np.arange(len(members))
    left = list(picks)
    order = []
    now = _pool_score(members, left, rows)
    while len(set(left)) > 1:
        tries = []
        for member in sorted(set(left)):
            rest = [pick for pick in left if pick != member]
            without = _pool_score(members, rest, rows)
            seconds = float(members.seconds[member])
            tries.append(((without - now) / max(seconds, 1e-9), member, without, seconds))
        _, member, without, seconds = min(tries, key=lambda tried: tried[:2])
        order.append(Shed(member, without - now, seconds))
        left = [pick for pick in left if pick != member]
        now = without
    return order


def _pool_score(members: Members, picks: Sequence[int], rows: Rows) -> float:
    total = Sum.of(members, tuple(picks), rows)
    labels = members.labels[rows]
    return score(labels, answer(total, fit_scales(total, labels), members.prior[rows]))
