"""Tissue classes of sagittal slices: what a localiser may learn beside its points."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lumbar_phantom import anatomy as an
from lumbar_phantom import painting, volume
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.protocol import StackPlan

CLASSES = ("background", "vertebral body", "disc", "thecal sac", "sacrum below S1", "S1", "disc S1/S2, or its line")
BODY, DISC, SAC, SACRUM, S1, SACRAL_LINE = range(1, 7)
CORTEX_PX = 3.0  # cortical bone belongs to the vertebra whose marrow lies within as many pixels
LINE_MM = 4.0  # the disc S1/S2 lies as near as this to both vertebrae
TOUCHING_PX = 1.5  # marrow of both vertebrae as near as this is where they are one

_VERTEBRA = np.zeros(256, np.uint8)  # 1 + the vertebra's number, of marrow
_VERTEBRA[ts.MARROW : ts.MARROW + an.N_VERTEBRAE] = np.arange(1, an.N_VERTEBRAE + 1)
_WITHIN = np.zeros(256, bool)  # lies inside some vertebra
_WITHIN[[ts.BASIVERTEBRAL, ts.HAEMANGIOMA, ts.EDEMA, ts.FAT_MARROW]] = True
_OTHER = np.zeros(256, np.uint8)
_OTHER[ts.NUCLEUS : ts.NUCLEUS + 15] = DISC
_OTHER[[ts.ANNULUS, ts.INNER_ANNULUS, ts.FISSURE]] = DISC
_OTHER[[ts.CSF, ts.CSF_FLOW, ts.ROOT, ts.CORD]] = SAC
_OF_VERTEBRA = np.array([0, *([BODY] * an.S1), S1, *([SACRUM] * (an.N_VERTEBRAE - an.S1 - 1))], np.uint8)


def mask_slice(body: volume.Volume, stack: StackPlan, origin: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The class, an index into ``CLASSES``, of every pixel of a slice.

    Args:
        body: of the patient.
        stack: that the slice belongs to.
        origin: (3,) mm, centre of the slice's first pixel.

    Returns:
        (rows, columns) uint8.
    """
    tissue = painting.sample_labels(body, stack.shape, origin, stack.row_mm, stack.column_mm)
    marrow = _VERTEBRA[tissue]
    nearest, away_px = _nearest(marrow)
    owned = _WITHIN[tissue] | ((tissue == ts.CORTEX) & (away_px <= CORTEX_PX))
    classes = np.where(owned, _OF_VERTEBRA[nearest], np.maximum(_OF_VERTEBRA[marrow], _OTHER[tissue]))
    classes[_between(marrow, LINE_MM / float(np.linalg.norm(stack.row_mm))) & (classes != SAC)] = SACRAL_LINE
    return np.asarray(classes, np.uint8)


def _between(marrow: NDArray[np.uint8], reach_px: float) -> NDArray[np.bool_]:
    """Where neither S1 nor S2 has marrow, but both are near; where they touch, their rims; a pixel around all that."""
    away = [_nearest(np.where(marrow == vertebra + 1, marrow, 0))[1] for vertebra in (an.S1, an.S1 + 1)]
    farther = np.maximum(*away)
    line = (farther <= reach_px) & (marrow == 0) | (farther <= TOUCHING_PX)
    return cv2.dilate(line.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def _nearest(marrow: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """For every pixel the nearest marrow and its distance in pixels; 0 and infinity where there is none at all."""
    if not marrow.any():
        return np.zeros_like(marrow), np.full(marrow.shape, np.inf, np.float32)
    away, labels = cv2.distanceTransformWithLabels(
        (marrow == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(int(labels.max()) + 1, np.uint8)
    of_label[labels[marrow > 0]] = marrow[marrow > 0]
    return of_label[labels], np.asarray(away, np.float32)
