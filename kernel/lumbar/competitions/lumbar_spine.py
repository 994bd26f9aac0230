"""RSNA 2024 Lumbar Spine Degenerative Classification: the competition that a manifest means when it names none.

Its chains are ``lumbar.chains.main`` and ``lumbar.chains.baseline``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lumbar.competitions.contract import Competition
from lumbar.labels import COLUMNS, CONDITIONS, LEVELS, SEVERITY_COLUMNS, level_title

if TYPE_CHECKING:
    import pandas as pd

    from lumbar.io.tables import SeriesTable

NAME = "lumbar_spine"


def score(solution: pd.DataFrame, submission: pd.DataFrame) -> dict[str, float]:
    """``lumbar.metric.score`` by the names of its terms."""
    from lumbar import metric

    return asdict(metric.score(solution, submission))


def read_table(root: Path, split: str) -> SeriesTable:
    """``lumbar.io.tables.read_series``: a row a series, with one of the three descriptions."""
    from lumbar.io.tables import read_series

    return read_series(root, split)


COMPETITION = Competition(
    slug="rsna-2024-lumbar-spine-degenerative-classification",
    title="Lumbar spine",
    values=SEVERITY_COLUMNS,
    score=score,
    rows=COLUMNS,
    table="{split}_series_descriptions.csv",
    read_table=read_table,
    labels_are_numbers=False,
    inputs=("train.csv", "train_label_coordinates.csv", "test_label_coordinates.csv"),
    hidden_studies=720,
    full_title="RSNA 2024 lumbar spine",
    row_form="<study_id>_<condition>_<level>",
    row_titles=tuple(condition.replace("_", " ").capitalize() for condition in CONDITIONS),
    column_titles=tuple(level_title(level) for level in LEVELS),
    value_titles=("normal / mild", "moderate", "severe"),
)
