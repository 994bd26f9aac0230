"""Everything around the spine: muscles, vessels, pelvis, organs, bowel, fat, skin and air."""

from __future__ import annotations

import math

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom._jit import kernel
from lumbar_phantom.space import bump, lerp_column, smooth

WIDTH, DEPTH, CANAL, IPD = an.WIDTH, an.DEPTH, an.CANAL, an.IPD
PSOAS_A, PSOAS_B, SPINOUS, TRANSVERSE = an.PSOAS_A, an.PSOAS_B, an.SPINOUS, an.TRANSVERSE
S1, L5 = an.S1, an.L5
SUBCUT_BACK, SUBCUT_FRONT, SUBCUT_SIDE, FAT_FRACTION = (
    an.SUBCUT_BACK,
    an.SUBCUT_FRONT,
    an.SUBCUT_SIDE,
    an.FAT_FRACTION,
)
AORTA_R, IVC_R, KIDNEY_Z, LIVER_Z, BIFURCATION = an.AORTA_R, an.IVC_R, an.KIDNEY_Z, an.LIVER_Z, an.BIFURCATION
BOWEL_SEED, GAS_SHARE, WALL, PAR_W, PAR_D, DEEP_FAT = (
    an.BOWEL_SEED,
    an.GAS_SHARE,
    an.WALL,
    an.PAR_W,
    an.PAR_D,
    an.DEEP_FAT,
)
AIR, SKIN, FAT, MUSCLE, LIGAMENT, CORTEX = ts.AIR, ts.SKIN, ts.FAT, ts.MUSCLE, ts.LIGAMENT, ts.CORTEX
ARTERY, VEIN, VISCERAL_FAT, BOWEL_WALL = ts.ARTERY, ts.VEIN, ts.VISCERAL_FAT, ts.BOWEL_WALL
BOWEL_FLUID, GAS, KIDNEY, MEDULLA, LIVER, FATTY_MUSCLE = (
    ts.BOWEL_FLUID,
    ts.GAS,
    ts.KIDNEY,
    ts.MEDULLA,
    ts.LIVER,
    ts.FATTY_MUSCLE,
)
URINE, SPLEEN, BOWEL_CONTENT, MARROW, ROOT = ts.URINE, ts.SPLEEN, ts.BOWEL_CONTENT, ts.MARROW, ts.ROOT
SMOOTH = an.SMOOTH
NOTHING = ts.NOTHING
CELL = 33.0  # size of a cell of the lattice that holds the bowel loops, mm


@kernel
def value_noise(tile: np.ndarray, x: float, y: float, z: float, cell: float, seed: int) -> float:
    """Smooth noise 0..1 with features of about `cell` mm, read from a cubic tile whose features are 4 voxels."""
    scale = 4.0 / cell
    mask = tile.shape[0] - 1
    ix = int(x * scale + 4096.0 + 17 * (seed & 63))
    iy = int(y * scale + 4096.0 + 29 * (seed & 63))
    iz = int(z * scale + 4096.0 + 41 * (seed & 63))
    return tile[iz & mask, iy & mask, ix & mask]


@kernel
def _muscle(tile: np.ndarray, trunk: np.ndarray, u: float, v: float, z: float, extra: float, seed: int) -> int:
    """Muscle with streaks of fat along its fibres; `extra` is added to the patient's own share of fat."""
    share = trunk[FAT_FRACTION] + extra
    streak = value_noise(tile, u, v, z * 0.14, 2.4, seed)
    coarse = value_noise(tile, u, v, z * 0.25, 10.0, seed + 1)
    level = 0.55 * streak + 0.45 * coarse
    if trunk[SMOOTH] > 0.0:  # planes of fat between bundles instead of specks
        bundle = value_noise(tile, u, v, z * 0.10, 7.0, seed)
        level = 0.22 * streak + 0.38 * bundle + 0.40 * coarse - 0.03
        fold = 0.34 * abs(u) - 0.20 * v + 1.6 * math.sin(0.17 * v + 0.05 * z) + 1.3 * math.sin(0.21 * u - 0.1 * v)
        if abs(math.sin(fold)) < 0.13 and coarse > 0.66 - 0.6 * share:  # thin septa, oblique and not everywhere
            return FAT if coarse > 0.80 - 0.6 * share else FATTY_MUSCLE
    cut = 0.80 - 0.42 * share
    if level > cut + 0.05:
        return FAT
    if level > cut - 0.03:
        return FATTY_MUSCLE
    return MUSCLE


@kernel
def near_spine(
    tile: np.ndarray,
    stations: np.ndarray,
    vertebrae: np.ndarray,
    trunk: np.ndarray,
    seg: int,
    f: float,
    u: float,
    v: float,
    z: float,
) -> int:
    """Psoas, paraspinal muscles, sacrum's wings, great vessels; NOTHING elsewhere."""
    au = abs(u)
    station = seg + f  # station coordinate: 10 is the top of L1, 20 the top of S1
    a = lerp_column(stations, seg, f, WIDTH) * 0.5
    b = lerp_column(stations, seg, f, DEPTH) * 0.5
    q = v - b
    seed = int(trunk[BOWEL_SEED])
    if station > 2 * S1 - 1.2:
        label = _pelvis(tile, stations, vertebrae, trunk, station, a, b, u, v, z)
        if label != NOTHING:
            return label
    # Paraspinal muscles: multifidus at the spinous processes, erector spinae outside, quadratus lumborum in front
    if q > 6.0 and au < 80.0:
        label = _paraspinal(tile, stations, vertebrae, trunk, seg, f, station, au, u, v, q, z, seed)
        if label != NOTHING:
            return label
    i = min(seg // 2, 14)
    k = min(i + 1, 14)
    t = (f if seg % 2 == 0 else 1.0) * 0.5 + (0.5 * f if seg % 2 else 0.0)
    ra = vertebrae[i, PSOAS_A] * (1 - t) + vertebrae[k, PSOAS_A] * t
    rb = vertebrae[i, PSOAS_B] * (1 - t) + vertebrae[k, PSOAS_B] * t
    if ra > 2.0:
        out = smooth(station, 17.5, 24.0)
        cu = 0.95 * a + 0.66 * ra + 20.0 * out
        cv = 0.22 * b - 1.0 - 19.0 * out
        r = ((au - cu) / ra) ** 2 + ((v - cv) / rb) ** 2
        if r < 1.0:
            return _muscle(tile, trunk, u, v, z, -0.08, seed + 7)
    # Muscles between the transverse processes, behind psoas and beside the foramen
    if -9.0 < q < 9.5 and au < a + 1.2 * ra + 6.0 and station < 20.5:
        return _muscle(tile, trunk, u, v, z, 0.40 if trunk[SMOOTH] > 0.0 else 0.12, seed + 29)
    return _vessels(trunk, station, u, v, b)


@kernel
def _paraspinal(
    tile: np.ndarray,
    stations: np.ndarray,
    vertebrae: np.ndarray,
    trunk: np.ndarray,
    seg: int,
    f: float,
    station: float,
    au: float,
    u: float,
    v: float,
    q: float,
    z: float,
    seed: int,
) -> int:
    low = smooth(station, 15.0, 23.0)
    canal_depth = lerp_column(stations, seg, f, CANAL)
    width, deep = trunk[PAR_W] * (1.05 - 0.16 * low), trunk[PAR_D] * (1.08 - 0.25 * low)
    edge = 8.0 + 0.22 * au  # plane of the transverse processes
    # Two muscle bellies; a point is inside where r < 1
    cu = 0.92 * width
    r_out = ((au - cu) / width) ** 2 + ((q - edge - 0.92 * deep) / deep) ** 2.0
    mult_w, mult_d = 12.5 + 7.0 * low, 0.5 * (canal_depth + 26.0)
    r_mult = ((au - 3.0 - 0.62 * mult_w) / mult_w) ** 2 + ((q - edge - 0.72 * mult_d) / mult_d) ** 2
    if r_mult < 1.0 and au > 2.2:
        if r_mult > 0.94:
            return FAT
        # Pads of fat on laminae and facet joints, under multifidus; larger towards the sacrum
        pad = trunk[DEEP_FAT] * (6.0 + 9.0 * low) * (value_noise(tile, u, v, z, 13.0, seed + 61) + 0.1)
        if trunk[SMOOTH] > 0.0:  # a thin uneven layer
            pad = 0.4 * pad + 1.2 * math.sin(0.35 * au + 0.11 * z)
        if q - canal_depth - 4.0 < pad:
            return FAT
        return _muscle(tile, trunk, u, v, z, 0.03 + 0.20 * low, seed + 11)
    if r_out < 1.0:
        septum = abs(au - 0.98 * width - 2.5 * math.sin(0.3 * q))
        if septum < 0.7 and station < 18.0:
            return FAT
        return _muscle(tile, trunk, u, v, z, 0.12 * low, seed + 13)
    if r_out < 1.06 and q > edge + 0.9 * deep:
        return LIGAMENT  # thoracolumbar fascia
    if q > edge and au < cu and q < edge + 1.55 * deep and station < 23.0:
        return FAT
    if 12.0 < station < 19.0:
        r = ((au - 56.0) / 21.0) ** 2 + ((q - 9.0 - 0.1 * au + 5.0) / 8.0) ** 2
        if r < 1.0:
            return _muscle(tile, trunk, u, v, z, 0.0, seed + 17)
    return NOTHING


@kernel
def _vessels(trunk: np.ndarray, station: float, u: float, v: float, b: float) -> int:
    split = trunk[BIFURCATION]
    ra, rv = trunk[AORTA_R], trunk[IVC_R]
    front = -b - 3.0
    if station < split:
        if (u - 7.0) ** 2 + (v - front + ra) ** 2 < ra * ra:
            return ARTERY
    elif station < 26.0:
        t = station - split
        for side in (-1.0, 1.0):
            du, dv = u - 4.0 - side * (5.0 + 6.5 * t), v - front + 0.7 * ra + 0.4 * t
            if du * du + dv * dv < (0.62 * ra) ** 2:
                return ARTERY
    if station < split + 1.0:
        if ((u + 15.0) / rv) ** 2 + ((v - front + 0.6 * rv) / (0.72 * rv)) ** 2 < 1.0:
            return VEIN
    elif station < 26.0:
        t = station - split - 1.0
        for side in (-1.0, 1.0):
            du, dv = u + 6.0 - side * (6.0 + 6.0 * t), v - front + 0.2 * rv - 0.6 * t
            if du * du / 1.6 + dv * dv < (0.58 * rv) ** 2:
                return VEIN
    return NOTHING


@kernel
def _pelvis(
    tile: np.ndarray,
    stations: np.ndarray,
    vertebrae: np.ndarray,
    trunk: np.ndarray,
    station: float,
    a: float,
    b: float,
    u: float,
    v: float,
    z: float,
) -> int:
    """Wings and back of the sacrum, ilium, sacroiliac joint, gluteal and iliac muscles."""
    au = abs(u)
    seed = int(trunk[BOWEL_SEED])
    deep = station - 2 * S1  # 0 at the top of S1
    # Sacral wing: from the body outwards, thinning
    if deep > -0.35 and station < 2 * S1 + 7.0:
        reach = 52.0 - 5.2 * max(deep, 0.0)
        tilt = 0.22 * (au - a)
        fore = -0.15 * b + tilt - 2.0
        back = b + 9.0 + 0.1 * (au - a) - 1.2 * max(deep, 0.0)
        rise = 5.0 * smooth(au, a, reach)
        inside = min(min(reach - au, v - fore), min(back - v, (deep + 0.35) * 20.0 - rise))
        hole = 1e9
        for k in range(3):
            place = 1.55 + 2.0 * k
            du, dz = (au - 0.5 * stations[2 * S1, IPD] - 1.0 + 2.5 * k) / 4.5, (deep - place) * 14.0 / 5.5
            hole = min(hole, du * du + dz * dz)
        if au > a - 2.0 and inside > 0.0:
            if hole < 1.0:
                return ROOT if hole < 0.28 else ts.EPIDURAL_FAT
            return CORTEX if inside < 1.2 else MARROW + S1
    # Ilium: a blade outside the wing, joint between
    if station > 2 * S1 - 1.2:
        joint = 54.5 - 5.2 * max(deep, 0.0)
        blade = joint + 4.0 + max(0.0, (8.0 - v)) * 0.62 - 4.0 * min(deep, 0.0)
        if trunk[SMOOTH] > 0.0 and v < 8.0:  # the fossa: hollow, not flat
            blade += 6.0 * math.sin(0.045 * (8.0 - v)) + 1.5 * math.sin(0.11 * (8.0 - v) + 0.5 * deep)
        across = abs(au - blade - 4.0)
        if v > -70.0 - 6.0 * deep and v < b + 24.0:
            thickness = 6.5 + 2.5 * smooth(v, -20.0, 15.0)
            if trunk[SMOOTH] > 0.0:
                thickness = 4.0 + 3.5 * smooth(v, -12.0, 15.0) + 2.5 * (1.0 - smooth(v, -70.0, -45.0))
            if across < thickness:
                return CORTEX if across > thickness - 1.4 else MARROW + S1
            if au < blade and v < 4.0 and au > blade - 22.0 and deep > -0.6:
                return _muscle(tile, trunk, u, v, z, 0.0, seed + 19)
            if au > blade and au < blade + 34.0 and v > -60.0:
                return _muscle(tile, trunk, u, v, z, 0.06, seed + 23)
    # Back of the sacrum: median crest between multifidus
    if deep > 0.0 and au < 3.0 and b < v < b + lerp_column(stations, min(int(station), 27), 0.5, CANAL) + 9.0 - deep:
        return MARROW + S1 if au < 2.0 else CORTEX
    return NOTHING


@kernel
def _bowel(tile: np.ndarray, bowel: np.ndarray, trunk: np.ndarray, x: float, y: float, z: float, seed: int) -> int:
    """Loops of bowel as blobs in mesenteric fat, at most one in each cell of a lattice.

    `bowel` is (32, 32, 32, 6), of `volume.bowel_loops`: place in the cell (x, y, z) 0..1, radius in mm (negative: no
    blob), content 0..1, stretch along z. A blob stays so near to its cell that the eight nearest cells are enough.
    """
    gx, gy, gz = x / CELL + 512.0, y / CELL + 512.0, z / CELL + 512.0
    ix, iy, iz = int(gx - 0.5), int(gy - 0.5), int(gz - 0.5)
    best, kind = 1e9, 0.0
    warp = 8.0 * (value_noise(tile, x, y, z, 14.0, seed + 3) - 0.5)
    for k in range(8):
        cx, cy, cz = ix + (k & 1), iy + ((k >> 1) & 1), iz + (k >> 2)
        blob = bowel[cz & 31, cy & 31, cx & 31]
        dx, dy, dz = (gx - cx - blob[0]) * CELL, (gy - cy - blob[1]) * CELL, (gz - cz - blob[2]) * CELL
        d = math.sqrt(dx * dx + dy * dy + dz * dz * blob[5]) + warp - blob[3]
        if d < best:
            best, kind = d, blob[4]
    if best > 0.0:
        vessel = value_noise(tile, x, y, z * 0.5, 6.5, seed + 5)
        return BOWEL_WALL if vessel > 0.80 else VISCERAL_FAT
    if best > -1.9:
        return BOWEL_WALL
    share = trunk[GAS_SHARE]
    if kind < share:
        return GAS
    if kind < share + 0.22:
        return BOWEL_FLUID
    if kind < share + 0.55:
        return BOWEL_CONTENT
    return BOWEL_WALL


@kernel
def torso(
    tile: np.ndarray,
    bowel: np.ndarray,
    trunk: np.ndarray,
    outline: np.ndarray,
    row: int,
    x: float,
    y: float,
    z: float,
    sx: float,
    sy: float,
) -> int:
    """Tissue away from the spine; `row` is the row of `volume.body_outline` at this height."""
    back, fore, cx, half = outline[row, 0], outline[row, 1], outline[row, 2], outline[row, 3]
    station = outline[row, 4]
    groove = 5.0 * bump(x - sx, 13.0)
    centre = back - 0.42 * (back - fore)
    dx = (x - cx) / half
    dy = (y - centre) / (back - groove - centre) if y > centre else (y - centre) / (fore - centre)
    ax, ay = abs(dx), abs(dy)
    if ax >= 1.0 or ay >= 1.0:
        return AIR
    r = ax * ax * (ax if y > centre else math.sqrt(ax)) + ay * ay * (ay if y > centre else math.sqrt(ay))
    if r >= 1.0:
        return AIR
    r = r ** (1.0 / 3.0) if y > centre else r**0.4
    local = (back - centre) if y > centre else (centre - fore)
    span = math.sqrt((abs(dx) * half) ** 2 + (abs(dy) * local) ** 2) / max(r, 1e-6)
    depth = (1.0 - r) * span
    if depth < 1.8:
        return SKIN
    side = min(1.0, abs(dx) ** 2 / (dx * dx + dy * dy + 1e-9))
    thick = trunk[SUBCUT_SIDE] * side + (trunk[SUBCUT_BACK] if y > centre else trunk[SUBCUT_FRONT]) * (1 - side)
    seed = int(trunk[BOWEL_SEED])
    if depth < thick:
        septa = abs(value_noise(tile, x, y, z, 11.0, seed + 41) - 0.5)
        return ts.INTERSPINOUS if septa < 0.006 else FAT
    ring = trunk[WALL] * (1.0 if y < sy - 5.0 else 0.8)
    if (y < sy + 12.0 or (y < sy + 32.0 and abs(x - sx) > 72.0)) and depth < thick + ring:
        if abs(x - sx) < 6.0 and y < centre and depth > thick + 3.0:
            return VISCERAL_FAT  # linea alba
        within = depth - thick
        if abs(within - 0.36 * ring) < 0.6 or abs(within - 0.68 * ring) < 0.5:
            return FAT if abs(x - sx) > 55.0 else MUSCLE
        return MUSCLE
    return _organs(tile, bowel, trunk, station, x, y, z, sx, sy, seed)


@kernel
def _organs(
    tile: np.ndarray,
    bowel: np.ndarray,
    trunk: np.ndarray,
    station: float,
    x: float,
    y: float,
    z: float,
    sx: float,
    sy: float,
    seed: int,
) -> int:
    for side in (-1.0, 1.0):
        ku, kv = (x - sx - side * 62.0), (y - sy + 4.0)
        kz = (station - trunk[KIDNEY_Z] - (0.4 if side < 0 else 0.0)) * 18.0
        ku = ku - side * 0.18 * kz
        r = math.sqrt((ku / 29.0) ** 2 + (kv / 25.0) ** 2 + (kz / 54.0) ** 2)
        if r < 1.0:
            sinus = math.sqrt(((ku + side * 9.0) / 14.0) ** 2 + (kv / 10.0) ** 2 + (kz / 30.0) ** 2)
            if sinus < 1.0:
                return VISCERAL_FAT if value_noise(tile, x, y, z, 7.0, seed + 55) < 0.62 else BOWEL_FLUID
            return MEDULLA if r < 0.72 and value_noise(tile, x, y, z, 9.0, seed + 51) > 0.5 else KIDNEY
        if r < 1.25:
            return VISCERAL_FAT
    lv = (station - trunk[LIVER_Z] + 5.5) * 17.0
    if ((x - sx + 85.0) / 75.0) ** 2 + ((y - sy + 45.0) / 75.0) ** 2 + (lv / 95.0) ** 2 < 1.0:
        return VEIN if value_noise(tile, x, y, z, 12.0, seed + 53) > 0.83 else LIVER
    lv = (station - trunk[KIDNEY_Z] + 4.0) * 17.0
    if ((x - sx - 98.0) / 32.0) ** 2 + ((y - sy - 2.0) / 45.0) ** 2 + (lv / 50.0) ** 2 < 1.0:
        return SPLEEN
    if y > sy + 8.0:
        return VISCERAL_FAT
    if station > 22.0:
        if ((x - sx) / 38.0) ** 2 + ((y - sy + 78.0) / 34.0) ** 2 + ((station - 28.5) * 12.0 / 36.0) ** 2 < 1.0:
            return URINE
        rectum = ((x - sx + 3.0) / 15.0) ** 2 + ((y - sy + 24.0) / 13.0) ** 2
        if station > 23.5 and rectum < 1.0:
            return BOWEL_CONTENT if rectum < 0.6 else BOWEL_WALL
    if y > sy - 22.0 and abs(x - sx) < 90.0:
        return VISCERAL_FAT
    return _bowel(tile, bowel, trunk, x, y, z, seed)
