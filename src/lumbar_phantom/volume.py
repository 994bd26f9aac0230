"""The patient as two volumes of tissue labels, and planes sampled from them through the thickness of a slice.

The fine volume follows the spine: every axial layer is shifted to the spine's place, so that end plates, flavum and
roots have enough voxels without a large box. The coarse one holds the whole trunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom import tissues as ts
from lumbar_phantom._jit import kernel
from lumbar_phantom.tissue import STEPS, U_STEP, profile_tables, root_table, spine
from lumbar_phantom.torso import near_spine, torso

FINE_MM = 0.75
COARSE_MM = 1.5
FINE_HALF_X, FINE_FRONT, FINE_BACK = 40.0, 32.0, 62.0  # mm around the line of body centres
HALF_X, HALF_Z = 135.0, 192.0
N_STATIONS = an.N_STATIONS
DEPTH = an.DEPTH
SUBCUT_BACK = an.SUBCUT_BACK
AIR, FAT, MUSCLE, VISCERAL_FAT, NUCLEUS = ts.AIR, ts.FAT, ts.MUSCLE, ts.VISCERAL_FAT, ts.NUCLEUS


@dataclass(slots=True)
class Volume:
    """Label volumes, (z, y, x) uint8; the fine one with a shift per layer."""

    fine: np.ndarray
    fine_origin: np.ndarray  # (layers, 2): x and y in mm of voxel (0, 0) of each layer
    fine_z: float
    coarse: np.ndarray
    coarse_origin: np.ndarray  # (3,) x, y, z in mm of voxel (0, 0, 0)


@kernel
def _distance(geometry: np.ndarray, k: int, x: float, y: float, z: float) -> float:
    g = geometry[k]
    return (x - g[0]) * g[9] + (y - g[1]) * g[10] + (z - g[2]) * g[11]


@kernel
def locate(geometry: np.ndarray, x: float, y: float, z: float, hint: int) -> tuple[int, float, float, float, float]:
    """Segment, fraction, thickness of the segment there (mm), u and v (mm) of a point in patient space."""
    seg = min(max(hint, 0), N_STATIONS - 2)
    above = _distance(geometry, seg, x, y, z)
    below = _distance(geometry, seg + 1, x, y, z)
    for _ in range(N_STATIONS):
        if above > 0.0 and seg > 0:
            seg -= 1
            below = above
            above = _distance(geometry, seg, x, y, z)
        elif below < 0.0 and seg < N_STATIONS - 2:
            seg += 1
            above = below
            below = _distance(geometry, seg + 1, x, y, z)
        else:
            break
    thick = above - below
    thick = min(thick, -0.05)
    f = min(max(above / thick, 0.0), 1.0)
    g, h = geometry[seg], geometry[seg + 1]
    u0 = (x - g[0]) * g[3] + (y - g[1]) * g[4] + (z - g[2]) * g[5]
    v0 = (x - g[0]) * g[6] + (y - g[1]) * g[7] + (z - g[2]) * g[8]
    u1 = (x - h[0]) * h[3] + (y - h[1]) * h[4] + (z - h[2]) * h[5]
    v1 = (x - h[0]) * h[6] + (y - h[1]) * h[7] + (z - h[2]) * h[8]
    return seg, f, -thick, u0 * (1 - f) + u1 * f, v0 * (1 - f) + v1 * f


@kernel
def _fill(
    out: np.ndarray,
    xs: np.ndarray,
    ys: np.ndarray,
    zs: np.ndarray,
    geometry: np.ndarray,
    stations: np.ndarray,
    vertebrae: np.ndarray,
    discs: np.ndarray,
    profiles: np.ndarray,
    roots_at: np.ndarray,
    gl: np.ndarray,
    tile: np.ndarray,
    bowel: np.ndarray,
    outline: np.ndarray,
    outline_z: float,
    known: np.ndarray,
    known_origin: np.ndarray,
    known_mm: float,
) -> None:
    """Label every voxel; xs, ys hold each layer's own origin and the step: (layers, 2).

    known: a volume of twice the step known_mm / 2 on the same lattice (or an empty one); where its eight voxels
    around a place agree on a tissue without fine structure, that is the answer.
    """
    hint = 10
    for iz in range(out.shape[0]):
        z = zs[iz]
        row = min(max(math_floor(z - outline_z + 0.5), 0), outline.shape[0] - 1)
        sx, sy = outline[row, 5], outline[row, 6]
        muscle_end = outline[row, 0] - gl[SUBCUT_BACK] - 9.0
        for iy in range(out.shape[1]):
            y = ys[iz, 0] + ys[iz, 1] * iy
            for ix in range(out.shape[2]):
                x = xs[iz, 0] + xs[iz, 1] * ix
                if known.shape[0] > 0:
                    label = _agreed(known, known_origin, known_mm, x, y, z)
                    if label >= 0:
                        out[iz, iy, ix] = label
                        continue
                label = -1
                if abs(x - sx) < 95.0 and y > sy - 75.0:
                    seg, f, thick, u, v = locate(geometry, x, y, z, hint)
                    hint = seg
                    if abs(u) < 56.0 and -34.0 < v < 72.0:
                        label = spine(stations, vertebrae, discs, profiles, roots_at, gl, seg, f, thick, u, v)
                    if label < 0:
                        label = near_spine(tile, stations, vertebrae, gl, seg, f, u, v, z)
                        if label > 0 and y > muscle_end:
                            around = torso(tile, bowel, gl, outline, row, x, y, z, sx, sy)
                            if around <= FAT:
                                label = around
                if label < 0:
                    label = torso(tile, bowel, gl, outline, row, x, y, z, sx, sy)
                out[iz, iy, ix] = label


@kernel
def _agreed(known: np.ndarray, origin: np.ndarray, step: float, x: float, y: float, z: float) -> int:
    """The label that all voxels around a place share if it is one without fine structure, else -1."""
    fx, fy, fz = (x - origin[0]) / step, (y - origin[1]) / step, (z - origin[2]) / step
    if fx < 0.0 or fy < 0.0 or fz < 0.0:
        return -1
    ix, iy, iz = int(fx + 1e-6), int(fy + 1e-6), int(fz + 1e-6)
    if ix >= known.shape[2] - 1 or iy >= known.shape[1] - 1 or iz >= known.shape[0] - 1:
        return -1
    label = known[iz, iy, ix]
    # Muscle holds streaks of fat that the coarsest lattice would miss
    if not (label <= FAT or label == VISCERAL_FAT or label >= NUCLEUS or (label == MUSCLE and step < 2.0)):
        return -1
    for k in range(1, 8):
        if known[iz + (k >> 2), iy + ((k >> 1) & 1), ix + (k & 1)] != label:
            return -1
    return label


@kernel
def math_floor(x: float) -> int:
    """Floor as an integer, for negative coordinates too."""
    i = int(x)
    return i - 1 if x < i else i


def spine_line(patient: an.Patient, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y of the line of body centres and the station coordinate at heights z."""
    centres = patient.stations_geometry[:, :3]
    order = np.argsort(centres[:, 2])
    return (
        np.interp(z, centres[order, 2], centres[order, 0]),
        np.interp(z, centres[order, 2], centres[order, 1]),
        np.interp(z, centres[order, 2], order.astype(float)),
    )


def body_outline(patient: an.Patient, z: np.ndarray) -> np.ndarray:
    """Per mm of height: back y, front y, centre x, half width, station coordinate, spine x and y."""
    sx, sy, lam = spine_line(patient, z)
    tips = np.zeros(an.N_VERTEBRAE)
    heights = np.zeros(an.N_VERTEBRAE)
    for i in range(an.N_VERTEBRAE):
        g = patient.stations_geometry[2 * i + 1]
        reach = patient.stations[2 * i + 1, DEPTH] / 2 + patient.stations[2 * i + 1, an.CANAL]
        tip = g[:3] + g[6:9] * (reach + patient.vertebrae[i, an.SPINOUS])
        tips[i], heights[i] = tip[1], tip[2]
    order = np.argsort(heights)
    back = np.interp(z, heights[order], tips[order])
    width = np.exp(-0.5 * (np.arange(-60, 61) / 22.0) ** 2)
    smooth = np.convolve(np.pad(back, 60, mode="edge"), width / width.sum(), mode="valid")
    gl = patient.globals
    back = np.maximum(smooth, back - 2) + gl[an.SUBCUT_BACK] * (1 + 0.45 * np.clip((lam - 14) / 8, 0, 1)) + 2
    mean_y = np.convolve(np.pad(sy, 60, mode="edge"), width / width.sum(), mode="valid")
    fore = mean_y - 18 - gl[an.BODY_DEPTH] - 6 * np.sin((lam - 8) / 6)
    half = gl[an.BODY_HALF_W] * (1 + 0.05 * np.cos((lam - 22) / 4))
    return np.stack([back, fore, 0.5 * sx, half, lam, sx, sy], 1)


def noise_tile(rng: np.random.Generator, side: int = 64) -> np.ndarray:
    """Periodic smooth noise, (side, side, side) float32 of uniform distribution in 0..1, features of 4 voxels."""
    spectrum = np.fft.rfftn(rng.standard_normal((side, side, side), dtype=np.float32))
    axis, last = np.fft.fftfreq(side), np.fft.rfftfreq(side)
    radius2 = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + last[None, None, :] ** 2
    smooth = np.fft.irfftn(spectrum * np.exp(-radius2 * (2 * np.pi * 1.5) ** 2 / 2), s=(side,) * 3, axes=(0, 1, 2))
    t = smooth / smooth.std()
    return np.asarray(1 / (1 + np.exp(-1.702 * t)), np.float32)  # logistic approximation of the normal integral


def bowel_loops(rng: np.random.Generator) -> np.ndarray:
    """Blobs for `torso`: (32, 32, 32, 6) float32."""
    loops = rng.random((32, 32, 32, 6), dtype=np.float32)
    present = rng.random((32, 32, 32)) < 0.72
    loops[..., :3] = 0.2 + 0.6 * loops[..., :3]
    loops[..., 3] = np.where(present, 7 + 11 * loops[..., 3], -1e3)
    loops[..., 5] = (0.45 + 0.55 * loops[..., 5]) ** 2
    return loops


def tables(patient: an.Patient) -> tuple[np.ndarray, np.ndarray]:
    """Canal profiles (29, STEPS, places, 5) and cauda equina (29, STEPS, n + 1, 3) along the spine, float32."""
    segments = N_STATIONS - 1
    profiles = np.zeros((segments, STEPS, 2 * int(58 / U_STEP) + 1, 5), np.float32)
    profile_tables(profiles, patient.stations, patient.vertebrae, patient.discs)
    roots_at = np.zeros((segments, STEPS, len(patient.roots) + 1, 3), np.float32)
    root_table(roots_at, patient.stations, patient.roots)
    return profiles, roots_at


def build(patient: an.Patient, rng: np.random.Generator) -> Volume:
    """Label both volumes of a patient; rng draws muscle streaks and bowel."""
    outline_z = -HALF_Z - 20.0
    outline = body_outline(patient, np.arange(outline_z, HALF_Z + 20.5, 1.0))
    profiles, roots_at = tables(patient)
    arrays = (
        patient.stations_geometry,
        patient.stations,
        patient.vertebrae,
        patient.discs,
        profiles,
        roots_at,
        patient.globals,
        noise_tile(rng),
        bowel_loops(rng),
        outline,
        outline_z,
    )
    low_y = np.floor((outline[:, 1].min() - 4) / COARSE_MM) * COARSE_MM
    start = np.array([-HALF_X, low_y, -HALF_Z])
    extent = (2 * HALF_X, float(outline[:, 0].max()) + 4 - low_y, 2 * HALF_Z + COARSE_MM)
    sketch = _fill_box(start, extent, 2 * COARSE_MM, arrays, np.zeros((0, 1, 1), np.uint8), start, 1.0)
    coarse = _fill_box(start, extent, COARSE_MM, arrays, sketch, start, 2 * COARSE_MM)
    z_fine = np.arange(-HALF_Z, HALF_Z, FINE_MM)
    x, y, _ = spine_line(patient, z_fine)
    # Whole voxels, so that neighbouring layers and the coarse volume lie on one lattice
    origin = np.round(np.stack([x - FINE_HALF_X, y - FINE_FRONT], 1) / FINE_MM) * FINE_MM
    across = int(2 * FINE_HALF_X / FINE_MM) + 1
    fine = np.zeros((len(z_fine), int((FINE_FRONT + FINE_BACK) / FINE_MM) + 1, across), np.uint8)
    step = np.full(len(z_fine), FINE_MM)
    _fill(
        fine,
        np.stack([origin[:, 0], step], 1),
        np.stack([origin[:, 1], step], 1),
        z_fine,
        *arrays,
        coarse,
        start,
        COARSE_MM,
    )
    return Volume(fine, origin, -HALF_Z, coarse, start)


def _fill_box(
    start: np.ndarray,
    extent: tuple[float, float, float],
    step: float,
    arrays: tuple[Any, ...],
    known: np.ndarray,
    known_origin: np.ndarray,
    known_mm: float,
) -> np.ndarray:
    """Labels (z, y, x) of a box at one step, helped by a coarser volume."""
    nx, ny, nz = (int(length / step) + 1 for length in extent)
    out = np.zeros((nz, ny, nx), np.uint8)
    steps = np.full(nz, step)
    _fill(
        out,
        np.stack([0 * steps + start[0], steps], 1),
        np.stack([0 * steps + start[1], steps], 1),
        start[2] + step * np.arange(nz),
        *arrays,
        known,
        known_origin,
        known_mm,
    )
    return out


@kernel
def _paint(
    labels: np.ndarray,
    shifts: np.ndarray,
    table: np.ndarray,
    fat: np.ndarray,
    moved: np.ndarray,
    grain: np.ndarray,
    texture: np.ndarray,
    out: np.ndarray,
    scratch: np.ndarray,
) -> None:
    """Signal of every voxel, smoothed by (1, 2, 1) / 4 along each axis.

    table and fat: signal per label of what stays and of what a chemical shift moves by `moved` (z, y) voxels.
    labels (z, y, x) uint8; shifts (z, 2) whole voxels in x and y by which each layer lies off the first; out and
    scratch like labels, float32; texture (n, n, n) float32 of mean 0, n a power of two.
    """
    nz, ny, nx = labels.shape
    mask = texture.shape[0] - 1
    row = np.zeros(nx, np.float32)
    plane = np.zeros((ny, nx), np.float32)
    for z in range(nz):
        zf = min(max(z - moved[0], 0), nz - 1)
        sx, sy = shifts[z, 0] - shifts[zf, 0], shifts[z, 1] - shifts[zf, 1] - moved[1]
        for y in range(ny):
            yf = min(max(y + sy, 0), ny - 1)
            ty = (y + shifts[z, 1]) & mask
            for x in range(nx):
                k = labels[z, y, x]
                xf = min(max(x + sx, 0), nx - 1)
                fleck = grain[k] * texture[z & mask, ty, (x + shifts[z, 0]) & mask]
                row[x] = (table[k] + fat[labels[zf, yf, xf]]) * (np.float32(1.0) + fleck)
            for x in range(1, nx - 1):
                plane[y, x] = np.float32(0.25) * (row[x - 1] + row[x + 1]) + np.float32(0.5) * row[x]
            plane[y, 0], plane[y, nx - 1] = row[0], row[nx - 1]
        for y in range(ny):
            above, below = max(y - 1, 0), min(y + 1, ny - 1)
            for x in range(nx):
                scratch[z, y, x] = (
                    np.float32(0.25) * (plane[above, x] + plane[below, x]) + np.float32(0.5) * plane[y, x]
                )
    for z in range(nz):
        below, above = max(z - 1, 0), min(z + 1, nz - 1)
        bx, by = shifts[z, 0] - shifts[below, 0], shifts[z, 1] - shifts[below, 1]
        ax, ay = shifts[z, 0] - shifts[above, 0], shifts[z, 1] - shifts[above, 1]
        for y in range(ny):
            yb, ya = min(max(y + by, 0), ny - 1), min(max(y + ay, 0), ny - 1)
            for x in range(nx):
                xb, xa = min(max(x + bx, 0), nx - 1), min(max(x + ax, 0), nx - 1)
                out[z, y, x] = (
                    np.float32(0.25) * (scratch[below, yb, xb] + scratch[above, ya, xa])
                    + np.float32(0.5) * scratch[z, y, x]
                )


@dataclass(slots=True)
class Painted:
    """A volume in one series' contrast: float32 signal on the grids of a `Volume`."""

    fine: np.ndarray
    coarse: np.ndarray
    body: Volume


def paint(
    body: Volume,
    table: np.ndarray,
    grain: np.ndarray,
    texture: np.ndarray,
    fat_share: np.ndarray | None = None,
    moved: tuple[int, int] = (0, 0),
) -> Painted:
    """Give labels their signal: table and grain (256,) float32 per label, texture a cubic tile of mean 0.

    The share fat_share (256,) of a label's signal is displaced by `moved` fine voxels (z, y): chemical shift.
    """
    share = np.zeros(256, np.float32) if fat_share is None or moved == (0, 0) else fat_share
    water, fat = (table * (1 - share)).astype(np.float32), (table * share).astype(np.float32)
    by = np.array(moved, np.int64)
    fine = np.empty(body.fine.shape, np.float32)
    shifts = np.round((body.fine_origin - body.fine_origin[0]) / FINE_MM).astype(np.int64)
    _paint(body.fine, shifts, water, fat, by, grain, texture, fine, np.empty_like(fine))
    coarse = np.empty(body.coarse.shape, np.float32)
    _paint(
        body.coarse,
        np.zeros((len(coarse), 2), np.int64),
        water,
        fat,
        by // 2,
        grain,
        texture,
        coarse,
        np.empty_like(coarse),
    )
    return Painted(fine, coarse, body)


@kernel
def _bilinear(layer: np.ndarray, fx: float, fy: float) -> float:
    ix, iy = int(fx), int(fy)
    tx, ty = np.float32(fx - ix), np.float32(fy - iy)
    one = np.float32(1.0)
    a = layer[iy, ix] * (one - tx) + layer[iy, ix + 1] * tx
    b = layer[iy + 1, ix] * (one - tx) + layer[iy + 1, ix + 1] * tx
    return a * (one - ty) + b * ty


@kernel
def _sample(
    out: np.ndarray,
    origin: np.ndarray,
    row_mm: np.ndarray,
    column_mm: np.ndarray,
    normal: np.ndarray,
    offsets: np.ndarray,
    fine: np.ndarray,
    fine_origin: np.ndarray,
    fine_z: float,
    coarse: np.ndarray,
    coarse_origin: np.ndarray,
) -> None:
    nz, ny, nx = fine.shape
    mz, my, mx = coarse.shape
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            total = np.float32(0.0)
            for k in range(offsets.shape[0]):
                x = origin[0] + r * row_mm[0] + c * column_mm[0] + offsets[k] * normal[0]
                y = origin[1] + r * row_mm[1] + c * column_mm[1] + offsets[k] * normal[1]
                z = origin[2] + r * row_mm[2] + c * column_mm[2] + offsets[k] * normal[2]
                fz = (z - fine_z) / FINE_MM
                if fz < 0.0 or fz >= nz - 1:
                    continue  # beyond the patient's ends
                iz = int(fz)
                tz = np.float32(fz - iz)
                fx, fy = (x - fine_origin[iz, 0]) / FINE_MM, (y - fine_origin[iz, 1]) / FINE_MM
                gx, gy = (x - fine_origin[iz + 1, 0]) / FINE_MM, (y - fine_origin[iz + 1, 1]) / FINE_MM
                if 0.0 <= fx < nx - 1 and 0.0 <= gx < nx - 1 and 0.0 <= fy < ny - 1 and 0.0 <= gy < ny - 1:
                    total += _bilinear(fine[iz], fx, fy) * (np.float32(1.0) - tz) + _bilinear(fine[iz + 1], gx, gy) * tz
                    continue
                fx, fy = (x - coarse_origin[0]) / COARSE_MM, (y - coarse_origin[1]) / COARSE_MM
                fz = (z - coarse_origin[2]) / COARSE_MM
                if 0.0 <= fx < mx - 1 and 0.0 <= fy < my - 1 and 0.0 <= fz < mz - 1:
                    iz = int(fz)
                    tz = np.float32(fz - iz)
                    total += _bilinear(coarse[iz], fx, fy) * (np.float32(1.0) - tz)
                    total += _bilinear(coarse[iz + 1], fx, fy) * tz
            out[r, c] = total / offsets.shape[0]


def sample(
    painted: Painted,
    shape: tuple[int, int],
    origin: np.ndarray,
    row_mm: np.ndarray,
    column_mm: np.ndarray,
    normal: np.ndarray,
    thickness: float,
) -> np.ndarray:
    """Mean signal over the slice's thickness at every pixel of a plane, (rows, columns) float32."""
    out = np.empty(shape, np.float32)
    count = max(3, int(np.ceil(thickness / 1.3)))
    offsets = ((np.arange(count) + 0.5) / count - 0.5) * thickness * 1.05
    body = painted.body
    _sample(
        out,
        origin,
        row_mm,
        column_mm,
        normal,
        offsets,
        painted.fine,
        body.fine_origin,
        body.fine_z,
        painted.coarse,
        body.coarse_origin,
    )
    return out


@kernel
def label_at(
    x: float,
    y: float,
    z: float,
    fine: np.ndarray,
    fine_origin: np.ndarray,
    fine_z: float,
    coarse: np.ndarray,
    coarse_origin: np.ndarray,
) -> int:
    """Nearest label at one point of patient space."""
    iz = math_floor((z - fine_z) / FINE_MM + 0.5)
    if 0 <= iz < fine.shape[0]:
        ix = math_floor((x - fine_origin[iz, 0]) / FINE_MM + 0.5)
        iy = math_floor((y - fine_origin[iz, 1]) / FINE_MM + 0.5)
        if 0 <= ix < fine.shape[2] and 0 <= iy < fine.shape[1]:
            return fine[iz, iy, ix]
    ix = math_floor((x - coarse_origin[0]) / COARSE_MM + 0.5)
    iy = math_floor((y - coarse_origin[1]) / COARSE_MM + 0.5)
    iz = math_floor((z - coarse_origin[2]) / COARSE_MM + 0.5)
    if 0 <= ix < coarse.shape[2] and 0 <= iy < coarse.shape[1] and 0 <= iz < coarse.shape[0]:
        return coarse[iz, iy, ix]
    return AIR


@kernel
def _labels(
    out: np.ndarray,
    origin: np.ndarray,
    row_mm: np.ndarray,
    column_mm: np.ndarray,
    fine: np.ndarray,
    fine_origin: np.ndarray,
    fine_z: float,
    coarse: np.ndarray,
    coarse_origin: np.ndarray,
) -> None:
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            x = origin[0] + r * row_mm[0] + c * column_mm[0]
            y = origin[1] + r * row_mm[1] + c * column_mm[1]
            z = origin[2] + r * row_mm[2] + c * column_mm[2]
            out[r, c] = label_at(x, y, z, fine, fine_origin, fine_z, coarse, coarse_origin)


def sample_labels(
    body: Volume, shape: tuple[int, int], origin: np.ndarray, row_mm: np.ndarray, column_mm: np.ndarray
) -> np.ndarray:
    """Nearest label at every pixel of a plane, (rows, columns) uint8, for masks and tests."""
    out = np.zeros(shape, np.uint8)
    _labels(out, origin, row_mm, column_mm, body.fine, body.fine_origin, body.fine_z, body.coarse, body.coarse_origin)
    return out
