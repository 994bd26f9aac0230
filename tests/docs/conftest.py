"""What the examples need: a cohort of one phantom study, and the shipped weights as a bundle."""

import shutil
from pathlib import Path

import pytest

from lumbar_phantom.cohort import make_cohort

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("docs") / "cohort"
    make_cohort(root, 1, 20240, pitfalls=(), split="test", progress=False)
    return root


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory):
    """Weights without a folder ``code``: only what the manifest says of weights is compared."""
    folder = tmp_path_factory.mktemp("docs") / "bundle"
    shutil.copytree(ROOT / "weights" / "demo", folder / "weights")
    shutil.copy(ROOT / "weights_manifest.json", folder)
    return folder
