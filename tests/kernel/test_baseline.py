"""The baseline chain: 8-bit slices, one network a column, the prior where there is nothing to see."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from kernel_bundles import manifest_data
from lumbar.bundle.manifest import read_manifest, write_manifest
from lumbar.bundle.probes import record_probe
from lumbar.bundle.weights import load_network, save_network
from lumbar.chains.baseline import combine, draw, load, predict, slice_logits, slice_probs
from lumbar.chains.registry import baseline_chain, chain_of
from lumbar.config import BackboneConfig, BaselineConfig, to_dict
from lumbar.dicom import Stack
from lumbar.errors import ManifestError
from lumbar.labels import COLUMNS, DESCRIPTIONS, SAGITTAL_T1
from lumbar.models import build
from lumbar.stages.eight_bit import choose_slices, eight_bit
from lumbar.study import Study
from lumbar.workers.budget import Effort

TINY = BackboneConfig("resnet10t", channels=(8, 8, 16, 16), stem_width=8)
COLUMN = COLUMNS[3]
PRIOR = np.tile([0.6, 0.3, 0.1], (25, 1))


def stack(n=5, shape=(40, 40), series_id="11", first_mm=0.0, **changes):
    rng = np.random.default_rng(n)
    values = {
        "series_id": series_id,
        "volume": (rng.random((n, *shape)) * 900).astype(np.float32),
        "origins_mm": np.array([[first_mm + 4.0 * i, -60.0, 60.0] for i in range(n)]),
        "row_mm": np.array([0.0, 0.0, -2.0]),
        "column_mm": np.array([0.0, 2.0, 0.0]),
        "instance_numbers": list(range(1, n + 1)),
    }
    return Stack(**(values | changes))


def study(*stacks):
    return Study(study_id=7, series={name: [] for name in DESCRIPTIONS} | {SAGITTAL_T1: list(stacks)})


def config(column=COLUMN, **changes):
    return BaselineConfig(TINY, column, **({"size": 32, "slices": 3, "hidden": 8} | changes))


@pytest.fixture
def bundle(tmp_path):
    """Two columns' untrained networks."""
    (tmp_path / "weights").mkdir()
    torch.manual_seed(0)
    configs = {f"weights/{c}.full.safetensors": config(c) for c in (COLUMN, COLUMNS[20])}
    for name, network_config in configs.items():
        save_network(build("baseline", to_dict(network_config)), tmp_path / name)
    data = manifest_data({name: (tmp_path / name).read_bytes() for name in configs})
    for entry, network_config in zip(data["weights"], configs.values(), strict=True):
        entry.update(stage="baseline", model="baseline", config=to_dict(network_config))
    write_manifest(tmp_path / "weights_manifest.json", data)
    for entry, parsed in zip(data["weights"], read_manifest(tmp_path).weights, strict=True):
        entry["probe"] = record_probe(load_network(tmp_path / parsed.file, parsed))
    write_manifest(tmp_path / "weights_manifest.json", data)
    return tmp_path


def test_central_slices_of_each_series_in_the_order_of_space():
    both = study(stack(7), stack(2, (30, 30), first_mm=100.0), stack(3, series_id="12"))
    assert [(c.series_id, c.instance_number) for c in choose_slices(both, SAGITTAL_T1, 3)] == [
        ("11", 4), ("11", 5), ("11", 6), ("12", 1), ("12", 2), ("12", 3),
    ]  # fmt: skip
    assert len(choose_slices(both, SAGITTAL_T1)) == 12
    assert len(choose_slices(both, SAGITTAL_T1, 50)) == 12
    assert choose_slices(both, DESCRIPTIONS[2], 3) == []


def test_eight_bits_use_the_series_window_and_all_of_it():
    chosen_slice = choose_slices(study(stack()), SAGITTAL_T1, 1)[0]
    pixels = eight_bit(study(chosen_slice.stack), chosen_slice, 40)
    assert (pixels.shape, pixels.dtype) == ((40, 40), np.uint8)
    assert pixels.min() == 0
    assert pixels.max() == 255
    brighter = study(stack(volume=chosen_slice.stack.volume + 5000.0))
    again = eight_bit(brighter, choose_slices(brighter, SAGITTAL_T1, 1)[0], 40)
    assert np.abs(again.astype(int) - pixels).max() <= 1


def test_inverted_series_look_like_others():
    plain = stack()
    turned = stack(volume=900.0 - plain.volume, is_inverted=True)
    a, b = (eight_bit(study(s), choose_slices(study(s), SAGITTAL_T1, 1)[0], 40).astype(int) for s in (plain, turned))
    assert np.abs(a - b).max() <= 3


def test_longer_side_fills_the_square_and_proportions_stay():
    wide = stack(shape=(20, 40))
    pixels = eight_bit(study(wide), choose_slices(study(wide), SAGITTAL_T1, 1)[0], 64)
    lit = pixels > 128
    assert lit.any(axis=1).sum() == pytest.approx(32, abs=2)
    assert lit.any(axis=0).sum() == pytest.approx(64, abs=2)
    # pixels twice as high as wide: as many rows as columns make a picture twice as high
    tall = stack(row_mm=np.array([0.0, 0.0, -4.0]))
    lit = eight_bit(study(tall), choose_slices(study(tall), SAGITTAL_T1, 1)[0], 64) > 128
    assert lit.any(axis=0).sum() == pytest.approx(32, abs=2)


def test_true_frequencies_are_turned_back_and_an_unseen_class_keeps_its_prior():
    logits = np.log(np.array([[0.2, 0.3, 0.5]]))
    expected = np.array([0.2 * 0.6, 0.3 * 0.3, 0.5 * 0.1])
    assert slice_probs(logits, PRIOR[0], (1 / 3, 1 / 3, 1 / 3))[0] == pytest.approx(expected / expected.sum())
    two = slice_probs(logits, PRIOR[0], (0.5, 0.5, 0.0))[0]
    assert two[2] == pytest.approx(0.1)
    assert two[0] / two[1] == pytest.approx(0.2 * 0.6 / (0.3 * 0.3))
    assert two.sum() == pytest.approx(1.0)
    assert slice_probs(np.zeros((1, 3)), PRIOR[0], (1 / 3, 1 / 3, 1 / 3))[0] == pytest.approx(PRIOR[0])


def test_a_temperature_softens_towards_the_prior():
    logits, even = np.array([[4.0, 0.0, -2.0], [1.0, 3.0, 0.0]]), (1 / 3, 1 / 3, 1 / 3)
    assert slice_probs(logits, PRIOR[0], even, 2.0) == pytest.approx(slice_probs(logits / 2, PRIOR[0], even))
    assert slice_probs(logits, PRIOR[0], even, 1e6) == pytest.approx(np.tile(PRIOR[0], (2, 1)), abs=1e-4)
    assert combine(logits, PRIOR[0], even, 2.0) == pytest.approx(combine(logits / 2, PRIOR[0], even))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_cannot_be_is_refused(temperature):
    with pytest.raises(ManifestError, match=r"found temperature .*, expected more than 0"):
        build("baseline", to_dict(config(temperature=temperature)))


def test_several_slices_are_averaged_and_other_columns_keep_exactly_their_prior(bundle):
    networks = load(read_manifest(bundle), "cpu")
    one = study(stack(7))
    result = predict(one, networks, PRIOR)
    images = np.array([eight_bit(one, chosen_slice, 32) for chosen_slice in choose_slices(one, SAGITTAL_T1, 3)])
    logits = slice_logits(networks.by_column[COLUMN][0], images)
    assert logits.shape == (3, 3)
    assert result.probs[3] == pytest.approx(combine(logits, PRIOR[3], (1 / 3, 1 / 3, 1 / 3)))
    untouched = [k for k in range(25) if k not in (3, 20)]
    assert (result.probs[untouched] == PRIOR[untouched]).all()
    assert result.probs.sum(axis=1) == pytest.approx(1.0)
    short = predict(one, networks, PRIOR, Effort.ONE_MODEL)
    assert short.probs[3] == pytest.approx(combine(logits[1:2], PRIOR[3], (1 / 3, 1 / 3, 1 / 3)))
    assert len(draw(one, result)) == 5


def test_no_image_leaves_the_prior_and_a_line(bundle):
    result = predict(study(), load(read_manifest(bundle), "cpu"), PRIOR)
    assert (result.probs == PRIOR).all()
    assert result.problems == ["study 7: no Sagittal T1 slice, its columns keep their prior"]


def test_the_chain_of_a_bundle_reads_only_what_its_networks_see(bundle):
    chain = chain_of("baseline", read_manifest(bundle))
    assert chain.read.args == baseline_chain(read_manifest(bundle)).read.args
    assert chain.read.args[-1] == (SAGITTAL_T1,)
    again = pickle.loads(pickle.dumps(chain))  # workers get it through a pipe
    assert (again.load.func, again.load.args) == (chain.load.func, chain.load.args)


def test_another_answer_than_the_probe_is_refused(bundle):
    data = dict(read_manifest(bundle).data)
    data["weights"][0]["probe"]["expected"][0] += 1.0
    write_manifest(bundle / "weights_manifest.json", data)
    with pytest.raises(ManifestError, match=r"full.safetensors: probe gave"):
        load(read_manifest(bundle), "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column": "spine"}, "found column 'spine', expected one of the 25 label columns"),
        ({"description": "T1"}, "found series 'T1', expected one of Sagittal T1"),
        ({"size": 4}, "found size 4 and slices 3, expected 16 or more"),
        ({"balance": (0.5, 0.1, 0.1)}, "expected three shares that sum to 1"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, message):
    values = to_dict(config()) | changes
    with pytest.raises(ManifestError, match=message.replace("(", r"\(")):
        build("baseline", values)


def test_a_transformer_body_pools_over_its_places():
    values = BaselineConfig(BackboneConfig("vit_tiny_patch16_224"), COLUMN, hidden=8, size=224)
    network = build("baseline", to_dict(values))
    assert network.eval()(torch.rand(1, 1, 224, 224)).shape == (1, 3)
