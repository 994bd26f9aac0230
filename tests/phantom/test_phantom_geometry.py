"""One patient, many planes: a point is the same tissue everywhere, left is left, levels are where anatomy says."""

import numpy as np
import pytest

from lumbar_phantom import anatomy as an
from lumbar_phantom import painting, volume
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.marks import project
from lumbar_phantom.patients import make_case, to_patient
from lumbar_phantom.protocol import axial_series, sagittal_stack
from lumbar_phantom.streams import stream
from phantom_helpers import built, label_at

SAC = {ts.CSF, ts.CSF_FLOW, ts.ROOT, ts.CORD}
VARIANTS = ("ordinary", "sacralised", "lumbarised", "scoliosis")


def _disc_centre(case, j):
    return to_patient(case.patient, 2 * j + 1, 0.5, 0.0, 1.0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_place_in_spine_coordinates_and_back(variant):
    patient = make_case(3, 1, variant=variant).patient
    rng = np.random.default_rng(0)
    for _ in range(200):
        seg, f = int(rng.integers(6, 22)), float(rng.uniform(0.05, 0.95))
        u, v = float(rng.uniform(-20, 20)), float(rng.uniform(-15, 30))
        point = to_patient(patient, seg, f, u, v)
        seg2, f2, thick, u2, v2 = volume.locate(patient.stations_geometry, *point, 10)
        if thick < 2.0:
            continue
        assert abs((seg2 + f2) - (seg + f)) * thick < 1e-9
        assert abs(u2 - u) < 1e-9
        assert abs(v2 - v) < 1e-9


def test_backs_are_as_flat_and_as_deep_as_peoples():
    geometry = np.array([make_case(5, i).patient.stations_geometry for i in range(200)])
    tilt = np.degrees(np.arctan2(-geometry[:, :, an.NY], geometry[:, :, an.NZ]))  # of each end plate, forwards
    slope, lordosis = tilt[:, 2 * an.S1], tilt[:, 2 * an.S1] - tilt[:, 2 * an.L1]
    # Vialle et al. 2005, 300 adults standing: sacral slope 41 (SD 8); lying flattens it by a few degrees
    assert 32 < slope.mean() < 40
    assert np.quantile(slope, 0.05) < 24
    assert np.quantile(slope, 0.95) > 46
    assert 36 < lordosis.mean() < 46
    assert 8 < lordosis.std() < 13
    disc = tilt[:, 2 * an.S1] - tilt[:, 2 * an.L5 + 1]
    part = np.corrcoef(disc, lordosis)[0, 1]
    assert 0.2 < part < 0.9  # the last disc's wedge follows the whole curve, and differs from it


@pytest.mark.parametrize("variant", VARIANTS)
def test_levels_agree_with_anatomy(variant):
    case, body = built(2, variant)
    for j in an.LEVEL_DISCS:
        assert label_at(body, _disc_centre(case, j)) in {ts.NUCLEUS + j, ts.INNER_ANNULUS}
        above = to_patient(case.patient, 2 * j, 0.3, 6.0, -3.0)
        assert label_at(body, above) in {ts.MARROW + j, ts.HAEMANGIOMA, ts.EDEMA, ts.FAT_MARROW}
    # L5 is the last vertebra above the sacrum's wings, counted from T8 down, whatever the transition looks like
    heights = case.patient.stations_geometry[1::2, 2]
    assert np.all(np.diff(heights) < 0)


def test_reader_points_lie_in_what_they_name():
    case, body = built(0)
    for k, j in enumerate(an.LEVEL_DISCS):
        if case.narrowing[0, k] < 0.5:
            assert label_at(body, case.points[0, k]) in SAC
        for side, sign in ((1, 1), (2, -1)):
            if case.narrowing[side, k] < 0.5:
                near = [label_at(body, case.points[side, k] + d) for d in np.eye(3) * 1.0]
                assert {ts.EPIDURAL_FAT, ts.ROOT} & {*near, label_at(body, case.points[side, k])}
            disc = _disc_centre(case, j)
            left = case.patient.stations_geometry[2 * j + 1, 3:6]
            assert sign * float((case.points[side, k] - disc) @ left) > 8
            assert sign * float((case.points[side + 2, k] - disc) @ left) > 5


def test_same_point_same_tissue_in_sagittal_and_axial_planes():
    case, body = built(1)
    rng = stream(1, 0, "planes")
    planes = [sagittal_stack(rng, case.patient, non_square=True, short=False)]
    planes += [stack for stacks in axial_series(rng, case.patient, frozenset({"mixed_blocks"})) for stack in stacks]
    for j in an.LEVEL_DISCS:
        point = _disc_centre(case, j)
        want = label_at(body, point)
        seen = 0
        for stack in planes:
            # Move each plane so that the point is in it: its pixel must show the point's own tissue
            offset = (point - stack.origins[0]) @ stack.normal
            origin = stack.origins[0] + offset * stack.normal
            x, y = project(stack, 0, point)
            if not (0 <= x < stack.shape[1] - 1 and 0 <= y < stack.shape[0] - 1):
                continue
            image = painting.sample_labels(body, stack.shape, origin, stack.row_mm, stack.column_mm)
            patch = image[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2]
            assert want in patch
            seen += 1
        assert seen >= 2


def test_left_is_left_in_all_three_views():
    case, body = built(0)
    left, right = case.points[1, 3], case.points[2, 3]  # foramina of L4/5
    axial = axial_series(stream(2, 0, "a"), case.patient, frozenset())[0][0]
    assert project(axial, 0, left)[0] > project(axial, 0, right)[0]  # the patient's left has the larger x
    assert axial.column_mm[0] > 0
    assert axial.row_mm[1] > 0  # rows go to the back
    sagittal = sagittal_stack(stream(2, 0, "s"), case.patient, non_square=False, short=False)
    assert (left - right) @ sagittal.normal > 0  # slices run from the patient's right to the left
    assert sagittal.column_mm[1] > 0  # columns go to the back
    assert sagittal.row_mm[2] < 0  # rows go down
    coronal_row, coronal_column = np.array([0, 0, -1.0]), np.array([1.0, 0, 0])
    middle = 0.5 * (left + right)
    origin = middle - 60 * coronal_column - 60 * coronal_row
    image = painting.sample_labels(body, (120, 120), origin, coronal_row, coronal_column)
    assert label_at(body, middle) == image[60, 60]
    # The aorta lies on the left, the vena cava on the right
    aorta, cava = np.argwhere(body.coarse == ts.ARTERY)[:, 2].mean(), np.argwhere(body.coarse == ts.VEIN)[:, 2].mean()
    assert aorta > cava


def test_every_structure_is_drawn():
    _, body = built(0)
    present = set(np.unique(body.fine)) | set(np.unique(body.coarse))
    named = {
        ts.AIR,
        ts.SKIN,
        ts.FAT,
        ts.MUSCLE,
        ts.LIGAMENT,
        ts.CORTEX,
        ts.CSF,
        ts.ROOT,
        ts.CORD,
        ts.EPIDURAL_FAT,
        ts.FLAVUM,
        ts.ARTERY,
        ts.VEIN,
        ts.VISCERAL_FAT,
        ts.BOWEL_WALL,
        ts.GAS,
        ts.KIDNEY,
        ts.LIVER,
        ts.JOINT,
        ts.BASIVERTEBRAL,
        ts.ANNULUS,
        ts.POSTERIOR_MARROW,
        ts.INTERSPINOUS,
        *(ts.NUCLEUS + j for j in an.LEVEL_DISCS),
        *(ts.MARROW + i for i in range(4, 12)),
    }
    assert named <= present


def test_thin_structures_survive_sampling():
    case, body = built(0)
    stack = sagittal_stack(stream(4, 0, "thin"), case.patient, non_square=False, short=False)
    table = np.zeros(256, np.float32)
    table[[ts.MARROW + i for i in range(15)]] = 1.0
    table[[ts.NUCLEUS + i for i in range(15)]] = 1.0
    table[[ts.INNER_ANNULUS, ts.ANNULUS, ts.BASIVERTEBRAL]] = 1.0  # everything of the column but the end plates
    painted = painting.paint(body, table, np.zeros(256, np.float32), np.zeros((8, 8, 8), np.float32))
    centre = _disc_centre(case, 7)
    line = painting.sample(
        painted, (80, 1), centre - stack.row_mm * 40, stack.row_mm, stack.column_mm, stack.normal, 4.0
    )
    assert line.min() < 0.75  # both end plates darken the line from body to body
    assert (line[:, 0] < 0.85).sum() >= 2
