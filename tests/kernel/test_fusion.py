"""The fusion of a bundle: it reads the features of its members, fit by fit, and is left out where one of them is."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from kernel_untrained import CONFIGS, write_untrained_bundle
from lumbar.bundle.manifest import read_manifest
from lumbar.bundle.probes import check_probes
from lumbar.bundle.weights import load_networks
from lumbar.chains.main import predict_study
from lumbar.config import CLASSIFIERS, FusionConfig, to_dict
from lumbar.errors import ManifestError
from lumbar.labels import AXIAL_T2
from lumbar.models import build, name_of
from lumbar.stages.classifiers import feature_width
from lumbar.stages.classify import classify, fits_logits
from lumbar.stages.fuse import Features, fused
from lumbar.workers.budget import Effort
from stage_studies import localisation_of, study_of

HEAD = FusionConfig(CLASSIFIERS, tuple(feature_width(CONFIGS[name]) for name in CLASSIFIERS), hidden=4, dropout=0.0)
NAMES = (*CLASSIFIERS, "fusion")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The usual three with a fusion, which an aggregator joins."""
    configs = {"fusion": HEAD} | CONFIGS | {"aggregator": dataclasses.replace(CONFIGS["aggregator"], models=NAMES)}
    folder = tmp_path_factory.mktemp("fusion") / "b"
    return write_untrained_bundle(folder, 1, configs, fusion={"members": list(CLASSIFIERS)})


@pytest.fixture
def networks(bundle):
    """Loaded, with a head that corrects something: untrained it is the mean of its members."""
    manifest = read_manifest(bundle)
    loaded = load_networks(bundle, manifest)
    check_probes(loaded, manifest)
    torch.manual_seed(3)
    for last in loaded.stage("fusion")[0].last:
        torch.nn.init.normal_(last.weight)
    return loaded


def test_an_untrained_head_is_the_mean_of_the_members_that_saw_the_target():
    torch.manual_seed(0)
    head = build(name_of(HEAD), to_dict(HEAD)).eval()
    logits, mask = torch.randn(5, 3, 5, 3), torch.rand(5, 3, 5) > 0.4
    out = head(logits, mask, torch.arange(5), *(torch.randn(5, 3, width) for width in HEAD.widths))
    logs = logits.log_softmax(-1) * mask[..., None]
    torch.testing.assert_close(out, logs.sum(1) / mask.sum(1).clamp(min=1)[..., None])


def test_a_classifiers_logits_are_the_same_with_and_without_features():
    study = study_of()
    place = localisation_of(study)
    torch.manual_seed(0)
    fits = [build(name_of(CONFIGS[name]), to_dict(CONFIGS[name])).eval() for name in CLASSIFIERS]
    features: dict[int, Features] = {}
    with_features = fits_logits(study, place, fits, flip=True, features=features)
    for (a, shown), (b, also) in zip(with_features, fits_logits(study, place, fits, flip=True), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(shown, also)
    assert {k: tuple(one.mean.shape) for k, one in features.items()} == {k: (2, 5, 3, 16) for k in range(3)}


def test_the_fusion_is_one_classifier_more(networks):
    """Its logits are its head's on what its members say, and theirs are what they are without it."""
    study = study_of()
    place = localisation_of(study)
    assert networks.classifiers == NAMES
    logits, mask = classify(study, place, networks)
    alone, shown = classify(study, place, networks, names=CLASSIFIERS)
    np.testing.assert_array_equal(logits[:3], alone)
    np.testing.assert_array_equal(mask[3], shown.any(axis=0))
    features: dict[int, Features] = {}
    fits = [networks.stage(name)[0] for name in CLASSIFIERS]
    answers = fits_logits(study, place, fits, flip=True, features=features)
    own, _ = fused(networks.stage("fusion")[0], answers, [features[k] for k in range(3)])
    np.testing.assert_allclose(logits[3], own.permute(1, 0, 2).numpy(), atol=1e-6)
    assert np.abs(logits[3] - logits[:3].mean(axis=0)).max() > 0.1


def test_the_mirrored_patient_is_another_view_whose_sides_change_back(networks):
    """Of members and a head that share sides, features that are mirrored say what they said before."""
    config = dataclasses.replace(HEAD, share_sides=True)
    torch.manual_seed(1)
    head = build(name_of(config), to_dict(config)).eval()
    for last in head.last:
        torch.nn.init.normal_(last.weight)
    answers = [(torch.randn(5, 5, 3), torch.ones(5, 5, dtype=torch.bool)) for _ in CLASSIFIERS]
    plain = [torch.randn(5, 3, 16) for _ in CLASSIFIERS]
    looks = torch.ones(5)
    one = [Features(torch.stack([own]), looks) for own in plain]
    both = [Features(torch.stack([own, own[:, [0, 2, 1]]]), looks) for own in plain]
    torch.testing.assert_close(fused(head, answers, one)[0], fused(head, answers, both)[0])


def test_a_view_that_is_missing_is_masked(networks):
    study = study_of()
    place = localisation_of(study)
    study.series[AXIAL_T2], place.axial_levels = [], []
    logits, mask = classify(study, place, networks)
    assert not mask[3, 3:].any()
    assert mask[3, :3].all()  # the sagittal one answers canal and foramina
    assert np.isfinite(logits[3]).all()
    assert np.isfinite(predict_study(study, networks, np.full((25, 3), 1 / 3)).probs).all()


@pytest.mark.parametrize("left_out", ["fusion", "axial_subarticular"])
def test_it_is_left_out_when_it_or_a_member_is(networks, left_out):
    study = study_of()
    _, mask = classify(study, localisation_of(study), networks, skip=frozenset({left_out}))
    assert not mask[3].any()


def test_the_lowest_effort_does_without_it(networks, monkeypatch):
    assert networks.spared == {"axial_subarticular", "fusion"}
    monkeypatch.setattr("lumbar.stages.classify.fused_fits", None)  # calling it would fail
    predict_study(study_of(), networks, np.full((25, 3), 1 / 3), Effort.ONE_MODEL)


def weights_of(data, stage):
    return next(entry for entry in data["weights"] if entry["stage"] == stage)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: d.pop("fusion"), "found weights of fusion, expected a field fusion with its members"),
        (lambda d: d.update(fusion=[]), r"fusion: found \[\], expected an object"),
        (lambda d: d["fusion"].update(more=1), r"fusion: found \['members', 'more'\], expected members"),
        (lambda d: d["fusion"].update(members=["lost"]), "fusion.members: found lost, expected of axial_all"),
        (lambda d: d["fusion"]["members"].reverse(), "found members .*, expected "),
        (lambda d: weights_of(d, "axial_all").update(fold=0), r"found fits \[-1\], expected those of axial_all"),
        (lambda d: d["weights"].remove(weights_of(d, "fusion")), r"found fits \[\], expected those of sagittal_c"),
        (lambda d: weights_of(d, "fusion")["config"].update(widths=[16, 16, 8]), r"widths \[8\], expected \[16\] of a"),
        (lambda d: weights_of(d, "fusion")["config"].update(widths=[16]), r"found 1, expected one for each of"),
    ],
)  # fmt: skip
def test_a_fusion_that_does_not_fit_its_members_is_refused(bundle, tmp_path, spoil, said):
    data = copy.deepcopy(read_manifest(bundle).data)
    spoil(data)
    path = tmp_path / "weights_manifest.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=said) as error:
        read_manifest(path)
    assert "\n" not in str(error.value)


def test_a_bundle_without_a_fusion_is_as_it_was(tmp_path):
    manifest = read_manifest(write_untrained_bundle(tmp_path / "plain"))
    networks = load_networks(manifest.folder, manifest)
    assert networks.classifiers == CLASSIFIERS
    assert networks.spared == {"axial_subarticular"}
    assert "fusion" not in networks.by_stage
