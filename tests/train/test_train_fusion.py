"""The fusion: what its head learns from, what is refused as a leak, when it is kept, and what is exported then."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from kernel_untrained import CONFIGS
from lumbar.bundle.manifest import read_manifest
from lumbar.bundle.probes import check_probes
from lumbar.bundle.weights import load_networks
from lumbar.config import CLASSIFIERS, FUSION, AxialClassifierConfig, FusionConfig, SagittalClassifierConfig, to_dict
from lumbar.labels import MIRRORED
from lumbar.models import build, name_of
from lumbar.stages.classify import fits_logits
from lumbar.stages.fuse import Features
from lumbar_publish.sealing.completeness import completeness_errors
from lumbar_train.data.augment import AugmentConfig
from lumbar_train.data.folds import FULL
from lumbar_train.data.tables import Cohort
from lumbar_train.errors import LeakError
from lumbar_train.export import export
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.outputs.store import logits_frame, write_piece
from lumbar_train.overrides import with_overrides
from lumbar_train.recipes import Fit, Recipe, StageRecipe, recipe_by_name
from lumbar_train.stages.aggregate_folds import decide_on_fusion
from lumbar_train.stages.fuse_folds import check_members, fit_head, head_loss
from lumbar_train.stages.fused_recipe import aggregator_of, head_config, is_kept
from lumbar_train.stages.fusion import FusionRecipe, decide
from lumbar_train.stages.fusion_features import Shown, ShownStudies, Unmirrored, graded_batch, mirrored_in
from lumbar_train.stages.registry import stages_of
from stage_studies import localisation_of, study_of
from synthetic_logits import synthetic_logits
from train_tiny import SMALL

N = 160


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Kept only where it helps


def members():
    logits, mask, labels, prior = synthetic_logits(N, seed=5)
    return logits, mask, labels, np.arange(N) % 4, np.tile(prior, (N, 1, 1))


def fusions() -> dict[str, np.ndarray]:
    """Logits (N, 5, 5, 3) of what a fusion may be."""
    logits, mask, labels, _, _ = members()
    rng = np.random.default_rng(0)
    mean = (logits * mask[..., None]).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)[..., None]
    true = np.eye(3)[np.maximum(labels, 0)].reshape(N, 5, 5, 3)
    return {
        "knows more": mean + 1.5 * true + 0.8 * rng.normal(size=true.shape),
        "noise": 3 * rng.normal(size=true.shape),
        "less sure": 0.3 * mean,
        "surer": 3 * mean,
    }


@pytest.mark.parametrize(
    ("kind", "is_kept"), [("knows more", True), ("noise", False), ("less sure", False), ("surer", False)]
)
def test_it_is_kept_only_where_it_helps_out_of_fold(kind, is_kept):
    """One that is merely surer or less sure than the classifiers tells nothing new."""
    logits, mask, labels, folds, prior = members()
    joined = np.concatenate([logits, fusions()[kind][:, None].astype(np.float32)], axis=1)
    shown = np.concatenate([mask, mask.any(axis=1, keepdims=True)], axis=1)
    decision = decide(joined, shown, labels, folds, prior)
    assert decision.is_kept is is_kept
    assert decision.line.startswith("fusion kept: out of fold" if is_kept else "fusion left out, since")
    assert (decision.gain["total"].high < 0) is is_kept


# The head


def two_views(n: int, seed: int) -> Shown:
    """A grade that neither view tells alone: severe where their first features agree in sign."""
    rng = np.random.default_rng(seed)
    features = [rng.normal(size=(n, 5, 3, 4)) for _ in range(2)]
    middle = [f[:, :, 0, 0] > 0 for f in features]
    labels = np.full((n, 5, 5), -1)
    labels[:, 0] = np.where(middle[0] == middle[1], 2, 0)
    logits = torch.zeros(n, 2, 5, 5, 3)
    mask = torch.ones(n, 2, 5, 5, dtype=torch.bool)
    halves = tuple(torch.from_numpy(f.astype(np.float16)) for f in features)
    return Shown(tuple(range(n)), logits, mask, halves, torch.from_numpy(labels))


def test_a_head_learns_what_only_both_views_together_show():
    config = FusionConfig(("a", "b"), (4, 4), hidden=16, dropout=0.0)
    cpu = torch.device("cpu")
    head, losses = fit_head(
        two_views(200, 0), config, FusionRecipe(epochs=15, lr=4e-2, weight_decay=0.0, batch=40), 0, cpu
    )
    shown = two_views(100, 1)
    none_hidden = torch.zeros(100, 2, 1, 1, dtype=torch.bool)
    with torch.no_grad():
        unseen = float(head_loss(head, shown, torch.arange(100), none_hidden, cpu))
        untrained = build(name_of(config), to_dict(config)).eval()
        before = float(head_loss(untrained, shown, torch.arange(100), none_hidden, cpu))
    assert losses[-1] < losses[0]
    assert unseen < 0.6 * before


ALL = (0, 1, 2, 3, 4)
SIZES = {"size": 40, "hidden": 8, "level_embedding": 4, "position_embedding": 4}
WHOLE = SIZES | {"conditions": ALL, "max_slices": 20, "per_series": True}


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        SagittalClassifierConfig(SMALL, window=3, share_sides=True, **SIZES),
        SagittalClassifierConfig(SMALL, own_sequences=True, **WHOLE),
        AxialClassifierConfig(SMALL, window=3, conditions=(3, 4), **SIZES),
        AxialClassifierConfig(SMALL, **WHOLE),
    ],
)
def test_a_study_that_is_shown_unchanged_is_what_the_kernel_sees(config, on_device):
    """As it is and mirrored, its features and logits are those of prediction."""
    study = study_of()
    place = localisation_of(study)
    torch.manual_seed(0)
    network = build(name_of(config), to_dict(config)).eval()
    still = AugmentConfig(
        shift_mm=0, turn_deg=0, zoom=0, contrast=0, shading=0, noise=0, blur=0, hole=0, slices=0, on_device=on_device
    )
    cache = SimpleNamespace(study=lambda study_id: study)
    crops = Unmirrored(cache, {7: place}, {7: np.zeros(25, np.int8)}, config, still)
    samples = ShownStudies(crops, [7, 7], [False, True])
    out = graded_batch(network, samples.collate([samples.sample(k, np.random.default_rng(k)) for k in (0, 1)]))
    features: dict[int, Features] = {}
    ((logits, shown),) = fits_logits(study, place, [network], flip=True, features=features)
    tolerance = {"atol": 3e-3 if on_device else 1e-5, "rtol": 0}  # cut-outs are in half precision
    torch.testing.assert_close(out["features"], features[0].mean, **tolerance)
    torch.testing.assert_close((out["logits"][0] + out["logits"][1][:, list(MIRRORED)]) / 2, logits, **tolerance)
    assert torch.equal(out["mask"][0], shown)
    assert (out["features"][0] - out["features"][1]).abs().max() > 1e-3


def test_each_study_is_shown_as_often_mirrored_as_not():
    flags = np.array([mirrored_in(view, 5) for view in range(4)])
    assert flags.sum(axis=0).tolist() == [2] * 5


# A run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of untrained networks with a fusion: two folds, one fit on all data, and logits of all classifiers."""
    logits, mask, labels, _, _ = members()
    ids = [int(k) for k in range(N)]
    fold_of = {k: k % 2 for k in ids}
    recipe = Recipe("untrained", {name: StageRecipe(config, Fit(1, 1e-3, 1)) for name, config in CONFIGS.items()})
    recipe = with_overrides(recipe, ["recipe.fusion=on", "recipe.fusion.hidden=4"])
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    torch.manual_seed(0)
    for stage, config in ({**CONFIGS, FUSION: head_config(recipe)}).items():
        for fold in (0, 1, FULL):
            network = build(name_of(config), to_dict(config))
            folder.save_network(network, stage, fold, [k for k in ids if fold_of[k] != fold])
    models = [*CLASSIFIERS, FUSION]
    joined = np.concatenate([logits, fusions()["knows more"][:, None].astype(np.float32)], axis=1)
    shown = np.concatenate([mask, mask.any(axis=1, keepdims=True)], axis=1)
    for m, name in enumerate(models):
        for fold in (0, 1):
            own = [k for k in ids if fold_of[k] == fold]
            frame = logits_frame({k: joined[k, m] for k in own}, {k: shown[k, m] for k in own}, fold_of)
            write_piece(folder.path / name, fold, frame)
    cohort = Cohort(folder.path, "train", np.array(ids), labels, pd.DataFrame(), pd.DataFrame())
    folds = pd.DataFrame({"study_id": ids, "fold": [fold_of[k] for k in ids]})
    return SimpleNamespace(
        folder=folder, out=folder.path, cohort=cohort, recipe=recipe, use_folds=[0, 1, FULL], changes=(),
        fold_of=fold_of, folds=folds, out_of_fold=lambda stage: folder.out_of_fold(stage, "oof", folds),
    )  # fmt: skip


def test_what_is_kept_ships_with_the_reason_and_the_kernel_loads_it(run):
    assert decide_on_fusion(run).is_kept
    assert is_kept(run.out, run.recipe)
    models = aggregator_of(run.out, run.recipe).network.models
    assert models == (*CLASSIFIERS, FUSION)
    for fold in (0, 1, FULL):
        config = replace(CONFIGS["aggregator"], models=models)
        run.folder.save_network(build(name_of(config), to_dict(config)), "aggregator", fold, [])
    manifest = read_manifest(export(run))
    assert manifest.data["fusion"] == {"members": list(CLASSIFIERS)}
    assert manifest.training["fusion"]["kept"] is True
    assert manifest.training["fusion"]["gain"]["total"][2] < 0
    networks = load_networks(manifest.folder, manifest)
    check_probes(networks, manifest)
    assert networks.classifiers == (*CLASSIFIERS, FUSION)
    assert completeness_errors(manifest.data) == []
    lacking = manifest.data | {"weights": [e for e in manifest.data["weights"] if e["stage"] != FUSION]}
    assert completeness_errors(lacking)[0].startswith("no weights for fusion; found")


def test_what_does_not_help_is_left_out_and_the_manifest_says_so(run, monkeypatch):
    """Its table is one of noise; the aggregator joins the classifiers as it would without a fusion."""
    monkeypatch.setattr(
        "lumbar_train.stages.aggregate_folds.decide", lambda logits, *rest: decide(noisy(logits), *rest)
    )
    assert not decide_on_fusion(run).is_kept
    assert aggregator_of(run.out, run.recipe) == run.recipe.stages["aggregator"]
    for fold in (0, 1, FULL):
        run.folder.save_network(build("aggregator", to_dict(CONFIGS["aggregator"])), "aggregator", fold, [])
    manifest = read_manifest(export(run))
    assert FUSION not in manifest.data
    assert {entry.stage for entry in manifest.weights} == set(CONFIGS)
    assert manifest.training["fusion"]["line"].startswith("fusion left out, since the interval does not lie below zero")
    assert not list((manifest.folder / "weights").glob("fusion*"))


def noisy(logits: np.ndarray) -> np.ndarray:
    out = logits.copy()
    out[:, -1] = np.random.default_rng(1).normal(size=out[:, -1].shape)
    return out


def test_features_of_a_network_that_saw_a_held_out_study_are_refused(run):
    held_out = np.array([k for k, fold in run.fold_of.items() if fold == 0])
    others = {k for k, fold in run.fold_of.items() if fold == 1}
    assert check_members(run, CLASSIFIERS, 0, held_out) == others
    network = build(name_of(CONFIGS["axial_all"]), to_dict(CONFIGS["axial_all"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "folder", RunFolder(run.out.parent / "leak"))
        for name in CLASSIFIERS[:2]:
            run.folder.save_network(network, name, 0, others)
        run.folder.save_network(network, "axial_all", 0, {*others, 4})
        with pytest.raises(LeakError, match=r"axial_all/fold0.safetensors: fold 0's fit has seen study 4 \(1 of those"):
            check_members(run, CLASSIFIERS, 0, held_out)
        run.folder.save_network(network, "axial_all", 1, others)  # of the other fold, in the place of this one's
        for kind in ("safetensors", "seen.json"):
            (run.folder.path / f"axial_all/fold1.{kind}").rename(run.folder.path / f"axial_all/fold0.{kind}")
        with pytest.raises(LeakError, match="found weights of fold1, expected of fold0"):
            check_members(run, CLASSIFIERS, 0, held_out)


def test_a_table_of_fused_logits_of_another_fold_is_refused(run, tmp_path, monkeypatch):
    frame = pd.read_parquet(run.folder.table(FUSION))
    frame.loc[frame["study_id"] == 3, "fold"] = 0
    monkeypatch.setattr(run, "folder", RunFolder(tmp_path))
    (tmp_path / FUSION).mkdir()
    frame.to_parquet(tmp_path / FUSION / "oof.parquet")
    with pytest.raises(LeakError, match="study 3 was predicted by fold 0, but is held out in fold 1"):
        run.folder.out_of_fold(FUSION, "oof", run.folds)


# A recipe


@pytest.mark.parametrize("name", ["demo", "model2", "strong"])
def test_every_recipe_can_have_one_and_none_has_one_unasked(name):
    recipe = recipe_by_name(name)
    assert recipe.fusion is None
    assert FUSION not in [stage.name for stage in stages_of(recipe)]
    on = with_overrides(recipe, ["recipe.fusion.views=2"])
    assert on.fusion == FusionRecipe(views=2)
    assert on.stages == recipe.stages
    names = [stage.name for stage in stages_of(on)]
    assert names.index("axial_all") < names.index(FUSION) < names.index("aggregator")
    with torch.device("meta"):
        build("fusion", to_dict(head_config(on)))
    assert json.loads(json.dumps(to_dict(on.fusion)))["views"] == 2
