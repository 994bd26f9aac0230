"""What is noted of a decoded study beside its pixels, as plain JSON values: geometry, windows, problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from lumbar.dicom import Stack
from lumbar.study import Study

StackRecord = dict[str, Any]


def record_of(study: Study, place: Callable[[Stack], StackRecord]) -> dict[str, Any]:
    """A study's record.

    Args:
        study: the study.
        place: called once for each stack: where its pixels are, joined to the rest of the stack's record.
    """
    series = [
        {"description": description, "stacks": [place(stack) | {"fields": _fields_of(stack)} for stack in stacks]}
        for description, stacks in study.series.items()
    ]
    ids = dict.fromkeys(stack.series_id for stacks in study.series.values() for stack in stacks)
    return {
        "study_id": study.study_id,
        "problems": study.problems,
        "windows": {series_id: study.window(series_id) for series_id in ids},
        "series": series,
    }


def study_of(record: dict[str, Any], volume: Callable[[StackRecord], Any]) -> Study:
    """The study of a record; ``volume`` gives a stack's array (slices, rows, columns) for what ``place`` noted."""
    series = {
        one["description"]: [
            Stack(volume=volume(stack), **{name: _decode(value) for name, value in stack["fields"].items()})
            for stack in one["stacks"]
        ]
        for one in record["series"]
    }
    study = Study(study_id=record["study_id"], series=series, problems=record["problems"])
    study._windows.update({series_id: (low, high) for series_id, (low, high) in record["windows"].items()})
    return study


def _fields_of(stack: Stack) -> dict[str, Any]:
    return {f.name: _encode(getattr(stack, f.name)) for f in fields(stack) if f.init and f.name != "volume"}


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": value.dtype.str, "shape": value.shape}
    return value.item() if isinstance(value, np.generic) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict) and "array" in value:
        return np.array(value["array"], dtype=value["dtype"]).reshape(value["shape"])
    return value
