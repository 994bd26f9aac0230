"""The run folder: where each stage leaves weights and tables, under guard, and what of it is there already."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from lumbar_train.data.folds import fold_name
from lumbar_train.engine.checkpoint import save_weights
from lumbar_train.files import write_text
from lumbar_train.outputs.oof import check_oof_frame, check_unseen, write_seen
from lumbar_train.outputs.store import folds_of, read_frame


@dataclass(frozen=True)
class RunFolder:
    """One run's folder.

    ::

        RUN/folds.csv, recipe.json, dropped.json, seconds.json     what is trained on what
        RUN/session.json                                           where the run stands
        RUN/<stage>/<fold>.safetensors, <fold>.seen.json           weights, and the studies that they have seen
        RUN/<stage>/<fold>.done.json                               the stage is done on the fold
        RUN/<stage>/<fold>/                                        the fit's own folder: checkpoint while it runs, log,
                                                                   fit.json; its weights only until they lie above
        RUN/<stage>/<table>.parquet, pieces/                       outputs for held-out studies
        RUN/export/, RUN/report/                                   what ships, and the page
    """

    path: Path

    def weights(self, stage: str, fold: int, suffix: str = "") -> Path:
        """The weights that a stage leaves on a fold; ``suffix`` is that of one of several fits on it."""
        return self.path / stage / f"{fold_name(fold)}{suffix}.safetensors"

    def fit(self, stage: str, fold: int, suffix: str = "") -> Path:
        """The folder of one fit; ``suffix`` is that of a further round of the same fit."""
        return self.path / stage / f"{fold_name(fold)}{suffix}"

    def table(self, stage: str, name: str = "oof") -> Path:
        """A table of outputs for held-out studies."""
        return self.path / stage / f"{name}.parquet"

    @property
    def folds(self) -> Path:
        """The table of folds."""
        return self.path / "folds.csv"

    @property
    def export(self) -> Path:
        """What is sealed."""
        return self.path / "export"

    def save_network(self, network: nn.Module, stage: str, fold: int, seen: Iterable[int], suffix: str = "") -> None:
        """Write a stage's weights, and beside them the studies that they have seen."""
        path = self.weights(stage, fold, suffix)
        save_weights(path, network)
        write_seen(path, fold, seen)

    def drop_copies(self, stage: str, fold: int, suffix: str = "") -> None:
        """Remove a complete fit's own weights, once ``save_network`` has written what the stage leaves on the fold."""
        for name in ("last.safetensors", "best.safetensors"):
            (self.fit(stage, fold, suffix) / name).unlink(missing_ok=True)

    def check_unseen(self, stage: str, fold: int, study_ids: Iterable[int], suffix: str = "") -> None:
        """Refuse to predict studies that a stage's weights have seen.

        Raises:
            LeakError: naming the first such study.
        """
        check_unseen(self.weights(stage, fold, suffix), study_ids)

    def out_of_fold(self, stage: str, table: str, folds: pd.DataFrame) -> Path:
        """Path of a table, once each of its rows is known to come from the fold that held the study out.

        Args:
            stage: the stage that left it.
            table: its name.
            folds: ``study_id, fold`` of the run.

        Raises:
            LeakError: a row does not.
            CohortError: the stage has not run.
        """
        path = self.table(stage, table)
        check_oof_frame(read_frame(path), folds, path)
        return path

    def has_begun(self, stage: str, fold: int, suffix: str = "") -> bool:
        """Whether a fit has left something to resume."""
        folder = self.fit(stage, fold, suffix)
        return (folder / "fit.json").is_file() or (folder / "checkpoint.pt").is_file()

    def has_weights(self, stage: str, fold: int) -> bool:
        """Whether a stage has been fitted on a fold."""
        return self.weights(stage, fold).is_file()

    def fits_of(self, stage: str) -> set[str]:
        """The folds, by name, whose fits of a stage are kept."""
        return {path.stem for path in (self.path / stage).glob("*.safetensors")}

    def has_rows_of(self, stage: str, tables: Iterable[str], fold: int) -> bool:
        """Whether tables hold a fold's outputs, be it that the fold had none to give."""
        return all(fold in folds_of(self.path / stage, table) for table in tables)

    def add_seconds(self, stage: str, seconds: float, device: torch.device, *, goes_on: bool = False) -> None:
        """Note in ``seconds.json`` how long a stage took, and on what; ``goes_on`` adds to what earlier calls took."""
        path = self.path / "seconds.json"
        noted = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        noted[stage] = round(seconds + (noted.get(stage, 0.0) if goes_on else 0.0), 1)
        noted["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads, {device.type}"
        write_text(path, json.dumps(noted, indent=1))
