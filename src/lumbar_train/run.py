"""A whole training: a competition folder to weights and the page that says what they are worth.

Names, folders and the run folder's lock are checked before torch and pandas are imported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lumbar_train.outputs.run_lock import RunLock
from lumbar_train.pipeline.given import check_given
from lumbar_train.pipeline.options import TrainOptions, Words
from lumbar_train.pipeline.outcome import TrainedRun

__all__ = ["TrainedRun", "thread_count", "torch_threads", "train", "train_with"]


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
    resume: bool | str | Path = False,
    overwrite: bool = False,
    seed: int = 0,
    cache: str | Path | None = None,
    workers: int | None = None,
    jobs: int = 1,
    loaders: int | None = None,
    device: str = "auto",
    amp: str = "auto",
    full_seeds: int | None = None,
    full_epochs: Words = (),
    overrides: Words = (),
    backbone: str | None = None,
    pretrained: bool | None = None,
    backbone_weights: Words = (),
    memory: str | None = None,
    time_limit: str | float | None = None,
    init: str | Path | None = None,
    localisers: str | Path | None = None,
    ship: str | None = None,
    on_refusal: Callable[[Exception], None] | None = None,
) -> TrainedRun:
    """Fit every stage of a recipe on a competition folder, or some stages; export and report what is complete.

    It does what ``python -m lumbar_train train`` does, with the same defaults. Under ``torchrun`` every process calls
    it, and all of them work on one fit at a time. Progress is printed.

    ``lumbar_train.TrainOptions`` explains each option. ``data`` is a folder in the competition's layout and ``out`` the
    run folder to write. ``on_refusal`` is called with an error under ``torchrun`` while the other processes are still
    there: ``torchrun`` ends them as soon as one has ended, so a caller that prints the error later may not come to it.

    Returns:
        Where everything lies, and the evaluation where there is one. Where ``time_limit`` has ended the run, what is
        left and how to go on.

    Raises:
        CohortError: the folder, a table or an option is not what it should be; a stage needs outputs of folds that
            nobody makes.
        LeakError: a study would be predicted or scored by weights that have seen it.
        TrainingError: a fit cannot go on; what is finished stays, and ``resume`` goes on from there.
    """
    given = {name: value for name, value in locals().items() if name != "on_refusal"}
    return train_with(TrainOptions.of(**given), on_refusal)


def train_with(options: TrainOptions, on_refusal: Callable[[Exception], None] | None = None) -> TrainedRun:
    """As ``train``, from its options in one value."""
    began = time.monotonic()
    check_given(options)
    lock = RunLock(options.out, resume=bool(options.resume), overwrite=options.overwrite, folds=options.folds)
    if is_one_of_many():  # the main process takes the lock once all have met
        return _train(options, on_refusal, began, lock)
    with lock:
        return _train(options, on_refusal, began)


def _train(
    options: TrainOptions, on_refusal: Callable[[Exception], None] | None, began: float, lock: RunLock | None = None
) -> TrainedRun:
    from lumbar_train.engine.distributed import join_distributed
    from lumbar_train.engine.interrupts import TimeLimitReached, ends_in_time
    from lumbar_train.pipeline.backbone_start import check_start
    from lumbar_train.pipeline.carry_out import carry_out, ends_at, no_checkpoint
    from lumbar_train.pipeline.prepare import chosen_recipe, prepare
    from lumbar_train.stages.registry import chosen_stages

    changed_recipe, start = chosen_recipe(options)
    chosen_stages(changed_recipe, options.stages)  # a wrong name is refused before studies are decoded
    with (
        join_distributed(options.device, on_refusal) as distributed,
        torch_threads(thread_count()),
        ends_in_time(ends_at(options, began)),
    ):
        try:
            if lock is not None:
                distributed.on_main(lock.acquire)
            if distributed.is_many and options.jobs > 1 and distributed.is_main:
                print(f"--jobs {options.jobs} is off: under torchrun all {distributed.world} processes work on one fit")
            distributed.on_main(lambda: check_start(options, changed_recipe, start))
            try:
                run = prepare(options, changed_recipe, start, distributed)
            except TimeLimitReached:
                raise no_checkpoint(options) from None
            return carry_out(run, options, began)
        finally:
            if lock is not None:
                lock.release()


def is_one_of_many() -> bool:
    """Whether this process was started by ``torchrun`` beside others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def thread_count() -> int:
    """Threads for this process: as OMP_NUM_THREADS says, else the cores shared out among the machine's processes."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    asked = os.environ.get("OMP_NUM_THREADS", "") if local == 1 else ""  # torchrun sets it itself, to 1
    return max(1, int(asked) if asked.isdigit() else (os.cpu_count() or 1) // local)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads in a block, and with as many as before after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
