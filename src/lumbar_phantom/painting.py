"""Gives a labelled volume the contrast of one series, and samples planes from it over the thickness of a slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lumbar_phantom import tissue_labels as ts
from lumbar_phantom._jit import kernel
from lumbar_phantom.volume import COARSE_MM, FINE_MM, Volume, math_floor


@kernel
def _paint(
    labels: np.ndarray,
    shifts: np.ndarray,
    table: np.ndarray,
    fat: np.ndarray,
    shift: np.ndarray,
    grain: np.ndarray,
    texture: np.ndarray,
    out: np.ndarray,
    scratch: np.ndarray,
) -> None:
    """Signal of every voxel, smoothed by (1, 2, 1) / 4 along each axis.

    Args:
        labels: (z, y, x) uint8.
        shifts: (z, 2) whole voxels in x and y by which each layer lies off the first.
        table: (256,) signal per label of what stays in place.
        fat: (256,) signal per label of what the chemical shift displaces.
        shift: (2,) that displacement in voxels along z and y.
        grain: (256,) strength of the texture per label.
        texture: (n, n, n) float32 of mean 0, n a power of two.
        out: (z, y, x) float32, filled.
        scratch: (z, y, x) float32, overwritten.
    """
    nz, ny, nx = labels.shape
    mask = texture.shape[0] - 1
    row = np.zeros(nx, np.float32)
    plane = np.zeros((ny, nx), np.float32)
    for z in range(nz):
        zf = min(max(z - shift[0], 0), nz - 1)
        sx, sy = shifts[z, 0] - shifts[zf, 0], shifts[z, 1] - shifts[zf, 1] - shift[1]
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
    """A volume in one series' contrast: float32 signal on the two grids of the `Volume` in `body`."""

    fine: np.ndarray
    coarse: np.ndarray
    body: Volume


def paint(
    body: Volume,
    table: np.ndarray,
    grain: np.ndarray,
    texture: np.ndarray,
    fat_share: np.ndarray | None = None,
    chemical_shift: tuple[int, int] = (0, 0),
) -> Painted:
    """Give every voxel its signal.

    Args:
        body: labels.
        table: (256,) float32 signal per label.
        grain: (256,) float32 strength of the texture per label.
        texture: cubic tile (n, n, n) float32 of mean 0, n a power of two.
        fat_share: (256,) share of a label's signal that the chemical shift displaces; None for none.
        chemical_shift: displacement in fine voxels along z and y.
    """
    share = np.zeros(256, np.float32) if fat_share is None or chemical_shift == (0, 0) else fat_share
    water, fat = (table * (1 - share)).astype(np.float32), (table * share).astype(np.float32)
    shift = np.array(chemical_shift, np.int64)
    fine = np.empty(body.fine.shape, np.float32)
    shifts = np.round((body.fine_origin - body.fine_origin[0]) / FINE_MM).astype(np.int64)
    _paint(body.fine, shifts, water, fat, shift, grain, texture, fine, np.empty_like(fine))
    coarse = np.empty(body.coarse.shape, np.float32)
    _paint(
        body.coarse,
        np.zeros((len(coarse), 2), np.int64),
        water,
        fat,
        shift // 2,  # the coarse voxels are twice as large
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
    """Mean signal over the thickness of a slice at every pixel, (rows, columns) float32.

    Args:
        painted: signal.
        shape: rows, columns.
        origin: (3,) centre of pixel (0, 0), mm in patient space.
        row_mm: (3,) step from row to row.
        column_mm: (3,) step from column to column.
        normal: (3,) unit vector across the slice.
        thickness: of the slice, mm.
    """
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
    """Nearest label at one point of patient space; air outside of both volumes."""
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
    return ts.AIR


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
    """Nearest label at every pixel of a plane, (rows, columns) uint8; arguments as in `sample`. For masks and tests."""
    out = np.zeros(shape, np.uint8)
    _labels(out, origin, row_mm, column_mm, body.fine, body.fine_origin, body.fine_z, body.coarse, body.coarse_origin)
    return out
