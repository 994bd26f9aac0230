"""What a call of ``train`` left; importing it loads neither torch nor pandas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lumbar_train.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class TrainedRun:
    """What a call of ``train`` left.

    Attributes:
        folder: the run folder.
        export: weights to seal; None where the fits that ship are not all there yet, or rest on what was made anew.
        page: the report; None where no aggregator has been fitted yet, or its outputs rest on what was made anew.
        evaluation: what the report shows: out-of-fold answers and their figures. Under ``torchrun`` the main process
            alone has it.
        left: where the time limit ended it, the folds that stages are not finished on; nothing else is known then.
        next_command: the command line that goes on from there.
    """

    folder: Path
    export: Path | None = None
    page: Path | None = None
    evaluation: Evaluation | None = None
    left: Mapping[str, int] = field(default_factory=dict)
    next_command: str = ""
