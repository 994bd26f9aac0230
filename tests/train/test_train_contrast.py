"""The network that tells contrasts by images: what it learns from, that it learns, and what an index makes of it."""

from __future__ import annotations

import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from hospital_tree import write_series
from kernel_untrained import write_untrained_bundle
from lumbar.bundle.manifest import file_sha256, read_manifest, write_manifest
from lumbar.bundle.probes import record_probe
from lumbar.bundle.weights import load_network, save_network
from lumbar.config import SeriesContrastConfig, to_dict
from lumbar.errors import CohortError
from lumbar.intake.run_table import series_table
from lumbar.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2
from lumbar.models import build
from lumbar.stages import series_contrast
from lumbar.stages.series_contrast import STAGE, middle_indices
from lumbar.study import Study
from lumbar_train.data.folds import FULL
from lumbar_train.engine.distributed import Distributed
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.pipeline.execute import unfinished
from lumbar_train.recipes import RECIPES, Fit, Recipe
from lumbar_train.stages.contrast import TRUTH, SeriesContrasts, contrast_loss, true_contrasts
from lumbar_train.stages.fitting import load_network as fitted_network
from lumbar_train.stages.fitting import run_on_fold
from lumbar_train.stages.pretrained import Start
from lumbar_train.stages.registry import chosen_stages, stage_by_name, stages_of
from series_writer import AXIAL, SAGITTAL
from stage_studies import stack_of

CONFIG = SeriesContrastConfig(size=32, slices=2, widths=(8, 16))


BRIGHTNESS = {"T1": (150.0, 900.0, 500.0), "T2": (1500.0, 900.0, 350.0), "STIR": (1500.0, 90.0, 350.0)}


def picture(contrast, rng, size=48):
    """Water in the middle, muscle around it, fat under the skin, as bright as a contrast shows each."""
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    r = np.hypot(x, y)
    water, fat, muscle = BRIGHTNESS[contrast]
    body = np.where(r < 0.45, np.where(r < 0.35, muscle, fat), 0.0)
    image = np.where(r < rng.uniform(0.12, 0.2), water, body)
    return np.clip(image + rng.normal(0, 30, image.shape), 0, 4095).astype(np.uint16)


def contrasts_of(study_id):
    """Contrasts of a study's series by description: every second study has STIR in place of T2."""
    return {SAGITTAL_T1: "T1", SAGITTAL_T2: "STIR" if study_id % 2 else "T2", AXIAL_T2: "T2"}


class Studies:
    """Studies in memory, as the cache of decoded studies gives them."""

    def study(self, study_id):
        rng = np.random.default_rng(study_id)
        stacks = {}
        for place, (name, contrast) in enumerate(contrasts_of(study_id).items()):
            plane = "axial" if name == AXIAL_T2 else "sagittal"
            stack = stack_of(str(10 * study_id + place), plane, study_id, n=6, size=48, spacing=4.6)
            volume = np.stack([picture(contrast, rng) for _ in range(6)]).astype(np.float32)
            stacks[name] = [replace(stack, volume=volume)]
        return Study(study_id, stacks)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The stage's network, fitted on all of twelve studies as any other stage is."""
    recipe, root = RECIPES["demo"](), tmp_path_factory.mktemp("cohort")
    named = [(10 * k + place, name) for k in range(12) for place, name in enumerate(contrasts_of(k).values())]
    rows = "".join(f"{series_id},{name},0.0\n" for series_id, name in named)
    (root / TRUTH).write_text(f"series_id,contrast,randomised\n{rows}")
    stage = replace(recipe.stages[STAGE], network=CONFIG, fit=Fit(epochs=40, lr=1e-2, batch=12, warmup=0.0))
    run = types.SimpleNamespace(
        folds=pd.DataFrame({"study_id": range(12), "fold": 0}),
        recipe=Recipe("some", {STAGE: stage}),
        cohort=types.SimpleNamespace(fingerprint="f", root=root),
        folder=RunFolder(tmp_path_factory.mktemp("run")),
        cache=Studies(),
        seed=0,
        resume=False,
        points_use="beside",
        loop={"progress": False},
        distributed=Distributed(device=torch.device("cpu")),
        start=Start(),
        initial=None,
    )
    run_on_fold(run, stage_by_name(STAGE), FULL)
    return fitted_network(run, STAGE, FULL)


@pytest.fixture(scope="module")
def bundle(network, tmp_path_factory):
    """A bundle that has the network."""
    folder = write_untrained_bundle(tmp_path_factory.mktemp("bundle"))
    file = folder / "weights" / f"{STAGE}.full.safetensors"
    save_network(network, file)
    data = read_manifest(folder).data
    entry = data["weights"][0] | {
        "file": f"weights/{file.name}",
        "sha256": file_sha256(file),
        "bytes": file.stat().st_size,
    }
    data["weights"].append(entry | {"stage": STAGE, "model": STAGE, "config": to_dict(CONFIG)})
    write_manifest(folder / "weights_manifest.json", data)
    data["weights"][-1]["probe"] = record_probe(load_network(file, read_manifest(folder).weights[-1]))
    write_manifest(folder / "weights_manifest.json", data)
    return read_manifest(folder)


def test_every_sagittal_series_is_a_sample_with_what_its_table_tells_of_its_contrast():
    samples = SeriesContrasts(Studies(), [3, 4], CONFIG, None)
    assert (len(samples), samples.studies) == (4, {3, 4})
    batch = samples.collate([samples.sample(k, np.random.default_rng(0)) for k in range(4)])
    assert batch["images"].shape == (4, 1, 32, 32)
    assert batch["contrast"].tolist() == [[1, 0, 0], [0, 0.5, 0.5]] * 2
    loss, figures = contrast_loss(build(STAGE, to_dict(CONFIG)), batch)
    assert loss.isfinite()
    assert 0.0 <= figures["right"] <= 1.0


def test_the_truth_of_phantoms_tells_stir_from_t2_and_which_contrasts_no_sequence_has(tmp_path):
    assert true_contrasts(tmp_path) == {}
    table = "study_id,series_id,contrast,randomised\n3,30,T1,0.7\n3,31,STIR,0.0\n4,40,T1,0.9\n4,41,T2,0.5\n"
    (tmp_path / TRUTH).write_text(table)
    samples = SeriesContrasts(Studies(), [3, 4], CONFIG, None, true_contrasts(tmp_path))
    assert samples.study_of_sample == [3, 4, 4]
    shares = [samples.sample(k, np.random.default_rng(0))["contrast"].tolist() for k in range(3)]
    assert shares == [[0, 0, 1], [0.5, 0.25, 0.25], [0, 1, 0]]
    (tmp_path / TRUTH).write_text(table.replace("STIR", "PD"))
    with pytest.raises(CohortError, match="expected columns series_id, contrast, randomised with a contrast of T1"):
        true_contrasts(tmp_path)


def test_slices_come_from_around_the_middle():
    assert middle_indices(11, 3) == [2, 5, 8]
    assert middle_indices(1, 3) == [0]
    assert middle_indices(10, 1) == [4]


def test_it_learns_contrasts_and_stays_small(network):
    samples = SeriesContrasts(Studies(), list(range(100, 110)), CONFIG, None)
    batch = samples.collate([samples.sample(k, np.random.default_rng(0)) for k in range(len(samples))])
    with torch.inference_mode():
        assert contrast_loss(network, batch)[1]["right"] == 1.0
    shipped = build(STAGE, to_dict(RECIPES["demo"]().stages[STAGE].network))
    assert 2 * sum(tensor.numel() for tensor in shipped.state_dict().values()) < 300_000


def test_series_that_headers_leave_open_are_told_by_their_images(bundle, tmp_path):
    rng = np.random.default_rng(1)
    series = {"a": ("T1", SAGITTAL), "b": ("T2", SAGITTAL), "c": ("STIR", SAGITTAL)}
    series |= {"d": ("T2", AXIAL), "e": ("T1", AXIAL)}
    for name, (contrast, plane) in series.items():
        write_series(tmp_path / name, "1.2", name, 5, plane=plane, pixels=picture(contrast, rng))
    table = series_table(tmp_path, bundle)
    kinds = {entry["series_id"]: entry["kind"] for entry in table.inputs["1.2"]}
    assert kinds == {"a": SAGITTAL_T1, "b": SAGITTAL_T2, "c": SAGITTAL_T2, "d": AXIAL_T2, "e": "left out"}
    for entry in table.inputs["1.2"]:
        assert f"its images show {series[entry['series_id']][0]} (probability" in entry["reason"]
    assert len(table.frame) == 4


def test_t2_and_stir_have_one_name_where_only_both_together_are_sure(bundle, tmp_path, monkeypatch):
    shares = iter([(0.1, 0.5, 0.4), (0.1, 0.5, 0.4), (0.3, 0.6, 0.1), (0.02, 0.03, 0.95)])
    monkeypatch.setattr(series_contrast, "contrast_probs", lambda *arguments: np.array(next(shares)))
    for name, plane in (("a", SAGITTAL), ("b", AXIAL), ("c", SAGITTAL), ("d", AXIAL)):
        write_series(tmp_path / name, "1.2", name, 5, plane=plane)
    entries = series_table(tmp_path, bundle).inputs["1.2"]
    assert [entry["kind"] for entry in entries] == [SAGITTAL_T2, AXIAL_T2, "left out (undecided)", "left out"]
    assert "T2/STIR (probability 0.90)" in entries[0]["reason"]
    assert "the images are not clear" in entries[1]["doubt"]
    assert entries[2]["doubt"] == "its images show T2 (probability 0.60), expected 0.8 or more"
    assert "STIR (probability 0.95): no kind that is graded" in entries[3]["reason"]


@pytest.mark.parametrize("recipe", ["demo", "model2", "strong"])
def test_it_is_fitted_on_folds_only_where_fits_on_folds_ship(recipe):
    """Nothing in a run reads it; fits on folds that an older run has are left where they are."""
    use_folds = [FULL, -2, 0, 1]
    for export, folds in (("full", [-2, FULL]), ("folds", [-2, FULL, 0, 1]), ("all", [-2, FULL, 0, 1])):
        run = types.SimpleNamespace(recipe=replace(RECIPES[recipe](), export=export), use_folds=use_folds, resume=False)
        chosen = chosen_stages(run.recipe, [STAGE])
        assert unfinished(run, chosen) == {STAGE: folds}
        assert stage_by_name(STAGE, run.recipe).folds(use_folds) == folds
        every = {stage.name: stage.folds(use_folds) for stage in stages_of(run.recipe)}
        assert every.pop(STAGE) == folds
        assert every["axial_all"] == [-2, FULL, 0, 1]


def test_without_the_network_they_stay_open_and_the_record_says_so(bundle, tmp_path):
    write_series(tmp_path / "a", "1.2", "a", 5)
    weights = tuple(entry for entry in bundle.weights if entry.stage != STAGE)
    table = series_table(tmp_path, replace(bundle, weights=weights))
    assert table.inputs["1.2"][0]["kind"] == "left out (undecided)"
    assert any("the bundle has no series_contrast network" in line for line in table.frame.attrs["problems"][None])
