"""Linear interpolation of an image under an affine map, the same in every library version.

OpenCV below 5 rounds the weights of ``warpAffine`` to 1/32 pixel, OpenCV 5 does not. A network trained with one version
would see other images with the other: they differ by up to 0.01 of the range, enough to choose another slice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lumbar.dicom._jit import inner_kernel, kernel


@inner_kernel
def _at(image: NDArray[np.float32], row: int, column: int, outside: float) -> float:
    if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
        return float(image[row, column])
    return outside


@inner_kernel
def _mean(a: float, b: float, c: float, d: float, right: float, down: float) -> float:
    """Of four neighbours, the upper two first, each weighted by its nearness."""
    upper, lower = (1 - right) * a + right * b, (1 - right) * c + right * d
    return (1 - down) * upper + down * lower


@inner_kernel
def _interpolated(image: NDArray[np.float32], x: float, y: float, outside: float) -> float:
    """The image at (x, y), which may lie at its edge or beyond."""
    rows, columns = image.shape
    if not (-1.0 < x < columns and -1.0 < y < rows):
        return outside
    column, row = int(np.floor(x)), int(np.floor(y))
    a, b = _at(image, row, column, outside), _at(image, row, column + 1, outside)
    c, d = _at(image, row + 1, column, outside), _at(image, row + 1, column + 1, outside)
    return _mean(a, b, c, d, x - column, y - row)


@kernel
def _fill(image: NDArray[np.float32], matrix: NDArray[np.float64], outside: float, out: NDArray[np.float32]) -> None:
    rows, columns = image.shape
    one = np.uint64(1)
    # The matrix is read once: for all that the compiler knows, ``out`` overlaps it
    xj, xi, x0, yj, yi, y0 = matrix[0, 0], matrix[0, 1], matrix[0, 2], matrix[1, 0], matrix[1, 1], matrix[1, 2]
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            x = xj * j + xi * i + x0
            y = yj * j + yi * i + y0
            if 0.0 <= x < columns - 1 and 0.0 <= y < rows - 1:  # all four neighbours are there
                column, row = int(x), int(y)
                r, c = np.uint64(row), np.uint64(column)
                upper_left, upper_right = float(image[r, c]), float(image[r, c + one])
                lower_left, lower_right = float(image[r + one, c]), float(image[r + one, c + one])
                out[i, j] = _mean(upper_left, upper_right, lower_left, lower_right, x - column, y - row)
            else:
                out[i, j] = _interpolated(image, x, y, outside)


@kernel
def _add(
    images: NDArray[np.float32],
    matrix: NDArray[np.float64],
    places: NDArray[np.int64],
    shares: NDArray[np.float64],
    ends: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """``add_warped``. ``places`` (size, size), ``shares`` (2, size, size) and ``ends`` (size, 2) are room."""
    rows, columns = images.shape[1:]
    size = out.shape[2]
    one, below = np.uint64(1), np.uint64(columns)
    xj, xi, x0, yj, yi, y0 = matrix[0, 0], matrix[0, 1], matrix[0, 2], matrix[1, 0], matrix[1, 1], matrix[1, 2]
    for i in range(size):
        first, last = size, size  # the pixels of a row whose neighbours are all there follow one another
        for j in range(size):
            x = xj * j + xi * i + x0
            y = yj * j + yi * i + y0
            if 0.0 <= x < columns - 1 and 0.0 <= y < rows - 1:
                column, row = int(x), int(y)
                places[i, j] = row * columns + column
                shares[0, i, j], shares[1, i, j] = x - column, y - row
                first, last = min(first, j), j + 1
        ends[i, 0], ends[i, 1] = first, last
    for n in range(images.shape[0]):
        image, flat = images[n], images[n].reshape(rows * columns)
        for i in range(size):
            line, place, right, down = out[n, i], places[i], shares[0, i], shares[1, i]
            first, last = ends[i, 0], ends[i, 1]
            for j in range(first, last):
                k = np.uint64(place[j])
                a, b, c, d = float(flat[k]), float(flat[k + one]), float(flat[k + below]), float(flat[k + below + one])
                line[j] += np.float32(_mean(a, b, c, d, right[j], down[j]))
            for j in range(size):
                if j < first or j >= last:
                    x, y = xj * j + xi * i + x0, yj * j + yi * i + y0
                    line[j] += np.float32(_interpolated(image, x, y, 0.0))


def warp(
    image: NDArray[np.float32], matrix: NDArray[np.float64], size: int, outside: float = 0.0
) -> NDArray[np.float32]:
    """Sample an image under an affine map, in double precision.

    Args:
        image: (rows, columns) float32.
        matrix: (2, 3), takes a pixel (x, y, 1) of the result to one of the image.
        size: rows and columns of the result.
        outside: value of all pixels beyond the image's edge.

    Returns:
        (size, size) float32.
    """
    out = np.empty((size, size), np.float32)
    _fill(np.ascontiguousarray(image, np.float32), np.ascontiguousarray(matrix, np.float64), float(outside), out)
    return out


def add_warped(images: NDArray[np.float32], matrix: NDArray[np.float64], out: NDArray[np.float32]) -> None:
    """Add to each of ``out`` (n, size, size) what ``warp`` makes of the image in its place, with 0 beyond the edge.

    Where to sample is computed once for all images.

    Args:
        images: (n, rows, columns) float32, C-contiguous.
        matrix: (2, 3), as of ``warp``.
        out: (n, size, size) float32, C-contiguous, changes.
    """
    size = out.shape[2]
    matrix = np.ascontiguousarray(matrix, np.float64)
    places, shares = np.empty((size, size), np.int64), np.empty((2, size, size))
    _add(images, matrix, places, shares, np.empty((size, 2), np.int64), out)
