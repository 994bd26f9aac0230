"""Slices as small 8-bit images, the baseline's input: training and the kernel use the same functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lumbar.dicom import Stack
from lumbar.geometry import make_grid
from lumbar.labels import DESCRIPTIONS
from lumbar.study import Study


@dataclass(frozen=True)
class ChosenSlice:
    """A slice of a study: ``index`` into its stack's volume."""

    stack: Stack
    index: int

    @property
    def series_id(self) -> str:
        """Name of the series' folder."""
        return self.stack.series_id

    @property
    def instance_number(self) -> int:
        """The slice's instance number."""
        return self.stack.instance_numbers[self.index]

    @property
    def name(self) -> str:
        """The instance number, and the frame where the file has several."""
        frame = self.stack.frame(self.index)
        return str(self.instance_number) if frame is None else f"{self.instance_number}-{frame}"


def choose_slices(study: Study, description: str, n: int = 0) -> list[ChosenSlice]:
    """The ``n`` central slices (0: all) of each series of a description, in the order of their positions.

    The stacks of a series (of different image sizes or angles) are taken together: their slices are ordered by their
    positions along the normal. Series come in the order of the study's table.
    """
    by_series: dict[str, list[tuple[float, ChosenSlice]]] = {}
    for stack in study.series.get(description, []):
        places = [(float(p), ChosenSlice(stack, i)) for i, p in enumerate(stack.positions_mm)]
        by_series.setdefault(stack.series_id, []).extend(places)
    chosen: list[ChosenSlice] = []
    for places in by_series.values():
        ordered = [chosen_slice for _, chosen_slice in sorted(places, key=lambda pair: pair[0])]
        first = max(0, (len(ordered) - n) // 2) if n else 0
        chosen += ordered[first : first + n] if n else ordered
    return chosen


def eight_bit(study: Study, chosen: ChosenSlice, size: int) -> NDArray[np.uint8]:
    """One slice as uint8 (size, size): 0 is the dark end of the series' window and 255 its bright end.

    The whole image is kept, with its proportions in millimetres: the longer side fills the square, the rest is dark.
    The window is that of the whole series (``Study.window``), so that neighbouring slices agree.
    """
    rows, columns = chosen.stack.volume.shape[1:]
    row_mm, column_mm = chosen.stack.spacing_mm
    grid = make_grid(chosen.stack, size=size, mm_per_px=max(rows * row_mm, columns * column_mm) / size)
    image = study.sampled(chosen.stack, chosen.index, grid)
    return np.asarray(np.rint(image * 255.0), dtype=np.uint8)


def as_input(images: NDArray[np.uint8], device: torch.device | str = "cpu") -> torch.Tensor:
    """8-bit slices (N, H, W) as the network's input on a device: (N, 1, H, W) float32 in 0..1."""
    writable = np.array(images, order="C")  # torch warns about read-only arrays, such as those mapped from a file
    return torch.from_numpy(writable).to(device).unsqueeze(1).float() / 255.0  # bytes are copied to the device


def probe_slices(seed: int, size: int) -> NDArray[np.uint8]:
    """Seeded 8-bit slices (2, size, size), converted as real ones are, so that the probe covers the conversion."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((2, 12, 14)) * 900.0 + 40.0
    stack = Stack(
        series_id="probe",
        volume=coarse.repeat(5, axis=1).repeat(5, axis=2).astype(np.float32),
        origins_mm=np.array([[4.0 * i, -60.0, 60.0] for i in range(2)]),
        row_mm=np.array([0.0, 0.0, -2.5]),
        column_mm=np.array([0.0, 2.4, 0.0]),
        instance_numbers=[1, 2],
        is_inverted=False,
        problems=[],
    )
    study = Study(study_id=0, series={DESCRIPTIONS[0]: [stack]})
    return np.array([eight_bit(study, ChosenSlice(stack, i), size) for i in range(2)], dtype=np.uint8)
