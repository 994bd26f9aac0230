"""Baseline beside chain: verdict, folds that must agree, the floor, and what a bundle of the baseline is."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lumbar.errors import CohortError
from lumbar.labels import COLUMNS
from lumbar_train.baseline import floor
from lumbar_train.baseline.compare import chain_oof, with_floor
from lumbar_train.baseline.export import _row, _temperature, export
from lumbar_train.baseline.floor import floor_probs
from lumbar_train.baseline.gather import submission_frame
from lumbar_train.baseline.measure import is_baseline
from lumbar_train.baseline.plots import plot_confusion, plot_finder, plot_samples
from lumbar_train.data.folds import FULL
from lumbar_train.data.tables import Cohort
from lumbar_train.ensemble.comparison import Comparison
from lumbar_train.errors import TrainingError

STUDIES = np.arange(1, 41)
RNG = np.random.default_rng(0)
LABELS = RNG.choice(3, (40, 25), p=(0.6, 0.25, 0.15)).astype(np.int8)
FOLDS = pd.DataFrame({"study_id": STUDIES, "fold": STUDIES % 2})


def answers(knowledge):
    """Probabilities that give the true class a share of ``knowledge`` beside an even rest."""
    return (1 - knowledge) / 3 + knowledge * np.eye(3)[LABELS]


def cohort(root=Path("nowhere")):
    return Cohort(root, "train", STUDIES, LABELS, pd.DataFrame(), pd.DataFrame())


def compared(**knowledge):
    by_name = {name: answers(value) for name, value in knowledge.items()}
    return Comparison("t", STUDIES, LABELS, by_name).figures()


def test_a_better_chain_is_said_to_beat_the_baseline_clearly():
    figures = compared(prior=0.0, baseline=0.3, chain=0.6)
    assert figures["verdict"].startswith("chain is better than baseline: -")
    assert set(figures["differences"]) == {"baseline minus prior", "chain minus prior", "chain minus baseline"}
    value, low, high = figures["differences"]["chain minus baseline"]["total"]
    assert low <= value <= high < 0
    assert figures["scores"]["chain"]["total"][0] < figures["scores"]["baseline"]["total"][0]


@pytest.mark.parametrize(
    ("chain", "said"),
    [(0.3, "chain and baseline cannot be told apart: +0."), (0.1, "chain is worse than baseline: +0.")],
)
def test_an_equal_or_worse_chain_is_not(chain, said):
    assert compared(prior=0.0, baseline=0.3, chain=chain)["verdict"].startswith(said)


def test_without_a_chain_there_is_no_verdict():
    figures = compared(prior=0.0, baseline=0.3)
    assert figures["verdict"] == ""
    assert set(figures["differences"]) == {"baseline minus prior"}


@pytest.fixture
def chain_run(tmp_path):
    run = tmp_path / "chain"
    (run / "aggregator").mkdir(parents=True)
    FOLDS.to_csv(run / "folds.csv", index=False)
    submission_frame(list(STUDIES), answers(0.5)).to_parquet(run / "aggregator" / "oof.parquet")
    return run


def test_a_chain_on_the_same_folds_gives_its_answers_in_the_cohorts_order(chain_run):
    np.testing.assert_allclose(chain_oof(chain_run, cohort(), FOLDS), answers(0.5))


def test_a_chain_on_other_folds_or_studies_is_refused(chain_run):
    other = FOLDS.assign(fold=(FOLDS["study_id"] == 3).astype(int) + FOLDS["fold"])
    with pytest.raises(CohortError, match=r"study 3 is in another fold than here \(1 such\), expected the same folds"):
        chain_oof(chain_run, cohort(), other)
    frame = pd.read_parquet(chain_run / "aggregator" / "oof.parquet")
    frame[25:].to_parquet(chain_run / "aggregator" / "oof.parquet")
    with pytest.raises(CohortError, match=r"study 1 has no out-of-fold answer \(1 without\), expected all"):
        chain_oof(chain_run, cohort(), FOLDS)


def test_without_truth_there_is_no_floor(tmp_path):
    assert floor_probs(tmp_path, "train", [1]) is None
    assert set(with_floor({"prior": answers(0)}, tmp_path, "train", [1])) == {"prior"}


def test_where_the_phantom_cannot_answer_there_is_no_floor(tmp_path):
    (tmp_path / "truth.parquet").write_bytes(b"no parquet")  # the command ends with an error
    assert floor_probs(tmp_path, "train", [1]) is None


def test_the_floor_is_what_the_phantoms_command_writes(tmp_path, monkeypatch):
    (tmp_path / "truth.parquet").touch()
    commands = []

    def oracle(command, **options):
        commands.append(command)
        submission_frame(list(STUDIES), answers(0.9)).to_csv(command[command.index("--out") + 1], index=False)
        return type("Done", (), {"returncode": 0})()

    monkeypatch.setattr(floor.subprocess, "run", oracle)
    by_name = with_floor({"prior": answers(0)}, tmp_path, "train", STUDIES)
    np.testing.assert_allclose(by_name["floor"], answers(0.9))
    assert commands[0][1:] == ["-m", "lumbar_phantom.oracle", "--data", str(tmp_path), "--split", "train",
                               "--out", commands[0][-1]]  # fmt: skip


def test_a_run_without_a_fit_on_all_data_exports_nothing(tmp_path):
    results = {(COLUMNS[0], 0): {"status": "fitted"}, (COLUMNS[0], FULL): {"status": "constant"}}
    with pytest.raises(TrainingError, match="no column has a fit on all data, expected one or more to export"):
        export(tmp_path, results, cohort(), {}, {}, {})
    assert not (tmp_path / "export").exists()


def test_a_column_gets_the_temperature_of_its_condition():
    chosen = {"spinal_canal_stenosis": {"0": 9.0, "all": 2.5}}
    assert _temperature("spinal_canal_stenosis_l3_l4", chosen) == 2.5
    assert _temperature("left_subarticular_stenosis_l3_l4", chosen) == 1.0


def test_exported_priors_sum_to_one_exactly():
    for row in np.random.default_rng(0).dirichlet((1, 1, 1), 50):
        rounded = _row(row)
        assert sum(rounded) == pytest.approx(1.0, abs=1e-12)
        assert rounded == pytest.approx(row, abs=2e-8)


@pytest.mark.parametrize("content", [None, "", "[]", json.dumps({"weights": []})])
def test_a_folder_without_a_readable_manifest_is_no_baseline(tmp_path, content):
    if content is not None:
        (tmp_path / "weights_manifest.json").write_text(content)
    assert not is_baseline(tmp_path)


def test_plots_show_what_there_is(tmp_path):
    assert plot_finder(tmp_path, {}) is None
    (tmp_path / "fold0").mkdir()
    pd.DataFrame({"rate": [1e-4, 1e-3], "loss": [1.0, 0.8]}).to_csv(tmp_path / "fold0" / "finder.csv", index=False)
    axis = plot_finder(tmp_path, {"0": {"lr": 3e-4}}).axes[0]
    assert [line.get_xdata()[0] for line in axis.lines] == pytest.approx([1e-4, 3e-4])

    texts = [text.get_text() for text in plot_confusion([[5, 1, 0], [0, 2, 0], [0, 0, 7]]).axes[0].texts]
    assert texts == ["5", "1", "0", "0", "2", "0", "0", "0", "7"]

    pixels = np.zeros((4, 8, 8), np.uint8)
    table = pd.DataFrame({"study_id": [1, 2, 3, 4], "instance_number": [1, 1, 1, 1]})
    figure = plot_samples(pixels, table, np.array([0, 0, 2, -1]), n=3)
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 0, 0, 0, 0, 1, 0, 0]
    assert figure.axes[3].get_ylabel() == "Moderate\n(0)"
