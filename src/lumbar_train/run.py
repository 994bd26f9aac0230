"""A whole training: a competition folder to weights and the page that says what they are worth."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lumbar_train.data.folds import FULL
from lumbar_train.engine.distributed import join_distributed
from lumbar_train.evaluation.evaluate import Evaluation
from lumbar_train.export import export
from lumbar_train.pipeline.execute import execute
from lumbar_train.pipeline.options import TrainOptions, Words, as_folds, as_stages, as_words
from lumbar_train.pipeline.prepare import chosen_recipe, prepare
from lumbar_train.report import report_on
from lumbar_train.stages.context import RunContext


@dataclass(frozen=True)
class TrainedRun:
    """What a call of ``train`` left.

    Attributes:
        folder: the run folder.
        export: weights to seal; None where the fits that ship are not all there yet.
        page: the report; None where no aggregator has been fitted yet.
        evaluation: what the report shows: out-of-fold answers and their figures. Under ``torchrun`` the main process
            alone has it.
    """

    folder: Path
    export: Path | None = None
    page: Path | None = None
    evaluation: Evaluation | None = None


def train(
    data: str | Path,
    out: str | Path,
    *,
    recipe: str = "demo",
    folds: str | Iterable[int | str] | None = None,
    fold_file: str | Path | None = None,
    stages: str | Iterable[str] | None = None,
    points: str | Path | None = None,
    points_use: str = "beside",
    resume: bool = False,
    seed: int = 0,
    cache: str | Path | None = None,
    workers: int | None = None,
    jobs: int = 1,
    loaders: int = 0,
    device: str = "auto",
    amp: str = "auto",
    full_seeds: int | None = None,
    full_epochs: Words = (),
    overrides: Words = (),
    backbone: str | None = None,
    pretrained: bool | None = None,
    backbone_weights: Words = (),
    memory: str | None = None,
    on_refusal: Callable[[Exception], None] | None = None,
) -> TrainedRun:
    """Fit every stage of a recipe on a competition folder, or some stages; export and report what is complete.

    It does what ``python -m lumbar_train train`` does, with the same defaults. Under ``torchrun`` every process calls
    it, and all of them work on one fit at a time. Progress is printed.

    Args:
        data: folder in the competition's layout.
        out: run folder to write.
        recipe: ``demo``, ``model2`` or ``strong``.
        folds: of ``"0,1,full"``, or a list such as ``[0, 1, "full"]``; None for all, which later stages need.
        fold_file: table ``study_id, fold`` such as ``train_folded_v1.csv``; None makes folds, or takes the run's own.
        stages: names, in a list or with commas between; None for all of the recipe.
        points: CSV of external points of sagittal levels: ``series_id, instance_number, level, x, y[, img_h, img_w]``.
        points_use: ``beside``: external points where the competition has none, and on further slices; ``instead``:
            before the competition's.
        resume: go on where a run was interrupted.
        seed: of folds, initial weights, order and augmentation.
        cache: folder of decoded studies; None for ``cache`` in the run folder.
        workers: processes that decode; 0 decodes in this one, None takes one for each core.
        jobs: folds side by side, over the GPUs at hand.
        loaders: processes that prepare samples for each fit.
        device: ``cpu``, ``cuda``, ``cuda:1``, …; ``auto`` is a GPU where there is one.
        amp: half precision of the fits: ``auto`` (by GPU, off on CPUs), ``off``, ``bf16``, ``fp16``.
        full_seeds: fits on all data, each with its own seed; None for the recipe's number.
        full_epochs: epochs of a stage's fits on all data, as ``{"axial_all": 20}`` or words ``axial_all=20``.
        overrides: other values for fields of the recipe, as ``{"axial_all.size": 96}`` or words
            ``axial_all.size=96`` (``--set``).
        backbone: any timm network instead of the recipe's.
        pretrained: start backbones from timm's weights, fetched from its hub; None for the recipe's choice.
        backbone_weights: local timm checkpoints, as ``{"resnet18": file}`` or words ``[NAME=]FILE``.
        memory: that batches are cut to fit, such as ``16GB``; None for what the GPU has free (batches on a
            CPU stay whole).
        on_refusal: under ``torchrun``, told of an error while the other processes are still there; ``torchrun`` ends
            them as soon as one has ended, so a caller that prints the error later may not come to it.

    Returns:
        Where everything lies, and the evaluation where there is one.

    Raises:
        CohortError: the folder, a table or an option is not what it should be; a stage needs outputs of folds that
            nobody makes.
        LeakError: a study would be predicted or scored by weights that have seen it.
        TrainingError: a fit cannot go on; what is finished stays, and ``resume`` goes on from there.
    """
    values = {name: value for name, value in locals().items() if name != "on_refusal"}
    return train_with(train_options(**values), on_refusal)


def train_options(**values: Any) -> TrainOptions:
    """The keywords of ``train``, as plain values.

    Raises:
        TrainingError: a value that cannot be.
    """
    paths = {name: _path(values[name]) for name in ("data", "out", "fold_file", "points", "cache")}
    words = {name: as_words(values[name]) for name in ("full_epochs", "overrides", "backbone_weights")}
    parts = {"folds": as_folds(values["folds"]), "stages": as_stages(values["stages"])}
    return TrainOptions(**{**values, **paths, **words, **parts})


def train_with(options: TrainOptions, on_refusal: Callable[[Exception], None] | None = None) -> TrainedRun:
    """As ``train``, from its options in one value."""
    changed_recipe, start = chosen_recipe(options)
    with join_distributed(options.device, on_refusal) as distributed, torch_threads(thread_count()):
        if distributed.is_many and options.jobs > 1 and distributed.is_main:
            print(f"--jobs {options.jobs} is off: under torchrun all {distributed.world} processes work on one fit")
        distributed.on_main(lambda: start.check(changed_recipe))
        run = prepare(options, changed_recipe, start, distributed)
        execute(run, options.stages, options.jobs)
        return finish(run) if distributed.is_main else TrainedRun(run.out)


def finish(run: RunContext) -> TrainedRun:
    """Export and report, where the aggregator has been fitted."""
    exported = page = evaluation = None
    if run.full_fits() and run.folder.has_weights("aggregator", FULL):
        exported = export(run)
    if run.folder.table("aggregator").is_file():
        page, evaluation = report_on(run.out, run.cohort.root)
    return TrainedRun(run.out, exported, page, evaluation)


def thread_count() -> int:
    """Threads for this process: as OMP_NUM_THREADS says, else the cores shared out among the machine's processes."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    asked = os.environ.get("OMP_NUM_THREADS", "") if local == 1 else ""  # torchrun sets it itself, to 1
    return max(1, int(asked) if asked.isdigit() else (os.cpu_count() or 1) // local)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads in a block, and with as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
