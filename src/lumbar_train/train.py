"""All stages in order: each trains on the out-of-fold outputs of the one before, and leaves its own for the next."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from lumbar.config import HeatmapConfig, SagittalRegressionConfig, to_dict
from lumbar.errors import CohortError
from lumbar.inference import Networks
from lumbar.labels import COLUMNS, SAGITTAL_T1, SAGITTAL_T2, SEVERITY_COLUMNS
from lumbar.metric import score
from lumbar.models import build, name_of
from lumbar.stages.aggregate import aggregate
from lumbar.stages.classify import CLASSIFIERS, level_tensors, run_classifier, target_mask
from lumbar.stages.localise import fuse_levels, localise, sagittal_heat
from lumbar.stages.points import Localisation, Xyz
from lumbar.weights import save_network
from lumbar_train.aggregate import fit_aggregator
from lumbar_train.cache import Cache
from lumbar_train.classify_data import LevelCrops
from lumbar_train.errors import TrainingError
from lumbar_train.files import write_text
from lumbar_train.folds import FULL, check_split, split
from lumbar_train.locate_data import AxialXY, SagittalRegression, SagittalXY, SliceRoles
from lumbar_train.loop import fit
from lumbar_train.loop_config import LoopConfig
from lumbar_train.losses import (
    axial_regression_loss,
    graded_loss,
    heatmap_loss,
    sagittal_regression_loss,
    slice_role_loss,
)
from lumbar_train.masks import MaskReader
from lumbar_train.ranks import Ranks
from lumbar_train.recipes import Recipe, StageRecipe
from lumbar_train.store import (
    levels_frame,
    logits_frame,
    read_levels,
    read_localisations,
    read_logits,
    write_frame,
    write_localisations,
    write_piece,
)
from lumbar_train.tables import Cohort
from lumbar_train.targets import StudyTargets, study_targets

LOCALISE = "localise"
STEPS = ("sagittal_xy", "sagittal_z", "axial_xy", LOCALISE, *CLASSIFIERS, "aggregator")


def fold_name(fold: int) -> str:
    """``fold0`` … and ``full``."""
    return "full" if fold == FULL else f"fold{fold}"


@dataclass
class Run:
    """One training run: what is trained on what, and where it is left."""

    cohort: Cohort
    folds: pd.DataFrame  # study_id, fold
    recipe: Recipe
    out: Path
    cache: Cache
    use_folds: list[int]
    seed: int = 0
    resume: bool = False
    ranks: Ranks = field(default_factory=Ranks)
    loop: dict[str, Any] = field(default_factory=dict)
    targets: dict[int, StudyTargets] = field(default_factory=dict)
    fold_of: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fold_of = {int(s): int(f) for s, f in zip(self.folds["study_id"], self.folds["fold"], strict=True)}
        grouped = dict(list(self.cohort.points.groupby("study_id")))
        empty = self.cohort.points.iloc[:0]
        for study_id in map(int, self.cohort.study_ids):
            self.targets[study_id] = study_targets(self.cache.study(study_id), grouped.get(study_id, empty))

    def labels(self) -> dict[int, np.ndarray]:
        """Labels (25,) by study."""
        return {int(s): row for s, row in zip(self.cohort.study_ids, self.cohort.labels, strict=True)}

    def held_out_folds(self) -> list[int]:
        """The folds that give out-of-fold outputs."""
        return [fold for fold in self.use_folds if fold != FULL]

    def execute(self, stages: Iterable[str], jobs: int = 1) -> None:
        """Run the given steps in their order, whatever the order given; with ``jobs`` folds go side by side."""
        wanted = set(stages)
        if unknown := sorted(wanted - set(STEPS)):
            raise CohortError(f"--stages: found {', '.join(unknown)}, expected of {', '.join(STEPS)}")
        with workers(jobs) as pool:
            for step in (name for name in STEPS if name in wanted):
                start = time.monotonic()
                if step == "aggregator":
                    self.aggregator()
                else:
                    folds = self.held_out_folds() if step == LOCALISE else self.use_folds
                    run_side_by_side(self, step, sorted(folds), pool, jobs)
                self._note_seconds(step, time.monotonic() - start)

    def work(self, step: str, fold: int) -> None:
        """One step on one fold: fit, then leave the out-of-fold outputs of the studies held out."""
        actions: dict[str, Callable[[int], None]] = {
            "sagittal_xy": self.sagittal_xy,
            "sagittal_z": self.sagittal_z,
            "axial_xy": self.axial_xy,
            LOCALISE: self.localise,
            **{name: partial(self.classifier, name) for name in CLASSIFIERS},
        }
        actions[step](fold)

    # Localisers

    def sagittal_xy(self, fold: int) -> None:
        """Fit the sagittal localiser; leave out-of-fold canal points."""
        stage = self.recipe.stages["sagittal_xy"]
        masks = MaskReader(self.cohort.root)

        def data(ids: list[int]) -> SagittalXY:
            targets = {k: self.targets[k] for k in ids}
            if isinstance(stage.network, SagittalRegressionConfig):
                return SagittalRegression(self.cache, targets, stage.network, stage.augment, repeats=stage.fit.repeats)
            assert isinstance(stage.network, HeatmapConfig)
            return SagittalXY(
                self.cache,
                targets,
                stage.network,
                stage.augment,
                repeats=stage.fit.repeats,
                masks=masks if masks.is_there else None,
            )

        loss = heatmap_loss if isinstance(stage.network, HeatmapConfig) else sagittal_regression_loss
        network = self._fit("sagittal_xy", fold, stage, data, loss)
        levels: dict[int, dict[str, Xyz]] = {}
        for study_id in self._held_out(fold, "canal points"):
            study, found = self.cache.study(study_id), Localisation()
            # one description is enough to place a box; localisation proper uses every series
            description = SAGITTAL_T2 if study.series[SAGITTAL_T2] else SAGITTAL_T1
            maps = [sagittal_heat(study, description, k, [network]) for k in range(len(study.series[description]))]
            if maps:
                fuse_levels(maps, found)
            levels[study_id] = found.levels_mm
        if fold != FULL:
            write_piece(self.out / "sagittal_xy", fold, levels_frame(levels, self.fold_of))

    def sagittal_z(self, fold: int) -> None:
        """Fit the slice-role network on boxes around out-of-fold points."""
        stage = self.recipe.stages["sagittal_z"]
        levels = read_levels(self.out / "sagittal_xy" / "oof.parquet")
        usable = {k: v for k, v in levels.items() if len(v) >= 3}

        def data(ids: list[int]) -> SliceRoles:
            return SliceRoles(self.cache, {k: self.targets[k] for k in ids}, usable, stage.network, stage.augment)

        self._fit("sagittal_z", fold, stage, data, slice_role_loss)

    def axial_xy(self, fold: int) -> None:
        """Fit the axial localiser on labelled slices."""
        stage = self.recipe.stages["axial_xy"]

        def data(ids: list[int]) -> AxialXY:
            return AxialXY(self.cache, {k: self.targets[k] for k in ids}, stage.network, stage.augment)

        loss = heatmap_loss if isinstance(stage.network, HeatmapConfig) else axial_regression_loss
        self._fit("axial_xy", fold, stage, data, loss)

    def localise(self, fold: int) -> None:
        """Out-of-fold localisation of a fold's studies by the three localisers that never saw them."""
        networks = Networks({s: [self._load(s, fold)] for s in ("sagittal_xy", "sagittal_z", "axial_xy")})
        found = {k: localise(self.cache.study(k), networks) for k in self._held_out(fold, LOCALISE)}
        write_localisations(self.out / LOCALISE, found, self.fold_of, fold)

    # Classifiers

    def classifier(self, name: str, fold: int) -> None:
        """Fit one classifier on crops at out-of-fold points; leave out-of-fold logits."""
        stage = self.recipe.stages[name]
        found = read_localisations(self.out / LOCALISE, self.fold_of)
        labels = self.labels()

        def data(ids: list[int]) -> LevelCrops:
            return LevelCrops(self.cache, {k: found[k] for k in ids}, labels, stage.network, stage.augment)

        network = self._fit(name, fold, stage, data, graded_loss)
        logits, masks = {}, {}
        for study_id in self._held_out(fold, name):
            crops, mask = level_tensors(self.cache.study(study_id), found[study_id], network)
            out = run_classifier(network, crops, mask, flip=not _shares_sides(stage.network))
            logits[study_id] = out.permute(1, 0, 2).numpy()
            masks[study_id] = target_mask(network, mask).T.numpy()
        if fold != FULL:
            write_piece(self.out / name, fold, logits_frame(logits, masks, self.fold_of))

    def aggregator(self) -> None:
        """Fit the MLPs on out-of-fold logits, scored by fitting them on the other folds' studies only."""
        stage = self.recipe.stages["aggregator"]
        ids = np.array(sorted(k for k, fold in self.fold_of.items() if fold in self.held_out_folds()))
        if not len(ids):
            raise TrainingError(f"{self.out}: no held-out fold among {self.use_folds}, expected one to fit on")
        pairs = [read_logits(self.out / name / "oof.parquet", ids) for name in CLASSIFIERS]
        logits = np.stack([pair[0] for pair in pairs], axis=1)
        mask = np.stack([pair[1] for pair in pairs], axis=1)
        labels = self.cohort.labels[self.cohort.rows(ids)]
        folds = np.array([self.fold_of[int(k)] for k in ids])
        probs = np.zeros((len(ids), 25, 3))
        folder = self.out / "aggregator"
        folder.mkdir(parents=True, exist_ok=True)
        for fold in self.use_folds:
            rows = np.flatnonzero(folds != fold)
            if not len(rows):
                raise TrainingError(
                    f"{self.out}: fold {fold} holds every out-of-fold study, expected at least two folds"
                )
            prior = self.cohort.prior(ids[rows])
            network, losses = fit_aggregator(
                logits[rows], mask[rows], labels[rows], prior, stage.network, stage.fit, self.seed
            )
            save_network(network, folder / f"{fold_name(fold)}.safetensors", half=False)
            write_text(folder / f"{fold_name(fold)}.json", json.dumps({"first": losses[0], "last": losses[-1]}))
            for row in np.flatnonzero(folds == fold):
                probs[row] = aggregate(logits[row], mask[row], prior, [network])
        self._score(ids, probs)

    def _score(self, ids: np.ndarray, probs: np.ndarray) -> None:
        frame = pd.DataFrame(probs.reshape(-1, 3), columns=list(SEVERITY_COLUMNS))
        frame.insert(0, "row_id", [f"{study_id}_{column}" for study_id in ids for column in COLUMNS])
        write_frame(self.out / "aggregator" / "oof.parquet", frame)
        result = score(self.cohort.frame(ids), frame)
        write_text(self.out / "aggregator" / "metrics.json", json.dumps({"oof": asdict(result)}, indent=1))
        tqdm.write(f"out of fold, {len(ids)} studies: {result}")

    # Shared

    def _fit(
        self, name: str, fold: int, stage: StageRecipe, data: Callable[[list[int]], Any], loss: Callable[..., Any]
    ) -> nn.Module:
        """Fit a stage on the studies outside a fold (all of them for the full fit)."""
        train, held_out = split(self.folds, fold)
        check_split(train, held_out)
        torch.manual_seed(self.seed * 1000 + fold + 1)
        network = build(name_of(stage.network), to_dict(stage.network))
        result = fit(
            network,
            data([int(k) for k in train]),
            loss,
            config=loop_config(stage, self.seed, self.loop),
            out_dir=self.out / name / fold_name(fold),
            resume=self.resume,
            distributed=self.ranks,
            identity={"recipe": self.recipe.name, "cohort": self.cohort.fingerprint, "fold": fold},
        )
        load_weights(network, result.weights)
        save_network(network, self.out / name / f"{fold_name(fold)}.safetensors", half=False)
        return network.eval()

    def _load(self, stage: str, fold: int) -> nn.Module:
        recipe = self.recipe.stages[stage]
        network = build(name_of(recipe.network), to_dict(recipe.network))
        return load_weights(network, self.out / stage / f"{fold_name(fold)}.safetensors").to(self.ranks.device).eval()

    def _held_out(self, fold: int, title: str) -> Iterable[int]:
        """Studies of a fold, with a progress bar; none for the full fit, which is never scored."""
        ids = sorted(k for k, held in self.fold_of.items() if held == fold and fold != FULL)
        return tqdm(ids, desc=f"{title} (out of fold {fold})", unit="study", disable=not ids)

    def _note_seconds(self, step: str, seconds: float) -> None:
        path = self.out / "seconds.json"
        noted = json.loads(path.read_text()) if path.is_file() else {}
        noted[step] = round(seconds, 1)
        noted["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads, {self.ranks.device.type}"
        write_text(path, json.dumps(noted, indent=1))


def workers(jobs: int) -> AbstractContextManager[ProcessPoolExecutor | None]:
    """A pool of ``jobs`` processes, started once a run because each imports torch; None for one job."""
    if jobs <= 1:
        return nullcontext()
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def run_side_by_side(run: Run, step: str, folds: list[int], pool: ProcessPoolExecutor | None, jobs: int) -> None:
    """One step on several folds, side by side where there is a pool; the full fit first because it takes longest.

    Each process gets its share of the cores and, where there are GPUs, one of them in turn.
    """
    if pool is None:
        for fold in folds:
            run.work(step, fold)
        return
    for future in [pool.submit(_task, run, step, fold, jobs, k) for k, fold in enumerate(folds)]:
        future.result()


def _task(run: Run, step: str, fold: int, jobs: int, number: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
        run.ranks = Ranks(device=torch.device("cuda", torch.cuda.current_device()))
    run.work(step, fold)


def loop_config(stage: StageRecipe, seed: int, overrides: dict[str, Any]) -> LoopConfig:
    """A stage's fit as the loop's configuration."""
    fit_ = stage.fit
    values = {
        "epochs": fit_.epochs,
        "batch_size": fit_.batch,
        "accumulate": fit_.accumulate,
        "lr": fit_.lr,
        "weight_decay": fit_.weight_decay,
        "warmup": fit_.warmup,
        "clip_norm": fit_.clip,
        "ema_decay": fit_.ema or None,
        "seed": seed,
        "unused_parameters": True,
    }
    return LoopConfig(**(values | overrides))


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Load a stage's weights strictly.

    Raises:
        TrainingError: the stage has not been fitted.
    """
    if not path.is_file():
        raise TrainingError(f"{path}: not found, expected the weights of an earlier stage; run that stage first")
    network.load_state_dict(load_file(path), strict=True)
    return network


def _shares_sides(config: Any) -> bool:
    return bool(getattr(config, "share_sides", False))
