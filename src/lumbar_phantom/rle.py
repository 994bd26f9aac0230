"""RLE Lossless (PS3.5 annex G): byte planes, most significant first, each row packed by PackBits."""

from __future__ import annotations

import numpy as np

from lumbar_phantom._jit import kernel


@kernel
def _pack_plane(plane: np.ndarray, out: np.ndarray, start: int) -> int:
    """PackBits every row of a (rows, columns) uint8 plane into out from `start`; returns the end."""
    o = start
    rows, columns = plane.shape
    for r in range(rows):
        i = 0
        while i < columns:
            run = 1
            while i + run < columns and run < 128 and plane[r, i + run] == plane[r, i]:
                run += 1
            if run >= 3:
                out[o] = 257 - run
                out[o + 1] = plane[r, i]
                o += 2
                i += run
                continue
            first = i
            i += run
            while i < columns and i - first < 128:
                if i + 2 < columns and plane[r, i] == plane[r, i + 1] and plane[r, i] == plane[r, i + 2]:
                    break
                i += 1
            out[o] = i - first - 1
            o += 1
            for k in range(first, i):
                out[o] = plane[r, k]
                o += 1
    return o


def encode(image: np.ndarray) -> bytes:
    """One RLE frame of a (rows, columns) uint8, uint16 or int16 image, header included."""
    little = np.ascontiguousarray(image).astype(image.dtype.newbyteorder("<"), copy=False)
    planes = little.view(np.uint8).reshape(*image.shape, image.itemsize)[..., ::-1]
    out = np.zeros(64 + image.size * image.itemsize * 2 + 1024, np.uint8)
    header = np.zeros(16, "<u4")
    header[0] = image.itemsize
    end = 64
    for k in range(image.itemsize):
        header[1 + k] = end
        end = int(_pack_plane(np.ascontiguousarray(planes[..., k]), out, end))
        end += end & 1  # segments have even length
    out[:64] = header.view(np.uint8)
    return out[:end].tobytes()
