"""What stands before sealing on a new user's way: the competition's files, and a study to try the sealed chain on."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from lumbar.errors import CohortError
from lumbar_publish.names import COMPETITION
from publish.kaggle_server import KaggleServer

REPOSITORY = Path(__file__).resolve().parents[2]


def archive(root: Path) -> bytes:
    """All of a competition folder, as Kaggle packs it: its own name is not inside."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            target.write(path, path.relative_to(root).as_posix())
    return packed.getvalue()


def download(folder: Path) -> subprocess.CompletedProcess[str]:
    """README's command."""
    command = [sys.executable, "-m", "kaggle", "competitions", "download", COMPETITION, "-p", "data", "--unzip"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_download_of_the_competition_needs_its_rules_accepted(
    kaggle: KaggleServer, competition: Path, tmp_path: Path
) -> None:
    kaggle.competitions[COMPETITION] = archive(competition)
    kaggle.has_accepted_rules = False
    refused = download(tmp_path)
    assert refused.returncode == 1
    assert "must accept this competition's rules" in refused.stdout + refused.stderr
    kaggle.has_accepted_rules = True
    done = download(tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*.zip"))
    for name in ("sample_submission.csv", "solution.csv"):
        assert (tmp_path / "data" / name).read_bytes() == (competition / name).read_bytes()


@pytest.fixture
def build_dataset() -> ModuleType:
    """The script at the repository's root."""
    spec = importlib.util.spec_from_file_location("build_dataset", REPOSITORY / "build_dataset.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_sample_that_takes_too_long_is_said_in_one_line(
    build_dataset: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_dataset, "SAMPLE_LIMIT_S", 0.01)
    with pytest.raises(CohortError, match=r"no study within 0\.01 s: name studies of yours with --sample ROOT"):
        build_dataset.make_sample(tmp_path)
