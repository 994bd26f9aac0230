"""All stages in order: each trains on the out-of-fold outputs of the one before, and leaves its own for the next."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterable
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
from lumbar.inference import Networks
from lumbar.labels import COLUMNS, SEVERITY_COLUMNS
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

    def execute(self, stages: Iterable[str]) -> None:
        """Run the given steps in their order, whatever the order given."""
        wanted = set(stages)
        actions: dict[str, Callable[[], None]] = {
            "sagittal_xy": self.sagittal_xy,
            "sagittal_z": self.sagittal_z,
            "axial_xy": self.axial_xy,
            LOCALISE: self.localise,
            **{name: partial(self.classifier, name) for name in CLASSIFIERS},
            "aggregator": self.aggregator,
        }
        for step in STEPS:
            if step in wanted:
                start = time.monotonic()
                actions[step]()
                self._note_seconds(step, time.monotonic() - start)

    # Localisers

    def sagittal_xy(self) -> None:
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
        networks = self._fit_all("sagittal_xy", stage, data, loss)
        levels: dict[int, dict[str, Xyz]] = {}
        for study_id, network in self._held_out(networks, "canal points"):
            study, found = self.cache.study(study_id), Localisation()
            maps = [
                sagittal_heat(study, description, number, [network])
                for description in study.series
                if "Sagittal" in description
                for number in range(len(study.series[description]))
            ]
            if maps:
                fuse_levels(maps, found)
            levels[study_id] = found.levels_mm
        if levels:
            write_frame(self.out / "sagittal_xy" / "oof.parquet", levels_frame(levels, self.fold_of))

    def sagittal_z(self) -> None:
        """Fit the slice-role network on boxes around out-of-fold points."""
        stage = self.recipe.stages["sagittal_z"]
        levels = read_levels(self.out / "sagittal_xy" / "oof.parquet")
        usable = {k: v for k, v in levels.items() if len(v) >= 3}

        def data(ids: list[int]) -> SliceRoles:
            return SliceRoles(self.cache, {k: self.targets[k] for k in ids}, usable, stage.network, stage.augment)

        self._fit_all("sagittal_z", stage, data, slice_role_loss)

    def axial_xy(self) -> None:
        """Fit the axial localiser on labelled slices."""
        stage = self.recipe.stages["axial_xy"]

        def data(ids: list[int]) -> AxialXY:
            return AxialXY(self.cache, {k: self.targets[k] for k in ids}, stage.network, stage.augment)

        loss = heatmap_loss if isinstance(stage.network, HeatmapConfig) else axial_regression_loss
        self._fit_all("axial_xy", stage, data, loss)

    def localise(self) -> None:
        """Out-of-fold localisation of every study by the three localisers of its fold."""
        found: dict[int, Localisation] = {}
        networks = {
            fold: Networks({s: [self._load(s, fold)] for s in ("sagittal_xy", "sagittal_z", "axial_xy")})
            for fold in self.held_out_folds()
        }
        for study_id, bundle in self._held_out(networks, "localise"):
            found[study_id] = localise(self.cache.study(study_id), bundle)
        if found:
            write_localisations(self.out / LOCALISE, found, self.fold_of)

    # Classifiers

    def classifier(self, name: str) -> None:
        """Fit one classifier on crops at out-of-fold points; leave out-of-fold logits."""
        stage = self.recipe.stages[name]
        found = read_localisations(self.out / LOCALISE, self.fold_of)
        labels = self.labels()

        def data(ids: list[int]) -> LevelCrops:
            return LevelCrops(self.cache, {k: found[k] for k in ids}, labels, stage.network, stage.augment)

        networks = self._fit_all(name, stage, data, graded_loss)
        logits, masks = {}, {}
        for study_id, network in self._held_out(networks, name):
            crops, mask = level_tensors(self.cache.study(study_id), found[study_id], network)
            out = run_classifier(network, crops, mask, flip=not _shares_sides(stage.network))
            logits[study_id] = out.permute(1, 0, 2).numpy()
            masks[study_id] = target_mask(network, mask).T.numpy()
        if logits:
            write_frame(self.out / name / "oof.parquet", logits_frame(logits, masks, self.fold_of))

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

    def _fit_all(
        self, name: str, stage: StageRecipe, data: Callable[[list[int]], Any], loss: Callable[..., Any]
    ) -> dict[int, nn.Module]:
        """Fit a stage on every fold asked for; returns the networks of the held-out folds."""
        networks = {}
        for fold in self.use_folds:
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
            if fold != FULL:
                networks[fold] = network.eval()
        return networks

    def _load(self, stage: str, fold: int) -> nn.Module:
        recipe = self.recipe.stages[stage]
        network = build(name_of(recipe.network), to_dict(recipe.network))
        return load_weights(network, self.out / stage / f"{fold_name(fold)}.safetensors").to(self.ranks.device).eval()

    def _held_out(self, networks: dict[int, Any], title: str) -> Iterable[tuple[int, Any]]:
        """(study, network of the fold that never saw it), with a progress bar."""
        pairs = [(k, fold) for k, fold in sorted(self.fold_of.items()) if fold in networks]
        for study_id, fold in tqdm(pairs, desc=f"{title} (out of fold)", unit="study", disable=not pairs):
            yield study_id, networks[fold]

    def _note_seconds(self, step: str, seconds: float) -> None:
        path = self.out / "seconds.json"
        noted = json.loads(path.read_text()) if path.is_file() else {}
        noted[step] = round(seconds, 1)
        noted["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads, {self.ranks.device.type}"
        write_text(path, json.dumps(noted, indent=1))


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
