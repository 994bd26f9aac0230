"""``ensemble``: of two runs with other crops one bundle, whose answers are those of the members' own logits."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kernel_untrained import CONFIGS
from lumbar.bundle.manifest import verify
from lumbar.bundle.member_seconds import FILE, KEY, weights_key
from lumbar.bundle.weights import load_networks
from lumbar.chains.main import predict_study
from lumbar.config import CLASSIFIERS
from lumbar.errors import CohortError
from lumbar.labels import GROUPS
from lumbar.stages.aggregate import aggregate, level_confidence, prior_array
from lumbar.stages.classify import classify
from lumbar.stages.localise import localise
from lumbar.study import read_study
from lumbar_publish.sealing.completeness import completeness_errors
from lumbar_train.__main__ import main
from lumbar_train.data.tables import Cohort, read_cohort
from lumbar_train.ensemble import budget, build, export
from lumbar_train.ensemble.budget import parse_target, study_flops
from lumbar_train.ensemble.build import build_ensemble, summary
from lumbar_train.ensemble.localisers import MEDIAN, RIGHT, chosen_localiser, localiser_lines
from lumbar_train.ensemble.members import gather
from lumbar_train.ensemble.page import pool_weights
from lumbar_train.pipeline.counts import count_cohort
from lumbar_train.pipeline.plan import prediction_flops
from lumbar_train.recipes import RECIPES, Recipe
from train_chain_runs import write_chain_run

WIDE = replace(CONFIGS["axial_all"], box_scale=3.0, size=40, window=5)


@pytest.fixture(scope="module")
def cohort(pristine_root: Path) -> Cohort:
    return read_cohort(pristine_root, progress=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, cohort) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "a": write_chain_run(folder / "a", cohort, CONFIGS, 1),
        "b": write_chain_run(folder / "b", cohort, CONFIGS | {"axial_all": WIDE}, 2),
    }


@pytest.fixture(scope="module")
def made(pair, pristine_root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ens") / "ENS"
    command = ["ensemble", "--runs", *map(str, pair.values()), "--data", str(pristine_root), "--out", str(out)]
    assert main([*command, "--select", "all", "--localiser", "b"]) == 0
    return out


NAMES = tuple(f"{run}_{name}" for run in "ab" for name in CLASSIFIERS)


def test_the_bundle_lists_every_member_with_view_crop_and_conditions(made):
    manifest = verify(made / "export")
    assert tuple(one.name for one in manifest.classifiers) == NAMES
    assert dict(manifest.classifiers[-1].crop)["size"] == 40
    assert manifest.classifiers[1].conditions == (3, 4)
    assert manifest.recipe == json.loads((made / "recipe.json").read_text())["name"] == "ensemble"
    assert set(manifest.data["shed"]) < set(NAMES)
    assert len(manifest.data["shed"]) == len(NAMES) - 1


def test_it_is_complete_for_sealing_and_a_member_without_weights_is_named(made):
    data = verify(made / "export").data
    assert completeness_errors(data, made) == []
    rest = [entry for entry in data["weights"] if entry["stage"] != "b_axial_all"]
    assert completeness_errors({**data, "weights": rest}, made)[0].startswith(
        "no weights for b_axial_all; found a_axial"
    )


def test_its_answers_are_those_of_the_members_own_logits(made, pair, cohort):
    """Each member's logits by its own run's bundle, on the localisation that the ensemble ships."""
    networks = load_networks(made / "export", verify(made / "export"))
    own = {run: load_networks(path / "export", verify(path / "export")) for run, path in pair.items()}
    study = read_study(cohort.root, "train", int(cohort.study_ids[0]), cohort.series, workers=1)
    prior = prior_array(verify(made / "export").prior)
    place = localise(study, own["b"])
    pairs = [classify(study, place, own[run]) for run in "ab"]
    logits, mask = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    expected = aggregate(logits, mask, prior, networks.stage("aggregator"), level_confidence(place))
    assert mask.any()
    np.testing.assert_allclose(predict_study(study, networks, prior).probs, expected, atol=1e-5)


def test_the_page_gives_weights_of_the_pool_to_the_conditions_that_a_member_answers(made):
    classifiers = verify(made / "export").classifiers
    weights = pool_weights(made)
    for one, row in zip(classifiers, weights, strict=True):
        answered = [bool({*group} & {*one.conditions}) for group in GROUPS.values()]
        assert [weight is not None for weight in row] == answered, one.name
    for group in range(len(GROUPS)):
        assert sum(row[group] or 0.0 for row in weights) == pytest.approx(1.0)


def test_it_is_a_run_that_is_reported_compared_and_joined_like_any_other(made, pair, pristine_root, capsys):
    assert (made / "report/index.html").is_file()
    page = (made / "report/ensemble.html").read_text()
    assert all(name in page for name in NAMES)
    assert page.count("data:image/png;base64,") > 1  # the curve, and overlays of studies on which members differ
    notes = json.loads((made / "ensemble.json").read_text())
    assert notes["localiser"] == "b"
    assert sum(member["weight"] for member in notes["members"]) == pytest.approx(1.0)
    assert notes["path"][0]["adds"] in NAMES
    assert set(notes["honest"]) == set(notes["gain"]) == {"total", "spinal", "foraminal", "subarticular", "any_severe"}
    again = gather({"ens": made, "a": pair["a"]}, read_cohort(pristine_root, progress=False))
    assert again.members.names[0] == "ens_a_sagittal_classifier"
    assert len(again.members.names) == 9
    first = pd.read_parquet(made / "a_axial_all/oof.parquet")
    pd.testing.assert_frame_equal(first, pd.read_parquet(pair["a"] / "axial_all/oof.parquet"))


def test_a_greedy_choice_within_a_budget_ships_what_it_chose(pair, pristine_root, tmp_path, monkeypatch):
    out, target = tmp_path / "ENS", parse_target("9h@2xT4")
    hashed = []
    monkeypatch.setattr(export, "verify", lambda folder: hashed.append(folder) or verify(folder))
    said = "\n".join(summary(build_ensemble(pair, pristine_root, out, target=target), target))
    assert hashed == [path / "export" for path in pair.values()]  # each once
    manifest = verify(out / "export")
    kept = [one.name for one in manifest.classifiers]
    assert set(kept) == {m["name"] for m in json.loads((out / "ensemble.json").read_text())["members"] if m["weight"]}
    assert "budget 9 h on 2 x T4: 45 s a study for the classifiers" in said
    assert load_networks(out / "export", manifest).classifiers == tuple(kept)
    assert [path.name for path in tmp_path.iterdir()] == ["ENS"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--localiser", "c"), "--localiser: found c, expected one of the runs, a, b"),
        (
            ("--budget", "9h@2xT5"),
            "--budget: found '9h@2xT5', expected hours and machines such as 9h@2xT4, of T4",
        ),
        (("--budget", "0.000001h@T4"), "expected one within"),
    ],
)
def test_wrong_options_end_in_one_line_and_leave_nothing(pair, pristine_root, tmp_path, capsys, more, said):
    out = tmp_path / "ENS"
    command = ["ensemble", "--runs", *map(str, pair.values()), "--data", str(pristine_root), "--out", str(out)]
    assert main([*command, *more]) == 1
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_runs_that_nothing_can_be_sealed_from_are_refused(pair, pristine_root, tmp_path, capsys):
    bare = shutil.copytree(pair["a"], tmp_path / "bare")
    shutil.rmtree(bare / "export")
    command = ["ensemble", "--data", str(pristine_root), "--out", str(tmp_path / "ENS"), "--runs"]
    assert main([*command, str(bare), str(pair["b"])]) == 1
    assert "bare: found no export, expected a run with weights that ship" in capsys.readouterr().err
    (tmp_path / "ENS").mkdir()
    (tmp_path / "ENS/note.txt").touch()
    assert main([*command, *map(str, pair.values())]) == 1
    assert "ENS: found files there, expected an empty folder, or none" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "ENS").iterdir()] == ["note.txt"]


def test_members_keep_their_own_localisers_and_equal_ones_ship_once(pair, tmp_path):
    manifests = {name: verify(pair[run] / "export") for name, run in (("a", "a"), ("b", "b"), ("twin", "b"))}
    kept = {"a": ["a_axial_all"], "b": ["b_axial_all"], "twin": ["twin_axial_all"]}
    own = export.own_localisers("a", kept, manifests)
    assert [one.listed.as_json() for one in own.values()] == [
        {"name": "localisers_1", "members": ["b_axial_all", "twin_axial_all"], "numbering": []}
    ]
    entries = own["localisers_1"].copied(tmp_path)
    assert [entry["stage"] for entry in entries] == [
        "localisers_1_sagittal_xy", "localisers_1_sagittal_z", "localisers_1_axial_xy",
    ]  # fmt: skip
    assert all((tmp_path / entry["file"]).is_file() for entry in entries)
    assert export.own_localisers("b", kept | {"a": []}, manifests) == {}


def test_both_choices_of_localisers_are_told_with_what_is_known_of_them():
    notes = {
        "localiser": "a", "own_localisers": {}, "localisers": {"a": {RIGHT: 0.9, MEDIAN: None}},
        "members": [{"run": "a", "weight": 0.5}, {"run": "b", "weight": 0.5}], "honest": {"total": [0.5, 0.4, 0.6]},
    }  # fmt: skip
    assert localiser_lines(notes) == [
        "localisers of a, which ship: axial levels given their own slice 0.9, sagittal points, median mm nan",
        "own localisers a member: 0.5000 (95 %: 0.4000 to 0.6000) out of fold; all logits were made at their points",
        "one set, of a (chosen): no score out of fold, since members of b were not run at its points; only the errors "
        "of points above tell",
    ]
    chosen = localiser_lines(notes | {"own_localisers": {"localisers_1": ["b_axial_all"]}})
    assert chosen[1].startswith("own localisers a member (chosen): 0.5000")
    assert chosen[-1] == "localisers_1 ships for b_axial_all"


def test_a_members_cost_is_what_its_crops_and_its_network_ask_for(cohort):
    counts = count_cohort(cohort)
    plain, wide = study_flops(CONFIGS["axial_all"], counts), study_flops(WIDE, counts)
    assert wide / plain == pytest.approx(5 / 3 * (40 / 32) ** 2, rel=0.35)
    with pytest.raises(CohortError):
        parse_target("9h")


def test_seconds_that_sealing_has_measured_stand_in_the_place_of_counted_ones(pair, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "study_flops", lambda config, counts: 1e9)
    run = shutil.copytree(pair["b"], tmp_path / "b")
    manifest = verify(run / "export")
    told = {"machine": "NvidiaTeslaT4 (two T4)", "rest": 1.0, "members": {"axial_all": 0.25}}
    (run / FILE).write_text(json.dumps({"weights": weights_key(manifest.data), KEY: told}))
    runs = {"a": pair["a"], "b": run}
    manifests = {name: verify(path / "export") for name, path in runs.items()}
    candidates = gather(runs, cohort)
    shipped = [export.shipped_by(source, manifests[source.run]) for source in candidates.sources]

    def costs(machine):
        target = parse_target(f"9h@{machine}")
        measured = build._measured(runs, manifests, target)
        return build._with_seconds(candidates, shipped, target, count_cohort(cohort), measured).members.seconds

    assert costs("T4")[-1] == 0.5  # of the patient and the mirrored one
    assert costs("A100")[-1] < 0.01  # measured for another machine: counted
    assert (costs("T4")[:-1] < 0.01).all()
    (run / FILE).write_text(json.dumps({"weights": "another", KEY: told}))
    assert costs("T4")[-1] < 0.01
    (run / FILE).write_text("[]")
    with pytest.raises(CohortError, match=r"member_seconds\.json: found no seconds of members, expected what sealing"):
        costs("T4")


@pytest.mark.parametrize("change", [{}, {"per_series": True}, {"per_series": False}, {"share_sides": True}])
def test_a_plan_and_a_budget_agree_on_what_a_study_costs(cohort, monkeypatch, change):
    """In images; also where a classifier looks at each of several series, and at both sides in one pass."""
    monkeypatch.setattr(budget, "forward_flops", lambda *arguments, **options: 1.0)
    counts = count_cohort(cohort)
    counts = replace(counts, axial=np.repeat(counts.axial, 3), sagittal=np.repeat(counts.sagittal, 2))
    for name in CLASSIFIERS:
        entry = RECIPES["strong"]().stages[name]
        known = {field.name for field in fields(entry.network)}
        network = replace(entry.network, **{key: value for key, value in change.items() if key in known})
        one = Recipe("one", {name: replace(entry, network=network)})
        planned = prediction_flops(one, {name: SimpleNamespace(forward_flops=1.0)}, counts)[name]
        assert study_flops(network, counts) == planned > 1


def test_the_localisers_that_find_levels_best_ship_unless_others_are_asked_for(tmp_path):
    runs = {name: tmp_path / name for name in "abc"}
    figures = {"a": {RIGHT: 0.9, MEDIAN: 1.0}, "b": {RIGHT: 0.95, MEDIAN: 3.0}, "c": {RIGHT: 0.95, MEDIAN: 2.0}}
    assert chosen_localiser(runs, None, figures) == "c"
    assert chosen_localiser(runs, "a", figures) == "a"
    assert chosen_localiser(runs, str(tmp_path / "b"), figures) == "b"
    with pytest.raises(CohortError, match="a: found no out-of-fold points"):
        chosen_localiser(runs, "a", {"b": figures["b"]})
