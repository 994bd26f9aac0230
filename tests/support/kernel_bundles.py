"""Small bundles and competition folders for the tests of the kernel."""

import hashlib
import json

from lumbar.labels import COLUMNS


def manifest_data(files, **changes):
    """A valid manifest's data for ``files``: {relative name: content}."""
    data = {
        "schema": 1,
        "dataset": {"id": "owner/slug", "version": None},
        "code_sha256": "0" * 64,
        "recipe": "demo",
        "created_by": "lumbar 0.1.0",
        "cohort": {"fingerprint": "f" * 64, "studies": 10, "description": "phantoms"},
        "prior": {column: [0.6, 0.3, 0.1] for column in COLUMNS},
        "oof": {"total": 0.5},
        "versions": {"torch": "2"},
        "training": {"seconds": 1.0, "machine": "test"},
        "forced": [],
        "weights": [
            {
                "file": name,
                "sha256": hashlib.sha256(content).hexdigest(),
                "bytes": len(content),
                "stage": "sagittal_xy",
                "model": "heatmap",
                "config": {"points": 5},
                "fold": -1,
                "metrics": {},
                "probe": {"seed": 0, "inputs": {"x": [1, 1]}, "expected": [0.0], "tolerance": 0.01},
            }
            for name, content in files.items()
        ],
    }
    return {**data, **changes}


def write_bundle(folder, files=None, **changes):
    """A folder with a manifest and the files that it names; the content of the weights means nothing."""
    files = {"weights/a.safetensors": b"some weights", "weights/b.safetensors": b"others"} if files is None else files
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(manifest_data(files, **changes), sort_keys=True, indent=1) + "\n"
    (folder / "weights_manifest.json").write_text(text)
    return folder
