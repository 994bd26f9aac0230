"""Fills two volumes with the tissue labels of a patient.

The fine volume follows the spine: each axial layer is shifted to where the spine is, so that end plates, flavum and
roots get small voxels without a large volume. The coarse one holds the whole trunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom._jit import kernel
from lumbar_phantom.canal import STEPS, U_STEP, profile_tables, root_table
from lumbar_phantom.spine import spine
from lumbar_phantom.torso import near_spine, torso

FINE_MM = 0.75
COARSE_MM = 1.5
# Extent of the fine volume around the line of body centres, and of both around the origin, mm
FINE_HALF_X, FINE_FRONT, FINE_BACK = 40.0, 32.0, 62.0
HALF_X, HALF_Z = 135.0, 192.0
N_STATIONS = an.N_STATIONS
DEPTH = an.DEPTH
SUBCUT_BACK = an.SUBCUT_BACK
AIR, FAT, MUSCLE, VISCERAL_FAT, NUCLEUS = ts.AIR, ts.FAT, ts.MUSCLE, ts.VISCERAL_FAT, ts.NUCLEUS


class Body(NamedTuple):
    """All that decides the labels of a patient, in a form that a numba kernel takes.

    Attributes:
        geometry: the patient's `stations_geometry`.
        stations: as in `anatomy.Patient`, like the next two.
        vertebrae: per vertebra.
        discs: per disc.
        profiles: borders of the canal, from `canal.profile_tables`.
        roots_at: cord and cauda equina, from `canal.root_table`.
        trunk: as in `anatomy.Patient`.
        tile: `noise_tile` for the streaks of muscles and for organs.
        bowel: `bowel_loops`.
        outline: `body_outline`, one row per mm.
        outline_z: z of the outline's first row, mm.
    """

    geometry: np.ndarray
    stations: np.ndarray
    vertebrae: np.ndarray
    discs: np.ndarray
    profiles: np.ndarray
    roots_at: np.ndarray
    trunk: np.ndarray
    tile: np.ndarray
    bowel: np.ndarray
    outline: np.ndarray
    outline_z: float


@dataclass(slots=True)
class Volume:
    """Tissue labels of a patient; positions are mm in patient space (LPS).

    Attributes:
        fine: (z, y, x) uint8, voxels of `FINE_MM`; each layer has its own origin.
        fine_origin: (layers, 2) x and y of voxel (0, 0) of each layer.
        fine_z: z of the first layer.
        coarse: (z, y, x) uint8, voxels of `COARSE_MM`.
        coarse_origin: (3,) x, y, z of voxel (0, 0, 0).
    """

    fine: np.ndarray
    fine_origin: np.ndarray
    fine_z: float
    coarse: np.ndarray
    coarse_origin: np.ndarray


@kernel
def _distance(geometry: np.ndarray, k: int, x: float, y: float, z: float) -> float:
    g = geometry[k]
    return (x - g[0]) * g[9] + (y - g[1]) * g[10] + (z - g[2]) * g[11]


@kernel
def locate(geometry: np.ndarray, x: float, y: float, z: float, hint: int) -> tuple[int, float, float, float, float]:
    """Coordinates in the spine of a point in patient space (mm); `patients.to_patient` is the inverse.

    Args:
        geometry: the patient's `stations_geometry`.
        x: of the point.
        y: of the point.
        z: of the point.
        hint: segment to start the search at.

    Returns:
        segment, fraction in it, its thickness there (mm), u and v (mm).
    """
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
    body: Body,
    known: np.ndarray,
    known_origin: np.ndarray,
    known_mm: float,
) -> None:
    """Label every voxel.

    Args:
        out: (layers, rows, columns) uint8, filled.
        xs: (layers, 2) x of each layer's first voxel, and the step, mm.
        ys: (layers, 2) the same along y.
        zs: (layers,) z of each layer.
        body: the patient.
        known: a volume of twice the step on the same lattice, or an empty one. Where its eight voxels around a place
            agree on a tissue without fine structure, that is taken without a closer look.
        known_origin: (3,) of `known`, mm.
        known_mm: step of `known`.
    """
    geometry, stations, vertebrae, discs, profiles, roots_at, trunk, tile, bowel, outline, outline_z = body
    hint = 10
    for iz in range(out.shape[0]):
        z = zs[iz]
        row = min(max(math_floor(z - outline_z + 0.5), 0), outline.shape[0] - 1)
        sx, sy = outline[row, 5], outline[row, 6]
        muscle_end = outline[row, 0] - trunk[SUBCUT_BACK] - 9.0
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
                        label = spine(stations, vertebrae, discs, profiles, roots_at, trunk, seg, f, thick, u, v)
                    if label < 0:
                        label = near_spine(tile, stations, vertebrae, trunk, seg, f, u, v, z)
                        if label > 0 and y > muscle_end:
                            around = torso(tile, bowel, trunk, outline, row, x, y, z, sx, sy)
                            if around <= FAT:
                                label = around
                if label < 0:
                    label = torso(tile, bowel, trunk, outline, row, x, y, z, sx, sy)
                out[iz, iy, ix] = label


@kernel
def _agreed(known: np.ndarray, origin: np.ndarray, step: float, x: float, y: float, z: float) -> int:
    """The label that all eight voxels around a place share if it has no fine structure, else -1."""
    fx, fy, fz = (x - origin[0]) / step, (y - origin[1]) / step, (z - origin[2]) / step
    if fx < 0.0 or fy < 0.0 or fz < 0.0:
        return -1
    ix, iy, iz = int(fx + 1e-6), int(fy + 1e-6), int(fz + 1e-6)
    if ix >= known.shape[2] - 1 or iy >= known.shape[1] - 1 or iz >= known.shape[0] - 1:
        return -1
    label = known[iz, iy, ix]
    # The streaks of fat in muscles are too thin for the coarsest lattice
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
    """Outline of the skin, and the place of the spine, at the heights z.

    Returns:
        (n, 7): y of the back, y of the front, x of the centre, half width, station coordinate, x and y of the spine; mm
        except the station coordinate.
    """
    sx, sy, station = spine_line(patient, z)
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
    trunk = patient.trunk
    back = np.maximum(smooth, back - 2) + trunk[an.SUBCUT_BACK] * (1 + 0.45 * np.clip((station - 14) / 8, 0, 1)) + 2
    mean_y = np.convolve(np.pad(sy, 60, mode="edge"), width / width.sum(), mode="valid")
    fore = mean_y - 18 - trunk[an.BODY_DEPTH] - 6 * np.sin((station - 8) / 6)
    half = trunk[an.BODY_HALF_W] * (1 + 0.05 * np.cos((station - 22) / 4))
    return np.stack([back, fore, 0.5 * sx, half, station, sx, sy], 1)


def noise_tile(rng: np.random.Generator, side: int = 64) -> np.ndarray:
    """Periodic smooth noise, (side, side, side) float32 of uniform distribution in 0..1, features of 4 voxels."""
    spectrum = np.fft.rfftn(rng.standard_normal((side, side, side), dtype=np.float32))
    axis, last = np.fft.fftfreq(side), np.fft.rfftfreq(side)
    radius2 = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + last[None, None, :] ** 2
    smooth = np.fft.irfftn(spectrum * np.exp(-radius2 * (2 * np.pi * 1.5) ** 2 / 2), s=(side,) * 3, axes=(0, 1, 2))
    t = smooth / smooth.std()
    return np.asarray(1 / (1 + np.exp(-1.702 * t)), np.float32)  # logistic approximation of the normal integral


def bowel_loops(rng: np.random.Generator) -> np.ndarray:
    """Random bowel loops, (32, 32, 32, 6) float32; `torso` explains the columns."""
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
    """Label both volumes of a patient; `rng` draws the streaks of muscles and the bowel."""
    outline_z = -HALF_Z - 20.0
    outline = body_outline(patient, np.arange(outline_z, HALF_Z + 20.5, 1.0))
    profiles, roots_at = tables(patient)
    body = Body(
        patient.stations_geometry,
        patient.stations,
        patient.vertebrae,
        patient.discs,
        profiles,
        roots_at,
        patient.trunk,
        noise_tile(rng),
        bowel_loops(rng),
        outline,
        outline_z,
    )
    low_y = np.floor((outline[:, 1].min() - 4) / COARSE_MM) * COARSE_MM
    start = np.array([-HALF_X, low_y, -HALF_Z])
    extent = (2 * HALF_X, float(outline[:, 0].max()) + 4 - low_y, 2 * HALF_Z + COARSE_MM)
    sketch = _fill_box(start, extent, 2 * COARSE_MM, body, np.zeros((0, 1, 1), np.uint8), start, 1.0)
    coarse = _fill_box(start, extent, COARSE_MM, body, sketch, start, 2 * COARSE_MM)
    z_fine = np.arange(-HALF_Z, HALF_Z, FINE_MM)
    x, y, _ = spine_line(patient, z_fine)
    # Layers are shifted by whole voxels, so that all of them and the coarse volume lie on one lattice
    origin = np.round(np.stack([x - FINE_HALF_X, y - FINE_FRONT], 1) / FINE_MM) * FINE_MM
    across = int(2 * FINE_HALF_X / FINE_MM) + 1
    fine = np.zeros((len(z_fine), int((FINE_FRONT + FINE_BACK) / FINE_MM) + 1, across), np.uint8)
    step = np.full(len(z_fine), FINE_MM)
    _fill(
        fine,
        np.stack([origin[:, 0], step], 1),
        np.stack([origin[:, 1], step], 1),
        z_fine,
        body,
        coarse,
        start,
        COARSE_MM,
    )
    return Volume(fine, origin, -HALF_Z, coarse, start)


def _fill_box(
    start: np.ndarray,
    extent: tuple[float, float, float],
    step: float,
    body: Body,
    known: np.ndarray,
    known_origin: np.ndarray,
    known_mm: float,
) -> np.ndarray:
    """Labels (z, y, x) of a box of `extent` mm at one step; `known` as in `_fill`."""
    nx, ny, nz = (int(length / step) + 1 for length in extent)
    out = np.zeros((nz, ny, nx), np.uint8)
    steps = np.full(nz, step)
    _fill(
        out,
        np.stack([0 * steps + start[0], steps], 1),
        np.stack([0 * steps + start[1], steps], 1),
        start[2] + step * np.arange(nz),
        body,
        known,
        known_origin,
        known_mm,
    )
    return out
