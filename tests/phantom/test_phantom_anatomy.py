"""Patients as anatomy says: sizes along the spine, the curve, and each variant."""

import numpy as np
import pytest

from lumbar_phantom import anatomy as an
from lumbar_phantom.curve import place_stations
from lumbar_phantom.patients import make_case
from lumbar_phantom.streams import stream


def patient(index=0, variant="ordinary"):
    """A healthy patient whose vertebrae are stacked."""
    drawn = an.sample_patient(stream(7, index, "patient"), variant)
    place_stations(stream(7, index, "curve"), drawn)
    return drawn


def arrays(drawn):
    return (drawn.stations_geometry, drawn.stations, drawn.vertebrae, drawn.discs, drawn.trunk, drawn.roots)


def test_the_same_stream_gives_the_same_patient_and_another_one_another():
    assert all(np.array_equal(a, b) for a, b in zip(arrays(patient(1)), arrays(patient(1)), strict=True))
    assert not np.array_equal(patient(1).stations, patient(2).stations)


def test_vertebrae_grow_wider_to_l5_and_the_sacrum_narrows():
    width = np.mean([patient(i).stations[:, an.WIDTH] for i in range(20)], axis=0)
    upper_end_plates = width[::2]
    assert np.all(np.diff(upper_end_plates[: an.S1]) > 0)
    assert np.all(np.diff(width[2 * an.S1 :]) < 0)


def test_lower_end_plates_are_the_deeper_ones():
    upper, lower = np.mean([patient(i).vertebrae[:, [an.HOLLOW_UP, an.HOLLOW_LOW]] for i in range(40)], axis=(0, 1))
    assert lower > 1.15 * upper


def test_the_cord_ends_near_l1_and_the_sac_between_s1_and_s3():
    for i in range(30):
        stations = patient(i).stations
        last_cord = np.flatnonzero(stations[:, an.CORD_R] > 0)[-1]
        last_sac = np.flatnonzero(stations[:, an.SAC_A] > 0)[-1]
        assert 2 * (an.L1 - 1) <= last_cord <= 2 * (an.L1 + 2)
        assert 2 * an.S1 <= last_sac <= 2 * (an.S1 + 3)


def test_axes_of_every_station_are_a_right_handed_frame():
    geometry = patient(3, "scoliosis").stations_geometry[:, 3:].reshape(-1, 3, 3)
    np.testing.assert_allclose(
        np.einsum("sij,skj->sik", geometry, geometry), np.tile(np.eye(3), (30, 1, 1)), atol=1e-12
    )
    assert np.allclose(np.linalg.det(geometry), 1.0)
    assert np.all(geometry[:, 0, 0] > 0.8)  # left is left
    assert np.all(geometry[: 2 * an.S1, 2, 2] > 0.6)  # up is up


def test_end_plates_are_as_far_apart_as_bodies_are_high():
    drawn = patient(4)
    centres = drawn.stations_geometry[:, :3]
    bodies = np.linalg.norm(np.diff(centres, axis=0), axis=1)[::2]
    np.testing.assert_allclose(bodies, drawn.vertebrae[:, an.HEIGHT])


def test_the_middle_of_the_field_of_view_is_near_l3_l4():
    middles = np.array([patient(i).stations_geometry[15:17, :3].mean(axis=0) for i in range(60)])
    assert np.abs(middles.mean(axis=0)).max() < 4
    assert np.all(middles.std(axis=0) < 12)


def test_worn_discs_flatten_the_back():
    lordosis = []
    for share in (1.0, 0.35):
        tilts = []
        for i in range(40):
            drawn = an.sample_patient(stream(7, i, "patient"), "ordinary")
            drawn.discs[an.L1 : an.S1, an.DISC_H] *= share
            place_stations(stream(7, i, "curve"), drawn)
            tilt = np.arctan2(-drawn.stations_geometry[:, an.NY], drawn.stations_geometry[:, an.NZ])
            tilts.append(tilt[2 * an.L5 + 2] - tilt[2 * an.L5 + 1])  # wedge of the last disc
        lordosis.append(np.mean(tilts))
    assert lordosis[1] < 0.8 * lordosis[0]


def test_a_slip_moves_the_vertebrae_above_forwards():
    drawn = an.sample_patient(stream(7, 5, "patient"), "ordinary")
    place_stations(stream(7, 5, "curve"), drawn)
    before = drawn.stations_geometry[:, :3].copy()
    drawn.traits |= {"slip": 5.0, "slip_disc": 8.0}
    place_stations(stream(7, 5, "curve"), drawn)
    relative = (drawn.stations_geometry[:, :3] - before) - (drawn.stations_geometry[18, :3] - before[18])
    np.testing.assert_allclose(relative[18:], 0, atol=1e-9)  # L5 and below
    posterior = drawn.stations_geometry[17, 6:9]
    np.testing.assert_allclose(relative[:18] @ posterior, -5.0)


def test_scoliosis_bends_the_spine_sideways():
    def sway(variant):
        return np.mean([np.ptp(patient(i, variant).stations_geometry[10:21, 0]) for i in range(40)])

    assert sway("scoliosis") > 2 * sway("ordinary")


def test_sacralised_l5_has_a_poor_disc_and_broad_processes():
    ordinary, sacralised = patient(6), patient(6, "sacralised")
    assert sacralised.discs[an.L5, an.DISC_H] <= 0.6 * ordinary.discs[an.L5, an.DISC_H]
    assert sacralised.vertebrae[an.L5, an.TRANSVERSE] == pytest.approx(1.25 * ordinary.vertebrae[an.L5, an.TRANSVERSE])
    assert sacralised.traits["fused"] == 1.0
    np.testing.assert_array_equal(sacralised.discs[: an.L5], ordinary.discs[: an.L5])


def test_lumbarised_s1_is_square_above_a_true_disc():
    ordinary, lumbarised = patient(6), patient(6, "lumbarised")
    assert ordinary.discs[an.S1, an.DISC_H] < 4.5
    assert 6 <= lumbarised.discs[an.S1, an.DISC_H] <= 10
    lower = 2 * an.S1 + 1
    assert lumbarised.stations[lower, an.WIDTH] > ordinary.stations[lower, an.WIDTH]
    assert lumbarised.traits["sacral_disc"] == 1.0


@pytest.mark.parametrize("index", range(6))
def test_haemangioma_and_metal_lie_within_the_lumbar_spine(index):
    assert not patient(index).vertebrae[:, an.LESION].any()
    assert patient(index).trunk[an.LAMINECTOMY] == -1
    lesion = patient(index, "haemangioma").vertebrae[:, an.LESION]
    assert np.count_nonzero(lesion) == 1
    assert 6 <= lesion.max() <= 11
    assert 4 <= lesion.argmax() <= an.L5
    assert 7 <= patient(index, "metal").trunk[an.LAMINECTOMY] <= an.L5


def test_transitional_vertebrae_come_by_pitfall_only():
    drawn = [an.sample_patient(stream(8, i, "patient")).variant for i in range(400)]
    assert set(drawn) == {"ordinary", "scoliosis", "haemangioma", "metal"}
    assert 0.8 < drawn.count("ordinary") / len(drawn) < 0.94
    transitional = {make_case(8, i, transitional=True).patient.variant for i in range(8)}
    assert transitional == {"sacralised", "lumbarised"}
    assert make_case(8, 0, transitional=True, variant="metal").patient.variant == "metal"
