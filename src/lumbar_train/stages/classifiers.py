"""The stages that grade: what the classifiers train on, their out-of-fold logits, and which labels these contradict."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
from torch import nn

from lumbar.config import CLASSIFIERS
from lumbar.stages.classify import study_logits
from lumbar.stages.points import Localisation
from lumbar_train.data.folds import FULL, split
from lumbar_train.engine.interrupts import until_time_is_up, was_cut
from lumbar_train.outputs.store import logits_frame, read_localisations, write_frame, write_piece
from lumbar_train.recipes import StageRecipe
from lumbar_train.stages import denoise
from lumbar_train.stages.classify import LevelCrops
from lumbar_train.stages.context import RunContext, joined
from lumbar_train.stages.denoise import FIRST
from lumbar_train.stages.fitting import fit_on_fold
from lumbar_train.stages.localisers import LOCALISE
from lumbar_train.stages.losses import graded_loss
from lumbar_train.stages.pseudo import PSEUDO, part_suffix, parts_of, predictions_path
from lumbar_train.stages.stage import Fitted, Stage
from lumbar_train.stages.training_labels import consistent_labels, training_labels

LOCALISE_TABLES = ("levels", "points", "axial")
Outputs = dict[int, tuple[np.ndarray, np.ndarray]]  # logits (5, 5, 3) and mask (5, 5) by study


def localisations(run: RunContext) -> dict[int, Localisation]:
    """Out-of-fold localisations of all studies, their tables checked for leaks."""
    for table in LOCALISE_TABLES:
        run.out_of_fold(LOCALISE, table)
    return read_localisations(run.out / LOCALISE, run.fold_of)


def crops_data(
    run: RunContext, stage: StageRecipe, study_ids: list[int], *, suffix: str, kind: type[LevelCrops] = LevelCrops
) -> LevelCrops:
    """Crops at out-of-fold points, with the labels of a round (``training_labels``), which ``suffix`` names."""
    places, labels = localisations(run), run.labels()
    consistent = consistent_labels(
        run.out, run.recipe, run.cache, places, run.cohort.points, labels, is_writing=run.distributed.is_main
    )
    held_out = {run.fold_of[k] for k in run.fold_of.keys() - set(study_ids)}
    fold = held_out.pop() if held_out else FULL
    learns = training_labels(run.out, run.recipe, suffix, fold, labels, run.fold_of, consistent)
    return kind(
        run.cache,
        {k: places[k] for k in study_ids},
        learns.labels,
        stage.network,
        stage.augment,
        stage.mixing,
        soft=learns.soft,
        left_out=learns.left_out,
    )


def logits_of(run: RunContext, network: nn.Module, study_ids: Iterable[int]) -> Outputs:
    """Logits and mask of each study, at its out-of-fold points."""
    places = localisations(run)
    outputs: Outputs = {}
    flip = not getattr(network.config, "share_sides", False)
    for study_id in study_ids:
        logits, shown = study_logits(run.cache.study(study_id), places[study_id], [network], flip=flip)
        outputs[study_id] = logits.permute(1, 0, 2).numpy(), shown.T.numpy()
    return outputs


def write_logits(run: RunContext, fold: int, outputs: Outputs, *, stage: str) -> None:
    """Leave a fold's logits as a table."""
    logits, masks = ({k: pair[i] for k, pair in outputs.items()} for i in (0, 1))
    write_piece(run.out / stage, fold, logits_frame(logits, masks, run.fold_of))


def predict_training_studies(run: RunContext, stage: Stage, fold: int) -> None:
    """Predict the studies that a fit learns from by networks that saw neither them nor the fold (``pseudo``)."""
    config = run.recipe.pseudo
    assert config is not None
    train, held_out = split(run.folds, fold)
    fitted = Fitted(partial(crops_data, suffix=PSEUDO), lambda _: graded_loss)
    outputs: Outputs = {}
    for number, part in enumerate(parts_of(map(int, train), config.parts, run.seed)):
        suffix = part_suffix(number)
        network = fit_on_fold(run, stage, fold, fitted, without=part, suffix=suffix)
        run.folder.check_unseen(stage.name, fold, [*part, *map(int, held_out)], suffix)
        share = part[run.distributed.rank :: run.distributed.world]
        mine = logits_of(run, network, until_time_is_up(share, is_one_of_many=run.distributed.is_many))
        outputs |= joined(run.distributed, mine, is_cut=was_cut())
    logits, masks = ({k: pair[i] for k, pair in sorted(outputs.items())} for i in (0, 1))
    path = predictions_path(run.out, stage.recipe_name, fold)
    run.distributed.on_main(lambda: write_frame(path, logits_frame(logits, masks, run.fold_of)))


def find_suspect_labels(run: RunContext) -> None:
    """Find the labels that the first round's out-of-fold logits contradict."""
    assert run.recipe.denoise is not None
    for name in CLASSIFIERS:
        run.out_of_fold(f"{name}{FIRST}")
    ids = np.array(sorted(run.fold_of))
    probs = denoise.first_round_probs(run.out, CLASSIFIERS, ids)
    labels = run.cohort.labels[run.cohort.rows(ids)]
    n = denoise.write_suspect_labels(run.out, ids, labels, probs, run.recipe.denoise)
    print(f"suspect labels: {n} of {int((labels >= 0).sum())}; they are left out of the second training")
