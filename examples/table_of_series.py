"""Write the table of series of ROOT/test_images/<study>/<series>/*.dcm: ``python examples/table_of_series.py ROOT``."""

import csv
import sys
from pathlib import Path

import numpy as np

from lumbar.dicom import read_header
from lumbar.errors import DicomError


def describe(series: Path) -> str | None:
    """One of the three descriptions that ``predict`` knows, by the first slice; None for anything else."""
    header = read_header(min(series.glob("*.dcm")))
    said = (header.series_description or "").upper()
    along_row, along_column = np.reshape(header.image_orientation_patient or (0.0,) * 6, (2, 3))
    axis = int(np.abs(np.cross(along_row, along_column)).argmax())  # of the slices' normal: 0 sagittal, 2 axial
    is_t1 = "T1" in said or ("T2" not in said and "STIR" not in said and (header.echo_time or 99.0) < 40.0)
    if axis == 0 and header.image_orientation_patient:
        return "Sagittal T1" if is_t1 else "Sagittal T2/STIR"
    return "Axial T2" if axis == 2 and not is_t1 else None


def main(root: str) -> None:
    """Write ROOT/test_series_descriptions.csv and print each row."""
    if not (Path(root) / "test_images").is_dir():
        sys.exit(f"{root}: found no folder test_images in it, expected ROOT/test_images/<study>/<series>/*.dcm")
    rows = []
    for series in sorted(path for path in Path(root).glob("test_images/*/*") if any(path.glob("*.dcm"))):
        try:
            description, reason = describe(series), "predict has no use for it"
        except DicomError as error:
            description, reason = None, str(error)
        print(series.parent.name, series.name, description or f"left out: {reason}")
        rows += [(series.parent.name, series.name, description)] if description else []
    if not rows:
        sys.exit(f"{root}/test_images: found no series that predict has a use for, expected some")
    with open(Path(root) / "test_series_descriptions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("study_id", "series_id", "series_description"), *rows])


if __name__ == "__main__":
    sys.exit(__doc__) if len(sys.argv) != 2 else main(sys.argv[1])
