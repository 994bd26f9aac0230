"""Levels by dynamic programming, one step after another: the slow twin of ``lumbar.stages.decode``."""

import numpy as np

from lumbar.stages.decode import ABSENT_LOG, RATIO_SIGMA, SPACING_MM, SPACING_SIGMA, TURN_SIGMA_DEG


def support(peaks, xyz_mm, radius_mm):
    """Height of the best peak near a position, falling off with distance: 0..1."""
    best = 0.0
    for peak in peaks:
        distance = float(np.linalg.norm(peak.xyz_mm - xyz_mm))
        best = max(best, peak.height * float(np.exp(-0.5 * (distance / radius_mm) ** 2)))
    return best


def pair_score(upper, lower, step):
    """Log score of the positions of two neighbouring levels: ``lower`` must lie below, at a plausible distance."""
    delta = lower - upper
    distance = float(np.linalg.norm(delta))
    if distance < 10 or delta[2] > -0.3 * distance:
        return -np.inf
    return float(-0.5 * (np.log(distance / SPACING_MM[step]) / SPACING_SIGMA) ** 2)


def turn_score(a, b, c, step):
    """Log score of the spine's bend at ``b``, and of the ratio of the distances a-b (number ``step``) and b-c."""
    u, v = b - a, c - b
    first, second = float(np.linalg.norm(u)) + 1e-9, float(np.linalg.norm(v)) + 1e-9
    cosine = float(u @ v) / (first * second)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    ratio = np.log(second / first * SPACING_MM[step] / SPACING_MM[step + 1])
    return float(-0.5 * (angle / TURN_SIGMA_DEG) ** 2 - 0.5 * (ratio / RATIO_SIGMA) ** 2)


def decode_levels(labelled, discs, n_stacks):
    """Find the best sequence of five levels by dynamic programming.

    A peak's own score is the log of its height, combined with the support of the other stacks and of the disc channel
    at the same place. Then distances and bends are scored. The state is a pair of neighbouring levels, so that bends
    can be; a level may be left out at a price (``ABSENT_LOG``).

    Args:
        labelled: the peaks of each of the five levels, of all stacks.
        discs: the peaks of the unlabelled disc channel, of all stacks.
        n_stacks: how many stacks there are.

    Returns:
        Five entries: (patient position (3,), confidence in 0..1), or None where the level was not found.
    """
    nodes = [_candidates(peaks, discs, n_stacks) for peaks in labelled]
    # For each state, (index at level - 1, index at level) with -1 for absent, the best score and its path
    table: dict[tuple[int, int], tuple[float, list[int]]] = {(-1, -1): (0.0, [])}
    for level in range(5):
        fresh: dict[tuple[int, int], tuple[float, list[int]]] = {}
        for (_, last), (total, path) in table.items():
            for index in range(-1, len(nodes[level])):
                score = total + (ABSENT_LOG if index < 0 else float(np.log(nodes[level][index][1] + 1e-4)))
                if index >= 0:
                    score += _step_score(nodes, path, level, index)
                if not np.isfinite(score):
                    continue
                key = (last, index)
                if key not in fresh or score > fresh[key][0]:
                    fresh[key] = (score, [*path, index])
        table = fresh
    _, path = max(table.values(), key=lambda entry: entry[0])
    return [None if index < 0 else nodes[level][index] for level, index in enumerate(path)]


def _candidates(peaks, discs, n_stacks):
    """The best 12 positions for one level, and their joint scores in 0..1.

    Any disc may be any level, at a lower score: order and distances then decide.
    """
    pooled = [(peak.xyz_mm, peak.height) for peak in peaks]
    pooled += [
        (disc.xyz_mm, 0.2 * disc.height)
        for disc in discs
        if all(np.linalg.norm(disc.xyz_mm - xyz) > 10 for xyz, _ in pooled)
    ]
    scored = []
    for xyz, height in pooled:
        seen = [support([peak for peak in peaks if peak.stack == stack], xyz, 6.0) for stack in range(n_stacks)]
        agreement = sum(seen) / max(1, n_stacks)
        joint = 0.5 * height + 0.35 * agreement + 0.15 * support(discs, xyz, 8.0)
        scored.append((xyz, joint))
    scored.sort(key=lambda node: -node[1])
    return scored[:12]


def _step_score(nodes, path, level, index):
    """Log score of distance and bend when node ``index`` of ``level`` follows ``path``.

    Where levels in between are absent, the distance is divided among them.
    """
    here = nodes[level][index][0]
    earlier = [(k, nodes[k][i][0]) for k, i in enumerate(path) if i >= 0]
    if not earlier:
        return 0.0
    k, last = earlier[-1]
    gap = level - k
    virtual = last + (here - last) / gap
    score = pair_score(last, virtual, level - 1)
    if len(earlier) > 1 and gap == 1 and earlier[-2][0] == k - 1:
        score += turn_score(earlier[-2][1], last, here, level - 2)
    return score
