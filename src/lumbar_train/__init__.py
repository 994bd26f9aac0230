"""Cohort to weights: tables, folds, cache, the training loop, out-of-fold gathering, evaluation and its report.

``train`` does all of it, as ``python -m lumbar_train train`` does. Importing the package does not load torch: what a
name needs is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lumbar_train.errors import LeakError, TrainingError
    from lumbar_train.pipeline.options import TrainOptions
    from lumbar_train.run import TrainedRun, train

_HOMES = {
    "train": "lumbar_train.run",
    "TrainedRun": "lumbar_train.run",
    "TrainOptions": "lumbar_train.pipeline.options",
    "LeakError": "lumbar_train.errors",
    "TrainingError": "lumbar_train.errors",
}
__all__ = ["LeakError", "TrainOptions", "TrainedRun", "TrainingError", "train"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
