"""Canal and recesses of hard patients (``--hard``), as axial images of people show them.

An ordinary phantom's canal is a dome, whose recesses are 8 to 9 mm deep between disc and ligament before any disease.
In people the canal of the lower lumbar spine is a triangle or a trefoil, and its recesses are slits that the root
nearly fills:

- bony depth of the recess 5 mm and more, 3 to 4 mm suspect, 2 mm and less narrow (Ciric et al. 1980, J Neurosurg
  53:433; Mikhael et al. 1981, Radiology 140:97; review: Steurer et al. 2011, BMC Musculoskelet Disord 12:175);
  ligament and disc leave less: 2.4 to 2.9 mm at L3/4 to L5/S1 of the CC0 study;
- of 927 people with back pain every second root is touched at L4/5, and 42 % are at L5/S1; 2 % are compressed
  (Splettstoesser et al. 2017, World J Radiol 9:223);
- ligamentum flavum 3.2 mm thick at L2/3, 3.4 at L3/4, 3.7 at L4/5, 3.6 at L5/S1 (Khasawneh et al. 2023, Folia Morphol
  82:72), up to 5 mm;
- roots of the cauda equina: up to five strands each, the posterior one of L5 2.3 to 7.7 mm2 in all (Hogan 1996,
  Anesthesiology 85:37); the lower sacral ones lie in the middle at the back, those that leave first outside, in oblique
  layers (Wall et al. 1990, Spine 15:1244), all at the back of a supine person (Monajati et al. 1987, AJNR 8:893).
"""

from __future__ import annotations

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom import disease

RECESS_MM = (4.9, 4.7, 4.5, 4.3, 4.6)  # healthy depth from disc to ligament, L1/2 to L5/S1, of the average patient
_FLAVUM_AT, _FLAVUM_MM = (4.0, 6.0, 7.0, 8.0, 9.0), (2.8, 3.2, 3.4, 3.7, 3.6)  # disc and thickness
FLAVUM_MM = (2.6, 5.0)


def before_disease(rng: np.random.Generator, patient: an.Patient) -> None:
    """Give a hard patient slits for recesses, ligaments and roots of people, in place, before disease is measured."""
    patient.discs[:, an.TREFOIL] = (rng.uniform(0.35, 1.0) + rng.normal(0, 0.08, an.N_VERTEBRAE)).clip(0.25, 1.0)
    thickness = np.interp(np.arange(an.N_VERTEBRAE), _FLAVUM_AT, _FLAVUM_MM) * patient.scale
    thickness *= np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.05, an.N_VERTEBRAE))
    patient.discs[:, [an.FLAV_L, an.FLAV_R]] = thickness.clip(*FLAVUM_MM)[:, None]
    patient.roots = cauda_equina(rng)
    depth = np.array(RECESS_MM) * patient.scale * np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.06, 5))
    for _ in range(3):
        missing = depth - disease.measure_sizes(patient).recess.mean(axis=0)
        at = np.repeat(an.LEVEL_DISCS, 2) * 2.0 + np.tile([1.0, 2.0], 5)
        patient.stations[:, an.RECESS] += np.interp(np.arange(an.N_STATIONS), at, np.repeat(missing, 2))
    np.maximum(patient.stations[:, an.RECESS], 1.5, out=patient.stations[:, an.RECESS])


def cauda_equina(rng: np.random.Generator) -> np.ndarray:
    """Roots as in ``anatomy.Patient``, (n, 4): in pairs, along both sides of the back of the sac."""
    n = int(rng.integers(9, 13))
    out = np.linspace(0.08, 0.80, n) + rng.normal(0, 0.03, (2, n))  # the roots that leave first lie outside
    place = 0.88 - 0.30 * out**2 + rng.normal(0, 0.07, (2, n))
    last = 25.0 - 12.0 * out + rng.normal(0, 1.0, (2, n))
    radius = rng.uniform(0.6, 1.0, (2, n))
    roots = np.stack([out * [[1.0], [-1.0]], place.clip(0.3, 0.94), radius, last.clip(12.0, 25.0)], -1)
    return np.asarray(roots.reshape(2 * n, 4))
