"""Vertebral bodies, discs and the ligaments on them: the numba kernels of the anterior column."""

from __future__ import annotations

import math

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom._jit import kernel
from lumbar_phantom.space import PLL, bump, disc_distance, lerp_column, smooth, wall

HOLLOW_UP, HOLLOW_LOW, SKEW_UP, SKEW_LOW = an.HOLLOW_UP, an.HOLLOW_LOW, an.SKEW_UP, an.SKEW_LOW
WIDTH, DEPTH, LESION, MODIC_UP, MODIC_LOW = an.WIDTH, an.DEPTH, an.LESION, an.MODIC_UP, an.MODIC_LOW
DISC_H, BULGE, OSTEO, SCHMORL, SCHMORL_U, FISSURE_R = (
    an.DISC_H,
    an.BULGE,
    an.OSTEO,
    an.SCHMORL,
    an.SCHMORL_U,
    an.FISSURE_R,
)
S1, REMNANT, DESICCATION, TREFOIL = an.S1, an.REMNANT, an.DESICCATION, an.TREFOIL
ANNULUS, INNER, NUCLEUS, CORTEX, MARROW, LIGAMENT = (
    ts.ANNULUS,
    ts.INNER_ANNULUS,
    ts.NUCLEUS,
    ts.CORTEX,
    ts.MARROW,
    ts.LIGAMENT,
)
FISSURE_T, FAT_MARROW_T, EDEMA_T, BASIVERTEBRAL, HAEMANGIOMA = (
    ts.FISSURE,
    ts.FAT_MARROW,
    ts.EDEMA,
    ts.BASIVERTEBRAL,
    ts.HAEMANGIOMA,
)
NOTHING = ts.NOTHING


@kernel
def _disc_tissue(discs: np.ndarray, j: int, f: float, u: float, v: float, a: float, b: float, depth: float) -> int:
    """Tissue inside a disc: dark outer annulus, and the nucleus, a flat ellipsoid a little behind the centre."""
    rn = (u / (0.70 * a)) ** 2 + ((v - 0.05 * b) / (0.68 * b)) ** 2
    across = abs(f - 0.5) / 0.5
    if discs[j, TREFOIL] > 0.0:  # hard patients: fibres reach into the nucleus, and no two look alike
        rn += 0.15 * math.sin(0.28 * u + 0.22 * v + 2.1 * j) + 0.10 * math.sin(0.6 * u - 0.5 * v + 1.3 * j)
    if rn + across * across * across < 1.0:
        return NUCLEUS + j
    if (
        v > 0.0
        and discs[j, FISSURE_R] > 0.0
        and (u - 2.0) ** 2 + (v - 0.86 * b) ** 2 < discs[j, FISSURE_R] ** 2
        and abs(f - 0.55) < 0.22
    ):
        return FISSURE_T
    if depth < 3.2 + 1.2 * (v < 0.0):
        return ANNULUS
    return INNER


@kernel
def _fused(discs: np.ndarray, j: int, u: float, v: float, a: float, b: float) -> bool:
    """Whether the sacral vertebrae above and below disc j have grown together here; in hard patients only."""
    extent = discs[S1, REMNANT]
    if j < S1 or extent == 0.0:
        return False
    if j > S1:
        extent = 0.55  # the lower ones: short lines in the middle
    if extent >= 1.0:
        return False
    if extent <= 0.0:
        return True
    return (u / (extent * a)) ** 2 + ((v - 0.15 * b) / (extent * b)) ** 2 > 1.0


@kernel
def column(
    stations: np.ndarray,
    vertebrae: np.ndarray,
    discs: np.ndarray,
    seg: int,
    f: float,
    thick: float,
    u: float,
    v: float,
    back: float,
) -> int:
    """Vertebral bodies, discs and the ligaments on them; NOTHING outside. `back` is the front of the canal."""
    i = seg // 2
    a = lerp_column(stations, seg, f, WIDTH) * 0.5
    b = lerp_column(stations, seg, f, DEPTH) * 0.5
    if abs(u) > a + 12.0 or v < -b - 8.0 or v > b + 12.0:
        return NOTHING
    j, away = disc_distance(vertebrae, discs, seg, f)
    near = bump(away, 3.0)
    osteo = discs[j, OSTEO] * near
    if seg % 2 == 1:
        grow = 0.6 + 0.7 * discs[j, BULGE]
        waist_a, waist_b = a + grow, b + 0.5 * grow
    else:
        waist = math.sin(math.pi * f)
        waist_a = a * (1.0 - (0.13 * waist if i < S1 else 0.0)) + osteo
        waist_b = b * (1.0 - (0.085 * waist if i < S1 else 0.0)) + osteo
    t = abs(u) / waist_a
    if v < 0.0:
        r = (t**2.5 + (-v / waist_b) ** 2.3) ** (1.0 / 2.4)
        depth = (1.0 - r) * min(waist_a, waist_b) * (1.0 + 0.25 * r)
    else:
        r = t
        depth = (1.0 - t) * waist_a * 0.8
    depth = min(depth, back - v)
    if depth <= 0.0:
        if v > 0.0 and v < back + PLL and abs(u) < 6.5 and seg < 2 * S1 + 1:
            return LIGAMENT
        if v < 0.0 and depth > -1.0 and abs(u) < 11.0:
            return LIGAMENT
        return NOTHING
    if seg % 2 == 1:
        if _fused(discs, j, u, v, a, b):
            return MARROW + j if depth > 1.0 else CORTEX
        if thick < 0.3:
            return CORTEX
        if j > S1 or (j == S1 and discs[j, DISC_H] < 4.5 and discs[j, REMNANT] == 0.0):
            return INNER if depth > 3.0 else CORTEX
        if j == S1 and discs[j, REMNANT] != 0.0 and discs[j, DESICCATION] > 0.5:
            return ANNULUS  # a dark line
        return _disc_tissue(discs, j, f, u, v, a, b, depth)
    return _body_tissue(stations, vertebrae, discs, i, f, thick, u, v, a, b, depth, back)


@kernel
def _body_tissue(
    stations: np.ndarray,
    vertebrae: np.ndarray,
    discs: np.ndarray,
    i: int,
    f: float,
    thick: float,
    u: float,
    v: float,
    a: float,
    b: float,
    depth: float,
    back: float,
) -> int:
    """Tissue inside a body segment: concave end plates, cortex, marrow, vein, and disc material beyond the rim."""
    j, away = disc_distance(vertebrae, discs, 2 * i, f)
    if v > 0.0 and v > wall(stations, 2 * i, f, u) + 0.35 * discs[j, OSTEO] * bump(away, 2.5) - 0.2:
        return ANNULUS  # herniated material behind the body
    edge = 1.0 - (u / a) ** 2 - (v / b) ** 2
    inner = max(edge, 0.0) ** 0.7
    top, bottom = f * thick, (1.0 - f) * thick
    sacral = i >= S1
    up_hollow = vertebrae[i, HOLLOW_UP] * inner * (1.0 + vertebrae[i, SKEW_UP] * v / b) if i <= S1 else 0.0
    low_hollow = vertebrae[i, HOLLOW_LOW] * inner * (1.0 + vertebrae[i, SKEW_LOW] * v / b) if i < S1 else 0.0
    if i > 0 and discs[i - 1, SCHMORL] > 0.0 and i <= S1:
        up_hollow += discs[i - 1, SCHMORL] * bump(u - discs[i - 1, SCHMORL_U], 5.0) * bump(v, 5.5)
    if discs[i, SCHMORL] > 0.0 and not sacral:
        low_hollow += 0.8 * discs[i, SCHMORL] * bump(u - discs[i, SCHMORL_U], 5.0) * bump(v, 5.5)
    if top < up_hollow:
        return _disc_tissue(discs, i - 1, 0.86, u, v, a, b, depth) if i > 0 else INNER
    if bottom < low_hollow:
        return _disc_tissue(discs, i, 0.14, u, v, a, b, depth)
    if depth < 1.0:
        return CORTEX
    if top < up_hollow + 1.15 and not (sacral and i > S1 and _fused(discs, i - 1, u, v, a, b)):
        return CORTEX
    if bottom < low_hollow + 1.15 and not (sacral and _fused(discs, i, u, v, a, b)):
        return CORTEX
    if top < up_hollow + abs(vertebrae[i, MODIC_UP]) * (0.6 + 0.4 * edge):
        return EDEMA_T if vertebrae[i, MODIC_UP] > 0 else FAT_MARROW_T
    if bottom < low_hollow + abs(vertebrae[i, MODIC_LOW]) * (0.6 + 0.4 * edge):
        return EDEMA_T if vertebrae[i, MODIC_LOW] > 0 else FAT_MARROW_T
    if v > 0.1 * b and abs(f - 0.52) * thick < 1.0 + 2.4 * smooth(v, 0.5 * b, b) and abs(u) < 2.2 + 0.3 * v and i < S1:
        return BASIVERTEBRAL
    lesion = vertebrae[i, LESION]
    if lesion > 0.0 and (u - 5.0) ** 2 + (v + 2.0) ** 2 + (top - 0.5 * thick) ** 2 < lesion * lesion:
        return HAEMANGIOMA
    return MARROW + i
