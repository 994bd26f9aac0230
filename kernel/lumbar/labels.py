"""The competition's terms: conditions, levels, severities and series descriptions, in the order used everywhere."""

from __future__ import annotations

from collections.abc import Iterable

LEVELS = ("l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1")
SIDES = ("left", "right")

SPINAL = "spinal_canal_stenosis"
LEFT_FORAMINAL = "left_neural_foraminal_narrowing"
RIGHT_FORAMINAL = "right_neural_foraminal_narrowing"
LEFT_SUBARTICULAR = "left_subarticular_stenosis"
RIGHT_SUBARTICULAR = "right_subarticular_stenosis"
CONDITIONS = (SPINAL, LEFT_FORAMINAL, RIGHT_FORAMINAL, LEFT_SUBARTICULAR, RIGHT_SUBARTICULAR)
MIRRORED = (0, 2, 1, 4, 3)  # the index that each condition has in the mirrored patient

# The three groups that the metric scores; indices into CONDITIONS.
GROUPS = {"spinal": (0,), "foraminal": (1, 2), "subarticular": (3, 4)}

SEVERITIES = ("Normal/Mild", "Moderate", "Severe")  # as train.csv spells them; the class index is the position
SEVERITY_COLUMNS = ("normal_mild", "moderate", "severe")  # as sample_submission.csv spells them
SEVERITY_WEIGHTS = (1.0, 2.0, 4.0)

# The 25 label columns: condition-major, level-minor. Index = condition_index * 5 + level_index.
COLUMNS = tuple(f"{condition}_{level}" for condition in CONDITIONS for level in LEVELS)

SAGITTAL_T1 = "Sagittal T1"
SAGITTAL_T2 = "Sagittal T2/STIR"
AXIAL_T2 = "Axial T2"
DESCRIPTIONS = (SAGITTAL_T1, SAGITTAL_T2, AXIAL_T2)

_TITLES = {condition: condition.replace("_", " ").title() for condition in CONDITIONS}
CONDITION_TITLES = tuple(_TITLES.values())  # 'Left Neural Foraminal Narrowing', as train_label_coordinates.csv


def row_id(study_id: int | str, condition: str, level: str) -> str:
    """Row name of a submission, e.g. ``44036939_left_neural_foraminal_narrowing_l1_l2``."""
    return f"{study_id}_{condition}_{level}"


def row_ids(study_id: int | str) -> list[str]:
    """The 25 row names of a study, in the order of ``COLUMNS``."""
    return [f"{study_id}_{column}" for column in COLUMNS]


def level_title(level: str) -> str:
    """``l4_l5`` as the coordinates table spells it: ``L4/L5``."""
    return level.upper().replace("_", "/")


def titles_of(levels: Iterable[str]) -> str:
    """Levels as a text names them: ``L1/L2, L2/L3``."""
    return ", ".join(level_title(level) for level in levels)


def level_from_title(title: str) -> str:
    """``L4/L5`` as the columns spell it: ``l4_l5``."""
    return title.strip().lower().replace("/", "_")


def condition_from_title(title: str) -> str:
    """``Left Neural Foraminal Narrowing`` as the columns spell it."""
    return title.strip().lower().replace(" ", "_")
