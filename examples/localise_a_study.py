"""Find and draw one study's levels: ``python examples/localise_a_study.py DATA BUNDLE STUDY_ID FOLDER``.

DATA is a folder in the layout of the competition, BUNDLE a sealed one (``python build_dataset.py`` leaves
``dist/dataset``); pictures go into FOLDER.
"""

import sys
from pathlib import Path

from lumbar.bundle.manifest import verify
from lumbar.bundle.weights import load_networks
from lumbar.chains.overlay import draw
from lumbar.stages.localise import localise
from lumbar.study import read_descriptions, read_study


def main(data: str, bundle: str, study_id: str, folder: str) -> None:
    """Print each point in patient space with its confidence, and write the pictures."""
    manifest = verify(bundle)
    networks = load_networks(manifest.folder, manifest)
    study = read_study(Path(data), "test", int(study_id), read_descriptions(Path(data), "test"))
    localisation = localise(study, networks)
    for point in localisation.sagittal_points:
        x, y, z = point.xyz_mm
        where = f"{point.level} {point.side or 'canal'}"
        print(f"{where:<12} series {point.series_id}: ({x:.1f}, {y:.1f}, {z:.1f}) mm, heat {point.confidence:.2f}")
    for number, picture in enumerate(draw(study, localisation)):
        path = Path(folder) / f"{study_id}-{number}.png"
        path.write_bytes(picture.png)
        print(f"{path}: {picture.title}")
    for problem in [*study.problems, *localisation.problems]:
        print(f"problem: {problem}")


if __name__ == "__main__":
    sys.exit(__doc__) if len(sys.argv) != 5 else main(*sys.argv[1:])
