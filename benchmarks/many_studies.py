"""Thousands of tiny studies, from a folder of DICOM to pages and pictures: seconds, memory, and the largest page.

    python benchmarks/many_studies.py [--studies 2000] [--folder DIR]

Each study has four slices of 48 x 48 in three series, with acquisition times in their headers and no table of series.
Everything runs as in ``predict --data``, one study after the other in this process: index, decoding, pictures, pages,
PNG files, table of findings, markups. The networks alone are a stub, which puts all points at fixed places. Memory is
what the process holds (resident pages), averaged over the first and the last hundred studies.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "kernel")]

from lumbar.bundle.manifest import SCHEMA, write_manifest  # noqa: E402
from lumbar.chains.contract import StudyResult  # noqa: E402
from lumbar.chains.main import axial_points_mm  # noqa: E402
from lumbar.chains.registry import MAIN  # noqa: E402
from lumbar.intake.index import index_folder  # noqa: E402
from lumbar.labels import AXIAL_T2, COLUMNS, LEVELS, SAGITTAL_T1, SAGITTAL_T2, SIDES  # noqa: E402
from lumbar.run import predict  # noqa: E402
from lumbar.stages.points import AxialLevel, Localisation, SagittalPoint, as_xyz  # noqa: E402

SIZE, N_SLICES, SPACING_MM, GAP_MM = 48, 4, 4.8, 12.0
T1_MS, T2_MS = (560.0, 11.0), (3600.0, 104.0)  # repetition and echo time
SAGITTAL, AXIAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
N_AVERAGED = 100


def write_studies(folder: Path, n_studies: int) -> None:
    """The studies, each in a folder of its own, three of its series in folders below."""
    rng = np.random.default_rng(0)
    images = [(cv2.GaussianBlur(rng.random((SIZE, SIZE)), (0, 0), 2.0) * 900).astype("<u2") for _ in range(N_SLICES)]
    for number in range(n_studies):
        uid = f"1.2.826.{number}"
        for place, (times, plane) in enumerate(((T1_MS, SAGITTAL), (T2_MS, SAGITTAL), (T2_MS, AXIAL))):
            series = folder / f"disc {number % 7}" / f"{number}" / f"{place}"
            series.mkdir(parents=True)
            for k, image in enumerate(images):
                write_slice(series / f"IM{k}", f"{uid}.{place}", uid, k, image, times, plane)


def write_slice(
    path: Path, series: str, study: str, k: int, image: Any, times: tuple[float, float], plane: tuple[float, ...]
) -> None:
    """One MR image."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = "1.2.840.10008.5.1.4.1.1.4", ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = f"{series}.{k}"
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID, data.InstanceNumber, data.Modality = study, series, k + 1, "MR"
    data.RepetitionTime, data.EchoTime = times
    data.ScanningSequence, data.ImageType = "SE", ["ORIGINAL", "PRIMARY", "M"]
    row, column = np.array(plane[:3]), np.array(plane[3:])
    half = SPACING_MM * SIZE / 2
    origin = GAP_MM * (k - (N_SLICES - 1) / 2) * np.cross(row, column) - half * (row + column)
    data.ImagePositionPatient = [f"{value:.6g}" for value in origin]
    data.ImageOrientationPatient, data.PixelSpacing = list(plane), [SPACING_MM, SPACING_MM]
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = SIZE, SIZE, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = image.tobytes()
    data.save_as(path, enforce_file_format=True)


def localisation_of(study: Any) -> Localisation:
    """All points at fixed places of the patient."""
    out = Localisation(levels_mm={level: (0.0, 2.0 * k, 66.0 - 33.0 * k) for k, level in enumerate(LEVELS)})
    for description in (SAGITTAL_T2, SAGITTAL_T1):
        (stack,) = study.series[description]
        for level, xyz in out.levels_mm.items():
            for side, lateral in ((None, 0.0), *zip(SIDES, (12.0, -12.0), strict=True)):
                point = np.add(xyz, (lateral, 0.0, 0.0))
                s, row, column = stack.to_voxel(point)
                index = int(np.clip(np.rint(s), 0, N_SLICES - 1))
                place = stack.series_id, level, side, stack.instance_numbers[index], float(column), float(row)
                out.sagittal_points.append(
                    SagittalPoint(*place, as_xyz(point), 0.9, slice_index=index, description=description)
                )
    (stack,) = study.series[AXIAL_T2]
    for k, level in enumerate(LEVELS[:N_SLICES]):
        place = stack.series_id, level, stack.instance_numbers[k], 1.0, (18.0, 24.0), (30.0, 24.0)
        out.axial_levels.append(AxialLevel(*place, slice_index=k))
    return out


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(root: Path, n_studies: int) -> None:
    """Index, then the whole run, and what both cost."""
    start = time.perf_counter()
    write_studies(root / "in", n_studies)
    print(f"{n_studies} studies written in {time.perf_counter() - start:.0f} s")
    before = resident_bytes()
    index = index_folder(root / "in")
    grown = (resident_bytes() - before) / index.n_files
    print(f"index: {index.n_files} files in {index.seconds:.1f} s, {grown / 1000:.1f} kB a file while it stands")
    del index
    used: list[int] = []

    def stub(study: Any, networks: Any, prior: Any, effort: Any) -> StudyResult:
        used.append(resident_bytes())
        probs = np.random.default_rng(len(used)).dirichlet((3.0, 1.0, 1.0), len(COLUMNS))
        localisation = localisation_of(study)
        axial_mm = [axial_points_mm(study, level) for level in localisation.axial_levels]
        return StudyResult(probs=probs, localisation=localisation, axial_mm=axial_mm)

    chain = replace(MAIN, load=lambda manifest, device: None, predict=stub)
    out = root / "out"
    start = time.perf_counter()
    predict(
        root / "in", bundle_of(root / "bundle"), out / "s.csv", chain=chain, report=out / "report.html",
        record=out / "r.json", pictures=out / "png", table=out / "t.csv", markups=out / "m", processes=False,
        in_memory=False, time_limit="none",
    )  # fmt: skip
    seconds = time.perf_counter() - start
    pages = [out / "report.html", *(out / "report").iterdir()]
    first, last = (np.mean(part) / 1e6 for part in (used[:N_AVERAGED], used[-N_AVERAGED:]))
    print(f"run: {seconds:.0f} s, {1000 * seconds / n_studies:.0f} ms a study")
    print(f"memory: {first:.0f} MB in the first {N_AVERAGED} studies, {last:.0f} MB in the last")
    sizes = {path.name: path.stat().st_size for path in pages}
    largest = max(sizes, key=lambda name: sizes[name])
    print(f"pages: {len(pages)}, the largest {largest} with {sizes[largest] / 1e6:.2f} MB")
    n_pictures = sum(1 for path in (out / "png").rglob("*.png"))
    print(f"pictures: {n_pictures}; table of findings {(out / 't.csv').stat().st_size / 1e6:.1f} MB")


def bundle_of(folder: Path) -> Path:
    """A bundle without networks."""
    folder.mkdir()
    uniform = [0.3, 0.3, 0.4]
    data = {
        "schema": SCHEMA, "dataset": {"id": "a/b", "version": None}, "code_sha256": "", "recipe": "none",
        "created_by": "benchmark", "cohort": {"fingerprint": "", "studies": 0, "description": "none"},
        "prior": dict.fromkeys(COLUMNS, uniform), "oof": {}, "versions": {}, "training": {}, "forced": [],
        "weights": [],
    }  # fmt: skip
    write_manifest(folder / "weights_manifest.json", data)
    return folder


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="where the studies are written; default: the system's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        measure(Path(name), options.studies)


if __name__ == "__main__":
    main()
