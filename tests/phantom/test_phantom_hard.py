"""Hard patients (--hard): the junction, operations and images that mislead; and that nobody else changes."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pydicom
import pytest

from lumbar import labels
from lumbar_phantom import anatomy as an
from lumbar_phantom import hard_images, junction, sequences, study, volume
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.__main__ import main
from lumbar_phantom.cohort import make_cohort
from lumbar_phantom.marks import FEW_REACH_MM
from lumbar_phantom.masks import BODY, DISC, S1, SAC, SACRAL_LINE, SACRUM, mask_slice
from lumbar_phantom.patients import make_case, to_patient
from lumbar_phantom.protocol import SeriesPlan, plan_study, sagittal_stack
from lumbar_phantom.streams import stream
from lumbar_phantom.study import Painter, Request, is_hard, study_case
from phantom_helpers import built, label_at

# Mean brightness of sixteen parts of a slice
BEFORE = (
    (191.45, 172.58, 241.83, 17.28),
    (306.54, 274.78, 346.50, 16.80),
    (341.36, 286.50, 419.54, 175.62),
    (167.26, 623.00, 432.06, 362.32),
)
CASES = [make_case(31, i, hard=True) for i in range(60)]


def tilt(case):
    """Forward tilt of every end plate, degrees."""
    geometry = case.patient.stations_geometry
    return np.degrees(np.arctan2(-geometry[:, an.NY], np.hypot(geometry[:, an.NX], geometry[:, an.NZ])))


def first(condition):
    """The first of the cases for which a condition holds."""
    return next(index for index, case in enumerate(CASES) if condition(case.patient))


def traits(name):
    return np.array([case.patient.traits[name] for case in CASES])


# ---- nobody else changes --------------------------------------------------------------------------------------------


def test_without_hard_patients_a_cohort_has_the_files_of_before_there_were_any(tmp_path, unpainted):
    """The numbers are those of the generator of the demo weights."""
    make_cohort(tmp_path, 2, 5, pitfalls=("all",), progress=False)
    told = hashlib.sha256()
    for path in sorted(tmp_path.rglob("*")):
        if path.suffix == ".csv":
            told.update(path.read_bytes())
        if path.suffix == ".dcm":
            header = pydicom.dcmread(path, stop_before_pixels=True)
            place = (path.relative_to(tmp_path), header.ImagePositionPatient, header.PixelSpacing, header.Rows)
            told.update(str(place).encode())
    assert told.hexdigest()[:16] == "6d1c4524ba607591"
    assert "hard" not in json.loads((tmp_path / "train_cohort.json").read_text())["settings"]


def test_without_hard_patients_tissues_and_pixels_are_those_of_before():
    case, body = built(0)
    assert hashlib.sha256(body.fine.tobytes() + body.coarse.tobytes()).hexdigest()[:16] == "62c152c638c31c98"
    rng = stream(11, 0, "before")
    stack = sagittal_stack(rng, case.patient, non_square=False, short=False)
    parameters, grain = sequences.tissue_parameters(rng, case.patient), study.grain_tile(rng)
    painter = Painter(rng, case.patient, body, parameters, grain, SeriesPlan("Sagittal", "t2", [stack]), 1.5, 0.0)
    image = painter.slice(stack, stack.origins[len(stack.origins) // 2]).astype(float)
    blocks = image[: image.shape[0] // 4 * 4, : image.shape[1] // 4 * 4]
    blocks = blocks.reshape(4, blocks.shape[0] // 4, 4, blocks.shape[1] // 4).mean(axis=(1, 3))
    np.testing.assert_allclose(blocks, BEFORE, rtol=1e-3)


def test_the_other_patients_of_a_mixed_cohort_are_those_of_a_cohort_without_hard_ones():
    def requests(share):
        return [Request("r", "train", 3, index, ("none",), hard_share=share) for index in range(40)]

    drawn = [is_hard(request) for request in requests(0.5)]
    assert 10 < sum(drawn) < 30
    assert not any(map(is_hard, requests(0.0)))
    assert all(map(is_hard, requests(1.0)))
    for hard, mixed, plain in zip(drawn[:5], requests(0.5), requests(0.0), strict=False):
        same = np.array_equal(
            study_case(mixed)[0].patient.stations_geometry, study_case(plain)[0].patient.stations_geometry
        )
        assert same is not hard


def test_the_share_is_noted_and_another_one_is_refused(tmp_path, unpainted, capsys):
    words = ["--out", str(tmp_path), "--studies", "1", "--seed", "5"]
    assert main([*words, "--hard", "1"]) == 0
    assert json.loads((tmp_path / "train_cohort.json").read_text())["settings"]["hard"] == 1.0
    assert main([*words, "--hard", "1"]) == 0
    assert main(words) == 1
    assert "with hard 1.0, expected hard 0.0 or no such cohort" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main([*words, "--hard", "0.5"]) == 1
    assert "with hard 0.0, expected hard 0.5 or no such cohort" in capsys.readouterr().err


def test_a_share_out_of_range_is_wrong_usage(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--studies", "1", "--hard", "1.5"])
    assert "--hard: found 1.5, expected a share in 0..1" in capsys.readouterr().err


# ---- anatomy --------------------------------------------------------------------------------------------------------


def test_sacra_are_level_to_steep_and_the_wedges_of_l5_and_its_disc_go_with_them():
    slope = np.array([tilt(case)[2 * an.S1] for case in CASES])
    assert np.abs(slope - traits("slope")).max() < 8  # scoliosis turns the end plate a little
    low, high = junction.SLOPES
    assert low <= traits("slope").min() < 28
    assert 60 < traits("slope").max() <= high
    body = np.array([tilt(case)[2 * an.L5 + 1] - tilt(case)[2 * an.L5] for case in CASES])
    healthy = np.array([case.patient.discs[an.L5, an.DISC_H] > 7 for case in CASES])
    assert np.corrcoef(slope[healthy], traits("disc_wedge")[healthy])[0, 1] > 0.4
    assert np.corrcoef(slope, body)[0, 1] > 0.3
    assert np.median(traits("disc_wedge")[healthy & (slope > 50)]) > 14


def test_end_plates_do_not_cross_before_the_sac():
    for case in CASES:
        for k in (1.0, -1.0):
            v = k * 0.5 * case.patient.stations[2 * an.L5 + 1, an.DEPTH]
            upper, lower = (to_patient(case.patient, 2 * an.L5 + 1, f, 0.0, v) for f in (0.0, 1.0))
            assert (upper - lower) @ case.patient.stations_geometry[2 * an.L5 + 1, 9:] > 0
        assert np.all(np.diff(case.patient.stations_geometry[1 : 2 * an.S1 + 2 : 2, 2]) < 0)


def test_discs_of_the_sacrum_are_absent_to_half_as_high_as_the_last_dark_or_bright():
    discs = np.array([case.patient.discs for case in CASES])
    share = discs[:, an.S1, an.DISC_H] / [an.DISC_HEIGHTS[an.L5] * case.patient.scale for case in CASES]
    assert share.min() < 0.05
    assert 0.4 < share.max() <= 0.5
    assert set(np.sign(discs[:, an.S1, an.REMNANT])) == {-1, 1}
    assert (discs[:, an.S1, an.DESICCATION] < 0.3).any()
    assert (discs[:, an.S1, an.DESICCATION] > 0.6).any()
    last = discs[:, an.L5, an.DISC_H]
    assert 1.8 <= last.min() < 3.5
    assert last.max() > 9
    square = [np.divide(*case.patient.stations[[2 * an.S1 + 1, 2 * an.S1], an.DEPTH]) for case in CASES]
    assert min(square) < 0.75
    assert max(square) > 0.9


def test_some_have_slipped_some_were_operated_and_some_are_bent():
    slips = [case.patient.traits.get("slip", 0) for case in CASES if case.patient.traits.get("slip_disc") == an.L5]
    assert 1 <= len(slips) <= 20
    assert max(slips) > 4
    beds = [case.patient.trunk[[an.BED_FIRST, an.BED_LAST]] for case in CASES if case.patient.trunk[an.BED_FIRST] >= 0]
    assert 2 <= len(beds) <= 20
    assert len({last - first for first, last in beds}) > 1
    bent = [np.ptp(case.patient.stations_geometry[10:21, 0]) for case in CASES if "scoliosis" in case.patient.traits]
    assert max(bent) > 12


@pytest.fixture(scope="module")
def operated():
    index = first(lambda patient: patient.trunk[an.BED_FIRST] >= 0 and patient.trunk[an.BED_FIRST] < an.L5)
    return CASES[index], volume.build(CASES[index].patient, stream(31, index, "volume"))


def test_where_laminae_were_taken_out_there_is_no_bone_but_fat_or_fluid(operated):
    case, body = operated
    patient = case.patient
    content = ts.BOWEL_FLUID if patient.trunk[an.BED_FLUID] else ts.FAT
    for i in range(int(patient.trunk[an.BED_FIRST]) + 1, int(patient.trunk[an.BED_LAST]) + 1):
        behind = 0.5 * patient.stations[2 * i, an.DEPTH] + patient.stations[2 * i, an.CANAL]
        line = [label_at(body, to_patient(patient, 2 * i, 0.8, 0.0, behind + q)) for q in np.arange(1, 24, 0.5)]
        assert content in line
        assert not {ts.CORTEX, ts.POSTERIOR_MARROW, ts.FLAVUM} & set(line)


@pytest.fixture(scope="module")
def steep():
    """A steep sacrum above a disc S1/S2, unbent and not operated."""
    index = first(
        lambda patient: (
            patient.traits["slope"] > 50
            and patient.discs[an.S1, an.REMNANT] == 1.0
            and patient.trunk[an.BED_FIRST] < 0
            and "scoliosis" not in patient.traits
            and patient.variant == "ordinary"
        )
    )
    return CASES[index], volume.build(CASES[index].patient, stream(31, index, "volume"))


def test_tissues_masks_and_points_of_a_steep_junction_agree(steep):
    case, body = steep
    patient = case.patient
    stack = sagittal_stack(stream(31, 0, "s"), patient, non_square=False, short=False)

    def mask_at(point):
        """Class of the mask in the plane through a point, there and around."""
        origin = stack.origins[0] + ((point - stack.origins[0]) @ stack.normal) * stack.normal
        mask = mask_slice(body, stack, origin)
        place = (point - origin) @ np.stack([stack.row_mm, stack.column_mm]).T / (stack.row_mm @ stack.row_mm)
        y, x = np.round(place).astype(int)
        return int(mask[y, x]), set(mask[y - 2 : y + 3, x - 2 : x + 3].ravel())

    for i in range(an.L1, an.S1 + 2):
        body_class, _ = mask_at(to_patient(patient, 2 * i, 0.35, 5.0, -4.0))
        assert body_class == (BODY if i < an.S1 else S1 if i == an.S1 else SACRUM)
    for k, j in enumerate((*an.LEVEL_DISCS, an.S1)):
        disc = to_patient(patient, 2 * j + 1, 0.5, 0.0, 1.0)
        assert (SACRAL_LINE if j == an.S1 else DISC) in mask_at(disc)[1]
        if j < an.S1 and case.narrowing[0, k] < 0.5:
            assert SAC in mask_at(case.points[0, k])[1]
            assert abs((case.points[0, k] - disc) @ patient.stations_geometry[2 * j + 1, 9:]) < 12  # behind its disc
    assert np.isfinite(case.points).all()
    assert ((case.narrowing >= 0) & (case.narrowing <= 1)).all()


# ---- images ---------------------------------------------------------------------------------------------------------


def tables(kind):
    patient = CASES[0].patient
    parameters = sequences.tissue_parameters(stream(1, 0, "t"), patient)
    for index in range(60):
        rng = stream(1, index, "look")
        sequence = sequences.draw_sequence(rng, kind, 1.5)
        table, _ = sequences.randomised_signal(rng, parameters, sequence, 0.0)
        yield table, hard_images.recolour(rng, table, kind)


def test_contrasts_go_astray():
    discs = slice(ts.NUCLEUS + an.L1, ts.NUCLEUS + an.S1)
    t1 = [(new[ts.MARROW + an.L5] / new[discs].mean(), new[ts.FAT] / old[ts.FAT]) for old, new in tables("t1")]
    assert min(marrow for marrow, _ in t1) < 1.0
    assert min(fat for _, fat in t1) < 0.3
    csf = [new[ts.CSF] / new[ts.EPIDURAL_FAT] for _, new in tables("t2")]
    assert min(csf) < 1.0
    assert np.median(csf) > 1.0
    grey = [new[discs].mean() / new[ts.MARROW + an.L5] for _, new in tables("t2")]
    assert 0.1 < np.mean([0.7 < ratio < 1.2 for ratio in grey]) < 0.9


def scanners():
    for index in range(60):
        rng = stream(2, index, "look")
        yield hard_images.degrade(rng, study.artefacts.draw_scanner(rng, 1.5, 0.0, False, 0.0), 0.0)


def test_coils_fall_off_by_a_factor_of_twenty_and_bands_end_before_the_spine():
    falls = [
        study.artefacts.coil_gain(scanner, 0.0) / study.artefacts.coil_gain(scanner, 230.0) for scanner in scanners()
    ]
    assert 15 < max(falls) < 60
    bands = [scanner.band for scanner in scanners() if scanner.band_depth > 0.85]
    assert len(bands) > 10
    assert all(-45 < band < -18 for band in bands)


def test_a_narrow_band_is_dark_and_leaves_what_lies_before_it():
    scanner = next(s for s in scanners() if np.isfinite(s.band_mm) and s.coil_mm == 0)
    step = np.array([0.0, 1.0, 0.0])
    place = np.array([0.0, -200.0, 0.0])
    line = study.artefacts.shading(scanner, (1, 260), place, np.array([0.0, 0.0, -1.0]), step, 80.0)[0]
    middle = int(200 + scanner.band - 0.5 * scanner.band_mm)
    assert line[middle] < 0.3 * min(line[20], line[230])


def test_windows_clip_at_both_ends_in_eight_bits_and_resampling_keeps_the_shape():
    image = np.abs(stream(3, 0, "image").normal(0.4, 0.3, (61, 48))).astype(np.float32)
    windows = [hard_images.draw_window(stream(3, index, "window"), 0.3) for index in range(40)]
    stored = [window.stored(window.resampled(image), 900.0) for window in windows]
    assert all(pixels.shape == image.shape and pixels.dtype == np.uint16 for pixels in stored)
    eight = [pixels for pixels, window in zip(stored, windows, strict=True) if window.high]
    assert 10 < len(eight) < 35
    assert all(pixels.max() <= 255 for pixels in eight)
    assert any((pixels == 255).mean() > 0.05 for pixels in eight)
    assert any((pixels == 0).mean() > 0.01 for pixels in eight)


def cut(index):
    patient = CASES[index].patient
    plans = plan_study(stream(4, index, "plan"), patient, frozenset())
    return plans, hard_images.cut_series(stream(4, index, "cut"), patient, plans)


def test_series_are_cut_have_few_slices_and_leave_the_midline():
    n_slices, shapes, away = [], [], []
    for index, case in enumerate(CASES):
        before, after = cut(index)
        for old, new in zip(before, after, strict=True):
            if old.description == labels.AXIAL_T2:
                assert new is old
                continue
            (stack,), (numbers,) = new.stacks, new.instances
            assert len(stack.origins) == len(numbers) >= 1
            assert stack.shape[0] >= 100
            assert stack.shape[1] >= 100
            n_slices.append(len(numbers))
            shapes.append(stack.shape[0] / old.stacks[0].shape[0])
            if len(numbers) <= hard_images.FEW:
                middle = case.patient.stations_geometry[10:20, :3].mean(axis=0)
                away.append(np.abs((stack.origins - middle) @ stack.normal).min())
    assert {1, 2, 3} <= set(n_slices)
    assert max(n_slices) > 12
    assert min(shapes) < 0.9
    assert max(away) > 5


def test_truth_of_a_hard_cohort_agrees_with_its_headers_whatever_their_scale(tmp_path, unpainted, monkeypatch):
    monkeypatch.setattr(hard_images, "OTHER_SCALE", 1.0)
    monkeypatch.setattr(hard_images, "FEW_SLICES", 0.7)
    make_cohort(tmp_path, 3, 8, pitfalls=("mixed_blocks",), hard_share=1.0, progress=False)
    truth = pd.read_parquet(tmp_path / "truth.parquet")
    thickness, off_slice = [], []
    for row in truth.itertuples():
        path = tmp_path / "train_images" / str(row.study_id) / str(row.series_id) / f"{row.instance_number}.dcm"
        header = pydicom.dcmread(path, stop_before_pixels=True)
        axes = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = map(float, header.PixelSpacing)
        point = np.array(header.ImagePositionPatient, float)
        point += axes[0] * between_columns * row.x_px + axes[1] * between_rows * row.y_px
        off = np.array([row.x_mm, row.y_mm, row.z_mm]) - point
        normal = np.cross(*axes)
        assert np.linalg.norm(off - normal * (off @ normal)) < 0.01
        thickness.append(float(header.SliceThickness))
        if "foram" in row.condition:
            off_slice.append(abs(off @ normal))
    assert min(thickness) < 2.9 or max(thickness) > 5.6
    assert max(off_slice) < FEW_REACH_MM * hard_images.SCALES[1]
    assert len(truth) < 3 * 25


def test_sagittal_series_of_one_geometry_may_have_no_spacing(tmp_path, unpainted, monkeypatch):
    monkeypatch.setattr(hard_images, "NO_SPACING", 1.0)
    make_cohort(tmp_path, 1, 8, pitfalls=("none",), hard_share=1.0, progress=False)
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in tmp_path.rglob("*.dcm")]
    assert {header.SeriesDescription for header in headers if "PixelSpacing" in header} == {labels.AXIAL_T2}
    assert {header.SeriesDescription for header in headers} == set(labels.DESCRIPTIONS)
    plans, _ = cut(0)
    other = replace(plans[0].stacks[0], origins=plans[0].stacks[0].origins + 1.0)
    moved = [replace(plans[0], stacks=[other]), *plans[1:]]
    assert "missing_spacing" not in hard_images.draw_header(stream(5, 0, "header"), moved)
