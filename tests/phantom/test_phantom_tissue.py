"""Which tissue is where in the spine's own coordinates: canal, discs, end plates, lesions, metal, variants."""

import numpy as np
import pytest

from lumbar_phantom import anatomy as an
from lumbar_phantom import space, volume
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.curve import place_stations
from lumbar_phantom.spine import spine
from lumbar_phantom.streams import stream

L3, L4 = 7, 8
SAC = {ts.CSF, ts.CSF_FLOW, ts.ROOT, ts.CORD}


def healthy(variant="ordinary", index=0):
    patient = an.sample_patient(stream(9, index, "patient"), variant)
    place_stations(stream(9, index, "curve"), patient)
    return patient


class Spine:
    """Tissue labels of one patient."""

    def __init__(self, patient):
        self.patient = patient
        self.tables = volume.tables(patient)

    def __call__(self, seg, f, u, v):
        p = self.patient
        thick = p.vertebrae[seg // 2, an.HEIGHT] if seg % 2 == 0 else p.discs[seg // 2, an.DISC_H]
        return spine(p.stations, p.vertebrae, p.discs, *self.tables, p.trunk, seg, f, float(thick), float(u), float(v))

    def back(self, seg, f):
        """Front of the canal in the midline."""
        p = self.patient
        return space.front(p.stations, p.vertebrae, p.discs, seg, f, 0.0)

    def roof(self, seg, f, u=0.0):
        p = self.patient
        return space.bony_roof(p.stations, p.vertebrae, p.discs, seg, f, u)

    def sac(self, seg, f, u=0.0):
        p = self.patient
        return space.sac(p.stations, p.vertebrae, p.discs, seg, f, u)


@pytest.fixture(scope="module")
def ordinary():
    return Spine(healthy())


@pytest.mark.parametrize("j", an.LEVEL_DISCS)
def test_from_front_to_back_there_is_disc_sac_and_flavum_or_lamina(ordinary, j):
    seg = 2 * j + 1
    assert ordinary(seg, 0.5, 0, 1) == ts.NUCLEUS + j
    assert ordinary(2 * j, 0.3, 5, -3) == ts.MARROW + j
    low, high = ordinary.sac(seg, 0.5)
    assert low < high
    assert ordinary(seg, 0.5, 0, 0.5 * (low + high)) in SAC
    assert ordinary(seg, 0.5, 3, ordinary.roof(seg, 0.5, 3.0) - 0.3) == ts.FLAVUM


def test_the_cord_ends_and_the_cauda_equina_goes_on(ordinary):
    def in_sac(seg):
        tissues = set()
        for u in np.linspace(-5, 5, 21):
            low, high = ordinary.sac(seg, 0.5, u)
            tissues |= {ordinary(seg, 0.5, u, v) for v in np.linspace(low + 0.5, high - 0.5, 15)}
        return tissues

    assert ts.CORD in in_sac(6)
    assert ts.CORD not in in_sac(2 * L4)
    assert ts.ROOT in in_sac(2 * L4)
    assert in_sac(2 * L4) <= SAC


def test_a_nerve_root_leaves_under_each_pedicle(ordinary):
    patient = ordinary.patient
    for side in (1.0, -1.0):
        place = side * space.foramen_place(patient.discs, L4)
        z = patient.vertebrae[L4, an.PED_Z] + 0.5 * patient.vertebrae[L4, an.PED_H] + 3
        f = z / patient.vertebrae[L4, an.HEIGHT]
        column = {ordinary(2 * L4, f, place, v) for v in np.linspace(10, 32, 45)}
        assert ts.ROOT in column
        assert ts.EPIDURAL_FAT in column


def test_the_rim_of_a_disc_is_dark_and_its_nucleus_is_not(ordinary):
    patient = ordinary.patient
    seg = 2 * L3 + 1
    half_width = 0.25 * (patient.stations[seg, an.WIDTH] + patient.stations[seg + 1, an.WIDTH])
    across = [ordinary(seg, 0.5, u, 0) for u in np.linspace(0, half_width, 60)]
    kinds = list(dict.fromkeys(across))
    assert kinds[:3] == [ts.NUCLEUS + L3, ts.INNER_ANNULUS, ts.ANNULUS]


def test_cortex_lines_the_end_plates_and_the_vein_enters_from_behind(ordinary):
    down = [ordinary(2 * L3, f, 0, -3) for f in np.linspace(0, 1, 200)]
    assert {ts.CORTEX, ts.MARROW + L3} <= set(down)
    assert down[100] == ts.MARROW + L3
    assert down[0] != ts.MARROW + L3
    back = ordinary.back(2 * L3, 0.52)
    assert ordinary(2 * L3, 0.52, 0, back - 2) == ts.BASIVERTEBRAL


@pytest.mark.parametrize(("depth", "label"), [(5.0, ts.EDEMA), (-5.0, ts.FAT_MARROW)])
def test_end_plate_changes_are_oedema_or_fat_by_their_sign(depth, label):
    patient = healthy()
    patient.vertebrae[L3, an.MODIC_LOW] = depth
    drawn = Spine(patient)
    assert label in [drawn(2 * L3, f, 0, -3) for f in np.linspace(0.6, 1, 100)]
    assert label not in [drawn(2 * L3, f, 0, -3) for f in np.linspace(0, 0.5, 20)]


def test_a_schmorl_node_is_disc_inside_a_vertebra():
    patient = healthy()
    patient.discs[L3, an.SCHMORL] = 7.0
    f = 1 - 4.5 / patient.vertebrae[L3, an.HEIGHT]
    assert Spine(healthy())(2 * L3, f, 0, 0) in {ts.MARROW + L3, ts.CORTEX}
    assert Spine(patient)(2 * L3, f, 0, 0) in {ts.NUCLEUS + L3, ts.INNER_ANNULUS, ts.ANNULUS}


def test_a_fissure_is_bright_in_the_back_of_the_annulus():
    patient = healthy()
    patient.discs[L3, an.FISSURE_R] = 2.0
    half_depth = 0.25 * (patient.stations[2 * L3 + 1, an.DEPTH] + patient.stations[2 * L3 + 2, an.DEPTH])
    assert Spine(patient)(2 * L3 + 1, 0.55, 2, 0.86 * half_depth) == ts.FISSURE
    assert Spine(healthy())(2 * L3 + 1, 0.55, 2, 0.86 * half_depth) != ts.FISSURE


def test_a_herniation_takes_the_place_of_fat_and_sac():
    patient = healthy()
    patient.discs[L4, an.CENTRAL] = 8.0
    before, after = Spine(healthy()), Spine(patient)
    seg, u = 2 * L4 + 1, 0.0
    place = before.back(seg, 0.5) + 4.0
    assert before(seg, 0.5, u, place) in SAC | {ts.EPIDURAL_FAT}
    assert after(seg, 0.5, u, place) in {ts.ANNULUS, ts.INNER_ANNULUS, ts.LIGAMENT}
    assert after.sac(seg, 0.5)[0] > before.sac(seg, 0.5)[0]


def test_a_haemangioma_fills_marrow():
    patient = healthy()
    patient.vertebrae[L3, an.LESION] = 7.0
    assert Spine(patient)(2 * L3, 0.5, 5, -2) == ts.HAEMANGIOMA
    assert Spine(patient)(2 * L3, 0.5, -12, -2) == ts.MARROW + L3


def test_screws_leave_a_void_and_the_lamina_between_is_gone():
    patient = healthy("metal")
    drawn, first = Spine(patient), int(patient.trunk[an.LAMINECTOMY])
    plain = Spine(healthy())
    for i in (first, first + 1):
        f = patient.vertebrae[i, an.PED_Z] / patient.vertebrae[i, an.HEIGHT]
        half = 0.5 * patient.stations[2 * i, an.IPD] + 0.5 * patient.vertebrae[i, an.PED_W]
        posterior = 0.5 * patient.stations[2 * i, an.DEPTH]
        for side in (1, -1):
            assert drawn(2 * i, f, side * (half + 1.5), posterior + 2) == ts.METAL
            assert plain(2 * i, f, side * (half + 1.5), posterior + 2) != ts.METAL
    bone = {ts.CORTEX, ts.POSTERIOR_MARROW}
    behind = plain.roof(2 * first, 0.8) + np.linspace(0.5, 6, 12)
    assert bone & {plain(2 * first, 0.8, 0, v) for v in behind}
    assert not bone & {drawn(2 * first, 0.8, 0, v) for v in behind}


def test_only_a_lumbarised_sacrum_has_a_disc_with_a_nucleus():
    labels = {}
    for variant in ("ordinary", "lumbarised"):
        drawn = Spine(healthy(variant))
        labels[variant] = {drawn(2 * an.S1 + 1, f, 0, 0) for f in np.linspace(0.1, 0.9, 9)}
    assert ts.NUCLEUS + an.S1 in labels["lumbarised"]
    assert ts.NUCLEUS + an.S1 not in labels["ordinary"]


def test_flavum_thickens_from_behind_and_narrows_the_sac():
    thick = healthy()
    thick.discs[L4, [an.FLAV_L, an.FLAV_R]] = 7.0
    arrays = (thick.stations, thick.vertebrae, thick.discs)
    assert space.flavum(*arrays, 2 * L4 + 1, 0.5, 5.0) > 4
    assert space.flavum(*arrays, 2 * L4, 0.45, 5.0) == 0  # none behind the middle of a body
    assert space.roof(*arrays, 2 * L4 + 1, 0.5, 5.0) < space.bony_roof(*arrays, 2 * L4 + 1, 0.5, 5.0) - 4


def test_beyond_the_spine_the_decision_is_left_to_muscles_and_organs(ordinary):
    assert ordinary(2 * L3, 0.5, 45, 0) == ts.NOTHING
    assert ordinary(2 * L3, 0.5, 0, -33) == ts.NOTHING
    assert ordinary(2 * L3, 0.5, 50, 50) == ts.NOTHING


def test_interpolations_meet_their_ends():
    assert space.smooth(-1.0, 0.0, 2.0) == 0
    assert space.smooth(1.0, 0.0, 2.0) == 0.5
    assert space.smooth(5.0, 0.0, 2.0) == 1
    assert space.bump(0.0, 3.0) == 1
    assert space.bump(9.0, 3.0) < 1e-3
    assert space.union(5.0, -5.0) == 5  # far apart: the deeper one
    assert space.union(2.0, 2.0) == 3  # rounded where they meet
