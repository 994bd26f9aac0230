"""What is trained on Kaggle, and how everything of it is called there and here."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumbar.errors import ManifestError
from lumbar_publish.names import COMPETITION, DatasetId, Layout

MANIFEST = "training_manifest.json"  # of the dataset with the code
NOTEBOOK = "train_notebook.ipynb"
CODE = "code"  # the dataset's one folder
GIVEN = "{given}/"  # stands for the folder of the files that options name, which lies elsewhere on Kaggle
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_LENGTH = (6, 30)  # of a name: with "-code" and "-12" it must stay what Kaggle takes


@dataclass(frozen=True)
class Plan:
    """What decides what is trained: it stays the same from the first session to the last.

    Attributes:
        recipe: name of the recipe.
        arguments: further options of ``lumbar_train train``; files of this machine appear as ``{given}/NAME``.
        files: the files that go with them, by the name that they get.
        competition: its name on Kaggle.
    """

    recipe: str
    arguments: tuple[str, ...] = ()
    files: tuple[tuple[str, Path], ...] = ()
    competition: str = COMPETITION

    def data(self) -> dict[str, Any]:
        """As it stands in the manifest.

        Raises:
            ManifestError: a file that cannot be read.
        """
        return {
            "recipe": self.recipe,
            "arguments": list(self.arguments),
            "competition": self.competition,
            "files": {name: _sha256(path) for name, path in self.files},
        }


def plan_hash(data: dict[str, Any]) -> str:
    """The hash by which outputs of the sessions of one run are known."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TrainingNames:
    """A run's names: the dataset ``owner/NAME-code``, and a notebook for each session, from ``owner/NAME-1`` on.

    Raises:
        ManifestError: a name that Kaggle would refuse.
    """

    owner: str
    name: str

    def __post_init__(self) -> None:
        low, high = _LENGTH
        if not _NAME.fullmatch(self.name) or not low <= len(self.name) <= high:
            raise ManifestError(
                f"--name: found {self.name!r}, expected {low} to {high} lower-case letters and digits joined by hyphens"
            )
        _ = self.dataset  # refuses an owner that cannot be

    @property
    def dataset(self) -> DatasetId:
        """The private dataset with the code."""
        return DatasetId(self.owner, f"{self.name}-code")

    def kernel(self, session: int) -> str:
        """``owner/slug`` of a session's notebook."""
        return f"{self.owner}/{self.name}-{session}"

    def kernel_title(self, session: int) -> str:
        """The notebook's title; its slug is the notebook's slug."""
        return f"{self.name}-{session}".replace("-", " ").capitalize()


@dataclass(frozen=True)
class Places:
    """Where things of a run lie in the repository."""

    layout: Layout
    name: str

    @property
    def folder(self) -> Path:
        """Notes of what has happened, and what is fetched."""
        return self.layout.root / "dist" / "train" / self.name

    @property
    def dataset(self) -> Path:
        """The staged dataset: ``kaggle datasets create -p … --dir-mode zip`` takes it."""
        return self.folder / "dataset"

    @property
    def kernel(self) -> Path:
        """The next session's notebook and its metadata: ``kaggle kernels push -p …`` takes it."""
        return self.layout.root / "dist" / "train-kernel"

    def output(self, session: int) -> Path:
        """What is fetched of a session."""
        return self.folder / f"session-{session}"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ManifestError(f"{path}: found none ({error.strerror}), expected a file to take to Kaggle") from None
