"""Tissue labels of the patient model, one byte per voxel; each series looks up its own signal for each label."""

from __future__ import annotations

NOTHING = -1  # returned by a kernel outside of its own structures
AIR = 0
SKIN = 1
FAT = 2  # subcutaneous
MUSCLE = 3
LIGAMENT = 4  # fascia, longitudinal and supraspinous ligaments, dura: dark everywhere
CORTEX = 5
CSF = 6
ROOT = 7  # cauda equina and exiting roots
CORD = 8
EPIDURAL_FAT = 9
FLAVUM = 10
ARTERY = 11
VEIN = 12
VISCERAL_FAT = 13
BOWEL_WALL = 14
BOWEL_FLUID = 15
GAS = 16
KIDNEY = 17
MEDULLA = 18
LIVER = 19
JOINT = 20  # facet cartilage and fluid
FATTY_MUSCLE = 21
BASIVERTEBRAL = 22
ANNULUS = 23
INNER_ANNULUS = 24
URINE = 25
INTERSPINOUS = 26
METAL = 27
HAEMANGIOMA = 28
POSTERIOR_MARROW = 29  # laminae, pedicles, spinous processes
SPLEEN = 30
BOWEL_CONTENT = 31
VENOUS_PLEXUS = 32
FISSURE = 33  # high-intensity zone of a torn annulus
EDEMA = 34  # Modic 1 end plates
FAT_MARROW = 35  # Modic 2 end plates
CSF_FLOW = 36  # CSF that moves: dark where a sequence shows flow
NUCLEUS = 40  # + disc index 0..14
MARROW = 60  # + vertebra index 0..14
N_TISSUES = 80
