"""One study: its series as stacks, by description, with the intensity window that all stages share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.dicom import Series, Stack
from lumbar.dicom.assembly.padding import sampled_padding
from lumbar.dicom.described import orientation_of, read_described
from lumbar.errors import LumbarError
from lumbar.geometry import Grid, sample
from lumbar.io.tables import FILES, PROBLEMS, files_of, list_studies, read_descriptions, shown
from lumbar.io.text import study_text
from lumbar.labels import DESCRIPTIONS

__all__ = ["Study", "list_studies", "read_descriptions", "read_study", "robust_window"]

WINDOW_PERCENTILES = (1.0, 99.0)
_WINDOW_SAMPLES = 200_000  # pixels of a series that the percentiles are taken from
_MIN_WINDOW = 1e-30  # a narrower window, or one below this share of its start, is a constant in float32
_MIN_WINDOW_SHARE = 1e-7


@dataclass
class Study:
    """The stacks of a study by series description; ``problems`` are lines for the log and the report."""

    study_id: int | str
    series: dict[str, list[Stack]]
    problems: list[str] = field(default_factory=list)
    _windows: dict[str, tuple[float, float]] = field(default_factory=dict, repr=False)

    def window(self, series_id: str) -> tuple[float, float]:
        """Robust intensity range (low, high) of a series in rescaled units, over all its stacks."""
        if series_id not in self._windows:
            stacks = [stack for stacks in self.series.values() for stack in stacks if stack.series_id == series_id]
            self._windows[series_id] = robust_window(stacks)
        return self._windows[series_id]

    def normalised(self, stack: Stack, index: int) -> NDArray[np.float32]:
        """Slice ``index`` of a stack as float32 (rows, columns) in 0..1, dark is 0 whatever the photometric sense."""
        return self._scale(stack, self.raw(stack, index))

    def sampled(self, stack: Stack, index: int, grid: Grid) -> NDArray[np.float32]:
        """Slice ``index`` on a grid: float32 (size, size) in 0..1, 0 outside the image.

        It is sampled first and scaled after, so that only the crop is scaled and not the whole slice.
        """
        low, high = self.window(stack.series_id)
        return self._scale(stack, sample(self.raw(stack, index), grid, outside=high if stack.is_inverted else low))

    def raw(self, stack: Stack, index: int) -> NDArray[np.float32]:
        """Slice ``index`` of a stack in rescaled units, declared padding at the dark end of the window."""
        image = np.asarray(stack.volume[index], dtype=np.float32)
        mask = stack.padding_mask(index)
        if mask is None:
            return image
        low, high = self.window(stack.series_id)
        # In an inverted image a little beyond the bright end, so that padding is exactly 0 after scaling
        dark = high + 1e-4 * (high - low) if stack.is_inverted else low
        return np.where(mask, np.float32(dark), image)

    def _scale(self, stack: Stack, image: NDArray[np.float32]) -> NDArray[np.float32]:
        low, high = self.window(stack.series_id)
        scaled = (image - np.float32(low)) * np.float32(1.0 / (high - low))
        np.clip(scaled, 0.0, 1.0, out=scaled)
        return np.asarray(1.0 - scaled if stack.is_inverted else scaled, dtype=np.float32)


def robust_window(stacks: Sequence[Stack]) -> tuple[float, float]:
    """1st and 99th percentile over the stacks of one series; a constant series gets a window of width 1.

    Declared padding does not count, unless there is nothing else.
    """
    pixels = [stack.volume.reshape(-1) for stack in stacks]
    total = sum(values.size for values in pixels)
    step = max(1, total // _WINDOW_SAMPLES)
    samples = np.concatenate([values[::step] for values in pixels])
    if any(stack.padding is not None for stack in stacks):
        is_image = np.concatenate(
            [_outside_padding(stack, values[::step], step) for stack, values in zip(stacks, pixels, strict=True)]
        )
        samples = samples[is_image] if is_image.any() else samples
    low, high = np.percentile(samples, WINDOW_PERCENTILES)
    low, high = float(low), float(high)
    if high - low > max(_MIN_WINDOW, _MIN_WINDOW_SHARE * abs(low)):
        return low, high
    return low, low + max(1.0, 10 * _MIN_WINDOW_SHARE * abs(low))


def _outside_padding(stack: Stack, values: NDArray[np.float32], step: int) -> NDArray[np.bool_]:
    """Which of every ``step``-th pixel (n,) of a stack are not declared padding."""
    if stack.padding is None:
        return np.ones(values.shape, dtype=bool)
    low, high = sampled_padding(stack, step)
    return ~((low <= values) & (values <= high))


def read_study(
    root: Path, split: str, study_id: int | str, descriptions: pd.DataFrame, workers: int | None = None
) -> Study:
    """Read every series of a study that the table describes. One that cannot be read is a problem, not an exception.

    Paths in ``problems`` are relative to the study, and unusual names are masked (``lumbar.io.text``).
    """
    study = _read_described(root, split, study_id, descriptions, workers)
    if study.problems:
        public = study_text(root, split, study_id, files=files_of(descriptions, study_id))
        study.problems = [public(line) for line in study.problems]
    return study


def _read_described(
    root: Path, split: str, study_id: int | str, descriptions: pd.DataFrame, workers: int | None
) -> Study:
    study = Study(study_id=study_id, series={name: [] for name in DESCRIPTIONS})
    study.problems.extend(descriptions.attrs.get(PROBLEMS, {}).get(study_id, []))
    is_indexed = FILES in descriptions.columns
    folder = Path(root) / f"{split}_images" / str(study_id)
    if not is_indexed and not folder.is_dir():
        study.problems.append(f"{folder}: not found, expected the study's images")
        return study
    rows = descriptions[descriptions["study_id"] == study_id]
    files = rows[FILES] if is_indexed else [None] * len(rows)
    for series_id, description, paths in zip(rows["series_id"], rows["series_description"], files, strict=True):
        if description not in DESCRIPTIONS:  # one wrong row must not end a run over 720 studies
            expected = ", ".join(DESCRIPTIONS)
            study.problems.append(
                f"series {series_id}: found description {shown(description)}, expected {expected}; unused"
            )
            continue
        try:
            series = read_described(folder / str(series_id), description, workers, paths)
        except LumbarError as error:
            study.problems.append(str(error))
            continue
        study.problems.extend(_problems(series))
        expected = orientation_of(description)
        for stack in series.stacks:
            if stack.orientation == expected:
                study.series[description].append(stack)
            else:
                actual = f"{len(stack.volume)} slices are {stack.orientation}"
                study.problems.append(f"series {series_id}: {actual}, expected {expected}; unused")
    study.problems.extend(f"study {study_id}: no {name} series" for name in DESCRIPTIONS if not study.series[name])
    return study


def _problems(series: Series) -> list[str]:
    """The problems of a series, each with its id; all guesses about its geometry become one line."""
    lines = [line for line in series.problems if line not in series.guesses]
    if series.guesses:
        guesses = "; ".join(series.guesses)
        lines.append(f"geometry guessed, confidence of its points lowered ({guesses})")
    starts = f"{series.series_id}: ", os.sep
    return [line if line.startswith(starts) else f"series {series.series_id}: {line}" for line in lines]
