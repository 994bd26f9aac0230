"""MR contrast: tissue parameters, sequence parameters, and randomisation far beyond the realistic range.

T1 and T2 in ms near 1.5 T, PD relative, from Stanisz et al. 2005 (MRM 54:507), de Bazelaire et al. 2004 (Radiology
230:652), Gold et al. 2004 (AJR 183:343) and, for discs, Niinimaki et al. 2006. Fat's T2 is the apparent one of a fast
spin echo (J coupling): fat stays bright.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom import tissue_labels as ts

# Label: (T1, T2, PD, texture)
_TISSUE: dict[int, tuple[float, float, float, float]] = {
    ts.AIR: (1000, 50, 0.0, 0.0),
    ts.SKIN: (900, 40, 0.55, 0.1),
    ts.FAT: (290, 150, 0.95, 0.04),
    ts.MUSCLE: (950, 38, 0.80, 0.10),
    ts.LIGAMENT: (900, 14, 0.35, 0.1),
    ts.CORTEX: (800, 8, 0.16, 0.1),
    ts.CSF: (4000, 1500, 1.0, 0.03),
    ts.CSF_FLOW: (4000, 1500, 1.0, 0.03),
    ts.ROOT: (950, 90, 0.75, 0.08),
    ts.CORD: (950, 80, 0.75, 0.04),
    ts.EPIDURAL_FAT: (300, 145, 0.95, 0.05),
    ts.FLAVUM: (850, 30, 0.55, 0.1),
    ts.ARTERY: (1500, 60, 0.05, 0.3),
    ts.VEIN: (1500, 90, 0.14, 0.4),
    ts.VISCERAL_FAT: (300, 145, 0.93, 0.10),
    ts.BOWEL_WALL: (950, 60, 0.75, 0.15),
    ts.BOWEL_FLUID: (2500, 350, 0.95, 0.10),
    ts.GAS: (1000, 20, 0.02, 0.2),
    ts.KIDNEY: (1000, 88, 0.82, 0.06),
    ts.MEDULLA: (1400, 95, 0.85, 0.06),
    ts.LIVER: (580, 46, 0.78, 0.06),
    ts.SPLEEN: (1100, 65, 0.82, 0.05),
    ts.JOINT: (1100, 70, 0.60, 0.15),
    ts.FATTY_MUSCLE: (480, 75, 0.86, 0.12),
    ts.BASIVERTEBRAL: (800, 110, 0.85, 0.15),
    ts.ANNULUS: (950, 24, 0.42, 0.12),
    ts.INNER_ANNULUS: (1050, 50, 0.68, 0.10),
    ts.URINE: (3500, 900, 1.0, 0.02),
    ts.INTERSPINOUS: (520, 52, 0.66, 0.12),
    ts.METAL: (1000, 10, 0.0, 0.0),
    ts.HAEMANGIOMA: (360, 130, 0.92, 0.25),
    ts.POSTERIOR_MARROW: (430, 72, 0.72, 0.18),
    ts.BOWEL_CONTENT: (700, 70, 0.70, 0.30),
    ts.VENOUS_PLEXUS: (900, 110, 0.75, 0.25),
    ts.FISSURE: (1400, 160, 0.80, 0.05),
    ts.EDEMA: (1100, 105, 0.85, 0.15),
    ts.FAT_MARROW: (330, 110, 0.90, 0.12),
}
_MARROW = (480.0, 66.0, 0.72, 0.12)
_NUCLEUS_WET, _NUCLEUS_DRY = (1350.0, 125.0, 0.92, 0.05), (900.0, 40.0, 0.60, 0.08)


@dataclass(frozen=True, slots=True)
class Sequence:
    """Weighting of one series.

    Attributes:
        kind: t1, t2 or stir.
        tr: repetition time, ms.
        te: echo time, ms.
        ti: inversion time, ms; 0 without inversion.
        field: tesla.
    """

    kind: str
    tr: float
    te: float
    ti: float
    field: float


def tissue_parameters(rng: np.random.Generator, patient: an.Patient) -> np.ndarray:
    """T1 (ms), T2 (ms), proton density and texture of every label in one patient, (N_TISSUES, 4)."""
    table = np.zeros((ts.N_TISSUES, 4))
    for label, values in _TISSUE.items():
        table[label] = values
    fat = np.clip(0.25 + 0.006 * (patient.traits["age"] - 25) + rng.normal(0, 0.12), 0, 0.9)  # of the bone marrow
    for i in range(an.N_VERTEBRAE):
        table[ts.MARROW + i] = _MARROW
        table[ts.MARROW + i, 0] = 760 - 400 * fat + rng.normal(0, 14)
        table[ts.MARROW + i, 1] += 12 * fat + rng.normal(0, 1.5)
    table[ts.POSTERIOR_MARROW, 0] = 700 - 400 * fat
    for j in range(an.N_VERTEBRAE):
        dry = patient.discs[j, an.DESICCATION] if j <= an.S1 else 0.7
        table[ts.NUCLEUS + j] = np.array(_NUCLEUS_WET) * (1 - dry) + np.array(_NUCLEUS_DRY) * dry
    return table


def draw_sequence(rng: np.random.Generator, kind: str, field: float) -> Sequence:
    """Draw parameters from the range of clinical protocols at this field (tesla)."""
    if kind == "t1":
        return Sequence(kind, rng.uniform(400, 800), rng.uniform(7, 20), 0.0, field)
    if kind == "stir":
        ti = rng.uniform(0.90, 1.10) * np.log(2) * 290 * (field / 1.5) ** 0.2
        return Sequence(kind, rng.uniform(2800, 5500), rng.uniform(40, 90), ti, field)
    return Sequence(kind, rng.uniform(2500, 5500), rng.uniform(85, 130), 0.0, field)


def signal(parameters: np.ndarray, sequence: Sequence) -> np.ndarray:
    """Spin-echo signal of each row of `tissue_parameters`; fully relaxed water has 1."""
    t1 = parameters[:, 0].clip(1) * (sequence.field / 1.5) ** 0.33  # Bottomley et al. 1984
    t2, density = parameters[:, 1].clip(1), parameters[:, 2]
    recovery = 1 - np.exp(-sequence.tr / t1)
    if sequence.ti > 0:
        recovery = np.abs(1 - 2 * np.exp(-sequence.ti / t1) + np.exp(-sequence.tr / t1))
    return np.asarray(density * recovery * np.exp(-sequence.te / t2))


def randomised_signal(
    rng: np.random.Generator, parameters: np.ndarray, sequence: Sequence, contrast_randomisation: float
) -> tuple[np.ndarray, np.ndarray]:
    """Signal and texture per label, (256,) float32 each.

    Args:
        rng: random stream.
        parameters: of `tissue_parameters`.
        sequence: weighting of the series.
        contrast_randomisation: 0 looks real, with each tissue a few per cent off; at 1 the brightness of every tissue
            is redrawn in a wide range, so that a network learns shapes and neighbours instead of a contrast.
    """
    varied = parameters.copy()
    spread = 0.06 + 0.25 * contrast_randomisation
    varied[:, :2] *= np.exp(rng.normal(0, spread, (len(varied), 2)))
    varied[:, 2] *= np.exp(rng.normal(0, 0.5 * spread, len(varied)))
    # All vertebrae get the same change of their marrow, all discs of their nucleus: they differ little from each other
    for start in (ts.MARROW, ts.NUCLEUS):
        group = slice(start, start + an.N_VERTEBRAE)
        varied[group] = parameters[group] * (varied[start] / parameters[start].clip(1e-9))
    level = signal(varied, sequence)
    flow = rng.uniform(0, 1)
    flow_void = rng.uniform(0.15, 0.9) if sequence.kind != "t1" and rng.random() < 0.35 else 1.0
    level[[ts.ARTERY, ts.VEIN]] += flow * rng.uniform(0.0, 0.35, 2) * np.quantile(level, 0.8) * (rng.random(2) < 0.4)
    if contrast_randomisation > 0:
        level = level / level.max()
        factor = np.exp(rng.normal(0, 0.55 * contrast_randomisation, len(level)))
        for start in (ts.MARROW, ts.NUCLEUS):
            factor[start : start + an.N_VERTEBRAE] = factor[start]
        lift = rng.uniform(0, 0.12 * contrast_randomisation, len(level))
        level = level * factor + np.where(parameters[:, 2] > 0.03, lift, 0)
        level = level ** np.exp(rng.normal(0, 0.25 * contrast_randomisation))
        if contrast_randomisation > 0.75:  # a contrast that no sequence has: any brightness for every tissue
            share = rng.uniform(0.3, 1.0)
            arbitrary = rng.uniform(0.03, 1.0, len(level))
            for start in (ts.MARROW, ts.NUCLEUS):
                arbitrary[start : start + an.N_VERTEBRAE] = arbitrary[start]
            level = np.where(parameters[:, 2] > 0.03, (1 - share) * level + share * arbitrary, level)
    level[ts.CSF_FLOW] = level[ts.CSF] * flow_void
    grain = varied[:, 3] * np.exp(rng.normal(0, 0.3 + 0.4 * contrast_randomisation))
    out = np.zeros((2, 256), np.float32)
    out[0, : len(level)] = level / np.quantile(level[parameters[:, 2] > 0], 0.97)
    out[1, : len(level)] = np.minimum(grain, 0.6)
    return out[0], out[1]


# Share of a label's signal that comes from fat, which the chemical shift displaces
FAT_SHARE = np.zeros(256, np.float32)
for _label, _share in (
    (ts.FAT, 1.0),
    (ts.EPIDURAL_FAT, 1.0),
    (ts.VISCERAL_FAT, 1.0),
    (ts.FATTY_MUSCLE, 0.4),
    (ts.FAT_MARROW, 0.7),
    (ts.INTERSPINOUS, 0.4),
    (ts.HAEMANGIOMA, 0.6),
    (ts.POSTERIOR_MARROW, 0.5),
):
    FAT_SHARE[_label] = _share
FAT_SHARE[ts.MARROW : ts.MARROW + an.N_VERTEBRAE] = 0.4
