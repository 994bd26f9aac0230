"""Signal of small volumes, and planes sampled from them."""

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest

from lumbar_phantom import anatomy as an
from lumbar_phantom import masks, painting
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.curve import place_stations
from lumbar_phantom.protocol import SeriesPlan, StackPlan
from lumbar_phantom.sequences import tissue_parameters
from lumbar_phantom.streams import stream
from lumbar_phantom.study import Painter
from lumbar_phantom.volume import COARSE_MM, FINE_MM, Volume, bowel_loops, math_floor, noise_tile

N = 16
RIGHT, BACK, UP = np.eye(3)


def volume_of(label=ts.MUSCLE):
    """A cube of one tissue, 12 mm of fine voxels inside 24 mm of coarse ones, from (0, 0, 0) and (-6, -6, -6) mm."""
    return Volume(
        np.full((N, N, N), label, np.uint8),
        np.zeros((N, 2)),
        0.0,
        np.full((N, N, N), label, np.uint8),
        np.full(3, -6.0),
    )


def table_of(**signals):
    table = np.zeros(256, np.float32)
    for name, value in signals.items():
        table[getattr(ts, name)] = value
    return table


def paint(body, table, **options):
    return painting.paint(body, table, np.zeros(256, np.float32), np.zeros((8, 8, 8), np.float32), **options)


def sampled(painted, origin, thickness=1.0, shape=(4, 4), step=1.0):
    return painting.sample(painted, shape, np.array(origin, float), BACK * step, RIGHT * step, UP, thickness)


def test_a_homogeneous_body_has_one_signal_in_both_volumes():
    painted = paint(volume_of(), table_of(MUSCLE=0.7))
    np.testing.assert_allclose(painted.fine, 0.7, rtol=1e-6)
    np.testing.assert_allclose(painted.coarse, 0.7, rtol=1e-6)
    np.testing.assert_allclose(sampled(painted, (2, 2, 5)), 0.7, rtol=1e-5)
    np.testing.assert_allclose(sampled(painted, (13, 13, 5), shape=(2, 2)), 0.7, rtol=1e-5)  # coarse only


def test_outside_of_the_body_there_is_no_signal():
    painted = paint(volume_of(), table_of(MUSCLE=0.7))
    assert not sampled(painted, (2, 2, 60)).any()
    assert not sampled(painted, (100, 2, 5)).any()


def test_a_slice_averages_over_its_thickness():
    body = volume_of()
    body.fine[8:] = ts.FAT
    painted = paint(body, table_of(FAT=1.0))
    border = 7.5 * FINE_MM
    assert sampled(painted, (4, 4, border), thickness=3.0)[1, 1] == pytest.approx(0.5, abs=0.05)
    assert sampled(painted, (4, 4, border + 2.5), thickness=1.0)[1, 1] == pytest.approx(1.0, abs=0.01)
    assert sampled(painted, (4, 4, border + 1.0), thickness=4.0)[1, 1] == pytest.approx(0.74, abs=0.1)


def test_the_chemical_shift_moves_fat_and_leaves_water():
    body = volume_of(ts.AIR)
    body.fine[:, 6:9] = ts.FAT
    body.fine[:, 11:14] = ts.CSF
    table, share = table_of(FAT=1.0, CSF=0.5), table_of(FAT=1.0)
    still = paint(body, table).fine[8, :, 8]
    moved = paint(body, table, fat_share=share, chemical_shift=(0, 2)).fine[8, :, 8]
    np.testing.assert_allclose(moved[8:10], still[6:8], atol=1e-6)
    assert moved[6] < 0.3
    assert moved[12] == pytest.approx(still[12])
    np.testing.assert_array_equal(paint(body, table, fat_share=share).fine[8, :, 8], still)


def test_texture_modulates_signal_by_its_strength():
    body = volume_of()
    texture = np.random.default_rng(0).standard_normal((8, 8, 8)).astype(np.float32)
    smooth, rough = (
        painting.paint(body, table_of(MUSCLE=1.0), table_of(MUSCLE=strength), texture).fine.std()
        for strength in (0.02, 0.2)
    )
    assert rough == pytest.approx(10 * smooth, rel=1e-3)


def test_labels_come_from_the_fine_volume_then_the_coarse_one_then_air():
    body = volume_of()
    body.fine[:] = ts.CORD

    def label(*point):
        return painting.label_at(*point, body.fine, body.fine_origin, body.fine_z, body.coarse, body.coarse_origin)

    assert label(3.0, 3.0, 3.0) == ts.CORD
    assert label(-3.0, 3.0, 3.0) == ts.MUSCLE
    assert label(-50.0, 3.0, 3.0) == ts.AIR
    plane = painting.sample_labels(body, (1, 30), np.array([-8.0, 3, 3]), BACK, RIGHT)
    assert [label for label, _ in groupby(plane[0])] == [ts.AIR, ts.MUSCLE, ts.CORD, ts.MUSCLE, ts.AIR]
    assert N * COARSE_MM - 6 < 22  # so that the line ends in air


def test_each_layer_of_the_fine_volume_has_its_own_place():
    body = volume_of()
    body.fine[:, :, 0] = ts.CORD
    body.fine_origin[8:, 0] = 3.0  # the upper half is shifted to the left
    low = painting.sample_labels(body, (1, 1), np.array([0.0, 3, 3]), BACK, RIGHT)
    high = painting.sample_labels(body, (1, 1), np.array([3.0, 3, 9]), BACK, RIGHT)
    assert low[0, 0] == high[0, 0] == ts.CORD


def test_masks_give_cortex_to_the_vertebra_beside_it():
    body = volume_of()
    body.fine[:, :, :4] = ts.MARROW + 7
    body.fine[:, :, 4] = ts.CORTEX
    body.fine[:, :, 8:10] = ts.NUCLEUS + 7
    body.fine[:, :, 12] = ts.CORTEX  # no vertebra near: a lamina
    body.fine[:, :, 14:] = ts.CSF
    stack = StackPlan(np.zeros((1, 3)), BACK * FINE_MM, RIGHT * FINE_MM, UP, (8, N), 1.0, 1.0)
    row = masks.mask_slice(body, stack, np.array([0.0, 3.0, 3.0]))[4]
    assert row.tolist() == [1] * 5 + [0] * 3 + [2] * 2 + [0] * 4 + [3] * 2
    for vertebra, expected in ((10, masks.S1), (11, masks.SACRUM)):
        body.fine[:, :, :4] = ts.MARROW + vertebra
        body.fine[:, :, 2] = ts.EDEMA  # changed marrow belongs to its vertebra, and is no body of the lumbar spine
        assert set(masks.mask_slice(body, stack, np.array([0.0, 3.0, 3.0]))[4, :5]) == {expected}


def test_masks_tell_the_line_between_s1_and_s2_with_a_disc_or_without():
    stack = StackPlan(np.zeros((1, 3)), BACK * FINE_MM, RIGHT * FINE_MM, UP, (8, N), 1.0, 1.0)
    for gap, between in ((2, ts.NUCLEUS + 10), (2, ts.CORTEX), (0, ts.CORTEX)):
        body = volume_of()
        body.fine[:, :, :6] = ts.MARROW + 10
        body.fine[:, :, 6 : 6 + gap] = between
        body.fine[:, :, 6 + gap : 14] = ts.MARROW + 11
        body.fine[:, :, 14:] = ts.CSF
        row = masks.mask_slice(body, stack, np.array([0.0, 3.0, 3.0]))[4].tolist()
        assert row[:4] == [masks.S1] * 4
        assert set(row[6 : max(7, 6 + gap)]) == {masks.SACRAL_LINE}
        assert row[10:] == [masks.SACRUM] * 4 + [masks.SAC] * 2


@pytest.fixture
def painter():
    """A painter of one small body, without any flaw of a scanner but those that a test sets."""
    patient = an.sample_patient(stream(1, 0, "patient"), "ordinary")
    place_stations(stream(1, 0, "curve"), patient)
    body = volume_of()
    body.coarse[:, :, :4] = ts.AIR  # nothing beyond x = -3 mm
    parameters = tissue_parameters(stream(1, 0, "tissue"), patient)
    plan = SeriesPlan("Axial T2", "t2", [])
    painter = Painter(stream(1, 0, "paint"), patient, body, parameters, np.zeros((8, 8, 8), np.float32), plan, 1.5, 0.0)
    painter.scanner = replace(
        painter.scanner, noise=0.0, acquired_mm=(0.1, 0.1), apodise=0.0, coil_mm=0.0, shade_gain=0.0, ghost=0.0,
        wrap=0.0, reach_mm=1e6,
    )  # fmt: skip
    painter.peak = 1000.0
    return painter


def test_aliasing_folds_what_lies_beyond_the_field_of_view_in_at_the_other_side(painter):
    stack = StackPlan(np.array([[-3.0, 2, 5]]), BACK * 0.5, RIGHT * 0.5, UP, (16, 20), 1.0, 1.0)
    plain = painter.slice(stack, stack.origins[0]).astype(int)
    painter.scanner = replace(painter.scanner, wrap=0.2)
    wrapped = painter.slice(stack, stack.origins[0]).astype(int)
    assert plain.dtype == wrapped.dtype
    change = (wrapped - plain).mean(axis=0)
    assert np.abs(change[4:16]).max() <= 1  # a fifth of the columns at each side
    assert change[:4].min() > 10  # there is tissue beyond the last column
    assert np.abs(change[-4:]).max() <= 1  # and air beyond the first


def test_pixels_have_twelve_bits(painter):
    stack = StackPlan(np.array([[2.0, 2, 5]]), BACK * 0.5, RIGHT * 0.5, UP, (16, 20), 1.0, 1.0)
    painter.peak = 1e6
    pixels = painter.slice(stack, stack.origins[0])
    assert pixels.dtype == np.uint16
    assert pixels.max() == 4095


def test_noise_is_uniform_and_periodic():
    tile = noise_tile(np.random.default_rng(2), 32)
    assert tile.dtype == np.float32
    assert np.abs(np.quantile(tile, (0.1, 0.5, 0.9)) - (0.1, 0.5, 0.9)).max() < 0.1
    assert np.abs(tile[0] - tile[-1]).mean() == pytest.approx(np.abs(tile[1] - tile[0]).mean(), rel=0.15)


def test_bowel_loops_stay_near_their_cells():
    loops = bowel_loops(np.random.default_rng(0))
    assert np.all((loops[..., :3] >= 0.2) & (loops[..., :3] <= 0.8))
    radius = loops[..., 3]
    assert 0.6 < (radius > 0).mean() < 0.8
    assert radius.max() <= 18


@pytest.mark.parametrize(("x", "expected"), [(1.7, 1), (-0.2, -1), (-2.0, -2), (0.0, 0)])
def test_floor_of_negative_numbers_goes_down(x, expected):
    assert math_floor(x) == expected
