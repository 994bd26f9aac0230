"""What a scanner does to an ideal image: noise, resolution, ringing, ghosts, shading."""

from dataclasses import replace

import numpy as np
import pytest

from lumbar_phantom.artefacts import Scanner, draw_scanner, scan, shading

IDEAL = Scanner(
    noise=0.0, acquired_mm=(0.5, 0.5), apodise=0.0, coil_mm=0.0, coil_floor=0.3, shade=np.zeros((3, 3)), shade_gain=0.0,
    ghost=0.0, ghost_shift=0.0, swap_phase=False, band=float("nan"), chemical=(0, 0), wrap=0.0, centre_z=0.0,
    reach_mm=1e6,
)  # fmt: skip
SAGITTAL = (np.array([0.0, -80.0, 80.0]), np.array([0.0, 0.0, -1.0]), np.array([0.0, 1.0, 0.0]))


def block():
    """A bright square, (64, 64)."""
    image = np.zeros((64, 64), np.float32)
    image[24:40, 24:40] = 1.0
    return image


def scanned(scanner, image=None, spacing=(0.5, 0.5), seed=0):
    return scan(np.random.default_rng(seed), block() if image is None else image, scanner, spacing)


def drawn(field, *, axial=False, randomisation=0.0, n=400):
    rng = np.random.default_rng(5)
    return [draw_scanner(rng, field, randomisation, axial, -20.0) for _ in range(n)]


def test_without_any_flaw_the_image_is_the_ideal_one():
    np.testing.assert_allclose(scanned(IDEAL), block(), atol=1e-5)
    assert scanned(IDEAL).dtype == np.float32


def test_noise_is_rician_and_follows_its_stream():
    scanner = replace(IDEAL, noise=0.05)
    image = scanned(scanner, np.zeros((128, 128), np.float32))
    assert image.min() >= 0
    assert 0.02 < image.mean() < 0.1  # the background of a magnitude image is not black
    bright = scanned(scanner, np.ones((128, 128), np.float32))
    assert bright.std() == pytest.approx(0.05, rel=0.1)
    np.testing.assert_array_equal(scanned(scanner), scanned(scanner))
    assert not np.array_equal(scanned(scanner), scanned(scanner, seed=1))


def test_a_larger_acquired_pixel_blurs_along_its_own_axis():
    rows, columns = (np.abs(np.diff(scanned(replace(IDEAL, acquired_mm=(1.5, 0.5), apodise=1.0)), axis=k)).max()
                     for k in (0, 1))  # fmt: skip
    assert rows < 0.6 * columns


def test_a_finer_acquisition_than_the_image_changes_nothing():
    np.testing.assert_array_equal(scanned(replace(IDEAL, acquired_mm=(0.2, 0.2))), scanned(IDEAL))


def test_a_hard_edge_in_k_space_rings_and_a_soft_one_does_not():
    hard, soft = (scanned(replace(IDEAL, acquired_mm=(1.0, 1.0), apodise=value)).max() for value in (0.0, 1.0))
    assert hard > 1.05
    assert soft < 1.02


@pytest.mark.parametrize(("swap", "along"), [(False, 0), (True, 1)])
def test_ghosts_lie_along_the_phase_direction(swap, along):
    scanner = replace(IDEAL, ghost=0.3, ghost_shift=0.25, swap_phase=swap)
    change = np.abs(scanned(scanner) - scanned(IDEAL))
    change[24:40, 24:40] = 0
    band = change[:, 24:40] if along == 0 else change[24:40]
    assert band.sum() > 0.95 * change.sum() > 1


def test_a_surface_coil_darkens_with_depth_down_to_its_floor():
    out = shading(replace(IDEAL, coil_mm=60.0), (4, 200), *SAGITTAL, back_y=100.0)
    assert np.all(np.diff(out[0, :180]) > 0)  # columns go towards the back
    assert out[0, 180] == pytest.approx(1.5, rel=0.01)
    deep = shading(replace(IDEAL, coil_mm=5.0), (4, 200), *SAGITTAL, back_y=1000.0)
    assert deep[0, 0] == pytest.approx(0.3, rel=0.01)
    np.testing.assert_allclose(shading(IDEAL, (4, 200), *SAGITTAL, back_y=100.0), 1.0, atol=1e-6)


def test_a_saturation_band_darkens_what_lies_in_front_of_it():
    out = shading(replace(IDEAL, band=-40.0), (4, 100), *SAGITTAL, back_y=100.0)
    assert out[0, 0] < 0.2  # y = -80
    assert out[0, 80] > 0.99  # y = 0


def test_signal_falls_off_beyond_the_length_of_the_coil():
    out = shading(replace(IDEAL, reach_mm=40.0), (161, 4), *SAGITTAL, back_y=100.0)
    assert out[80, 0] == pytest.approx(1.0)  # z = 0
    assert out[0, 0] < 0.1
    np.testing.assert_allclose(out[:, 0], out[::-1, 0], atol=1e-4)


def test_low_field_is_noisier_and_shifts_fat_less():
    low, high = drawn(0.3), drawn(3.0)
    assert np.mean([s.noise for s in low]) > 1.3 * np.mean([s.noise for s in high])
    assert max(max(map(abs, s.chemical)) for s in low) == 1
    assert max(max(map(abs, s.chemical)) for s in high) == 2
    assert all(0 in s.chemical for s in high)  # along one axis


def test_bands_are_sagittal_and_aliasing_is_axial():
    sagittal, axial = drawn(1.5), drawn(1.5, axial=True)
    assert 0.3 < np.mean([np.isfinite(s.band) for s in sagittal]) < 0.6
    assert all(s.band < -30 for s in sagittal if np.isfinite(s.band))  # in front of the belly's edge
    assert not any(np.isfinite(s.band) for s in axial)
    assert not any(s.wrap for s in sagittal)
    assert 0.02 < np.mean([s.wrap > 0 for s in axial]) < 0.12


def test_randomised_series_are_shaded_more_widely():
    assert max(s.shade_gain for s in drawn(1.5)) <= 0.14
    assert max(s.shade_gain for s in drawn(1.5, randomisation=1.0)) > 0.25
