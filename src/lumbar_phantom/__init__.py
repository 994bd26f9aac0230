"""Synthetic lumbar MR cohorts in the competition's layout, with exact truth.

One 3-D patient in LPS millimetres is sampled by every slice, so that sagittal and axial series show the same
anatomy. The images are drawn, for training and rehearsal; research use only.
"""

__all__ = ["anatomy", "cohort", "severity"]
