"""The stages that grade: what the classifiers train on, their out-of-fold logits, and which labels these contradict."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import nn
from tqdm import tqdm

from lumbar.stages.classify import CLASSIFIERS, study_logits
from lumbar.stages.points import Localisation
from lumbar_train.outputs.store import logits_frame, read_localisations, write_piece
from lumbar_train.recipes import StageRecipe
from lumbar_train.stages import denoise
from lumbar_train.stages.classify import LevelCrops
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.denoise import FIRST
from lumbar_train.stages.localisers import LOCALISE

LOCALISE_TABLES = ("levels", "points", "axial")
Outputs = dict[int, tuple[np.ndarray, np.ndarray]]  # logits (5, 5, 3) and mask (5, 5) by study


def localisations(run: RunContext) -> dict[int, Localisation]:
    """Out-of-fold localisations of all studies, their tables checked for leaks."""
    for table in LOCALISE_TABLES:
        run.out_of_fold(LOCALISE, table)
    return read_localisations(run.out / LOCALISE, run.fold_of)


def crops_data(run: RunContext, stage: StageRecipe, study_ids: list[int], *, is_first_round: bool) -> LevelCrops:
    """Crops at out-of-fold points; a second round leaves suspect labels out, the first has none to leave out."""
    places, labels = localisations(run), run.labels()
    if run.recipe.denoise is not None and not is_first_round:
        labels = denoise.without_suspect_labels(run.out, labels)
    own = {k: places[k] for k in study_ids}
    return LevelCrops(run.cache, own, labels, stage.network, stage.augment, stage.mixing)


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


def find_suspect_labels(run: RunContext) -> None:
    """Find the labels that the first round's out-of-fold logits contradict."""
    assert run.recipe.denoise is not None
    for name in CLASSIFIERS:
        run.out_of_fold(f"{name}{FIRST}")
    ids = np.array(sorted(run.fold_of))
    probs = denoise.first_round_probs(run.out, CLASSIFIERS, ids)
    labels = run.cohort.labels[run.cohort.rows(ids)]
    n = denoise.write_suspect_labels(run.out, ids, labels, probs, run.recipe.denoise)
    tqdm.write(f"suspect labels: {n} of {int((labels >= 0).sum())}; they are left out of the second training")
