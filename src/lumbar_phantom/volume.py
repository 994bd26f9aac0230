"""The patient as two volumes of tissue labels, and planes sampled from them through the thickness of a slice.

The fine volume follows the spine: every axial layer is shifted to the spine's place, so that end plates, flavum and
roots have enough voxels without a large box. The coarse one holds the whole trunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom import tissues as ts
from lumbar_phantom._jit import kernel
from lumbar_phantom.tissue import STEPS, U_STEP, profile_tables, root_table, spine
from lumbar_phantom.torso import near_spine, torso

FINE_MM = 0.75
COARSE_MM = 1.5
FINE_HALF_X, FINE_FRONT, FINE_BACK = 40.0, 32.0, 62.0  # mm around the line of body centres
HALF_X, HALF_Z = 150.0, 180.0
N_STATIONS = an.N_STATIONS
DEPTH = an.DEPTH
SUBCUT_BACK = an.SUBCUT_BACK
AIR = ts.AIR


@dataclass(slots=True)
class Volume:
    """Label volumes, (z, y, x) uint8; the fine one with a shift per layer."""

    fine: np.ndarray
    fine_origin: np.ndarray  # (layers, 2): x and y in mm of voxel (0, 0) of each layer
    fine_z: float
    coarse: np.ndarray
    coarse_origin: np.ndarray  # (3,) x, y, z in mm of voxel (0, 0, 0)


@kernel
def _distance(geometry, k, x, y, z):
    g = geometry[k]
    return (x - g[0]) * g[9] + (y - g[1]) * g[10] + (z - g[2]) * g[11]


@kernel
def locate(geometry, x, y, z, hint):
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
def _fill(out, xs, ys, zs, geometry, stations, vertebrae, discs, profiles, roots_at, gl, tile, bowel, outline,
          outline_z, hollow):
    """Label every voxel; xs, ys hold each layer's own origin and the step: (layers, 2).

    hollow: leave out what the fine volume holds.
    """
    hint = 10
    for iz in range(out.shape[0]):
        z = zs[iz]
        row = int(round((z - outline_z) / 1.0))
        row = min(max(row, 0), outline.shape[0] - 1)
        sx, sy = outline[row, 5], outline[row, 6]
        for iy in range(out.shape[1]):
            y = ys[iz, 0] + ys[iz, 1] * iy
            for ix in range(out.shape[2]):
                x = xs[iz, 0] + xs[iz, 1] * ix
                if hollow and abs(x - sx) < FINE_HALF_X - 4.0 and 4.0 - FINE_FRONT < y - sy < FINE_BACK - 4.0:
                    continue
                label = -1
                if abs(x - sx) < 95.0 and y > sy - 75.0:
                    seg, f, thick, u, v = locate(geometry, x, y, z, hint)
                    hint = seg
                    if abs(u) < 56.0 and -34.0 < v < 72.0:
                        label = spine(stations, vertebrae, discs, profiles, roots_at, gl, seg, f, thick, u, v)
                    if label < 0:
                        label = near_spine(tile, stations, vertebrae, gl, seg, f, u, v, z)
                        if label > 0 and y > outline[row, 0] - gl[SUBCUT_BACK] - 9.0:
                            around = torso(tile, bowel, gl, outline, row, x, y, z, sx, sy)
                            if around <= 2:
                                label = around
                if label < 0:
                    label = torso(tile, bowel, gl, outline, row, x, y, z, sx, sy)
                out[iz, iy, ix] = label


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
    smooth = np.fft.irfftn(spectrum * np.exp(-radius2 * (2 * np.pi * 1.5) ** 2 / 2), s=(side, side, side), axes=(0, 1, 2))
    t = smooth / smooth.std()
    return (1 / (1 + np.exp(-1.702 * t))).astype(np.float32)  # logistic approximation of the normal integral


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
    arrays = (patient.stations_geometry, patient.stations, patient.vertebrae, patient.discs, profiles, roots_at,
              patient.globals, noise_tile(rng), bowel_loops(rng), outline, outline_z)
    z_fine = np.arange(-HALF_Z, HALF_Z, FINE_MM)
    x, y, _ = spine_line(patient, z_fine)
    origin = np.stack([x - FINE_HALF_X, y - FINE_FRONT], 1)
    fine = np.zeros((len(z_fine), int((FINE_FRONT + FINE_BACK) / FINE_MM) + 1, int(2 * FINE_HALF_X / FINE_MM) + 1), np.uint8)
    step = np.full(len(z_fine), FINE_MM)
    _fill(fine, np.stack([origin[:, 0], step], 1), np.stack([origin[:, 1], step], 1), z_fine, *arrays, False)
    z_coarse = np.arange(-HALF_Z, HALF_Z + COARSE_MM, COARSE_MM)
    low_y, high_y = float(outline[:, 1].min()) - 4, float(outline[:, 0].max()) + 4
    coarse = np.zeros((len(z_coarse), int((high_y - low_y) / COARSE_MM) + 1, int(2 * HALF_X / COARSE_MM) + 1), np.uint8)
    ones = np.ones(len(z_coarse))
    _fill(coarse, np.stack([ones * -HALF_X, ones * COARSE_MM], 1), np.stack([ones * low_y, ones * COARSE_MM], 1),
          z_coarse, *arrays, True)
    return Volume(fine, origin, -HALF_Z, coarse, np.array([-HALF_X, low_y, -HALF_Z]))


@kernel
def _bilinear(layer, table, fx, fy):
    ix, iy = int(fx), int(fy)
    tx, ty = fx - ix, fy - iy
    a = table[layer[iy, ix]] * (1 - tx) + table[layer[iy, ix + 1]] * tx
    b = table[layer[iy + 1, ix]] * (1 - tx) + table[layer[iy + 1, ix + 1]] * tx
    return a * (1 - ty) + b * ty


@kernel
def sample_plane(out, origin, row_mm, column_mm, normal, offsets, weights, table, grain, texture, fine, fine_origin,
                 fine_z, coarse, coarse_origin, fine_mm, coarse_mm):
    """Mean signal over the slice's thickness at every pixel.

    out (rows, columns) float32; table (256,) signal per label; grain (256,) relative texture per label; texture a
    cubic float32 tile of mean 0. offsets and weights: places along the normal, mm.
    """
    side = texture.shape[0]
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            total = 0.0
            for k in range(offsets.shape[0]):
                x = origin[0] + r * row_mm[0] + c * column_mm[0] + offsets[k] * normal[0]
                y = origin[1] + r * row_mm[1] + c * column_mm[1] + offsets[k] * normal[1]
                z = origin[2] + r * row_mm[2] + c * column_mm[2] + offsets[k] * normal[2]
                value = table[AIR]
                label = AIR
                found = False
                fz = (z - fine_z) / fine_mm
                iz = int(math_floor(fz))
                if 0 <= iz < fine.shape[0] - 1:
                    inside = True
                    part = 0.0
                    tz = fz - iz
                    for layer in range(2):
                        fx = (x - fine_origin[iz + layer, 0]) / fine_mm
                        fy = (y - fine_origin[iz + layer, 1]) / fine_mm
                        if fx < 0 or fy < 0 or fx >= fine.shape[2] - 1 or fy >= fine.shape[1] - 1:
                            inside = False
                            break
                        part += _bilinear(fine[iz + layer], table, fx, fy) * (tz if layer else 1 - tz)
                        if layer == 0:
                            label = fine[iz, int(fy + 0.5), int(fx + 0.5)]
                    if inside:
                        value = part
                        found = True
                if not found:
                    fx = (x - coarse_origin[0]) / coarse_mm
                    fy = (y - coarse_origin[1]) / coarse_mm
                    fz = (z - coarse_origin[2]) / coarse_mm
                    if 0 <= fx < coarse.shape[2] - 1 and 0 <= fy < coarse.shape[1] - 1 and 0 <= fz < coarse.shape[0] - 1:
                        iz = int(fz)
                        tz = fz - iz
                        value = _bilinear(coarse[iz], table, fx, fy) * (1 - tz)
                        value += _bilinear(coarse[iz + 1], table, fx, fy) * tz
                        label = coarse[iz, int(fy + 0.5), int(fx + 0.5)]
                if grain[label] != 0.0:
                    tx = int(math_floor(x * 1.25)) & (side - 1)
                    ty = int(math_floor(y * 1.25)) & (side - 1)
                    tz2 = int(math_floor(z * 1.25)) & (side - 1)
                    value *= 1.0 + grain[label] * texture[tz2, ty, tx]
                total += weights[k] * value
            out[r, c] = total


@kernel
def math_floor(x):
    """Floor as a float, for negative coordinates too."""
    i = int(x)
    return i - 1 if x < i else i


@kernel
def sample_labels(out, origin, row_mm, column_mm, fine, fine_origin, fine_z, coarse, coarse_origin, fine_mm, coarse_mm):
    """Nearest label at every pixel of a plane, for masks and tests."""
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            x = origin[0] + r * row_mm[0] + c * column_mm[0]
            y = origin[1] + r * row_mm[1] + c * column_mm[1]
            z = origin[2] + r * row_mm[2] + c * column_mm[2]
            out[r, c] = label_at(x, y, z, fine, fine_origin, fine_z, coarse, coarse_origin, fine_mm, coarse_mm)


@kernel
def label_at(x, y, z, fine, fine_origin, fine_z, coarse, coarse_origin, fine_mm, coarse_mm):
    """Nearest label at one point of patient space."""
    iz = math_floor((z - fine_z) / fine_mm + 0.5)
    if 0 <= iz < fine.shape[0]:
        ix = math_floor((x - fine_origin[iz, 0]) / fine_mm + 0.5)
        iy = math_floor((y - fine_origin[iz, 1]) / fine_mm + 0.5)
        if 0 <= ix < fine.shape[2] and 0 <= iy < fine.shape[1]:
            return fine[iz, iy, ix]
    ix = math_floor((x - coarse_origin[0]) / coarse_mm + 0.5)
    iy = math_floor((y - coarse_origin[1]) / coarse_mm + 0.5)
    iz = math_floor((z - coarse_origin[2]) / coarse_mm + 0.5)
    if 0 <= ix < coarse.shape[2] and 0 <= iy < coarse.shape[1] and 0 <= iz < coarse.shape[0]:
        return coarse[iz, iy, ix]
    return AIR
