"""Any set of classifiers: what a bundle lists is what runs, and each is given its own crops, cut once."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernel_untrained import CONFIGS, write_untrained_bundle
from lumbar.bundle.manifest import read_manifest, write_manifest
from lumbar.bundle.member_seconds import spared_members
from lumbar.bundle.weights import load_networks
from lumbar.chains.main import predict_study
from lumbar.config import CLASSIFIERS, to_dict
from lumbar.errors import ManifestError
from lumbar.labels import AXIAL_T2
from lumbar.models import build, name_of
from lumbar.stages import classify as classify_module
from lumbar.stages.aggregate import aggregate
from lumbar.stages.classifiers import Classifier, External, spared
from lumbar.stages.classify import classify, study_logits
from lumbar.study import Study
from lumbar.workers.budget import Effort
from lumbar.workers.effort import FewerMembers, Spared
from stage_studies import localisation_of, study_of

AXIAL, SAGITTAL = CONFIGS["axial_all"], CONFIGS["sagittal_classifier"]
SECONDS = {
    "machine": "two T4",
    "rest": 0.2,
    "members": {"a_sagittal": 0.2, "a_axial": 0.1, "b_axial": 0.1, "b_wide": 0.4},
    "localisers": {},
}
PRIOR = np.full((25, 3), [0.6, 0.3, 0.1])
NAMES = ("a_sagittal", "a_axial", "b_axial", "b_wide")
MINE = {
    "a_sagittal": SAGITTAL,
    "a_axial": AXIAL,
    "b_axial": replace(AXIAL, conditions=(3, 4)),
    "b_wide": replace(AXIAL, box_scale=3.0, size=40, window=5),
}


def built(config, seed=0):
    torch.manual_seed(seed)
    return build(name_of(config), to_dict(config)).eval()


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """A bundle of four classifiers, two of which look at the same crops."""
    others = {name: config for name, config in CONFIGS.items() if name not in CLASSIFIERS}
    configs = others | MINE | {"aggregator": replace(CONFIGS["aggregator"], models=NAMES)}
    listed = [Classifier.of(name, config).as_json() for name, config in MINE.items()]
    return write_untrained_bundle(tmp_path_factory.mktemp("ensemble") / "b", 1, configs, classifiers=listed)


def test_a_fold_with_another_crop_is_given_its_own_crops():
    """They were all cut by the configuration of the first fold."""
    study = study_of()
    place = localisation_of(study)
    fits = [built(AXIAL, 1), built(replace(AXIAL, box_scale=3.0, size=40, window=5), 2)]
    both, shown = study_logits(study, place, fits, flip=True)
    each = [study_logits(study, place, [fit], flip=True) for fit in fits]
    assert (each[0][0] - each[1][0]).abs().max() > 1e-3
    torch.testing.assert_close(both, (each[0][0] + each[1][0]) / 2, atol=1e-6, rtol=0)
    assert shown.all()


def test_a_target_that_one_fold_alone_sees_is_its_answer():
    study = study_of()
    place = localisation_of(study)
    fits = [built(replace(AXIAL, conditions=(3, 4)), 1), built(replace(AXIAL, size=40), 2)]
    both, _ = study_logits(study, place, fits, flip=False)
    alone, _ = study_logits(study, place, fits[1:], flip=False)
    torch.testing.assert_close(both[:, :3], alone[:, :3], atol=1e-6, rtol=0)


def test_crops_are_cut_once_for_each_that_differs(ensemble, monkeypatch):
    study = study_of()
    networks = load_networks(ensemble, read_manifest(ensemble))
    cut = []
    monkeypatch.setattr(classify_module, "filled", lambda *a, real=classify_module.filled: cut.append(a[2]) or real(*a))
    classify(study, localisation_of(study), networks)
    assert len(cut) == 5 * 3  # levels, distinct crops: the two plain axial classifiers share theirs
    assert networks.classifiers == NAMES


def test_the_answer_is_the_aggregators_on_the_logits_of_each_alone(ensemble):
    study = study_of()
    networks = load_networks(ensemble, read_manifest(ensemble))
    place = localisation_of(study)
    logits, mask = classify(study, place, networks)
    for m, name in enumerate(NAMES):
        alone, shown = study_logits(study, place, networks.stage(name), flip=True)
        np.testing.assert_allclose(logits[m], alone.permute(1, 0, 2).numpy(), atol=1e-6)
        np.testing.assert_array_equal(mask[m], shown.T.numpy())
    probs = aggregate(logits, mask, PRIOR, networks.stage("aggregator"))
    assert np.isfinite(probs).all()
    assert mask.sum() == 15 + 25 + 10 + 25


def test_when_time_is_shortest_what_another_answers_on_the_same_view_is_left_out(ensemble, monkeypatch):
    networks = load_networks(ensemble, read_manifest(ensemble))
    skipped = []
    real = classify_module.classify
    monkeypatch.setattr("lumbar.chains.main.classify", lambda *a, **k: skipped.append(k["skip"]) or real(*a, **k))
    for effort in (Effort.ONE_FOLD, Effort.ONE_MODEL):
        predict_study(study_of(), networks, PRIOR, effort)
    assert skipped == [frozenset(), frozenset({"b_axial", "a_axial"})]


def test_whichever_members_are_left_out_every_target_that_was_seen_is_still_answered(ensemble):
    manifest = read_manifest(ensemble)
    networks = load_networks(ensemble, manifest)
    members, _ = spared_members(manifest.data)
    assert {member.name for member in members} == networks.spared
    for series in (study_of().series, {**study_of().series, AXIAL_T2: []}):
        study = Study(7, series)
        place = localisation_of(study) if series[AXIAL_T2] else replace(localisation_of(study_of()), axial_levels=[])
        seen = classify(study, place, networks, all_folds=False, flip=False)[1].any(axis=0)
        for count in range(1, len(members) + 1):
            level = FewerMembers(tuple(member.name for member in members[:count]))
            _, mask = classify(study, place, networks, all_folds=False, flip=False, skip=level.skips(networks.spared))
            np.testing.assert_array_equal(mask.any(axis=0), seen)
            assert not mask[[NAMES.index(name) for name in level.left_out]].any()


def test_the_seconds_of_members_give_their_shares_and_the_times_of_the_first_levels(ensemble):
    data = copy.deepcopy(read_manifest(ensemble).data)
    data |= {"shed": ["b_wide", "b_axial", "a_axial"], "member_seconds": SECONDS}
    members, times = spared_members(data)
    assert members == [Spared("b_wide", 0.4), Spared("b_axial", 0.1)]  # a_axial alone is left on its view
    np.testing.assert_allclose(times, (1.8, 1.0, 1.0))


def test_the_usual_three_spare_the_second_axial_classifier_as_before():
    usual = [Classifier.of(name, CONFIGS[name]) for name in CLASSIFIERS]
    assert spared(usual) == {"axial_subarticular"}
    mine = [Classifier.of(name, config) for name, config in MINE.items()]
    assert spared(mine, ["b_wide", "b_axial"]) == {"b_wide", "b_axial"}
    assert "a_sagittal" not in spared(mine, ["a_sagittal"])  # a patient without axial series keeps its answers


def test_an_external_member_which_may_fail_stands_in_for_no_other():
    own = Classifier.of("a_axial", AXIAL)
    external = replace(own, name="mate", external=External({}, {}, 1.0))
    assert spared([own, external], ["a_axial", "mate"]) == {"mate"}


def test_a_bundle_without_a_list_has_the_usual_three(tmp_path):
    manifest = read_manifest(write_untrained_bundle(tmp_path / "old"))
    assert [one.name for one in manifest.classifiers] == list(CLASSIFIERS)
    assert [one.view for one in manifest.classifiers] == ["sagittal", "axial", "axial"]
    assert load_networks(manifest.folder, manifest).classifiers == CLASSIFIERS


def twice(data):
    data["classifiers"].append(copy.deepcopy(data["classifiers"][0]))


def change(place, **values):
    return lambda data: data["classifiers"][place].update(values)


def seconds(**values):
    return lambda data: data.update(member_seconds={**SECONDS, **values})


def more_crop(data):
    data["classifiers"][1]["crop"]["size"] = 48


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: d.update(classifiers=[]), r"classifiers: found \[\], expected"),
        (lambda d: d.update(classifiers=[3]), r"classifiers: found \[3\], expected"),
        (twice, "classifiers: found a_sagittal twice, expected different names"),
        (change(0, name="A"), r"classifiers\[0\]\.name: found 'A', expected a name of small letters"),
        (change(0, name="sagittal_xy"), r"classifiers\[0\]\.name: found sagittal_xy, expected a name that no other"),
        (change(0, name="lost"), "classifiers: found no weights of lost, expected one or more"),
        (change(0, view="coronal"), r"classifiers\[0\]\.view: found 'coronal', expected 'sagittal' or 'axial'"),
        (change(0, view="axial"), "found model 'sagittal_classifier', expected axial_classifier for a_sagittal"),
        (change(1, conditions=[0, 1]), r"found conditions \[0, 1, 2, 3, 4\], expected \[0, 1\] as listed for a_axial"),
        (change(1, conditions=[5]), r"classifiers\[1\]\.conditions: found \[5\]"),
        (change(1, weight=2), r"classifiers\[1\]: found 'conditions', 'crop', 'name', 'view', 'weight', expected name"),
        (more_crop, "found crop size 32, expected 48 as listed for a_axial"),
        (lambda d: d["classifiers"][1]["crop"].pop("size"), "found crop size 32, expected None as listed for a_axial"),
        (lambda d: d.update(shed=["x"]), "shed: found x, expected of a_axial, a_sagittal, b_axial, b_wide"),
        (lambda d: d.update(shed="a"), "shed: found 'a', expected"),
        (seconds(rest=-1), r"member_seconds\.rest: found -1, expected a number"),
        (seconds(machine=3), r"member_seconds\.machine: found 3, expected"),
        (seconds(members={"a_axial": 1.0}), r"member_seconds\.members: found 'a_axial', expected a_sagittal, a_axial"),
        (seconds(members=dict.fromkeys(NAMES, "1")), r"member_seconds\.members\.a_sagittal: found '1', expected"),
        (seconds(more=1), "member_seconds: found 'localisers', 'machine', 'members', 'more', 'rest', expected machine"),
        (seconds(localisers={"x": 1.0}), r"member_seconds\.localisers: found 'x', expected none"),
        (lambda d: d.update(member_seconds=3), "member_seconds: found 3, expected"),
    ],
)
def test_a_list_that_the_weights_do_not_bear_out_is_refused(ensemble, tmp_path, spoil, said):
    data = copy.deepcopy(read_manifest(ensemble).data)
    spoil(data)
    path = tmp_path / "weights_manifest.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=said) as error:
        read_manifest(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ManifestError):
        write_manifest(path, data)


def test_an_aggregator_of_other_classifiers_is_refused(ensemble, tmp_path):
    data = copy.deepcopy(read_manifest(ensemble).data)
    data["classifiers"] = data["classifiers"][::-1]
    path = tmp_path / "weights_manifest.json"
    path.write_text(json.dumps(data))
    for entry in data["weights"]:
        target = tmp_path / entry["file"]
        target.parent.mkdir(exist_ok=True)
        target.hardlink_to(ensemble / entry["file"])
    with pytest.raises(ManifestError, match=r"found models .*'a_sagittal', 'a_axial'.*, expected .*'b_wide'"):
        load_networks(tmp_path, read_manifest(tmp_path))
