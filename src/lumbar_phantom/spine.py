"""Numba kernels that draw the spine: which tissue is at a point of its own coordinates (see `anatomy`, `space`)."""

from __future__ import annotations

import math

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom._jit import kernel
from lumbar_phantom.bodies import column
from lumbar_phantom.canal import STEPS, U_STEP, canal
from lumbar_phantom.space import SAP_TIP, below_upper, lerp_column, smooth, union

HEIGHT, PED_W, PED_H, PED_Z, SPINOUS, SPIN_H = an.HEIGHT, an.PED_W, an.PED_H, an.PED_Z, an.SPINOUS, an.SPIN_H
TRANSVERSE, FACET_DEG, DISC_H, FACET_L, FACET_R = an.TRANSVERSE, an.FACET_DEG, an.DISC_H, an.FACET_L, an.FACET_R
DEPTH, CANAL, IPD, SAC_A, CORD_R = an.DEPTH, an.CANAL, an.IPD, an.SAC_A, an.CORD_R
S1, N_VERT, LAMINECTOMY = an.S1, an.N_VERTEBRAE, an.LAMINECTOMY
BED_FIRST, BED_LAST, BED_FLUID, SMOOTH = an.BED_FIRST, an.BED_LAST, an.BED_FLUID, an.SMOOTH

CORTEX, POST_MARROW, JOINT, LIGAMENT, METAL_T = ts.CORTEX, ts.POSTERIOR_MARROW, ts.JOINT, ts.LIGAMENT, ts.METAL
CSF, CSF_FLOW, ROOT, CORD, VENOUS_PLEXUS = ts.CSF, ts.CSF_FLOW, ts.ROOT, ts.CORD, ts.VENOUS_PLEXUS
FAT, EPIDURAL_FAT, FLAVUM, INTERSPINOUS = ts.FAT, ts.EPIDURAL_FAT, ts.FLAVUM, ts.INTERSPINOUS
FLUID, FATTY_MUSCLE = ts.BOWEL_FLUID, ts.FATTY_MUSCLE
NOTHING = ts.NOTHING


@kernel
def _ellipse(x: float, y: float, z: float, rx: float, ry: float, rz: float) -> float:
    """Approximate depth inside an ellipsoid, mm; negative outside."""
    r = math.sqrt((x / rx) ** 2 + (y / ry) ** 2 + (z / rz) ** 2)
    return (1.0 - r) * min(rx, min(ry, rz))


@kernel
def _upper_arch(vertebrae: np.ndarray, i: int, z: float, au: float, q: float, half: float) -> float:
    """Depth inside pedicle, superior process, pars and transverse process of vertebra i; negative outside."""
    height = vertebrae[i, HEIGHT]
    zp = vertebrae[i, PED_Z]
    ped_w, ped_h = vertebrae[i, PED_W], vertebrae[i, PED_H]
    centre = half + 0.5 * ped_w
    best = -9.0
    if -5.0 < q < 13.0:
        r = math.sqrt(((au - centre) / (0.5 * ped_w)) ** 2 + ((z - zp) / (0.5 * ped_h)) ** 2)
        best = max(best, min((1.0 - r) * 0.5 * min(ped_w, ped_h), 13.0 - q))
    if vertebrae[i, TRANSVERSE] > 0.0 and au > centre - 2.0:
        reach = vertebrae[i, TRANSVERSE] - au
        slim = 1.0 - 0.35 * smooth(au, centre, vertebrae[i, TRANSVERSE])
        flat = _ellipse(q - 11.5 - 0.18 * (au - centre), z - zp - 0.5, 0.0, 3.4 * slim, 5.2 * slim, 9.0)
        best = union(best, min(flat, reach))
    # Pars: from the pedicle back and down to the inferior process
    pars = _ellipse((au - half - 2.5) * 0.8, q - 14.0, z - 0.52 * height, 5.5, 4.4, 0.36 * height)
    return union(best, pars)


@kernel
def _joint_place(vertebrae: np.ndarray, j: int, au: float, q: float, half: float) -> tuple[float, float]:
    """Place relative to the facet joint of disc j, mm: across it (positive behind) and along it (positive outwards)."""
    angle = math.radians(vertebrae[j, FACET_DEG])
    ca, sa = math.cos(angle), math.sin(angle)
    across = -(au - half - 4.0) * sa + (q - 14.0) * ca
    along = (au - half - 4.0) * ca + (q - 14.0) * sa
    return across, along


@kernel
def _superior_process(
    vertebrae: np.ndarray, discs: np.ndarray, i: int, z: float, u: float, v: float, q: float, half: float, limit: float
) -> float:
    """Depth inside the superior articular process of vertebra i; its front is the roof of recess and foramen."""
    au = abs(u)
    tip = smooth(z, -SAP_TIP - 2.0, -SAP_TIP + 5.0)
    across, along = _joint_place(vertebrae, i - 1, au, q, half)
    if across > 0.0 or tip <= 0.0 or v <= limit:
        return -9.0
    grown = discs[i - 1, FACET_L] if u > 0 else discs[i - 1, FACET_R]
    depth = min(_ellipse(across + 4.6, along + 0.5, 0.0, 4.6 + 0.6 * grown, (8.2 + grown) * tip, 20.0), v - limit + 0.4)
    if along < 5.0 and across > -10.0 and v - limit < 5.0 and au > half:
        depth = max(depth, min(v - limit, 3.0 * tip))
    return min(depth, -across)


@kernel
def _inferior_process(
    vertebrae: np.ndarray, discs: np.ndarray, i: int, z: float, u: float, q: float, half: float
) -> float:
    """Depth inside the inferior articular process of vertebra i, behind the joint with vertebra i + 1."""
    height = vertebrae[i, HEIGHT]
    end = height + discs[i, DISC_H] + 8.0
    if z < 0.45 * height or z > end:
        return -9.0
    across, along = _joint_place(vertebrae, i, abs(u), q, half)
    if across <= 0.0:
        return -9.0
    grown = discs[i, FACET_L] if u > 0 else discs[i, FACET_R]
    down = smooth(end - z, 0.0, 7.0)
    depth = _ellipse(across - 4.6, along + 0.2, 0.0, 4.4 + 0.5 * grown, (7.6 + grown) * down, 20.0)
    return min(depth, across)


@kernel
def arch(
    stations: np.ndarray,
    vertebrae: np.ndarray,
    discs: np.ndarray,
    trunk: np.ndarray,
    seg: int,
    f: float,
    u: float,
    v: float,
    limit: float,
) -> int:
    """Posterior elements with their joints: bone, cortex, joint; NOTHING elsewhere. Called behind the body only."""
    au = abs(u)
    posterior = lerp_column(stations, seg, f, DEPTH) * 0.5
    q = v - posterior
    i0 = seg // 2
    best = -9.0
    joint = plate = False
    half = 0.5 * lerp_column(stations, seg, f, IPD)
    for i in range(max(i0 - 1, 0), min(i0 + 2, N_VERT)):
        z = below_upper(vertebrae, discs, seg, f, i)
        if z < -SAP_TIP - 4.0 or z > 2.0 * vertebrae[i, HEIGHT]:
            continue
        depth = -9.0
        if i < S1:
            depth = _upper_arch(vertebrae, i, z, au, q, half)
            depth = union(depth, _lamina(stations, vertebrae, trunk, i, z, u, v, q, limit))
            depth = union(depth, _inferior_process(vertebrae, discs, i, z, u, q, half))
        elif i == S1 and q < 14.0:
            r = math.sqrt(((au - half - 8.0) / 9.0) ** 2 + ((z - 8.0) / 9.0) ** 2)
            depth = (1.0 - r) * 8.0
        if 0 < i <= S1 and z < 0.5 * vertebrae[i, HEIGHT]:
            depth = union(depth, _superior_process(vertebrae, discs, i, z, u, v, q, half, limit))
            across, along = _joint_place(vertebrae, i - 1, au, q, half)
            grown = discs[i - 1, FACET_L] if u > 0 else discs[i - 1, FACET_R]
            if trunk[SMOOTH] > 0.0:  # a curved joint between thick end plates of bone
                curve = abs(across - 0.035 * along * along + 0.6)
                if curve < 1.9 and abs(along) < 6.0 + grown and -SAP_TIP + 1.0 < z < 6.0:
                    joint, plate = joint or curve < 0.6, True
            elif abs(across) < 0.75 and abs(along) < 7.0 + grown and -SAP_TIP + 1.0 < z < 6.0:
                joint = True
        best = max(best, depth)
    if joint:
        return JOINT
    if best <= 0.0:
        return NOTHING
    return CORTEX if plate or best < 1.25 else POST_MARROW


@kernel
def _lamina(
    stations: np.ndarray,
    vertebrae: np.ndarray,
    trunk: np.ndarray,
    i: int,
    z: float,
    u: float,
    v: float,
    q: float,
    limit: float,
) -> float:
    """Depth inside lamina and spinous process of vertebra i."""
    height = vertebrae[i, HEIGHT]
    if z < 0.25 * height or z > 1.75 * height:
        return -9.0
    au = abs(u)
    if (int(trunk[LAMINECTOMY]) == i or trunk[BED_FIRST] <= i <= trunk[BED_LAST]) and au < 12.0:
        return -9.0
    best = -9.0
    slope = 0.16 * (z - 0.7 * height)  # its lower end lies further back
    end = height + 0.12 * height
    if trunk[SMOOTH] > 0.0:  # the inferior processes are joined to the lamina down to the disc
        end += 0.6 * max(au - 3.0, 0.0)
    if au < 0.5 * stations[2 * i, IPD] + 4.0:
        behind = v - limit - max(slope, 0.0)
        body = min(min(behind, 6.8 - behind), min(z - 0.42 * height - 0.1 * au, end + 0.25 * au - z))
        best = body
    back = stations[2 * i + 1, CANAL]
    run = q - back
    length = vertebrae[i, SPINOUS]
    if -1.0 < run < length and au < 6.0:
        thin = 3.0 + 1.2 * smooth(run, 0.6 * length, length)
        middle = 0.86 * height + 0.20 * run
        tall = vertebrae[i, SPIN_H] * (0.78 + 0.3 * smooth(run, 0.2 * length, 0.85 * length))
        if trunk[SMOOTH] > 0.0:  # a round tip
            tall *= math.sqrt(min(max((length - run) / (0.4 * length), 0.0), 1.0))
        best = union(best, min(min(thin - au, tall - abs(z - middle)), min(run + 1.5, length - run)))
    return best


@kernel
def bed(stations: np.ndarray, trunk: np.ndarray, seg: int, f: float, u: float, q: float) -> int:
    """What fills the place of laminae and spinous processes that were taken out; NOTHING elsewhere."""
    station = seg + f
    ends = min(station - 2.0 * trunk[BED_FIRST] - 0.4, 2.0 * trunk[BED_LAST] + 2.0 - station)
    if trunk[BED_FIRST] < 0.0 or ends <= 0.0:
        return NOTHING
    taper = math.sqrt(min(1.0, ends / 0.8))
    run = q - lerp_column(stations, seg, f, CANAL)
    wide, deep = (13.0 + 3.0 * math.sin(1.9 * station)) * taper, 22.0 * taper
    r = (u / wide) ** 2 + ((run - 14.0) / deep) ** 2
    r += 0.10 * math.sin(0.5 * u + 1.1 * station) + 0.10 * math.sin(0.33 * run - 2.9 * station + 0.2 * u)
    if r > 1.0 or run < -4.0:
        return NOTHING
    if r > 0.86:
        return LIGAMENT  # scar
    if trunk[BED_FLUID] > 0.5:
        return FLUID if r < 0.7 else INTERSPINOUS
    fibre = math.sin(0.35 * run + 0.5 * u + 2.3 * station) + 0.6 * math.sin(0.8 * u - 0.2 * run)
    return INTERSPINOUS if fibre > 1.25 else FAT


@kernel
def behind_arch(
    stations: np.ndarray,
    vertebrae: np.ndarray,
    trunk: np.ndarray,
    seg: int,
    f: float,
    u: float,
    v: float,
    posterior: float,
) -> int:
    """Midline soft tissue between and behind the spinous processes; NOTHING elsewhere."""
    au = abs(u)
    if au > 3.2 or seg > 2 * S1 + 1:
        return NOTHING
    i = seg // 2
    run = v - posterior - lerp_column(stations, seg, f, CANAL)
    length = vertebrae[i, SPINOUS]
    if seg % 2 == 1 and i + 1 < N_VERT:
        length = length * (1.0 - f) + vertebrae[i + 1, SPINOUS] * f
    if run < 0.0 or run > length + 2.4:
        return NOTHING
    if run > length - 0.4:
        return LIGAMENT
    if run < 3.5:
        return EPIDURAL_FAT
    if trunk[SMOOTH] > 0.0:
        return FATTY_MUSCLE if math.sin(0.17 * run + 1.3 * i + 2.0 * f) > 0.4 else INTERSPINOUS
    stripe = math.sin(0.55 * run - 7.0 * f + 1.7 * i) + 0.5 * math.sin(0.23 * run + 4.0 * f)
    if stripe > 0.95:
        return FAT
    return LIGAMENT if stripe < -1.15 else INTERSPINOUS


@kernel
def _screw(
    stations: np.ndarray,
    vertebrae: np.ndarray,
    discs: np.ndarray,
    trunk: np.ndarray,
    seg: int,
    f: float,
    u: float,
    v: float,
) -> bool:
    """Whether a point is in the signal void around the pedicle screws of two neighbouring vertebrae."""
    posterior = lerp_column(stations, seg, f, DEPTH) * 0.5
    q, au = v - posterior, abs(u)
    half = 0.5 * lerp_column(stations, seg, f, IPD)
    first = int(trunk[LAMINECTOMY])
    for i in range(first, first + 2):
        z = below_upper(vertebrae, discs, seg, f, i) - vertebrae[i, PED_Z]
        across = half + 0.5 * vertebrae[i, PED_W] + 0.25 * (q + 5.0) - au
        if -22.0 < q < 20.0 and across * across + z * z < 22.0:
            return True
        if across * across + z * z + (q - 19.0) ** 2 < 85.0:
            return True
    return False


@kernel
def spine(
    stations: np.ndarray,
    vertebrae: np.ndarray,
    discs: np.ndarray,
    profiles: np.ndarray,
    roots_at: np.ndarray,
    trunk: np.ndarray,
    seg: int,
    f: float,
    thick: float,
    u: float,
    v: float,
) -> int:
    """Tissue of the spine at (u, v) in a segment; NOTHING outside, where muscles and organs begin."""
    if trunk[LAMINECTOMY] >= 0.0 and _screw(stations, vertebrae, discs, trunk, seg, f, u, v):
        return METAL_T
    step = min(int(f * STEPS), STEPS - 1)
    row = profiles[seg, step, int(u / U_STEP + profiles.shape[2] // 2 + 0.5)]
    label = column(stations, vertebrae, discs, seg, f, thick, u, v, row[0])
    if label != NOTHING:
        return label
    posterior = lerp_column(stations, seg, f, DEPTH) * 0.5
    q = v - posterior
    if q < -12.0:
        return NOTHING
    au = abs(u)
    if q < 20.0 and v >= row[0]:
        half = lerp_column(stations, seg, f, IPD) * 0.5
        label = canal(roots_at[seg, step], vertebrae, discs, seg, f, u, v, half, posterior, row)
        if label in (CSF, CSF_FLOW, CORD):
            return label
    if au < 7.0 or (au < 34.0 and q < 36.0) or q < 22.0:
        bone = arch(stations, vertebrae, discs, trunk, seg, f, u, v, row[1])
        if bone != NOTHING:
            return bone
    if label != NOTHING:
        return label
    label = bed(stations, trunk, seg, f, u, q)
    if label != NOTHING:
        return label
    return behind_arch(stations, vertebrae, trunk, seg, f, u, v, posterior)
