from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernel_untrained import write_untrained_bundle
from lumbar import labels
from lumbar.bundle.manifest import read_manifest, write_manifest
from lumbar.config import CLASSIFIERS
from lumbar.errors import CohortError, ManifestError
from lumbar.metric import score, score_arrays
from lumbar.run import predict
from lumbar.study import read_study
from lumbar_train.data.folds import make_folds, write_folds
from lumbar_train.data.tables import Cohort, read_cohort
from lumbar_train.data.true_points import true_localisation
from lumbar_train.errors import LeakError
from lumbar_train.evaluation.evaluate import ANSWERS, Evaluation, evaluate_oof, evaluate_run
from lumbar_train.evaluation.point_errors import axial_assignments, sagittal_errors, truth_points
from lumbar_train.outputs.store import levels_frame, logits_frame, write_frame, write_localisations
from lumbar_train.report import report_on, write_report


@pytest.fixture
def cohort(root: Path) -> Cohort:
    return read_cohort(root, progress=False)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_bundle(tmp_path_factory.mktemp("bundle") / "sealed")


@pytest.fixture
def run(cohort: Cohort, tmp_path: Path) -> Path:
    """A run folder as the stages leave it: true places, logits that know the labels a little."""
    folder = tmp_path / "run"
    folds = make_folds(cohort, 2, 0)
    write_folds(folder / "folds.csv", folds)
    fold_of = dict(zip(folds["study_id"], folds["fold"], strict=True))
    truth = truth_points(cohort)
    found = {}
    for study in map(int, cohort.study_ids):
        stacks = read_study(cohort.root, "train", study, cohort.series, workers=1)
        found[study] = true_localisation(stacks, truth[truth["study_id"] == study])
    for fold in (0, 1):
        own = {study: place for study, place in found.items() if fold_of[study] == fold}
        write_localisations(folder / "localise", own, fold_of, fold)
    levels = {study: place.levels_mm for study, place in found.items()}
    write_frame(folder / "sagittal_xy" / "oof.parquet", levels_frame(levels, fold_of))
    known = dict(zip(cohort.study_ids.tolist(), np.maximum(cohort.labels, 0).reshape(-1, 5, 5), strict=True))
    for name in CLASSIFIERS:
        logits = {study: 2.0 * np.eye(3, dtype=np.float32)[grades] for study, grades in known.items()}
        masks = {study: np.ones((5, 5), bool) for study in known}
        write_frame(folder / name / "oof.parquet", logits_frame(logits, masks, fold_of))
    probs = (0.6 * np.eye(3)[np.maximum(cohort.labels, 0)] + 0.4 / 3).reshape(-1, 3)
    answer = pd.DataFrame(probs, columns=list(labels.SEVERITY_COLUMNS))
    answer.insert(0, "row_id", [row for study in cohort.study_ids for row in labels.row_ids(int(study))])
    write_frame(folder / "aggregator" / "oof.parquet", answer)
    for fold in ("fold0", "full"):
        log = pd.DataFrame({"epoch": [0, 1], "loss": [1.0, 0.5], "samples_per_s": [9.0, 9.5], "seconds": [3.0, 6.0]})
        (folder / "sagittal_xy" / fold).mkdir(parents=True)
        log.to_csv(folder / "sagittal_xy" / fold / "log.csv", index=False)
        (folder / "sagittal_xy" / fold / "fit.json").write_text(json.dumps({"reason": "because it was last"}))
    return folder


def test_out_of_fold_figures_are_those_of_the_stored_outputs(run, cohort):
    evaluation = evaluate_oof(run, cohort)
    figures = evaluation.figures()
    expected = score_arrays(cohort.labels.astype(np.int64), evaluation.answer)
    assert figures["scores"]["+ MLP"]["total"][0] == pytest.approx(expected.total)
    assert list(figures["scores"]) == list(ANSWERS)
    assert list(figures["folds"]) == ["0", "1"]
    assert figures["sagittal"]["median_mm"] < 1e-6
    assert figures["axial"]["right"] == 1.0
    assert figures["added"]["sagittal only"]["total"][2] < 0  # better than the prior beyond doubt
    assert figures["ratio_to_prior"][0] < 1
    assert figures["failed"] == 0


def test_the_prior_of_a_fold_is_that_of_the_other_folds(run, cohort):
    evaluation = evaluate_oof(run, cohort)
    for fold in (0, 1):
        others = evaluation.study_ids[evaluation.folds != fold]
        assert np.allclose(evaluation.answers["prior"][evaluation.folds == fold], cohort.prior(others))


@pytest.mark.parametrize(
    "table", ["sagittal_xy/oof", "localise/points", "localise/axial", "sagittal_classifier/oof", "axial_all/oof"]
)
def test_a_planted_in_fold_prediction_is_refused_wherever_it_lies(run, cohort, table):
    path = run / f"{table}.parquet"
    frame = pd.read_parquet(path)
    frame.loc[frame["study_id"] == 103, "fold"] = 1 - frame.loc[frame["study_id"] == 103, "fold"]
    frame.to_parquet(path, index=False)
    with pytest.raises(LeakError, match="study 103 was predicted by fold"):
        evaluate_oof(run, cohort)


def test_a_study_in_two_folds_is_refused(run, cohort):
    folds = pd.read_csv(run / "folds.csv")
    pd.concat([folds, folds[:1].assign(fold=1 - folds["fold"][0])]).to_csv(run / "folds.csv", index=False)
    with pytest.raises(LeakError, match="study 101 is in folds 0, 1"):
        evaluate_oof(run, cohort)


def test_a_stage_that_has_not_run_is_named(run, cohort):
    (run / "axial_all" / "oof.parquet").unlink()
    with pytest.raises(CohortError, match=r"axial_all/oof\.parquet: not found"):
        evaluate_oof(run, cohort)


def test_a_bundle_on_a_cohort_answers_as_the_kernel_does(bundle, root):
    evaluation = evaluate_run(bundle, root, points="true", studies=[101, 104], progress=False)
    frame, _ = predict(root, bundle, split="train", studies=[101, 104], progress=False)
    expected = frame[list(labels.SEVERITY_COLUMNS)].to_numpy().reshape(2, 25, 3)
    assert np.abs(evaluation.answer - expected).max() < 1e-6
    assert list(evaluation.answers) == list(ANSWERS)
    assert evaluation.true_points is not None
    assert np.allclose(evaluation.true_points.sum(-1), 1)
    figures = evaluation.figures()
    assert "true points" in figures["scores"]
    assert len(figures["predicted_over_true"]) == 3


def test_a_study_without_images_gets_the_prior_and_is_counted(bundle, root):
    shutil.rmtree(root / "train_images/104")
    evaluation = evaluate_run(bundle, root, studies=[103, 104], progress=False)
    assert evaluation.study_ids.tolist() == [103, 104]
    assert np.allclose(evaluation.answer[1], evaluation.answers["prior"][1])
    assert any("104" in line for line in evaluation.problems[104])
    assert evaluation.cohort.dropped["series: folder missing"] == 3


def test_weights_are_not_scored_on_the_cohort_they_were_fitted_on(bundle, root, cohort, tmp_path):
    shutil.copytree(bundle, tmp_path / "run" / "export")
    data = dict(read_manifest(bundle).data)
    data["cohort"] = data["cohort"] | {"fingerprint": cohort.fingerprint}
    write_manifest(tmp_path / "run/export/weights_manifest.json", data)
    with pytest.raises(LeakError, match="is the cohort that these weights were fitted on"):
        evaluate_run(tmp_path / "run", root, progress=False)
    data["cohort"] = data["cohort"] | {"fingerprint": "another"}
    write_manifest(tmp_path / "run/export/weights_manifest.json", data)
    write_folds(tmp_path / "run/folds.csv", pd.DataFrame({"study_id": [105, 7], "fold": [0, 1]}))
    with pytest.raises(LeakError, match=r"study 105 was trained on \(1 of 6\)"):
        evaluate_run(tmp_path / "run", root, progress=False)
    evaluate_run(tmp_path / "run", root, studies=[101], progress=False)


def test_a_broken_bundle_and_a_wrong_word_are_refused(bundle, root, tmp_path):
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle/weights/axial_xy.full.safetensors").write_bytes(b"x")
    with pytest.raises(ManifestError, match="axial_xy"):
        evaluate_run(tmp_path / "bundle", root, progress=False)
    with pytest.raises(CohortError, match="points: found 'guessed'"):
        evaluate_run(bundle, root, points="guessed", progress=False)


# The page


def made_up(cohort: Cohort, run: Path) -> Evaluation:
    evaluation = evaluate_oof(run, cohort)
    evaluation.problems[101] = ["series 7: <b>not</b> a series"]
    evaluation.true_points = evaluation.answer
    cohort.dropped["points: outside the image"] = 3
    return evaluation


def test_the_page_stands_alone_and_says_everything(run, cohort, tmp_path):
    page = write_report(made_up(cohort, run), run / "report", run=run)
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # nothing is fetched from anywhere
    assert "<script" not in text
    for words in (
        "sagittal only", "+ axial", "+ MLP", "true points", "Research use only", "points: outside the image",
        "because it was last", "of axial levels given their own slice", "Corrected to plain frequencies", "By fold",
    ):  # fmt: skip
        assert words in text, words
    assert "&lt;b&gt;not&lt;/b&gt;" in text
    head = text.partition("<body>")[2].partition('<h2 id="score">')[0]
    assert head.index("<b>run</b>") < head.index('<div class="key">') < head.index('class="warning"')
    assert head.count('class="warning"') == 1
    assert text.count("data:image/png;base64,") >= 5 + 6  # plots, and an overlay of each worst case
    figures = json.loads((run / "report" / "figures.json").read_text())
    assert figures["dropped"] == {"points: outside the image": 3}


def test_figures_without_points_or_axial_series_still_make_a_page(run, cohort, tmp_path):
    evaluation = evaluate_oof(run, cohort)
    nothing = truth_points(cohort).iloc[:0]
    evaluation.sagittal = sagittal_errors(nothing, evaluation.localisations)
    evaluation.axial = axial_assignments(nothing, evaluation.localisations, cohort)
    evaluation.folds = None
    text = write_report(evaluation, tmp_path / "report").read_text()
    assert "No true points are known" in text
    assert "By fold" not in text


def test_a_run_is_reported_on_its_own_cohort_out_of_fold(run, root):
    page, evaluation = report_on(run, root)
    assert page == run / "report" / "index.html"
    assert evaluation.folds is not None
    assert "out of fold" in page.read_text().lower()
    answer = pd.read_csv(page.parent / "submission.csv")
    total = score(pd.read_csv(root / "train.csv"), answer).total
    assert total == pytest.approx(evaluation.figures()["scores"]["+ MLP"]["total"][0])


def test_a_bundle_is_reported_on_a_cohort_it_never_saw(bundle, root, tmp_path, monkeypatch):
    asked = {}

    def measured(folder, where, points, *, split, device):
        asked.update(folder=folder, where=where, points=points, split=split)
        raise CohortError("far enough")

    monkeypatch.setattr("lumbar_train.report.evaluate_run", measured)
    with pytest.raises(CohortError, match="far enough"):
        report_on(bundle, root, points="true")
    assert asked == {"folder": bundle, "where": root, "points": "true", "split": "train"}


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("chromium") or shutil.which("chromium-browser")), reason="chromium is not there")
def test_a_browser_shows_the_page_without_overflow(run, cohort, tmp_path):
    page = write_report(made_up(cohort, run), run / "report", run=run)
    probe = "<script>document.title = [document.documentElement.scrollWidth <= innerWidth, "
    probe += "[...document.querySelectorAll('.scroll')].every(d => d.scrollWidth <= d.clientWidth), "
    probe += "[...document.images].every(i => i.naturalWidth > 0), document.querySelectorAll('h2').length]</script>"
    (tmp_path / "probe.html").write_text(page.read_text().replace("</body>", probe + "</body>"))
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=800,900", "--virtual-time-budget=3000", "--dump-dom", f"file://{tmp_path / 'probe.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr[-2000:]
    assert title.group(1) == "true,true,true,8"
