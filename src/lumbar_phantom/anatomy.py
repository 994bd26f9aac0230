"""A patient's lumbar spine as numbers: sizes at each station; `curve` stacks them, `disease` adds disease.

The spine's own coordinates: every vertebra has an upper and a lower *station*, a plane through its end plate with axes
(centre, left, posterior, up). A point between two stations is at fraction f of the wedge between their planes, with
u (mm to the left) and v (mm to the back) interpolated between the two frames. Body segments (even) and disc segments
(odd) alternate from T8 down to S5.

Sizes: Panjabi et al. 1992 (Spine 17:299), Berry et al. 1987 (Spine 12:362), Zhou et al. 2000 (Eur Spine J 9:242) for
bodies, pedicles and canal; Schonstrom et al. 1985 (Spine 10:806) for the area of the thecal sac; Stephens et al. 1991
for the foramen; Vialle et al. 2005 (JBJS Am 87:260) for lordosis and sacral slope.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

VERTEBRAE = ("T8", "T9", "T10", "T11", "T12", "L1", "L2", "L3", "L4", "L5", "S1", "S2", "S3", "S4", "S5")
N_VERTEBRAE = len(VERTEBRAE)
N_STATIONS = 2 * N_VERTEBRAE
L1, L5, S1 = 5, 9, 10
LEVEL_DISCS = (5, 6, 7, 8, 9)  # disc index (= vertebra above) of l1_l2 .. l5_s1

# Columns of Patient.stations_geometry
CX, CY, CZ, LX, LY, LZ, PX, PY, PZ, NX, NY, NZ = range(12)
# Columns of Patient.stations: half width and depth of the body, canal depth, recess depth, interpedicular distance,
# sac half width, half depth, gap to the posterior wall, cord radius
WIDTH, DEPTH, CANAL, RECESS, IPD, SAC_A, SAC_B, SAC_GAP, CORD_R = range(9)
# Columns of Patient.vertebrae, mm where nothing else is said. PED_*: the pedicle, PED_Z its axis below the upper end
# plate; FACET_DEG: angle of the facet joints; PSOAS_*: half axes of psoas; MODIC_*: depth of end-plate changes, above 0
# Modic 1, below 0 Modic 2; LESION: radius of a haemangioma; HOLLOW_*: concavity of the end plates; SKEW_*: how much
# deeper they are towards the back
(
    HEIGHT,
    PED_W,
    PED_H,
    SPINOUS,
    SPIN_H,
    TRANSVERSE,
    FACET_DEG,
    PSOAS_A,
    PSOAS_B,
    MODIC_UP,
    MODIC_LOW,
    LESION,
    PED_Z,
    HOLLOW_UP,
    HOLLOW_LOW,
    SKEW_UP,
    SKEW_LOW,
) = range(17)
N_VERTEBRA_COLUMNS = 17
# Columns of Patient.discs, mm where nothing else is said; _L and _R are the patient's sides. BULGE, CENTRAL, SUB_* and
# FOR_*: disc material behind the rim all along it, in the middle, at the recess, at the foramen; *_U: lateral place;
# FLAV_*: thickness of the ligamentum flavum; FACET_*, SAP_*: growth of the facet joint and of the tip of the superior
# articular process; DESICCATION: 0..1; SPREAD: reach of disc material up and down; OSTEO: osteophytes; SCHMORL: depth
# of a node; FISSURE_R: radius of a fissure; REMNANT: share of its diameter that is left of the disc S1/S2, below 0 for
# none and 1 for all, 0 in patients without a drawn one; TREFOIL: how much the canal is a trefoil, whose recesses are
# slits, and not a dome, 0..1; 0 in patients who are not hard
(
    DISC_H,
    BULGE,
    CENTRAL,
    CENTRAL_U,
    SUB_L,
    SUB_R,
    FOR_L,
    FOR_R,
    FLAV_L,
    FLAV_R,
    FACET_L,
    FACET_R,
    DESICCATION,
    SPREAD,
    OSTEO,
    SCHMORL,
    SCHMORL_U,
    FISSURE_R,
    SAP_L,
    SAP_R,
    FOR_U,
    REMNANT,
    TREFOIL,
) = range(23)
N_DISC_COLUMNS = 23
# Entries of Patient.trunk: subcutaneous fat, half width and depth of the trunk, radii of vessels (mm); FAT_FRACTION,
# GAS_SHARE, DEEP_FAT: 0..1; KIDNEY_Z, LIVER_Z, BIFURCATION: station coordinates; LAMINECTOMY: the vertebra without a
# lamina, from which the screws start, or -1; WALL: thickness of the abdominal wall; PAR_*: half axes of the
# paraspinal muscles; BED_FIRST, BED_LAST: the vertebrae between which laminae and spinous processes were taken out, or
# -1; BED_FLUID: 1 where fluid fills their place, 0 where fat does; SMOOTH: 1 for muscles and ligaments without specks
(
    SUBCUT_BACK,
    SUBCUT_FRONT,
    SUBCUT_SIDE,
    BODY_HALF_W,
    BODY_DEPTH,
    FAT_FRACTION,
    AORTA_R,
    IVC_R,
    KIDNEY_Z,
    LIVER_Z,
    BIFURCATION,
    BOWEL_SEED,
    GAS_SHARE,
    LAMINECTOMY,
    WALL,
    PAR_W,
    PAR_D,
    DEEP_FAT,
    BED_FIRST,
    BED_LAST,
    BED_FLUID,
    SMOOTH,
) = range(22)
N_TRUNK_ENTRIES = 22

_HEIGHT = (20.0, 21, 22, 23, 25, 26.5, 27.5, 28, 27.5, 27, 29, 23, 19, 16, 14)
DISC_HEIGHTS = (4.5, 4.5, 5, 5.5, 7, 8.6, 10, 11, 11.6, 10.6, 3.0, 1.8, 1.4, 1.2, 1.2)
_WIDTH = (
    (29, 30),
    (30, 31),
    (31, 33),
    (34, 36),
    (37, 39),
    (40, 41.5),
    (41.5, 43.5),
    (43, 46),
    (45.5, 48.5),
    (48, 50),
    (50, 38),
    (35, 28),
    (27, 23),
    (22, 18),
    (17, 12),
)
_DEPTH = (
    (25, 26),
    (26, 27),
    (27.5, 28),
    (28.5, 29),
    (29.5, 30.5),
    (31, 32),
    (32.5, 33.5),
    (33.5, 34.5),
    (34.5, 35.5),
    (35.5, 35),
    (33.5, 23),
    (20, 15),
    (14, 11),
    (10, 8),
    (8, 6),
)
_CANAL = (15.0, 15, 15, 15.5, 16.5, 17.2, 17, 16.6, 16.8, 17.4, 15.5, 11, 8, 6, 4)
_RECESS = (7.5, 7.5, 7.5, 7.5, 7.5, 7.6, 7.3, 7.0, 6.8, 6.8, 7, 6, 5, 4, 3)
_IPD = (16.0, 16, 17, 18, 21, 22.5, 23, 24, 25.5, 29, 31, 26, 22, 18, 14)
_PED_W = (6.0, 6.5, 7, 7.5, 8, 8.2, 8.6, 10, 12.6, 15.5, 18, 14, 12, 10, 8)
_PED_H = (11.0, 12, 13, 14.5, 15.5, 15.4, 15, 14.6, 14.6, 15, 16, 12, 10, 8, 7)
_SPINOUS = (36.0, 36, 34, 31, 29, 30, 32, 33, 31, 25, 16, 12, 8, 5, 3)
_SPIN_H = (4.5, 4.5, 5, 5.5, 7, 8.4, 9.2, 9.4, 8.4, 6.8, 5.5, 5, 4, 3, 3)
_TRANSVERSE = (24.0, 24, 23, 20, 20, 33, 38, 44, 40, 42, 0, 0, 0, 0, 0)
_SAC_A = (7.5, 7.5, 7.5, 7.8, 8.2, 8.6, 8.6, 8.5, 8.3, 7.8, 6.4, 3.4, 0, 0, 0)
_SAC_B = (6.4, 6.4, 6.5, 6.7, 7.0, 7.1, 6.9, 6.6, 6.5, 6.1, 4.6, 2.2, 0, 0, 0)
_SAC_GAP = (1.2, 1.2, 1.2, 1.0, 0.9, 0.8, 0.8, 0.9, 1.2, 2.2, 6.0, 5.0, 3, 2, 2)
_PSOAS_A = (0.0, 0, 0, 0, 3, 6.5, 10, 13.5, 17, 19, 17, 15, 14, 13, 12)
_PSOAS_B = (0.0, 0, 0, 0, 6, 11, 15, 18.5, 21.5, 23, 21, 19, 17, 15, 14)

VARIANTS = ("ordinary", "sacralised", "lumbarised", "scoliosis", "haemangioma", "metal")


@dataclass(slots=True)
class Patient:
    """One patient as arrays for the numba kernels, in mm. Columns are named by this module's constants.

    Attributes:
        stations_geometry: (30, 12) centre, left, posterior and up of each end-plate plane, in patient space (LPS).
        stations: (30, 9) sizes at each end plate.
        vertebrae: (15, 17).
        discs: (15, 23), each below the vertebra of the same index.
        trunk: (22,) sizes of everything around the spine.
        roots: (n, 4) cauda equina: lateral and front-to-back position relative to the sac, radius in mm, last station.
        scale: factor of all sizes.
        variant: one of `VARIANTS`.
        traits: age (years), bulk of the muscles; where they apply: fused (L5 with the sacrum), sacral_disc (at S1/S2),
            slip (mm) and slip_disc; and the angles (degrees) that `junction` draws: slope, disc_wedge, body_wedge,
            sacral_turn (a factor), sacral_table, scoliosis.
    """

    stations_geometry: np.ndarray
    stations: np.ndarray
    vertebrae: np.ndarray
    discs: np.ndarray
    trunk: np.ndarray
    roots: np.ndarray
    scale: float
    variant: str = "ordinary"
    traits: dict[str, float] = field(default_factory=dict)


def sample_patient(rng: np.random.Generator, variant: str | None = None) -> Patient:
    """Draw sizes and soft tissues of one healthy patient; `variant`, one of `VARIANTS`, is drawn where it is None."""
    scale = float(np.clip(rng.normal(0.98, 0.06), 0.83, 1.14))
    size = scale * np.exp(rng.normal(0, 0.025, 8))
    age = float(rng.uniform(25, 88))
    height = np.array(_HEIGHT) * size[0] * np.exp(rng.normal(0, 0.025, N_VERTEBRAE))
    discs = np.zeros((N_VERTEBRAE, N_DISC_COLUMNS))
    discs[:, DISC_H] = np.array(DISC_HEIGHTS) * size[1] * np.exp(rng.normal(0, 0.08, N_VERTEBRAE))
    discs[:, [FLAV_L, FLAV_R]] = 2.9 * scale
    discs[:, SPREAD] = 4.5
    vertebrae = np.zeros((N_VERTEBRAE, N_VERTEBRA_COLUMNS))
    vertebrae[:, HEIGHT] = height
    vertebrae[:, PED_W] = np.array(_PED_W) * size[2]
    vertebrae[:, PED_H] = np.array(_PED_H) * size[0] * _varied(rng, 0.07, 0.03, N_VERTEBRAE)
    vertebrae[:, PED_Z] = height * (0.31 + rng.normal(0, 0.03) + rng.normal(0, 0.012, N_VERTEBRAE)).clip(0.22, 0.40)
    vertebrae[:, SPINOUS] = np.array(_SPINOUS) * size[3] * np.exp(rng.normal(0, 0.1, N_VERTEBRAE))
    vertebrae[:, SPIN_H] = np.array(_SPIN_H) * size[3] * np.exp(rng.normal(0, 0.1, N_VERTEBRAE))
    vertebrae[:, TRANSVERSE] = np.array(_TRANSVERSE) * size[2]
    vertebrae[:, FACET_DEG] = np.interp(np.arange(15), (4, 9, 10), (66, 45, 42)) + rng.normal(0, 6)
    # Lower end plates are the deeper ones (Wang et al. 2012, Eur Spine J 21:2316), most so behind their middle
    depth = np.exp(rng.normal(0, 0.3) + rng.normal(0, 0.3, (2, N_VERTEBRAE)))
    vertebrae[:, [HOLLOW_UP, HOLLOW_LOW]] = (np.array([[1.7], [2.3]]) * depth).clip(0.3, 4.2).T * scale
    vertebrae[:, [SKEW_UP, SKEW_LOW]] = rng.normal((0.0, 0.25), 0.25, (N_VERTEBRAE, 2)).clip(-0.6, 0.8)
    bulk = float(np.clip(rng.normal(1, 0.17), 0.6, 1.4))
    vertebrae[:, PSOAS_A] = np.array(_PSOAS_A) * scale * bulk
    vertebrae[:, PSOAS_B] = np.array(_PSOAS_B) * scale * bulk
    drawn = str(rng.choice(VARIANTS, p=(0.88, 0.0, 0.0, 0.07, 0.03, 0.02)))
    variant = variant or drawn
    stations = _station_sizes(rng, scale, size)
    discs[:, FOR_U] = 0.5 * stations[1::2, IPD] + 0.25 * vertebrae[:, PED_W] + 0.5
    patient = Patient(
        np.zeros((N_STATIONS, 12)),
        stations,
        vertebrae,
        discs,
        _trunk_sizes(rng, scale, bulk, age),
        _cauda_equina(rng),
        scale,
        variant,
        {"age": age, "bulk": bulk},
    )
    _apply_variant(rng, patient)
    return patient


def _apply_variant(rng: np.random.Generator, patient: Patient) -> None:
    if patient.variant == "sacralised":  # broad L5 processes joined to the sacrum, poor last disc
        patient.discs[L5, DISC_H] *= rng.uniform(0.35, 0.6)
        patient.vertebrae[L5, TRANSVERSE] *= 1.25
        patient.traits["fused"] = 1.0
    elif patient.variant == "lumbarised":  # S1 squared, with a true disc below it
        patient.discs[S1, DISC_H] = rng.uniform(6, 10)
        patient.stations[2 * S1 + 1, [WIDTH, DEPTH]] = (42 * patient.scale, 30 * patient.scale)
        patient.stations[2 * S1 + 2, [WIDTH, DEPTH]] = (40 * patient.scale, 28 * patient.scale)
        patient.traits["sacral_disc"] = 1.0
    elif patient.variant == "haemangioma":
        patient.vertebrae[int(rng.integers(4, 10)), LESION] = rng.uniform(6, 11)
    elif patient.variant == "metal":
        patient.trunk[LAMINECTOMY] = float(rng.integers(7, 10))


def _station_sizes(rng: np.random.Generator, scale: float, size: np.ndarray) -> np.ndarray:
    stations = np.zeros((N_STATIONS, 9))
    stations[:, WIDTH] = np.array(_WIDTH, float).ravel() * size[4]
    stations[:, DEPTH] = np.array(_DEPTH, float).ravel() * size[5]
    at = np.arange(N_STATIONS) / 2 - 0.25  # vertebra coordinate of a station: tables hold values at mid-body
    canal = size[6] * np.exp(rng.normal(0, 0.05))
    for column, table, factor, patients, levels in (
        (CANAL, _CANAL, canal, 0.05, 0.05),
        (RECESS, _RECESS, canal, 0.11, 0.06),
        (IPD, _IPD, size[7], 0.02, 0.02),
        (SAC_A, _SAC_A, scale, 0.05, 0.04),
        (SAC_B, _SAC_B, canal, 0.09, 0.07),
        (SAC_GAP, _SAC_GAP, scale, 0.4, 0.25),
    ):
        mean = np.interp(at, np.arange(N_VERTEBRAE), table)
        stations[:, column] = mean * factor * _varied(rng, patients, levels, N_STATIONS)
    room = stations[:, CANAL] - 2 * stations[:, SAC_B] + 0.2  # fat in front of the sac leaves it most of its depth
    stations[:, SAC_GAP] = np.minimum(stations[:, SAC_GAP], room.clip(0.5))
    # The sac ends around S2, from S1 to S3 (Macdonald et al. 1999). In some people it thins from L5 on; fat takes its
    # place, more of it in front of the sac or more behind
    sac_end = float(np.clip(rng.normal(11.1, 0.45), 10.5, 12.3))
    taper = np.clip((sac_end - at) / rng.uniform(1.3, 2.4), 0, 1) ** rng.uniform(0.4, 0.8)
    lost = 2 * np.maximum(stations[:, SAC_B], 0.0) * (1 - taper)
    stations[:, SAC_GAP] += lost * rng.uniform(0.15, 0.85)
    stations[:, [SAC_A, SAC_B]] = np.maximum(stations[:, [SAC_A, SAC_B]], 0.0) * taper[:, None]
    conus = 5.2 + rng.normal(0, 0.4)  # the end of the cord, at L1 on average (Saifuddin et al. 1998)
    stations[:, CORD_R] = np.clip(np.where(at < conus - 0.9, 4.4, 4.4 * (conus - at) / 0.9), 0, 4.4) * scale
    return stations


def _varied(rng: np.random.Generator, patients: float, levels: float, n: int) -> np.ndarray:
    """Factors (n,) along the spine: log-normal from patient to patient, and smoothly from level to level."""
    knots = rng.normal(0, levels, 8)
    return np.asarray(np.exp(rng.normal(0, patients) + np.interp(np.linspace(0, 7, n), np.arange(8), knots)))


def _cauda_equina(rng: np.random.Generator) -> np.ndarray:
    n = int(rng.integers(13, 20))
    roots = np.zeros((n, 4))
    roots[:, 0] = rng.uniform(-0.8, 0.8, n)
    roots[:, 1] = np.clip(rng.beta(3.0, 1.6, n), 0.1, 0.92)  # roots sink to the back in a patient who lies supine
    roots[:, 2] = rng.uniform(0.5, 0.95, n)
    roots[:, 3] = rng.uniform(13, 25, n)
    return roots


def _trunk_sizes(rng: np.random.Generator, scale: float, bulk: float, age: float) -> np.ndarray:
    values = np.zeros(N_TRUNK_ENTRIES)
    obesity = float(rng.gamma(2.2, 0.45))
    values[SUBCUT_BACK] = 6 + 11 * obesity
    values[SUBCUT_FRONT] = 8 + 15 * obesity
    values[SUBCUT_SIDE] = 8 + 10 * obesity
    values[BODY_HALF_W] = (128 + 20 * obesity) * scale * np.exp(rng.normal(0, 0.04))
    values[BODY_DEPTH] = (72 + 30 * obesity) * scale * np.exp(rng.normal(0, 0.1))
    values[FAT_FRACTION] = np.clip(rng.normal(0.03 + 0.0032 * (age - 25), 0.06), 0.0, 0.42)
    values[AORTA_R] = rng.uniform(7, 10.5) * scale
    values[IVC_R] = rng.uniform(7, 11) * scale
    values[KIDNEY_Z] = rng.normal(12.4, 0.8)
    values[LIVER_Z] = rng.normal(12, 1.2)
    values[BIFURCATION] = rng.normal(17.2, 0.7)
    values[BOWEL_SEED] = float(rng.integers(1, 1 << 20))
    values[GAS_SHARE] = rng.uniform(0.05, 0.45)
    values[[LAMINECTOMY, BED_FIRST, BED_LAST]] = -1.0
    values[WALL] = rng.uniform(6, 12) * bulk
    values[PAR_W] = 39 * scale * bulk**0.5
    values[PAR_D] = 20 * scale * bulk**0.5
    values[DEEP_FAT] = rng.beta(1.3, 1.6)
    return values
