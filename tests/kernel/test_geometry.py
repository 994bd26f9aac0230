import numpy as np
import pytest

from lumbar.dicom import Stack
from lumbar.geometry import canonical_axes, is_inside, make_grid, plane_distance_mm, sample
from stage_studies import stack_of


def sagittal(row_mm, column_mm):
    return Stack(
        series_id="s",
        volume=np.zeros((3, 40, 60), np.float32),
        origins_mm=np.array([[4.0 * i, 0.0, 0.0] for i in range(3)]),
        row_mm=np.array(row_mm),
        column_mm=np.array(column_mm),
        instance_numbers=[1, 2, 3],
    )


@pytest.mark.parametrize(
    ("row_mm", "column_mm"),
    [
        ((0, 0, -0.8), (0, 0.5, 0)),
        ((0, 0, 0.8), (0, -0.5, 0)),
        ((0, 0.8, 0), (0, 0, -0.5)),
        ((0, 0.1, -0.8), (0, 0.5, 0.06)),
    ],
)
def test_sagittal_grid_always_runs_posterior_and_down(row_mm, column_mm):
    stack = sagittal(row_mm, column_mm)
    grid = make_grid(stack, size=32, mm_per_px=1.5)
    corner, right, down = grid.to_source(np.array([[0, 0], [1, 0], [0, 1]], float))

    def place(point):
        return stack.to_patient(1, point[1], point[0])

    across, along = place(right) - place(corner), place(down) - place(corner)
    assert across[1] == pytest.approx(1.5, rel=0.02)  # towards the back
    assert along[2] == pytest.approx(-1.5, rel=0.02)  # towards the feet
    assert np.linalg.norm(across) == pytest.approx(1.5)


def test_points_ride_on_the_matrix_that_samples_the_image():
    stack = stack_of("s", "sagittal", 0)
    image = np.zeros(stack.volume.shape[1:], np.float32)
    image[40, 55] = 1.0
    grid = make_grid(stack, size=128, mm_per_px=1.1, centre_px=(50.0, 44.0), angle_deg=17.0)
    out = sample(image, grid)
    y, x = np.mgrid[:128, :128]
    centroid = np.array([(out * x).sum(), (out * y).sum()]) / out.sum()
    np.testing.assert_allclose(centroid, grid.to_grid(np.array([55.0, 40.0])), atol=0.15)
    np.testing.assert_allclose(grid.to_source(grid.to_grid(np.array([12.3, 4.5]))), [12.3, 4.5], atol=1e-9)


def test_a_mirrored_axial_grid_swaps_sides():
    stack = stack_of("a", "axial", 0)
    plain = make_grid(stack, size=64, mm_per_px=2.0)
    mirror = make_grid(stack, size=64, mm_per_px=2.0, is_mirrored=True)
    image = stack.volume[0]
    np.testing.assert_allclose(sample(image, mirror), sample(image, plain)[:, ::-1], rtol=1e-4)


def test_outside_the_image_is_the_value_asked_for_and_never_stretched():
    stack = stack_of("a", "axial", 0)
    grid = make_grid(stack, size=64, mm_per_px=2.0, centre_px=(-200.0, -200.0))
    assert (sample(stack.volume[0], grid, outside=3.0) == 3.0).all()


def test_a_coarse_grid_averages_fine_texture():
    stack = stack_of("a", "axial", 0)
    checker = (np.indices(stack.volume.shape[1:]).sum(0) % 2).astype(np.float32)
    out = sample(checker, make_grid(stack, size=24, mm_per_px=6.6))
    assert np.abs(out - 0.5).max() < 0.1


def test_plane_distance_is_signed_along_the_normal():
    stack = stack_of("s", "sagittal", 0)
    distances = plane_distance_mm(stack, np.array([stack.positions_mm[4] + 1.0, 0, 0]))
    assert distances[4] == pytest.approx(1.0)
    assert distances[5] == pytest.approx(-4.0)


def test_inside_counts_pixel_centres():
    stack = stack_of("s", "sagittal", 0)
    assert is_inside(stack, 0, 0)
    assert is_inside(stack, 95, 95)
    assert not is_inside(stack, 95.5, 50)
    assert not is_inside(stack, 1, 1, margin_px=2)


def test_canonical_axes_is_a_signed_permutation():
    axes = canonical_axes(stack_of("a", "axial", 0))
    np.testing.assert_array_equal(np.abs(axes).sum(0), [1, 1])
