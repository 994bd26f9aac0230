"""The whole baseline on a tiny cohort: what it leaves, what it refuses, and that a kill changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from lumbar.bundle.manifest import read_manifest, verify
from lumbar.chains.baseline import read
from lumbar.errors import ManifestError
from lumbar.labels import COLUMNS, SAGITTAL_T1, SEVERITIES, row_ids
from lumbar.output.submission import validate
from lumbar.run import predict
from lumbar.stages.eight_bit import choose_slices, eight_bit
from lumbar.study import read_descriptions
from lumbar_publish.names import DatasetId, Layout
from lumbar_publish.sealing.completeness import chain_of
from lumbar_publish.sealing.seal import seal
from lumbar_train.__main__ import main
from lumbar_train.baseline import run as runs
from lumbar_train.baseline.settings import choose_columns
from lumbar_train.data.tables import read_cohort

CANAL, FORAMEN = "spinal_canal_stenosis_l4_l5", "left_neural_foraminal_narrowing_l5_s1"
STUDIES = list(range(101, 107))
REPOSITORY = Path(__file__).resolve().parents[3]


def set_labels(root, **by_column):
    table = pd.read_csv(root / "train.csv")
    for column, classes in by_column.items():
        table[column] = [None if k is None else SEVERITIES[k] for k in classes]
    table.to_csv(root / "train.csv", index=False)


def write_folds(path, studies=STUDIES):
    pd.DataFrame({"study_id": studies, "fold": [k % 2 for k in range(len(studies))]}).to_csv(path, index=False)
    return path


def baseline(root, out, *more, columns=f"{CANAL},{FORAMEN}"):
    folds = out.parent / "folds.csv"
    if not folds.exists():
        write_folds(folds)
    arguments = ["baseline", "--data", root, "--out", out, "--columns", columns, "--folds", folds, "--arch", "small"]
    arguments += ["--size", 32, "--slices", 3, "--epochs", 1, "--batch-size", 4, "--finder-steps", 10]
    arguments += ["--amp", "off", *more]  # auto times the processor, which other work may slow down
    torch.set_num_threads(1)
    return main([str(argument) for argument in arguments])


@pytest.fixture
def labelled(root):
    set_labels(root, **{CANAL: [0, 0, 1, 1, 2, 2], FORAMEN: [0, 1, 0, 1, 0, 0]})
    return root


@pytest.fixture(scope="module")
def done(pristine_root, tmp_path_factory):
    """A finished run, and the cohort that it was made from."""
    place = tmp_path_factory.mktemp("baseline")
    root = place / "cohort"
    shutil.copytree(pristine_root, root)
    set_labels(root, **{CANAL: [0, 0, 1, 1, 2, 2], FORAMEN: [0, 1, 0, 1, 0, 0]})
    assert baseline(root, place / "run") == 0
    return root, place / "run"


def test_a_run_leaves_predictions_a_submission_figures_weights_and_a_page(done):
    _, run = done
    table = pd.read_csv(run / "predictions" / f"{CANAL}_predictions.csv")
    assert {"study_id", "series_id", "image_path", "predicted_label", "normal_mild", "moderate", "severe"} <= set(table)
    assert len(table) == 3 * len(STUDIES)
    assert table[["normal_mild", "moderate", "severe"]].sum(axis=1).to_numpy() == pytest.approx(1.0, abs=1e-5)
    assert all((run / "work" / path).is_file() for path in table["image_path"])
    validate(run / "predictions" / "submission.csv", [row for study in STUDIES for row in row_ids(study)])
    figures = json.loads((run / "metrics.json").read_text())
    assert set(figures["oof"]) == {"total", "spinal", "foraminal", "subarticular", "any_severe"}
    assert set(figures["columns"]) == {CANAL, FORAMEN}
    of_fold = figures["columns"][CANAL]["folds"]["0"]
    assert {"accuracy", "macro_f1", "log_loss", "constant_log_loss", "lr"} <= set(of_fold)
    page = (run / "report" / "index.html").read_text()
    assert "spinal canal stenosis l4 l5" in page
    assert (run / "report" / "samples" / f"{CANAL}.png").is_file()
    assert len(pd.read_csv(run / "work" / f"{FORAMEN}_image_paths_labels.csv")) == 3 * len(STUDIES)


def test_out_of_fold_slices_are_those_of_the_fold_that_held_them_out(done):
    _, run = done
    table = pd.read_csv(run / "predictions" / f"{CANAL}_predictions.csv")
    assert (table["fold"] == (table["study_id"] - 101) % 2).all()
    for fold in (0, 1):
        seen = json.loads((run / "fits" / CANAL / f"fold{fold}" / "fit.json").read_text())["seen"]
        assert set(table.loc[table["fold"] == fold, "study_id"]).isdisjoint(seen)


def test_training_and_kernel_see_the_same_pixels(done):
    root, run = done
    descriptions = read_descriptions(root, "train")
    study = read((SAGITTAL_T1,), root, "train", 103, descriptions, 1)
    chosen = choose_slices(study, SAGITTAL_T1, 3)
    table = pd.read_csv(run / "work" / "images.csv")
    assert [source.instance_number for source in chosen] == table.loc[
        table["study_id"] == 103, "instance_number"
    ].tolist()
    packed = np.load(run / "work" / "images.npy")
    for source in chosen:
        place = f"images/103/{source.series_id}/{source.instance_number}.png"
        pixels = eight_bit(study, source, 32)
        assert (cv2.imread(str(run / "work" / place), cv2.IMREAD_GRAYSCALE) == pixels).all()
        assert (packed[table.index[table["image_path"] == place][0]] == pixels).all()


def test_the_exported_weights_sealed_give_the_kernel_the_answers_of_training(done, tmp_path):
    root, run = done
    shutil.copytree(REPOSITORY / "kernel", tmp_path / "kernel", ignore=shutil.ignore_patterns("__pycache__"))
    layout = Layout(tmp_path)
    first = seal(layout, run=run, dataset=DatasetId("someone", "lumbar-kit"))
    data = json.loads((first.folder / "weights_manifest.json").read_text())
    assert chain_of(data) == "baseline"
    assert '\\"--chain\\", \\"baseline\\"' in layout.notebook.read_text()
    assert len(data["training"]["columns_at_their_prior"]) == 23
    assert seal(layout, run=run, dataset=DatasetId("someone", "lumbar-kit")).manifest_hash == first.manifest_hash
    entries = verify(first.folder).weights
    assert {entry.config["column"] for entry in entries} == {CANAL, FORAMEN}
    chosen = json.loads((run / "metrics.json").read_text())["temperatures"]
    for entry in entries:
        assert entry.config["temperature"] == chosen[str(entry.config["column"])[: -len("_l1_l2")]]["all"] != 1.0

    frame, record = predict(root, first.folder, tmp_path / "s.csv", split="train", chain="baseline")
    assert [study["status"] for study in record["studies"]] == ["predicted"] * 6
    # the command predicts the test split: the same studies, shown as that
    shutil.copytree(root, tmp_path / "test")
    (tmp_path / "test" / "train_images").rename(tmp_path / "test" / "test_images")
    (tmp_path / "test" / "train_series_descriptions.csv").rename(tmp_path / "test" / "test_series_descriptions.csv")
    (tmp_path / "test" / "train.csv").rename(tmp_path / "test" / "solution.csv")
    assert baseline(tmp_path / "test", run, "--split", "test") == 0
    ours = pd.read_csv(run / "predictions-test-test" / "submission.csv")
    assert ours["row_id"].tolist() == frame["row_id"].tolist()
    columns = ["normal_mild", "moderate", "severe"]
    assert np.abs(ours[columns].to_numpy() - frame[columns].to_numpy()).max() < 1e-5
    prior = read_manifest(first.folder).prior
    other = frame[frame["row_id"].str.endswith(COLUMNS[24])][columns].to_numpy()
    assert np.abs(other - np.array(prior[COLUMNS[24]])).max() < 1e-5

    refused = main(["evaluate", "--run", str(first.folder), "--data", str(root), "--out", str(tmp_path / "e")])
    assert refused == 1
    with pytest.raises(ManifestError, match="no weights of stages"):
        predict(root, first.folder, split="train", chain="main")


def test_a_killed_run_goes_on_to_the_same_predictions(done, tmp_path, monkeypatch, capsys):
    root, run = done
    whole, n_done = runs.run_fit, []

    def dying(job):
        if len(n_done) == 3:
            raise KeyboardInterrupt
        n_done.append(job)
        return whole(job)

    monkeypatch.setattr(runs, "run_fit", dying)
    assert baseline(root, tmp_path / "again") == 1
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "again" / "predictions").exists()
    assert not (tmp_path / "again" / "export").exists()
    monkeypatch.setattr(runs, "run_fit", whole)
    assert baseline(root, tmp_path / "again") == 1
    assert "holds fits, add --resume" in capsys.readouterr().err
    assert baseline(root, tmp_path / "again", "--resume") == 0
    for name in (f"predictions/{CANAL}_predictions.csv", f"predictions/{FORAMEN}_predictions.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()
    assert not list((tmp_path / "again").rglob("checkpoint.pt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--description", "Sagittal T9"), "--description: found 'Sagittal T9', expected one of Sagittal T1"),
        (("--start-batch", "1"), "found no record of these settings, expected one before --start-batch 1"),
        (("--start-batch", "9"), "--start-batch: found 9, expected 0 to 1"),
        (("--size", "8"), "--size: found 8, expected 32 or more"),
        (("--stop-accuracy", "2"), "--stop-accuracy: found 2.0, expected 0 (off) to below 1"),
        (("--arch", "resnet9999"), "backbone resnet9999: timm"),
    ],
)
def test_bad_options_end_in_one_line_and_leave_nothing(labelled, tmp_path, capsys, arguments, message):
    assert baseline(labelled, tmp_path / "run", *arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lumbar_train: ")
    assert message in error
    assert not list(tmp_path.glob("run/fits/*/*/*.safetensors"))
    assert not (tmp_path / "run" / "predictions").exists()


def test_an_unknown_column_is_refused_before_anything_is_read(labelled, tmp_path, capsys):
    assert baseline(labelled, tmp_path / "run", columns="spinal_canal_stenosis_l9_l9") == 1
    assert "--columns: found 'spinal_canal_stenosis_l9_l9', expected label columns such as" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert choose_columns("spinal_canal_stenosis") == list(COLUMNS[:5])


def test_no_series_of_the_description_is_refused(labelled, tmp_path, capsys):
    path = labelled / "train_series_descriptions.csv"
    table = pd.read_csv(path)
    table[table["series_description"] != SAGITTAL_T1].to_csv(path, index=False)
    assert baseline(labelled, tmp_path / "run") == 1
    assert (
        "found series described as Axial T2, Sagittal T2/STIR, expected some described as 'Sagittal T1'"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run" / "fits").exists()


def spoil(path):
    path.unlink()  # the cohort is made of hard links
    path.write_bytes(b"not DICOM")


def test_unreadable_slices_are_left_out_with_a_line(labelled, tmp_path, capsys):
    spoil(labelled / "train_images" / "101" / "1010" / "4.dcm")
    for path in (labelled / "train_images" / "102" / "1020").iterdir():
        spoil(path)
    assert baseline(labelled, tmp_path / "run", columns=CANAL) == 0
    told = "".join(capsys.readouterr())
    assert "4.dcm" in told
    assert "15 slices of 5 studies; 1 studies have none" in told
    frame = pd.read_csv(tmp_path / "run" / "predictions" / "submission.csv").set_index("row_id")
    cohort = read_cohort(labelled, progress=False)
    prior = cohort.prior([101, 103, 105])[COLUMNS.index(CANAL)]
    assert frame.loc[f"102_{CANAL}"].to_numpy() == pytest.approx(prior)


def test_a_cohort_without_a_readable_slice_is_refused(labelled, tmp_path, capsys):
    for study in STUDIES:
        for path in (labelled / "train_images" / str(study) / f"{study}0").iterdir():
            spoil(path)
    assert baseline(labelled, tmp_path / "run") == 1
    assert "no readable slice in 6 series described as 'Sagittal T1'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "work" / "images.npy").exists()


def test_one_class_alone_is_a_line_and_its_constant_stands_in(labelled, tmp_path, capsys):
    set_labels(labelled, **{CANAL: [1, 0, 0, 0, 2, 0], FORAMEN: [0] * 6})
    assert baseline(labelled, tmp_path / "run") == 0
    told = "".join(capsys.readouterr())
    assert f"{CANAL}, fold 0: found one class (Normal/Mild) among 9 training images, expected two or more" in told
    assert f"{FORAMEN}, the fit on all data: found one class" in told
    left = {path.name for path in (tmp_path / "run" / "fits" / FORAMEN / "full").iterdir()}
    assert left == {"fit.json", "started.json"}
    frame = pd.read_csv(tmp_path / "run" / "predictions" / "submission.csv").set_index("row_id")
    prior = read_cohort(labelled, progress=False).prior([102, 104, 106])[COLUMNS.index(CANAL)]
    assert frame.loc[f"101_{CANAL}"].to_numpy() == pytest.approx(prior)
    assert [e.config["column"] for e in read_manifest(tmp_path / "run" / "export").weights] == [CANAL]


def test_one_class_everywhere_ends_the_run(labelled, tmp_path, capsys):
    set_labels(labelled, **{FORAMEN: [0] * 6})
    assert baseline(labelled, tmp_path / "run", columns=FORAMEN) == 1
    assert "no fit found two classes" in capsys.readouterr().err
    assert not (tmp_path / "run" / "export").exists()


def test_studies_that_the_fold_file_leaves_out_are_left_out_here(labelled, tmp_path):
    write_folds(tmp_path / "folds.csv", STUDIES[:5])
    assert baseline(labelled, tmp_path / "run", "--no-full", columns=CANAL) == 0
    assert len(pd.read_csv(tmp_path / "run" / "predictions" / "submission.csv")) == 5 * 25
    assert not (tmp_path / "run" / "export").exists()


def test_the_page_sets_a_chain_on_the_same_folds_beside_and_refuses_other_folds(done, tmp_path, capsys):
    root, run = done
    chain = tmp_path / "chain"
    (chain / "aggregator").mkdir(parents=True)
    frame = pd.read_csv(run / "predictions" / "submission.csv")
    frame.to_parquet(chain / "aggregator" / "oof.parquet", index=False)
    write_folds(chain / "folds.csv")
    shutil.copytree(run, tmp_path / "run")
    assert baseline(root, tmp_path / "run", "--resume", "--chain-run", chain) == 0
    figures = json.loads((tmp_path / "run" / "report" / "figures.json").read_text())
    assert list(figures["scores"]) == [
        "uniform", "prior", "baseline, balanced", "baseline, untempered", "baseline", "chain",
    ]  # fmt: skip
    assert figures["differences"]["chain minus baseline"]["total"][0] == pytest.approx(0.0, abs=1e-9)
    assert "chain and baseline cannot be told apart" in (tmp_path / "run" / "report" / "index.html").read_text()
    pd.DataFrame({"study_id": STUDIES, "fold": [0, 0, 0, 1, 1, 1]}).to_csv(chain / "folds.csv", index=False)
    assert baseline(root, tmp_path / "run", "--resume", "--chain-run", chain) == 1
    assert "study 102 is in another fold than here" in capsys.readouterr().err


def test_stop_accuracy_measures_on_training_studies_kept_apart(pristine_root, tmp_path, capsys):
    root = tmp_path / "cohort"
    shutil.copytree(pristine_root, root)
    set_labels(root, **{CANAL: [0, 0, 1, 1, 0, 1]})
    assert baseline(root, tmp_path / "run", "--no-full", "--stop-accuracy", "0.9", columns=CANAL) == 0
    # three training studies a fold are too few to keep any apart, and that is said
    assert "no studies could be kept apart to measure the accuracy" in "".join(capsys.readouterr())
