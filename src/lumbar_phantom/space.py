"""Borders of canal, recess and foramen in the spine's own coordinates, which `anatomy` defines.

The same functions are used to draw the tissue and to measure the narrowing, so that labels and images agree.

Arguments are the index `seg` of a segment, the fraction `f` in it, and u (mm, positive to the left); results are v (mm,
positive to the back, 0 at the line of body centres). Names in all kernels: `i` a vertebra, `j` a disc (the one below
vertebra j), `au` the absolute value of u, `half` half the distance between the pedicles, `q` mm behind the back of the
vertebral body.
"""

from __future__ import annotations

import math

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom._jit import kernel

BULGE, CENTRAL, CENTRAL_U = an.BULGE, an.CENTRAL, an.CENTRAL_U
SUB_L, SUB_R, FOR_L, FOR_R = an.SUB_L, an.SUB_R, an.FOR_L, an.FOR_R
FLAV_L, FLAV_R, FACET_L, FACET_R = an.FLAV_L, an.FLAV_R, an.FACET_L, an.FACET_R
DISC_H, SPREAD, OSTEO, SAP_L, SAP_R, FOR_U = (an.DISC_H, an.SPREAD, an.OSTEO, an.SAP_L, an.SAP_R, an.FOR_U)
TREFOIL = an.TREFOIL
HEIGHT, PED_W, PED_H, PED_Z = an.HEIGHT, an.PED_W, an.PED_H, an.PED_Z
WIDTH, DEPTH, CANAL, RECESS, IPD = an.WIDTH, an.DEPTH, an.CANAL, an.RECESS, an.IPD
SAC_A, SAC_B, SAC_GAP = an.SAC_A, an.SAC_B, an.SAC_GAP

PLL = 0.8  # posterior longitudinal ligament, mm
KNEE = 9.5  # half width of the canal in front of the laminae of a trefoil; the recesses are beside it, mm
SAP_TIP = 12.5  # reach of the superior articular process above its upper end plate, mm


@kernel
def lerp_column(stations: np.ndarray, seg: int, f: float, column: int) -> float:
    """A station column at fraction f of segment seg."""
    return stations[seg, column] * (1.0 - f) + stations[seg + 1, column] * f


@kernel
def bump(x: float, width: float) -> float:
    """Gaussian bump of height 1."""
    t = x / width
    return math.exp(-t * t)


@kernel
def union(a: float, b: float) -> float:
    """Depth inside the union of two shapes whose depths are a and b, rounded where they meet."""
    h = max(4.0 - abs(a - b), 0.0)
    return max(a, b) + h * h * 0.0625


@kernel
def smooth(x: float, low: float, high: float) -> float:
    """0 below low, 1 above high, cubic between."""
    t = (x - low) / (high - low)
    if t <= 0.0:
        return 0.0
    if t >= 1.0:
        return 1.0
    return t * t * (3.0 - 2.0 * t)


@kernel
def protrusion(discs: np.ndarray, j: int, u: float) -> float:
    """Disc material behind the rim of the vertebral body at u, mm."""
    d = discs[j]
    au = abs(u)
    sub, fora = (d[SUB_L], d[FOR_L]) if u > 0 else (d[SUB_R], d[FOR_R])
    bulge = d[BULGE]
    if d[TREFOIL] > 0.0:  # least beside the sac, where the ligament ends
        bulge *= 1.0 - 0.5 * smooth(au, 4.0, 9.0)
    return (
        bulge
        + d[CENTRAL] * bump(u - d[CENTRAL_U], 7.0)
        + sub * bump(au - 10.0, 4.2)
        + fora * bump(au - d[FOR_U], 3.2 if au < d[FOR_U] else 6.0)
    )


@kernel
def disc_distance(vertebrae: np.ndarray, discs: np.ndarray, seg: int, f: float) -> tuple[int, float]:
    """The nearest disc, and how far away it is along the spine, mm (0 inside)."""
    i = seg // 2
    if seg % 2 == 1:
        return i, 0.0
    up = f * vertebrae[i, HEIGHT]
    down = (1.0 - f) * vertebrae[i, HEIGHT]
    if up < down and i > 0:
        return i - 1, up
    return i, down


@kernel
def wall(stations: np.ndarray, seg: int, f: float, u: float) -> float:
    """Back of the vertebral body or of a healthy disc at u."""
    a = lerp_column(stations, seg, f, WIDTH) * 0.5
    b = lerp_column(stations, seg, f, DEPTH) * 0.5
    t = min(abs(u) / a, 0.985)
    back = b * (1.0 - t**3.4) ** (1.0 / 3.0)
    hollow = 0.9 + (1.4 * math.sin(math.pi * f) if seg % 2 == 0 else 0.0)
    return back - hollow * bump(u, 9.0)


@kernel
def front(stations: np.ndarray, vertebrae: np.ndarray, discs: np.ndarray, seg: int, f: float, u: float) -> float:
    """Front of the canal: vertebral body, disc, and what has come out of the disc; without the ligament."""
    j, away = disc_distance(vertebrae, discs, seg, f)
    back = wall(stations, seg, f, u)
    if away > 12.0:
        return back
    out = protrusion(discs, j, u) * bump(away, discs[j, SPREAD] * 0.7)
    rim = 0.35 * discs[j, OSTEO] * bump(away, 2.5)
    return back + max(out, rim)


@kernel
def below_upper(vertebrae: np.ndarray, discs: np.ndarray, seg: int, f: float, i: int) -> float:
    """Distance along the spine below the upper end plate of vertebra i, mm; negative above it."""
    k = seg // 2
    here = f * vertebrae[k, HEIGHT] if seg % 2 == 0 else vertebrae[k, HEIGHT] + f * discs[k, DISC_H]
    while k > i:
        k -= 1
        here += vertebrae[k, HEIGHT] + discs[k, DISC_H]
    while k < i:
        here -= vertebrae[k, HEIGHT] + discs[k, DISC_H]
        k += 1
    return here


@kernel
def facet_zone(vertebrae: np.ndarray, discs: np.ndarray, seg: int, f: float, j: int) -> float:
    """How much the facet joint of disc j forms the back wall of the canal here, 0..1."""
    z = below_upper(vertebrae, discs, seg, f, j + 1)
    return smooth(z, -SAP_TIP - 3.0, -SAP_TIP + 3.5) * (1.0 - smooth(z, 1.0, 8.0))


@kernel
def flavum_zone(vertebrae: np.ndarray, discs: np.ndarray, seg: int, f: float, j: int) -> float:
    """How much of the ligamentum flavum's full thickness is here, 0..1: from lamina j to lamina j + 1."""
    z = below_upper(vertebrae, discs, seg, f, j + 1)
    top = -discs[j, DISC_H] - 0.36 * vertebrae[j, HEIGHT]
    return smooth(z, top, top + 5.0) * (1.0 - smooth(z, 4.0, 9.5))


@kernel
def disc_of(vertebrae: np.ndarray, seg: int, f: float) -> int:
    """The disc whose facets and flavum are nearest: the one below in the lower 60 % of a body."""
    i = seg // 2
    if seg % 2 == 1 or f > 0.4 or i == 0:
        return i
    return i - 1


@kernel
def bony_roof(stations: np.ndarray, vertebrae: np.ndarray, discs: np.ndarray, seg: int, f: float, u: float) -> float:
    """Back of the canal without ligament: laminae in the middle, superior articular processes at the sides."""
    j = disc_of(vertebrae, seg, f)
    half = lerp_column(stations, seg, f, IPD) * 0.5
    posterior = lerp_column(stations, seg, f, DEPTH) * 0.5
    canal = lerp_column(stations, seg, f, CANAL)
    zone = facet_zone(vertebrae, discs, seg, f, j)
    facet = discs[j, FACET_L] if u > 0 else discs[j, FACET_R]
    recess = lerp_column(stations, seg, f, RECESS) + 2.2 * (1.0 - zone) - facet * zone
    au = abs(u)
    if au <= half:
        side = (au / half) ** 1.8
        slit = discs[j, TREFOIL] * zone
        if slit > 0.0:
            side = (1.0 - slit) * side + slit * (1.0 - max(1.0 - au / KNEE, 0.0) ** 1.3)
        return posterior + canal - (canal - recess) * side
    # Foramen: bounded by the superior process at disc level, by the pars higher up
    spur = discs[j, SAP_L] if u > 0 else discs[j, SAP_R]
    # A foramen has the shape of a keyhole: wide around the root, narrow between disc and superior process
    low = 2.3 * smooth(below_upper(vertebrae, discs, seg, f, j + 1), -11.0, 0.0)
    lateral = recess + 0.30 * (au - half) - low * smooth(au, half, half + 3.5) - spur * smooth(au, half, half + 3.5)
    return posterior + lateral * zone + (10.5 + 0.1 * (au - half)) * (1.0 - zone)


@kernel
def flavum(stations: np.ndarray, vertebrae: np.ndarray, discs: np.ndarray, seg: int, f: float, u: float) -> float:
    """Thickness of the ligamentum flavum in front of the roof, mm."""
    j = disc_of(vertebrae, seg, f)
    zone = flavum_zone(vertebrae, discs, seg, f, j)
    if zone <= 0.0:
        return 0.0
    half = lerp_column(stations, seg, f, IPD) * 0.5
    au = abs(u)
    lateral = 1.0 - 0.72 * smooth(au, half * (0.8 - 0.35 * discs[j, TREFOIL]), half + 3.0)
    thick = discs[j, FLAV_L] if u > 0 else discs[j, FLAV_R]
    midline = 0.45 + 0.55 * smooth(au, 0.0, 4.0)
    return thick * zone * lateral * midline


@kernel
def roof(stations: np.ndarray, vertebrae: np.ndarray, discs: np.ndarray, seg: int, f: float, u: float) -> float:
    """Back of the free canal, recess or foramen: bone less flavum."""
    return bony_roof(stations, vertebrae, discs, seg, f, u) - flavum(stations, vertebrae, discs, seg, f, u)


@kernel
def sac(
    stations: np.ndarray, vertebrae: np.ndarray, discs: np.ndarray, seg: int, f: float, u: float
) -> tuple[float, float]:
    """Front and back of the thecal sac at u; (0, -1) where there is none."""
    a = lerp_column(stations, seg, f, SAC_A)
    b = lerp_column(stations, seg, f, SAC_B)
    if a < 0.8 or abs(u) >= a:
        return 0.0, -1.0
    gap = lerp_column(stations, seg, f, SAC_GAP) + PLL
    centre = lerp_column(stations, seg, f, DEPTH) * 0.5 - 0.9 + gap + b
    t = abs(u) / a
    h = b * (1.0 - t**2.3) ** 0.5
    ahead = front(stations, vertebrae, discs, seg, f, u) + PLL
    behind = roof(stations, vertebrae, discs, seg, f, u)
    return max(centre - h, ahead), min(centre + h, behind - 0.4)


@kernel
def sac_area(stations: np.ndarray, vertebrae: np.ndarray, discs: np.ndarray, seg: int, f: float) -> float:
    """Cross-section of the sac, mm2."""
    a = lerp_column(stations, seg, f, SAC_A)
    step = a / 12.0
    area = 0.0
    for k in range(-12, 12):
        low, high = sac(stations, vertebrae, discs, seg, f, (k + 0.5) * step)
        if high > low:
            area += (high - low) * step
    return area


@kernel
def least_sac_area(stations: np.ndarray, vertebrae: np.ndarray, discs: np.ndarray, j: int) -> float:
    """Smallest cross-section from the end of body j to the start of body j + 1."""
    best = 1e9
    for k in range(7):
        t = k / 6.0
        if k == 0:
            area = sac_area(stations, vertebrae, discs, 2 * j, 0.88)
        elif k == 6:
            area = sac_area(stations, vertebrae, discs, 2 * j + 2, 0.12)
        else:
            area = sac_area(stations, vertebrae, discs, 2 * j + 1, (t - 1 / 6) / (4 / 6))
        best = min(best, area)
    return best


@kernel
def recess_depth(stations: np.ndarray, vertebrae: np.ndarray, discs: np.ndarray, j: int, side: float) -> float:
    """Least depth of the subarticular recess from disc to the top of the pedicle below, mm; side +1 left."""
    best = 1e9
    for k in range(5):
        seg, f = (2 * j + 1, 0.25 + 0.25 * k) if k < 4 else (2 * j + 2, 0.10)
        mean = 0.0
        for m in range(4):
            u = side * (8.0 + 1.1 * m)
            ahead = front(stations, vertebrae, discs, seg, f, u)
            behind = roof(stations, vertebrae, discs, seg, f, u)
            mean += max(behind - ahead, 0.0) / 4.0
        best = min(best, mean)
    return best


@kernel
def foramen_area(stations: np.ndarray, vertebrae: np.ndarray, discs: np.ndarray, j: int, side: float) -> float:
    """Area of the foramen of disc j in the plane through the pedicles, mm2 (mean of three planes)."""
    total = 0.0
    top = vertebrae[j, PED_Z] + 0.5 * vertebrae[j, PED_H]
    bottom = vertebrae[j, HEIGHT] + discs[j, DISC_H] + vertebrae[j + 1, PED_Z] - 0.5 * vertebrae[j + 1, PED_H]
    n = 16
    step = (bottom - top) / n
    for k in range(n):
        z = top + (k + 0.5) * step
        if z < vertebrae[j, HEIGHT]:
            seg, f = 2 * j, z / vertebrae[j, HEIGHT]
        elif z < vertebrae[j, HEIGHT] + discs[j, DISC_H]:
            seg, f = 2 * j + 1, (z - vertebrae[j, HEIGHT]) / discs[j, DISC_H]
        else:
            seg, f = 2 * j + 2, (z - vertebrae[j, HEIGHT] - discs[j, DISC_H]) / vertebrae[j + 1, HEIGHT]
        for m in range(3):
            u = side * (foramen_place(discs, j) + 2.0 * (m - 1))
            ahead = front(stations, vertebrae, discs, seg, f, u)
            behind = roof(stations, vertebrae, discs, seg, f, u)
            total += max(behind - ahead, 0.0) * step / 3.0
    return total


@kernel
def foramen_place(discs: np.ndarray, j: int) -> float:
    """Lateral place of the foramen of disc j: between the axes of the pedicles, mm from the midline."""
    return discs[j, FOR_U]
