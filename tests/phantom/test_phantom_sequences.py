"""Contrast: what is bright in T1, T2 and STIR, in whom, and how far randomisation goes."""

import numpy as np
import pytest

from lumbar_phantom import anatomy as an
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.sequences import (
    FAT_SHARE,
    Sequence,
    draw_sequence,
    randomised_signal,
    signal,
    tissue_parameters,
)
from lumbar_phantom.streams import stream

PATIENT = an.sample_patient(stream(5, 0, "patient"), "ordinary")
PARAMETERS = tissue_parameters(np.random.default_rng(0), PATIENT)
T1, T2, STIR = (
    Sequence("t1", 550, 12, 0.0, 1.5),
    Sequence("t2", 3500, 105, 0.0, 1.5),
    Sequence("stir", 4000, 60, np.log(2) * 290, 1.5),
)
EMPTY = [ts.AIR, ts.METAL]


def randomised(seed, kind="t2", randomisation=0.0):
    rng = np.random.default_rng(seed)
    return randomised_signal(rng, PARAMETERS, draw_sequence(rng, kind, 1.5), randomisation)


def test_fat_is_bright_in_t1_and_fluid_is_dark():
    level = signal(PARAMETERS, T1)
    assert level[ts.FAT] > level[ts.MARROW + an.L1] > level[ts.MUSCLE] > level[ts.CSF]


def test_fluid_is_bright_in_t2_and_ligament_and_cortex_are_dark():
    level = signal(PARAMETERS, T2)
    assert level[ts.CSF] > level[ts.FAT] > level[ts.MUSCLE] > level[ts.LIGAMENT]
    assert level[ts.CSF] > 4 * level[ts.MUSCLE]
    assert level[ts.CORTEX] < 0.02


def test_fat_is_suppressed_in_stir_and_oedema_shows():
    level = signal(PARAMETERS, STIR)
    assert level[ts.FAT] < 0.1 * level[ts.CSF]
    assert level[ts.EDEMA] > 2 * level[ts.FAT_MARROW]
    assert signal(PARAMETERS, T1)[ts.FAT_MARROW] > signal(PARAMETERS, T1)[ts.EDEMA]


def test_desiccated_discs_are_dark_in_t2():
    patient = an.sample_patient(stream(5, 0, "patient"), "ordinary")
    patient.discs[8, an.DESICCATION] = 1.0
    level = signal(tissue_parameters(np.random.default_rng(0), patient), T2)
    assert level[ts.NUCLEUS + 8] < 0.4 * level[ts.NUCLEUS + 7]


def test_marrow_of_the_old_holds_more_fat():
    def marrow(age):
        patient = an.sample_patient(stream(5, 0, "patient"), "ordinary")
        patient.traits["age"] = age
        return signal(tissue_parameters(np.random.default_rng(0), patient), T1)[ts.MARROW + an.L1]

    assert marrow(80) > 1.1 * marrow(30)


def test_t1_lengthens_with_the_field():
    low, high = (signal(PARAMETERS, Sequence("t1", 550, 12, 0.0, field)) for field in (0.5, 3.0))
    assert low[ts.MUSCLE] > high[ts.MUSCLE]


@pytest.mark.parametrize("kind", ["t1", "t2", "stir"])
def test_drawn_parameters_are_those_of_clinical_protocols(kind):
    for seed in range(50):
        drawn = draw_sequence(np.random.default_rng(seed), kind, 1.5)
        assert drawn.tr > 3 * drawn.te
        assert (drawn.ti > 0) == (kind == "stir")
        assert (drawn.tr < 1000) == (kind == "t1")


@pytest.mark.parametrize("seed", range(8))
def test_a_realistic_contrast_keeps_the_order_of_tissues(seed):
    level, texture = randomised(seed)
    assert level[ts.CSF] > level[ts.MUSCLE] > level[ts.CORTEX]
    marrow = level[ts.MARROW : ts.MARROW + 15]
    assert np.ptp(marrow) < 0.25 * marrow.mean()
    assert np.all(level >= 0)
    assert np.quantile(level[: ts.N_TISSUES][PARAMETERS[:, 2] > 0], 0.97) == pytest.approx(1.0, rel=1e-5)
    assert texture.max() <= 0.6 + 1e-6
    assert level.dtype == texture.dtype == np.float32


def test_flowing_csf_is_dark_in_some_t2_series_and_in_no_t1_series():
    ratios = {kind: [level[ts.CSF_FLOW] / level[ts.CSF] for level, _ in (randomised(s, kind) for s in range(40))]
              for kind in ("t1", "t2")}  # fmt: skip
    assert ratios["t1"] == pytest.approx([1.0] * 40)
    assert 0.1 < np.mean(np.array(ratios["t2"]) < 0.95) < 0.7


def test_full_randomisation_gives_every_tissue_any_brightness_but_leaves_what_has_no_protons_dark():
    levels = np.array([randomised(seed, "t2", 1.0)[0] for seed in range(60)])
    realistic = np.array([randomised(seed, "t2", 0.0)[0] for seed in range(60)])
    order = levels[:, ts.MUSCLE] > levels[:, ts.FAT]
    assert 0.15 < order.mean() < 0.85
    assert not (realistic[:, ts.MUSCLE] > realistic[:, ts.FAT]).any()
    assert np.all(levels[:, EMPTY] == 0)
    wide, narrow = (np.std(np.log(x[:, ts.MUSCLE])) for x in (levels, realistic))
    assert wide > 1.5 * narrow
    spread = np.ptp(levels[:, ts.MARROW : ts.MARROW + 15], axis=1) / levels[:, ts.MARROW]
    assert np.median(spread) < 0.5  # vertebrae of one patient still look alike


def test_the_chemical_shift_moves_fat_and_not_water():
    assert FAT_SHARE[ts.FAT] == FAT_SHARE[ts.EPIDURAL_FAT] == 1
    assert not FAT_SHARE[[ts.CSF, ts.MUSCLE, ts.CORD, ts.NUCLEUS]].any()
    assert np.all((FAT_SHARE >= 0) & (FAT_SHARE <= 1))
    assert np.all(FAT_SHARE[ts.MARROW : ts.MARROW + 15] > 0)
