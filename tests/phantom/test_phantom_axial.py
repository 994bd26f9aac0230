"""Axial series of hard patients: slices, recesses, ligaments, fats and roots as clinical axial T2 series show them."""

from functools import lru_cache

import numpy as np
import pytest

from lumbar import labels
from lumbar_phantom import anatomy as an
from lumbar_phantom import artefacts, axial_anatomy, axial_images, disease, junction, painting, sequences, study, volume
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.marks import REACH_MM
from lumbar_phantom.patients import make_case
from lumbar_phantom.protocol import plan_study
from lumbar_phantom.spine import spine
from lumbar_phantom.streams import stream
from phantom_helpers import built

L3_L4, LEFT = 2, 1.0
FREE = (ts.EPIDURAL_FAT, ts.ROOT, ts.CSF, ts.CSF_FLOW, ts.VENOUS_PLEXUS)


@lru_cache(maxsize=1)
def cases():
    return [make_case(31, index, hard=True) for index in range(40)]


# ---- slices ---------------------------------------------------------------------------------------------------------


def replanned(pitfalls):
    for index, case in enumerate(cases()):
        before = plan_study(stream(6, index, "plan"), case.patient, frozenset(pitfalls))
        yield case, before, axial_images.replan(stream(6, index, "axial"), before)


@pytest.mark.parametrize("pitfalls", [(), ("mixed_blocks",), ("several_axial", "instance_gaps", "reversed_order")])
def test_axial_series_have_thick_slices_and_interpolated_pixels_and_others_stay(pitfalls):
    thicknesses, pixels = [], []
    for _, before, after in replanned(pitfalls):
        for old, new in zip(before, after, strict=True):
            if old.description != labels.AXIAL_T2:
                assert new is old
                continue
            for stack in new.stacks:
                thicknesses.append(stack.thickness)
                pixels.append(np.linalg.norm(stack.row_mm))
                assert pixels[-1] == pytest.approx(np.linalg.norm(stack.column_mm))
                assert 0.2 <= stack.spacing - stack.thickness <= 1.2
                assert max(stack.shape) <= 512
                assert abs(stack.row_mm @ stack.normal) + abs(stack.column_mm @ stack.normal) < 1e-9
                np.testing.assert_allclose(np.diff(stack.origins, axis=0) @ stack.normal, stack.spacing)
    assert 4.0 <= min(thicknesses) < 4.2 < 4.8 < max(thicknesses) <= 5.0
    assert 0.4 <= min(pixels) < 0.45 < 0.65 < max(pixels) <= 0.8


@pytest.mark.parametrize("pitfalls", [(), ("mixed_blocks", "reversed_order"), ("several_axial", "instance_gaps")])
def test_replanned_slices_have_their_own_numbers_in_the_old_order_and_cover_the_discs(pitfalls):
    far = []
    for case, before, after in replanned(pitfalls):
        for old, new in zip(before, after, strict=True):
            numbers = np.concatenate(new.instances)
            assert [len(one) for one in new.instances] == [len(stack.origins) for stack in new.stacks]
            assert len(set(numbers.tolist())) == len(numbers)
            assert numbers.min() >= 1
            for was, now in zip(old.instances, new.instances, strict=True):
                assert np.all(np.diff(now) * np.sign(np.diff(was)[0]) > 0)
        if not pitfalls or "mixed_blocks" in pitfalls:
            (axial,) = (plan for plan in after if plan.description == labels.AXIAL_T2)
            for point in case.points[3:].reshape(-1, 3):
                away = [np.abs((stack.origins - point) @ stack.normal).min() for stack in axial.stacks]
                far.append(min(away) > REACH_MM)
    assert sum(far) <= 0.03 * len(far)  # behind slipped L5, as in an ordinary series


# ---- anatomy --------------------------------------------------------------------------------------------------------


def test_healthy_recesses_are_slits_and_ligaments_as_thick_as_peoples():
    depths, ligaments = [], []
    for index in range(30):
        patient = an.sample_patient(stream(32, index, "patient"))
        assert not patient.discs[:, an.TREFOIL].any()
        junction.before_disease(stream(32, index, "junction"), patient)
        axial_anatomy.before_disease(stream(32, index, "recess"), patient)
        depths.append(disease.measure_sizes(patient).recess)
        ligaments.append(patient.discs[list(an.LEVEL_DISCS), an.FLAV_L])
        assert len(patient.roots) >= 18
        assert set(np.sign(patient.roots[:, 0])) == {-1, 1}
        assert patient.roots[:, 1].mean() > 0.6  # at the back of the sac
        assert ((patient.roots[:, 2] >= 0.5) & (patient.roots[:, 2] <= 1.0)).all()
    assert 3.5 < np.median(depths) < 5.5
    assert 2.2 < np.min(depths) < 3.8
    assert np.max(depths) < 9
    assert 3.0 < np.median(ligaments) < 4.2
    assert np.min(ligaments) >= 2.6
    assert np.max(ligaments) <= 5.0


def drawn_depth(patient, profiles, roots_at, j, side):
    """Depth of what is drawn free between disc and ligament, mm: the least of the five planes that truth measures."""
    arrays = (patient.stations, patient.vertebrae, patient.discs)
    posterior = 0.5 * patient.stations[2 * j + 1, an.DEPTH]
    step, depths = 0.4, []
    for seg, f in ((2 * j + 1, 0.25), (2 * j + 1, 0.5), (2 * j + 1, 0.75), (2 * j + 1, 0.99), (2 * j + 2, 0.10)):
        thick = patient.discs[j, an.DISC_H] if seg % 2 else patient.vertebrae[j + 1, an.HEIGHT]
        free = 0
        for u in side * np.array([8.0, 9.1, 10.2, 11.3]):
            line = np.arange(posterior - 4, posterior + 12, step)
            free += sum(spine(*arrays, profiles, roots_at, patient.trunk, seg, f, thick, u, v) in FREE for v in line)
        depths.append(free * step / 4)
    return min(depths)


def test_the_narrower_a_recess_by_its_truth_the_less_of_it_is_drawn():
    drawn, measured, narrowing, grades = [], [], [], []
    for case in [case for case in cases() if case.patient.trunk[an.LAMINECTOMY] < 0][:6]:
        profiles, roots_at = volume.tables(case.patient)
        now = disease.measure_sizes(case.patient).recess
        for k in range(1, 5):
            for side in range(2):
                depth = drawn_depth(case.patient, profiles, roots_at, an.LEVEL_DISCS[k], LEFT - 2 * side)
                drawn.append(depth)
                measured.append(now[side, k])
                narrowing.append(case.narrowing[3 + side, k])
                grades.append(case.grades[3 + side, k])
    drawn, grades = np.array(drawn), np.array(grades)
    assert np.abs(drawn - measured).mean() < 0.4
    assert np.corrcoef(drawn, measured)[0, 1] > 0.95
    assert np.corrcoef(drawn, narrowing)[0, 1] < -0.8
    medians = [np.median(drawn[grades == grade]) for grade in range(3)]
    assert medians[0] > 3.0 > medians[1] > 1.2 > medians[2]  # moderate ones are narrow and yet open


# ---- images ---------------------------------------------------------------------------------------------------------


def tables():
    parameters = sequences.tissue_parameters(stream(1, 0, "t"), cases()[0].patient)
    for index in range(60):
        rng = stream(1, index, "look")
        sequence = sequences.draw_sequence(rng, "t2", 1.5)
        table, _ = sequences.randomised_signal(rng, parameters, sequence, 0.0)
        yield axial_images.recolour(rng, table)


def test_fats_have_many_intensities_and_ligaments_are_dark_beside_them():
    fats = np.array([table[ts.EPIDURAL_FAT] / table[ts.CSF] for table in tables()])
    assert np.percentile(fats, 10) < 0.65
    assert 1.0 < np.percentile(fats, 90) < 1.4
    apart = [table[ts.EPIDURAL_FAT] / table[ts.FAT] for table in tables()]
    assert np.std(apart) > 0.1
    for table in tables():
        brightest = max(table[ts.EPIDURAL_FAT], 0.3 * table[ts.CSF])
        assert table[[ts.FLAVUM, ts.CORTEX, ts.LIGAMENT]].max() <= 0.41 * brightest
        assert table[ts.ROOT] < 0.75 * table[ts.CSF]


def test_the_canal_is_acquired_more_coarsely_than_stored_within_noise_and_a_window_of_its_own():
    coarse, clipped, eight = [], [], 0
    for index in range(60):
        rng = stream(2, index, "look")
        scanner = artefacts.draw_scanner(rng, 0.3, 0.0, True, 0.0)
        scanner, level = axial_images.degrade(rng, scanner, 0.9, 75.0)
        coarse += scanner.acquired_mm
        assert 0.019 < scanner.noise / level < 0.101
        window = axial_images.draw_window(rng, level)
        if window.high:
            eight += 1
            clipped.append(window.high < level)
            assert window.low < 0.1 * level
    assert 0.6 <= min(coarse) < 0.75
    assert 1.2 < max(coarse) < 1.5
    assert 20 < eight < 50
    assert 0 < np.mean(clipped) < 0.5


@pytest.fixture(scope="module")
def slice_at_l3_l4():
    """Labels and pixels of one slice of a hard patient at L3/4, with an ordinary resolution of today's scanners."""
    is_open = [case.narrowing[[0, 3, 4], L3_L4].max() < 0.3 for case in cases()]
    index = next(k for k, case in enumerate(cases()) if is_open[k] and case.patient.trunk[an.BED_FIRST] < 0)
    case = cases()[index]
    body = volume.build(case.patient, stream(31, index, "volume"))
    plans = plan_study(stream(31, index, "plan"), case.patient, frozenset({"mixed_blocks"}))
    plan = next(
        plan for plan in axial_images.replan(stream(31, 0, "axial"), plans) if plan.description == labels.AXIAL_T2
    )
    rng = stream(31, index, "paint")
    parameters, grain = sequences.tissue_parameters(rng, case.patient), study.grain_tile(rng)
    painter = study.Painter(rng, case.patient, body, parameters, grain, plan, 1.5, 0.0, stream(31, index, "look"))
    point = case.points[0, L3_L4]
    stack = min(plan.stacks, key=lambda one: np.abs((one.origins - point) @ one.normal).min())
    origin = stack.origins[np.argmin(np.abs((stack.origins - point) @ stack.normal))]
    tissue = painting.sample_labels(body, stack.shape, origin, stack.row_mm, stack.column_mm)
    return tissue, painter.slice(stack, origin).astype(float)


def test_roots_are_seen_in_the_sac_and_the_ligament_is_darker_than_fat(slice_at_l3_l4):
    tissue, image = slice_at_l3_l4
    mean = {label: image[tissue == label].mean() for label in (ts.CSF, ts.ROOT, ts.FLAVUM, ts.EPIDURAL_FAT)}
    assert (tissue == ts.ROOT).sum() > 20
    assert mean[ts.ROOT] < 0.9 * mean[ts.CSF]
    assert mean[ts.FLAVUM] < 0.7 * mean[ts.EPIDURAL_FAT]


def test_ordinary_patients_have_none_of_this():
    case, _ = built(0)
    assert not case.patient.discs[:, an.TREFOIL].any()
    assert make_case(31, 0).patient.discs[:, an.TREFOIL].max() == 0
    assert disease.measure_sizes(case.patient).recess.max() > 6
