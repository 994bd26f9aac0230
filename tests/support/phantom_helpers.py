"""What several phantom tests share: one patient with volume, and files without painting."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from lumbar_phantom import painting, volume
from lumbar_phantom.patients import Case, make_case
from lumbar_phantom.streams import stream


@lru_cache(maxsize=6)
def built(index: int, variant: str = "ordinary") -> tuple[Case, volume.Volume]:
    case = make_case(11, index, variant=variant)
    return case, volume.build(case.patient, stream(11, index, "volume"))


def label_at(body: volume.Volume, point: np.ndarray) -> int:
    return int(painting.label_at(*point, body.fine, body.fine_origin, body.fine_z, body.coarse, body.coarse_origin))


class BlankPainter:
    """Stands in for the painter where only files, headers and tables matter."""

    def __init__(self, *arguments):
        pass

    def slice(self, stack, origin):
        rows, columns = stack.shape
        return (np.arange(rows * columns, dtype=np.uint32).reshape(rows, columns) // 7 % 4000).astype(np.uint16)


def digest(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
