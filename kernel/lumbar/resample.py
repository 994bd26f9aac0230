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


@kernel
def _fill(image: NDArray[np.float32], matrix: NDArray[np.float64], outside: float, out: NDArray[np.float32]) -> None:
    rows, columns = image.shape
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            x = matrix[0, 0] * j + matrix[0, 1] * i + matrix[0, 2]
            y = matrix[1, 0] * j + matrix[1, 1] * i + matrix[1, 2]
            if not (-1.0 < x < columns and -1.0 < y < rows):
                out[i, j] = outside
                continue
            column, row = int(np.floor(x)), int(np.floor(y))
            right, down = x - column, y - row
            if 0 <= column < columns - 1 and 0 <= row < rows - 1:
                a, b = float(image[row, column]), float(image[row, column + 1])
                c, d = float(image[row + 1, column]), float(image[row + 1, column + 1])
            else:
                a, b = _at(image, row, column, outside), _at(image, row, column + 1, outside)
                c, d = _at(image, row + 1, column, outside), _at(image, row + 1, column + 1, outside)
            upper, lower = (1 - right) * a + right * b, (1 - right) * c + right * d
            out[i, j] = (1 - down) * upper + down * lower


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
