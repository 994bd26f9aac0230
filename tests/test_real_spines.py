"""The measure of real spines: where a point lies among the discs, and what its figures say."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lumbar.labels import LEVELS, SAGITTAL_T2
from lumbar.stages.points import Localisation, SagittalPoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import real_spines
from real_spines import Answer, Slice, answer_of, auc, figures_of, one_slice_study, panel, steps_off

# Seven discs of a curved spine in pixels, L5/S1 first
DISCS = np.array([(150.0 - 12 * np.sin(k / 2), 400.0 - 50 * k) for k in range(7)])
RIGHT = {level: tuple(DISCS[4 - k] + (25.0, 0.0)) for k, level in enumerate(LEVELS)}  # behind the discs


def answer(name, patient, steps, confidence, *, is_flagged=False):
    return Answer(name, patient, "odd", steps, confidence, None, is_flagged)


def test_points_beside_their_discs_are_right_and_those_of_the_next_disc_one_off():
    assert all(abs(step) < 0.15 for step in steps_off(RIGHT, DISCS).values())
    higher = {level: tuple(DISCS[5 - k] + (25.0, 0.0)) for k, level in enumerate(LEVELS)}
    assert all(abs(step - 1) < 0.15 for step in steps_off(higher, DISCS).values())


def test_a_point_beyond_the_last_disc_counts_on_in_steps():
    below = DISCS[0] + (DISCS[0] - DISCS[1])
    assert steps_off({"l5_s1": tuple(below)}, DISCS)["l5_s1"] == pytest.approx(-1.0, abs=0.1)
    assert steps_off({"l5_s1": tuple((DISCS[0] + DISCS[1]) / 2)}, DISCS)["l5_s1"] == pytest.approx(0.5, abs=0.05)


def test_one_level_off_or_missing_makes_an_image_wrong_and_a_shift_is_that_of_most_levels():
    right = answer("a", 1, dict.fromkeys(LEVELS, 0.1), 0.9)
    assert right.is_right
    assert not answer("b", 1, {level: 0.0 for level in LEVELS[1:]}, 0.9).is_right
    up = answer("c", 1, dict.fromkeys(LEVELS, 0.95), 0.5)
    assert (up.is_right, up.shift) == (False, 1)
    assert answer("d", 1, dict.fromkeys(LEVELS, 0.0) | {"l5_s1": 0.8}, 0.5).shift == 0


def test_figures_count_flags_shifts_and_reliability(monkeypatch):
    monkeypatch.setattr(real_spines, "BOOTSTRAP", 100)
    answers = [answer(f"r{k}", k, dict.fromkeys(LEVELS, 0.05), 0.8) for k in range(8)]
    answers.append(answer("up", 8, dict.fromkeys(LEVELS, 1.0), 0.3, is_flagged=True))
    answers.append(answer("down", 9, dict.fromkeys(LEVELS, -1.0), 0.9))
    figures = figures_of(answers)
    assert figures["images right"][0] == pytest.approx(0.8)
    assert (figures["shifted up"], figures["shifted down"], figures["otherwise wrong"]) == (1, 1, 0)
    assert (figures["wrong and flagged"], figures["right and flagged"]) == ([1, 2], [0, 8])
    assert figures["right or flagged"][0] == pytest.approx(0.9)
    assert figures["axial error of right ones"] == pytest.approx(0.05)
    assert auc(answers) == pytest.approx(0.5)
    assert [third["right"] for third in figures["reliability by thirds"]][1] == 1.0


def test_an_answer_is_flagged_by_lines_about_levels_and_not_by_those_about_the_scale():
    study = one_slice_study(np.zeros((420, 300)), SAGITTAL_T2, 0.7)
    assert study.series[SAGITTAL_T2][0].spacing_mm == (0.7, 0.7)
    one = Slice("x", 1, "odd", SAGITTAL_T2, 0.7, np.full((420, 300), 50.0), DISCS)
    points = [SagittalPoint("1", level, None, 1, *xy, (0.0, 0.0, 0.0), 0.5) for level, xy in RIGHT.items()]
    localisation = Localisation(points, problems=["series 1: pixel spacing estimated from the image, 0.70 mm"])
    told = answer_of(one, localisation)
    assert (told.is_right, told.is_flagged, told.confidence) == (True, False, 0.5)
    localisation.problems.append("study 1: levels not found: l1_l2")
    assert answer_of(one, localisation).is_flagged
    assert panel(one, told).shape == (real_spines.PANEL_PX, real_spines.PANEL_PX, 3)


def test_a_part_that_is_not_there_is_said_and_left_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "real/lumbar_cc0").mkdir(parents=True)
    monkeypatch.setattr(real_spines, "REAL", tmp_path / "real")
    answers = [answer(str(k), k, dict.fromkeys(LEVELS, 0.1), 0.1 * k) for k in range(6)]
    monkeypatch.setattr(real_spines, "cc0_answers", lambda networks: answers)
    monkeypatch.setattr(real_spines, "verify", lambda path: type("M", (), {"folder": path, "hash": "h"}))
    monkeypatch.setattr(real_spines, "load_networks", lambda folder, manifest: None)
    assert real_spines.main(["--weights", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert f"{tmp_path / 'real' / 'spider_slices'}: not here" in capsys.readouterr().out
    assert (tmp_path / "out" / "figures.json").is_file()
