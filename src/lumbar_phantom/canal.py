"""Tissue of the spinal canal and the foramina: sac, cord, roots, fat, flavum; and tables of their borders."""

from __future__ import annotations

import math

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom._jit import kernel
from lumbar_phantom.space import below_upper, bony_roof, bump, flavum, front, lerp_column, sac

HEIGHT, PED_W, PED_H, PED_Z = an.HEIGHT, an.PED_W, an.PED_H, an.PED_Z
S1, SAC_A, CORD_R, TREFOIL = an.S1, an.SAC_A, an.CORD_R, an.TREFOIL
CSF, CSF_FLOW, ROOT, CORD, VENOUS_PLEXUS = ts.CSF, ts.CSF_FLOW, ts.ROOT, ts.CORD, ts.VENOUS_PLEXUS
EPIDURAL_FAT, FLAVUM, NOTHING = ts.EPIDURAL_FAT, ts.FLAVUM, ts.NOTHING
# Resolution of the tables: steps along each segment, and mm from side to side
STEPS = 28
U_STEP = 0.4


@kernel
def _capsule(
    au: float, q: float, z: float, au0: float, q0: float, z0: float, au1: float, q1: float, z1: float
) -> float:
    """Distance from a point to a segment, mm."""
    dx, dy, dz = au1 - au0, q1 - q0, z1 - z0
    t = ((au - au0) * dx + (q - q0) * dy + (z - z0) * dz) / (dx * dx + dy * dy + dz * dz + 1e-9)
    t = min(max(t, 0.0), 1.0)
    return math.sqrt((au - au0 - t * dx) ** 2 + (q - q0 - t * dy) ** 2 + (z - z0 - t * dz) ** 2)


@kernel
def exiting_root(half: float, vertebrae: np.ndarray, i: int, z: float, au: float, q: float) -> bool:
    """Whether a point is in the root that leaves under the pedicle of vertebra i; z: mm below its upper end plate."""
    height, ped_h, ped_w = vertebrae[i, HEIGHT], vertebrae[i, PED_H], vertebrae[i, PED_W]
    if z < -12.0 or z > height + 6.0:
        return False
    zp = vertebrae[i, PED_Z]
    under = zp + 0.5 * ped_h
    size = 1.0 if i >= 6 else 0.8
    far = half + 0.55 * ped_w
    if _capsule(au, q, z, half - 5.5, 5.0, -10.0, half - 2.2, 3.6, zp) < 1.5 * size:
        return True
    if _capsule(au, q, z, half - 2.2, 3.6, zp, half + 1.0, 4.4, under + 1.5) < 1.7 * size:
        return True
    if _capsule(au, q, z, half + 1.5, 4.6, under + 2.6, far, 4.2, under + 4.4) < 2.7 * size:
        return True
    return _capsule(au, q, z, far, 4.2, under + 4.4, far + 12.0, -3.0, under + 14.0) < 2.1 * size


@kernel
def canal(
    roots_at: np.ndarray,
    vertebrae: np.ndarray,
    discs: np.ndarray,
    seg: int,
    f: float,
    u: float,
    v: float,
    half: float,
    posterior: float,
    row: np.ndarray,
) -> int:
    """Sac, roots, fat, flavum and foramen contents; NOTHING outside the canal and foramina.

    `row` is the entry of `profile_tables` at this place: front, bony roof, flavum, front and back of the sac.
    """
    au = abs(u)
    if row[3] < v < row[4]:
        return _in_sac(roots_at, u, v, row[3], row[4], seg + f)
    ahead, behind, thick = row[0], row[1], row[2]
    if v < ahead or au > half + 22.0:
        return NOTHING
    if behind - thick < v < behind + 0.3:
        return FLAVUM if au < half + 4.0 and thick > 0.3 else NOTHING
    if v >= behind:
        return NOTHING
    q = v - posterior
    i0 = seg // 2
    slit = discs[i0, TREFOIL] > 0.0
    # In a slit the root lies in the middle of what is free, and fills the slit where that is less than its own size
    rq = v - 0.5 * (ahead + behind - thick) + 4.2 if slit and au < half + 6.0 else q
    if au > half - 8.0:
        for i in range(max(i0 - 1, 3), min(i0 + 2, S1 + 1)):
            if exiting_root(half, vertebrae, i, below_upper(vertebrae, discs, seg, f, i), au, rq):
                return ROOT
    if au > half + vertebrae[i0, PED_W] + 2.5:
        return NOTHING
    if slit and _beyond_foramen(half, vertebrae[i0, PED_W], seg + f, au, q):
        return NOTHING
    if v - ahead < 2.0 and au < 7.0 and seg % 2 == 0 and 0.25 < f < 0.8 and seg < 2 * S1:
        return VENOUS_PLEXUS
    return EPIDURAL_FAT


@kernel
def _beyond_foramen(half: float, ped_w: float, station: float, au: float, q: float) -> bool:
    """Whether muscle begins here: the fat of a foramen thins out towards its side, with an uneven border."""
    out = au - half - 0.35 * ped_w
    if out <= 0.0:
        return False
    uneven = 1.2 * math.sin(0.9 * au + 2.3 * station) + 0.9 * math.sin(0.7 * q - 3.1 * station)
    return abs(q - 2.5 + 0.35 * out) > 6.5 - 0.75 * out + uneven


@kernel
def _in_sac(roots_at: np.ndarray, u: float, v: float, low: float, high: float, station: float) -> int:
    """CSF, cord or strands of the cauda equina, which crowd together in a narrow sac.

    `roots_at` is (n + 1, 3): u in mm, place from front to back 0..1, radius in mm; the first row is the cord.
    """
    cord = roots_at[0, 2]
    if cord > 0.5:
        du, dv = u / (1.12 * cord), (v - 0.5 * (low + high)) / (0.92 * cord)
        if du * du + dv * dv < 1.0:
            return CORD
    for k in range(1, roots_at.shape[0]):
        du = u - roots_at[k, 0]
        radius = roots_at[k, 2]
        if abs(du) < radius:
            dv = v - low - (high - low) * roots_at[k, 1]
            if du * du + dv * dv < radius * radius:
                return ROOT
    eddy = math.sin(0.9 * u + 2.1 * station) + math.sin(0.8 * v - 1.7 * station + 1.3) + 0.5 * math.sin(5.0 * station)
    return CSF_FLOW if eddy > 1.1 else CSF


@kernel
def root_table(out: np.ndarray, stations: np.ndarray, roots: np.ndarray) -> None:
    """Fill out (segments, STEPS, n + 1, 3): where cord and strands are at every step along the spine."""
    for seg in range(out.shape[0]):
        for k in range(STEPS):
            f = (k + 0.5) / STEPS
            station = seg + f
            a = lerp_column(stations, seg, f, SAC_A)
            out[seg, k, 0, 2] = lerp_column(stations, seg, f, CORD_R)
            spread = 1.0 - 0.25 * bump(station - 13.0, 6.0)
            for m in range(roots.shape[0]):
                # Strands do not run straight, and each ends at its own height
                out[seg, k, m + 1, 0] = roots[m, 0] * (spread + 0.12 * math.sin(1.7 * station + m)) * a
                out[seg, k, m + 1, 1] = roots[m, 1] + 0.07 * math.sin(1.3 * station + 2.0 * m)
                out[seg, k, m + 1, 2] = roots[m, 2] if 9.0 < station < roots[m, 3] else 0.0


@kernel
def profile_tables(out: np.ndarray, stations: np.ndarray, vertebrae: np.ndarray, discs: np.ndarray) -> None:
    """Fill out (segments, STEPS, places, 5) with front, bony roof, flavum, front and back of the sac."""
    for seg in range(out.shape[0]):
        for k in range(STEPS):
            f = (k + 0.5) / STEPS
            for m in range(out.shape[2]):
                u = (m - out.shape[2] // 2) * U_STEP
                row = out[seg, k, m]
                row[0] = front(stations, vertebrae, discs, seg, f, u)
                row[1] = bony_roof(stations, vertebrae, discs, seg, f, u)
                row[2] = flavum(stations, vertebrae, discs, seg, f, u)
                row[3], row[4] = sac(stations, vertebrae, discs, seg, f, u)
