"""All stages in order: each trains on the out-of-fold outputs of the one before, and leaves its own for the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from lumbar.config import HeatmapConfig, SagittalRegressionConfig, to_dict
from lumbar.errors import CohortError
from lumbar.labels import SAGITTAL_T1, SAGITTAL_T2
from lumbar.models import build, name_of
from lumbar.models.inference import Networks
from lumbar.stages.classify import CLASSIFIERS, study_logits
from lumbar.stages.heat import sagittal_heat
from lumbar.stages.localise import localise
from lumbar.stages.place import fuse_levels
from lumbar.stages.points import Localisation, Xyz
from lumbar_train.data.cache import Cache
from lumbar_train.data.folds import FULL, check_split, is_full, split
from lumbar_train.data.masks import MaskReader
from lumbar_train.data.tables import Cohort
from lumbar_train.data.targets import StudyTargets, study_targets
from lumbar_train.engine.checkpoint import save_weights
from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.fold_pool import run_side_by_side, workers
from lumbar_train.engine.loop import fit
from lumbar_train.outputs.oof import check_oof_frame, check_unseen, write_seen
from lumbar_train.outputs.store import (
    levels_frame,
    logits_frame,
    read_frame,
    read_levels,
    read_localisations,
    write_frame,
    write_localisations,
    write_piece,
)
from lumbar_train.recipes import Recipe, StageRecipe
from lumbar_train.stages import denoise
from lumbar_train.stages.aggregate_folds import fit_aggregator_folds
from lumbar_train.stages.classify import LevelCrops
from lumbar_train.stages.denoise import FIRST
from lumbar_train.stages.fitting import fit_seed, fold_name, has_begun, load_weights, loop_config, note_seconds
from lumbar_train.stages.locate import AxialXY, SagittalRegression, SagittalXY, SliceRoles
from lumbar_train.stages.losses import (
    axial_regression_loss,
    graded_loss,
    heatmap_loss,
    sagittal_regression_loss,
    slice_role_loss,
)
from lumbar_train.stages.metric_finetune import MetricLoss, StudyCrops
from lumbar_train.stages.needs import LOCALISE, check_plan, steps_of
from lumbar_train.stages.pretrained import Start
from lumbar_train.stages.pseudo import PSEUDO, fold_of_labels, parts_of, predictions_path
from lumbar_train.stages.training_labels import consistent_labels, training_labels

T = TypeVar("T")


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
    distributed: Distributed = field(default_factory=Distributed)
    devices: tuple[torch.device, ...] = ()  # for folds side by side; none: this process's own
    loop: dict[str, Any] = field(default_factory=dict)
    start: Start = field(default_factory=Start)
    words: tuple[str, ...] = ()  # of --set, which made the recipe what it is
    points_use: str = "beside"  # external points: beside the competition's, or instead of them
    command: str = "python -m lumbar_train train"  # how this run was called, without stages and folds
    targets: dict[int, StudyTargets] = field(default_factory=dict)
    fold_of: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fold_of = {int(s): int(f) for s, f in zip(self.folds["study_id"], self.folds["fold"], strict=True)}
        grouped = dict(list(self.cohort.points.groupby("study_id")))
        empty = self.cohort.points.iloc[:0]
        for study_id in map(int, self.cohort.study_ids):
            self.targets[study_id] = study_targets(
                self.cache.study(study_id), grouped.get(study_id, empty), self.points_use
            )

    def labels(self) -> dict[int, np.ndarray]:
        """Labels (25,) by study."""
        return {int(s): row for s, row in zip(self.cohort.study_ids, self.cohort.labels, strict=True)}

    def held_out_folds(self) -> list[int]:
        """The folds that give out-of-fold outputs."""
        return [fold for fold in self.use_folds if not is_full(fold)]

    def all_folds(self) -> list[int]:
        """Every fold that holds out studies, chosen for this call or not."""
        return sorted(set(self.fold_of.values()))

    def execute(self, stages: Iterable[str] | None = None, jobs: int = 1) -> None:
        """Run the given steps (None: all) in their order, whatever the order given; ``jobs`` folds go side by side."""
        steps = steps_of(self.recipe)
        wanted = set(steps if stages is None else stages)
        if unknown := sorted(wanted - set(steps)):
            raise CohortError(f"--stages: found {', '.join(unknown)}, expected of {', '.join(steps)}")
        plan = [(step, fold) for step in steps if step in wanted for fold in self._folds_of(step)]
        self.distributed.on_main(lambda: self._check_plan(plan))
        jobs = 1 if self.distributed.is_many else jobs  # under torchrun all processes work on one fit
        with workers(jobs) as pool:
            for step in (name for name in steps if name in wanted):
                start = time.monotonic()
                if step in ("aggregator", denoise.STEP):
                    self.distributed.on_main(self.aggregator if step == "aggregator" else self.find_suspect_labels)
                else:
                    run_side_by_side(self, step, self._folds_of(step), pool, jobs)
                self.distributed.on_main(
                    partial(note_seconds, self.out, step, time.monotonic() - start, self.distributed.device)
                )

    def _folds_of(self, step: str) -> list[int]:
        """The folds that a step runs on, fits on all data first."""
        if step in ("aggregator", denoise.STEP):  # all folds at once
            return [FULL]
        if step.endswith(PSEUDO):
            return sorted({fold_of_labels(fold) for fold in self.use_folds})
        is_partial = step == LOCALISE or step.endswith(FIRST)  # only out-of-fold outputs are wanted
        return sorted(self.held_out_folds() if is_partial else self.use_folds)

    def _check_plan(self, plan: list[tuple[str, int]]) -> None:
        """Refuse before hours of work what needs the outputs of folds that nobody makes."""
        check_plan(
            self.out,
            plan,
            steps_of(self.recipe),
            self.all_folds(),
            is_denoised=self.recipe.denoise is not None,
            is_softened=self.recipe.pseudo is not None,
            command=self.command,
        )

    def work(self, step: str, fold: int) -> None:
        """One step on one fold: fit, then leave the out-of-fold outputs of the studies held out."""
        self.distributed.on_main(lambda: self._check_plan([(step, fold)]))
        actions: dict[str, Callable[[int], None]] = {
            "sagittal_xy": self.sagittal_xy,
            "sagittal_z": self.sagittal_z,
            "axial_xy": self.axial_xy,
            LOCALISE: self.localise,
            **{name: partial(self.classifier, name) for name in CLASSIFIERS},
            **{f"{name}{FIRST}": partial(self.classifier, name, suffix=FIRST) for name in CLASSIFIERS},
            **{f"{name}{PSEUDO}": partial(self.predict_training_studies, name) for name in CLASSIFIERS},
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
        for study_id in self._held_out(fold, "sagittal_xy"):
            study, found = self.cache.study(study_id), Localisation()
            # one description is enough to place a box; localisation proper uses every series
            description = SAGITTAL_T2 if study.series[SAGITTAL_T2] else SAGITTAL_T1
            maps = [sagittal_heat(study, description, k, [network]) for k in range(len(study.series[description]))]
            if maps:
                fuse_levels(maps, found)
            levels[study_id] = found.levels_mm
        self._leave(
            fold, levels, lambda every: write_piece(self.out / "sagittal_xy", fold, levels_frame(every, self.fold_of))
        )

    def sagittal_z(self, fold: int) -> None:
        """Fit the slice-role network on boxes around out-of-fold points."""
        stage = self.recipe.stages["sagittal_z"]
        levels = read_levels(self._out_of_fold("sagittal_xy", "oof"))
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
        stages = ("sagittal_xy", "sagittal_z", "axial_xy")
        networks = Networks({stage: [self._load(stage, fold)] for stage in stages})
        held_out = self._held_out(fold, *stages, title=LOCALISE)
        # One view is a third of the time, and points as good as these are what classifiers should bear; but how sure
        # localisation is, an aggregator must learn from the views that the kernel takes.
        is_full_look = bool(self.recipe.stages["aggregator"].network.confidence)
        found = {k: localise(self.cache.study(k), networks, augment=is_full_look) for k in held_out}
        self._leave(fold, found, lambda every: write_localisations(self.out / LOCALISE, every, self.fold_of, fold))

    # Classifiers

    def classifier(self, name: str, fold: int, *, suffix: str = "") -> None:
        """Fit one classifier on crops at out-of-fold points; leave out-of-fold logits.

        ``suffix`` is that of a first round, which learns from all labels; the second leaves out suspect ones.
        """
        stage = self.recipe.stages[name]
        localisations = self._localisations()
        data = self._crops(stage, localisations, suffix, fold)
        name = f"{name}{suffix}"
        network = self._fit(name, fold, stage, data, graded_loss)
        outputs = self._logits(network, localisations, self._held_out(fold, name))

        def write(every: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
            write_piece(self.out / name, fold, self._logits_frame(every))

        self._leave(fold, outputs, write)

    def predict_training_studies(self, name: str, fold: int) -> None:
        """Predict the studies that a fit learns from by networks that saw neither them nor the fold (``pseudo``)."""
        assert self.recipe.pseudo is not None
        stage = self.recipe.stages[name]
        stage = replace(stage, fit=replace(stage.fit, metric_epochs=0))
        localisations = self._localisations()
        data = self._crops(stage, localisations, PSEUDO, fold)
        train, held_out = split(self.folds, fold)
        every: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for number, part in enumerate(parts_of(map(int, train), self.recipe.pseudo.parts, self.seed)):
            place = f"{fold_name(fold)}-part{number}"
            network = self._fit(f"{name}{PSEUDO}", fold, stage, data, graded_loss, without=part, place=place)
            weights = self.out / f"{name}{PSEUDO}" / f"{place}.safetensors"
            check_unseen(weights, [*part, *map(int, held_out)])
            mine = part[self.distributed.rank :: self.distributed.world]
            outputs = self._logits(network, localisations, mine)
            every |= {k: value for some in self.distributed.gather(outputs) for k, value in some.items()}
        path = predictions_path(self.out, name, fold)
        self.distributed.on_main(lambda: write_frame(path, self._logits_frame(dict(sorted(every.items())))))

    def _crops(
        self, stage: StageRecipe, localisations: dict[int, Localisation], suffix: str, fold: int
    ) -> Callable[[list[int]], LevelCrops]:
        """What makes a classifier's samples of some studies, with the labels of this round."""
        points, labels = self.cohort.points, self.labels()
        consistent = consistent_labels(
            self.out, self.recipe, self.cache, localisations, points, labels, is_writing=self.distributed.is_main
        )
        learns = training_labels(self.out, self.recipe, suffix, fold, labels, self.fold_of, consistent)

        def data(ids: list[int]) -> LevelCrops:
            return LevelCrops(
                self.cache,
                {k: localisations[k] for k in ids},
                learns.labels,
                stage.network,
                stage.augment,
                stage.mixing,
                soft=learns.soft,
                left_out=learns.left_out,
            )

        return data

    def _logits(
        self, network: nn.Module, localisations: dict[int, Localisation], study_ids: Iterable[int]
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """A classifier's logits (5 conditions, 5 levels, 3) and mask (5, 5) of studies."""
        flip = not _shares_sides(network.config)
        outputs = {}
        for study_id in study_ids:
            out, shown = study_logits(self.cache.study(study_id), localisations[study_id], [network], flip=flip)
            outputs[study_id] = out.permute(1, 0, 2).numpy(), shown.T.numpy()
        return outputs

    def _logits_frame(self, every: dict[int, tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
        logits, masks = ({k: pair[i] for k, pair in every.items()} for i in (0, 1))
        return logits_frame(logits, masks, self.fold_of)

    def _localisations(self) -> dict[int, Localisation]:
        """Out-of-fold localisations of all studies."""
        for table in ("levels", "points", "axial"):
            self._out_of_fold(LOCALISE, table)
        return read_localisations(self.out / LOCALISE, self.fold_of)

    def find_suspect_labels(self) -> None:
        """Find the labels that the first round's out-of-fold outputs contradict."""
        assert self.recipe.denoise is not None
        for name in CLASSIFIERS:
            self._out_of_fold(f"{name}{FIRST}", "oof")
        ids = np.array(sorted(self.fold_of))
        probs = denoise.first_round_probs(self.out, CLASSIFIERS, ids)
        labels = self.cohort.labels[self.cohort.rows(ids)]
        n = denoise.write_suspect_labels(self.out, ids, labels, probs, self.recipe.denoise)
        tqdm.write(
            f"suspect labels: {n} of {int((labels >= 0).sum())} labels; they are left out of the second training"
        )

    def aggregator(self) -> None:
        """Fit the aggregator on out-of-fold logits."""
        for name in CLASSIFIERS:
            self._out_of_fold(name, "oof")
        fit_aggregator_folds(
            self.out,
            self.cohort,
            self.fold_of,
            self.all_folds() + [fold for fold in self.use_folds if is_full(fold)],
            self.recipe.stages["aggregator"],
            seed=self.seed,
        )

    # Shared

    def _fit(
        self,
        name: str,
        fold: int,
        stage: StageRecipe,
        data: Callable[[list[int]], Any],
        loss: Callable[..., Any],
        *,
        without: Iterable[int] = (),
        place: str = "",
    ) -> nn.Module:
        """Fit a stage on the studies outside a fold (all of them for the full fit), perhaps without some more.

        ``place``: name of the fit's folder and weights, where it is not the fold's.
        """
        train, held_out = split(self.folds, fold)
        if more := np.array([*without], np.int64).tolist():
            train, held_out = train[~np.isin(train, more)], np.union1d(held_out, more)
        place = place or fold_name(fold)
        check_split(train, held_out)
        samples = data([int(k) for k in train])
        seen = set(map(int, train)) | set(samples.studies)  # what is asked for and what is given
        check_split(seen, held_out)
        torch.manual_seed(self.seed * 1000 + fold + 1)
        network = build(name_of(stage.network), to_dict(stage.network))
        folder = self.out / name / place
        if self.distributed.is_main and not (
            self.resume and has_begun(folder)
        ):  # the others receive the first's weights
            self.start.apply(network)
        result = fit(
            network,
            samples,
            loss,
            config=loop_config(stage.for_fold(fold), fit_seed(self.seed, fold), self.loop),
            out_dir=folder,
            resume=self.resume,
            distributed=self.distributed,
            identity=self._identity(fold),
        )
        load_weights(network, result.weights)
        if isinstance(samples, LevelCrops) and stage.fit.metric_epochs:
            self._fit_metric(network, samples, stage, folder, fold)
        self.distributed.on_main(partial(self._keep, network, self.out / name / f"{place}.safetensors", fold, seen))
        return network.eval()

    def _fit_metric(self, network: nn.Module, samples: LevelCrops, stage: StageRecipe, folder: Path, fold: int) -> None:
        """The second step: a few epochs of whole studies on the metric itself, from the weights of the first."""
        studies = StudyCrops(samples)
        labels = {k: samples.labels[k] for k in studies.study_ids}
        config = loop_config(stage, fit_seed(self.seed, fold), self.loop)
        result = fit(
            network,
            studies,
            MetricLoss(labels, tuple(samples.targets)),
            config=replace(
                config,
                epochs=stage.fit.metric_epochs,
                lr=stage.fit.metric_lr or config.lr / 10,
                batch_size=max(1, config.batch_size // 4),  # a study holds five levels
            ),
            out_dir=folder.with_name(f"{folder.name}-metric"),
            resume=self.resume,
            distributed=self.distributed,
            identity=self._identity(fold) | {"step": "metric"},
        )
        load_weights(network, result.weights)

    def _identity(self, fold: int) -> dict[str, Any]:
        """What must be the same for a fit to be resumed, beside its settings."""
        found = {"recipe": self.recipe.name, "cohort": self.cohort.fingerprint, "fold": fold}
        return found if self.points_use == "beside" else found | {"points": self.points_use}

    @staticmethod
    def _keep(network: nn.Module, weights: Path, fold: int, seen: set[int]) -> None:
        """Leave a stage's weights, and beside them which studies they have seen."""
        save_weights(weights, network)
        write_seen(weights, fold, seen)

    def _weights(self, stage: str, fold: int) -> Path:
        return self.out / stage / f"{fold_name(fold)}.safetensors"

    def _load(self, stage: str, fold: int) -> nn.Module:
        recipe = self.recipe.stages[stage]
        network = build(name_of(recipe.network), to_dict(recipe.network))
        return load_weights(network, self._weights(stage, fold)).to(self.distributed.device).eval()

    def _held_out(self, fold: int, *stages: str, title: str = "") -> Iterable[int]:
        """This process's share of a fold's studies, with a bar; none for a fit on all data, which is never scored.

        Raises:
            LeakError: the weights of one of the stages have seen one of them.
        """
        ids = [] if is_full(fold) else sorted(k for k, held in self.fold_of.items() if held == fold)
        for stage in stages if ids else ():
            check_unseen(self._weights(stage, fold), ids)
        is_shown = bool(ids) and self.distributed.is_main
        mine = ids[self.distributed.rank :: self.distributed.world]
        return tqdm(mine, desc=f"{title or stages[0]} (out of fold {fold})", unit="study", disable=not is_shown)

    def _leave(self, fold: int, outputs: dict[int, T], write: Callable[[dict[int, T]], None]) -> None:
        """Join the processes' outputs; the first writes them before anyone goes on to read."""
        if is_full(fold):
            return
        every = {study_id: value for part in self.distributed.gather(outputs) for study_id, value in part.items()}
        self.distributed.on_main(lambda: write(dict(sorted(every.items()))))

    def _out_of_fold(self, stage: str, table: str) -> Path:
        """Path of an earlier stage's table, once each of its rows is known to come from the fold that held it out.

        Raises:
            LeakError: a row does not.
            CohortError: the stage has not run.
        """
        path = self.out / stage / f"{table}.parquet"
        check_oof_frame(read_frame(path), self.folds, path)
        return path


def _shares_sides(config: Any) -> bool:
    return bool(getattr(config, "share_sides", False))
