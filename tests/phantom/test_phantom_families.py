"""Families of appearance (--family): one thing leaves the training's range, patients and grades stay."""

import json

import numpy as np
import pydicom
import pytest

from lumbar_phantom import families
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.__main__ import FAMILIES, main
from lumbar_phantom.artefacts import draw_scanner
from lumbar_phantom.families import Family
from lumbar_phantom.hard_images import PLAIN
from lumbar_phantom.patients import make_case
from lumbar_phantom.protocol import plan_study
from lumbar_phantom.streams import stream


def applied(name, seed=0):
    table = np.linspace(0.05, 1.0, 256).astype(np.float32)
    scanner = draw_scanner(stream(seed, 0, "scanner"), 1.5, 0.0, False, 0.0)
    return (table, scanner, PLAIN), Family(name, stream(seed, 0, "family", 0)).applied(table, scanner, PLAIN)


def test_the_command_knows_every_family():
    assert FAMILIES == families.NAMES


def test_each_family_moves_one_thing_beyond_the_ordinary_range():
    for seed in range(10):
        (table, scanner, window), noisy = applied("noise", seed)
        assert noisy[0] is table
        assert noisy[2] == window
        assert 0.15 <= noisy[1].noise <= 0.28
        assert noisy[1].acquired_mm == scanner.acquired_mm
        (table, scanner, window), coarse = applied("resolution", seed)
        assert (coarse[0] is table, coarse[2] == window, coarse[1].noise == scanner.noise) == (True, True, True)
        assert min(coarse[1].acquired_mm) >= 1.5
        (table, scanner, window), other = applied("contrast", seed)
        assert other[1] is scanner
        assert other[2].high > other[2].low
        assert not np.allclose(other[0], table)
        for name in ("", "thickness"):
            (table, scanner, window), same = applied(name, seed)
            assert (same[0] is table, same[1] is scanner, same[2] is window) == (True, True, True)


def test_in_the_family_of_contrasts_fluid_and_fat_come_nearer():
    table = np.full(256, 0.3, np.float32)
    table[[ts.CSF, ts.CSF_FLOW]] = 1.0
    for seed in range(10):
        out = families.recoloured(stream(seed, 0, "family", 0), table)
        assert abs(np.log(out[ts.CSF] / out[ts.FAT])) < np.log(1.0 / 0.3) * 1.6
        assert np.all(np.isfinite(out))
        assert out[ts.CSF] == out[ts.CSF_FLOW]


@pytest.mark.parametrize("pitfalls", [frozenset(), frozenset({"mixed_blocks", "reversed_order", "instance_gaps"})])
def test_thick_slices_cover_the_same_length_and_keep_the_order(pitfalls):
    case = make_case(4, 0)
    before = plan_study(stream(4, 0, "plan"), case.patient, pitfalls)
    after = families.plans_of(stream(4, 0, "family"), "thickness", before)
    thickness = {}
    for old, new in zip(before, after, strict=True):
        for a, b, numbers, then in zip(old.stacks, new.stacks, new.instances, old.instances, strict=True):
            assert 6.0 <= b.thickness == b.spacing <= 9.0
            thickness.setdefault(new.description, b.thickness)
            assert b.thickness == thickness[new.description]  # one for all series of a kind
            assert 1 <= len(b.origins) == len(numbers) <= len(a.origins)
            np.testing.assert_allclose(a.origins.mean(axis=0), b.origins.mean(axis=0), atol=1e-9)
            assert abs(len(b.origins) * b.spacing - len(a.origins) * a.spacing) <= 0.5 * b.spacing + 18.0
            assert set(numbers) <= set(then)
            assert len(then) < 2 or (numbers[0] > numbers[-1]) == (then[0] > then[-1])


def test_patients_and_labels_are_those_without_a_family_and_it_is_noted(tmp_path, unpainted, capsys):
    for name, words in (("plain", []), ("thick", ["--family", "thickness"])):
        assert main(["--out", str(tmp_path / name), "--studies", "2", "--seed", "5", *words]) == 0
    assert (tmp_path / "plain/train.csv").read_bytes() == (tmp_path / "thick/train.csv").read_bytes()
    noted = [json.loads((tmp_path / name / "train_cohort.json").read_text())["settings"] for name in ("plain", "thick")]
    assert [one.get("family") for one in noted] == [None, "thickness"]
    thick = [pydicom.dcmread(path).SliceThickness for path in sorted((tmp_path / "thick").rglob("*.dcm"))[:3]]
    assert min(map(float, thick)) >= 6.0
    assert main(["--out", str(tmp_path / "thick"), "--studies", "2", "--seed", "5"]) == 1
    assert "with family thickness" in capsys.readouterr().err


def test_an_unknown_family_is_wrong_usage(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--studies", "1", "--family", "colour"])
    assert "--family" in capsys.readouterr().err
