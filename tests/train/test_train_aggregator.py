"""The aggregator on synthetic out-of-fold logits: it learns what can be learnt, and never falls below the pool."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lumbar.config import CLASSIFIERS, AggregatorConfig, LevelSequenceConfig, to_dict
from lumbar.metric import score_arrays
from lumbar.models import build, name_of
from lumbar_train.data.tables import Cohort
from lumbar_train.engine.checkpoint import load_weights
from lumbar_train.outputs.store import logits_frame, write_frame
from lumbar_train.recipes import Fit, StageRecipe, recipe_by_name
from lumbar_train.stages.aggregate import fit_aggregator, pool_of
from lumbar_train.stages.aggregate_folds import fit_aggregator_folds
from synthetic_logits import synthetic_confidence, synthetic_logits


@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def answers(network, logits, mask, prior, sure) -> np.ndarray:
    log_prior = torch.from_numpy(np.log(prior).astype(np.float32)).view(5, 5, 3)
    with torch.no_grad():
        out = network(torch.from_numpy(logits), torch.from_numpy(mask), log_prior, torch.from_numpy(sure))
    return torch.softmax(out.double(), -1).numpy().reshape(-1, 25, 3)


@pytest.mark.parametrize(("recipe", "gain"), [("model2", 0.03), ("strong", 0.03)])
def test_the_recipes_aggregator_gains_on_unseen_studies_what_calibration_and_neighbours_give(recipe, gain):
    """Classifiers that are surer than they are right, on 500 studies; measured on 500 others."""
    stage = recipe_by_name(recipe).stages["aggregator"]
    logits, mask, labels, prior = synthetic_logits(1000, 5, 0.8)
    sure, half = synthetic_confidence(1000), 500
    network, _ = fit_aggregator(
        logits[:half], mask[:half], labels[:half], prior, stage.network, stage.fit, 0, sure[:half]
    )
    fitted, pool = (
        score_arrays(labels[half:].astype(int), answers(chosen, logits[half:], mask[half:], prior, sure[half:])).total
        for chosen in (network, pool_of(stage.network))
    )
    assert fitted < pool - gain


def run_folder(path: Path, n: int, seed: int, sureness: float) -> tuple[Cohort, dict[int, int]]:
    """A run folder whose classifiers have left synthetic out-of-fold logits."""
    logits, mask, labels, _ = synthetic_logits(n, seed, sureness)
    ids = np.arange(1000, 1000 + n)
    fold_of = {int(k): i % 2 for i, k in enumerate(ids)}
    for m, name in enumerate(CLASSIFIERS):
        values, masks = ({int(k): array[i, m] for i, k in enumerate(ids)} for array in (logits, mask))
        write_frame(path / name / "oof.parquet", logits_frame(values, masks, fold_of))
    return Cohort(path, "train", ids, labels, pd.DataFrame(), pd.DataFrame()), fold_of


@pytest.mark.parametrize("config", [AggregatorConfig(hidden=32), LevelSequenceConfig(hidden=4)])
def test_an_aggregator_that_falls_below_the_pool_is_the_pool(tmp_path, config):
    """Forty studies and a wild rate: what is learnt on one half harms the other."""
    cohort, fold_of = run_folder(tmp_path, 40, 3, 0.55)
    stage = StageRecipe(config, Fit(15, 0.1, 8, weight_decay=0.0))
    fit_aggregator_folds(tmp_path, cohort, fold_of, [0, 1, -1], stage, seed=0)
    noted = json.loads((tmp_path / "aggregator/metrics.json").read_text())
    assert noted["kept"] == "pool"
    assert noted["oof"]["total"] == pytest.approx(noted["pool"]["total"], abs=1e-6)
    assert noted["fitted"]["total"] > noted["pool"]["total"]
    wanted = pool_of(config).state_dict()
    for name in ("fold0", "fold1", "full"):
        network = build(name_of(config), to_dict(config))
        load_weights(tmp_path / f"aggregator/{name}.safetensors", network)
        assert all(torch.equal(value, wanted[key]) for key, value in network.state_dict().items() if "groups" in key)
        assert (network.scale == 1).all()
        assert (network.pool == 0).all()


def test_an_aggregator_that_gains_is_kept(tmp_path):
    cohort, fold_of = run_folder(tmp_path, 300, 4, 1.0)
    stage = StageRecipe(AggregatorConfig(hidden=16), Fit(15, 2e-3, 64, weight_decay=1.0))
    fit_aggregator_folds(tmp_path, cohort, fold_of, [0, 1, -1], stage, seed=0)
    noted = json.loads((tmp_path / "aggregator/metrics.json").read_text())
    assert noted["kept"] == "fitted"
    assert noted["oof"]["total"] == pytest.approx(noted["fitted"]["total"], abs=1e-6)
    assert noted["fitted"]["total"] < noted["pool"]["total"]


@pytest.mark.parametrize("config", [AggregatorConfig(hidden=8), LevelSequenceConfig(hidden=8, confidence=True)])
def test_the_pool_is_the_mean_of_what_was_seen(config):
    logits, mask, _, prior = synthetic_logits(5, 2)
    out = answers(pool_of(config), logits, mask, prior, synthetic_confidence(5))
    logs = torch.log_softmax(torch.from_numpy(logits), -1).numpy() * mask[..., None]
    mean = logs.sum(axis=1) / np.maximum(mask.sum(axis=1), 1)[..., None]
    seen = mask.any(axis=1).reshape(5, 25)
    wanted = torch.softmax(torch.from_numpy(mean), -1).numpy().reshape(5, 25, 3)
    np.testing.assert_allclose(out[seen], wanted[seen], atol=1e-5)
