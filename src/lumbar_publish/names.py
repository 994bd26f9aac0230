"""Names on Kaggle and places in the repository, each defined once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lumbar.bundle.manifest import FILE_NAME as MANIFEST
from lumbar.competitions.lumbar_spine import COMPETITION as LUMBAR_SPINE
from lumbar.errors import ManifestError

COMPETITION = LUMBAR_SPINE.slug  # what a manifest means that names no competition
PLACEHOLDER_OWNER = "your-kaggle-name"  # sealing accepts it, publishing does not
DEFAULT_SLUG = "lumbar-kit"
NOTEBOOK = "submit_notebook.ipynb"
MODEL_FRAMEWORK, MODEL_VARIATION = "pyTorch", "default"

# A slug that survives being turned into a title and back, so that title and id can never disagree.
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TITLE_LENGTH = (6, 50)  # of a dataset's title, Kaggle's rule
_KERNEL_SUFFIX = "-submission"


@dataclass(frozen=True)
class Layout:
    """Where things lie, from the repository's root."""

    root: Path

    @property
    def kernel(self) -> Path:
        """The package that ships."""
        return self.root / "kernel" / "lumbar"

    @property
    def kernel_metadata(self) -> Path:
        """What ``kaggle kernels push -p kernel`` reads."""
        return self.root / "kernel" / "kernel-metadata.json"

    @property
    def lock(self) -> Path:
        """The lock file: the manifest of the weights that this revision stands for."""
        return self.root / MANIFEST

    @property
    def notebook(self) -> Path:
        """The generated notebook."""
        return self.root / NOTEBOOK

    @property
    def demo_weights(self) -> Path:
        """Where the lock file's weights lie in the repository."""
        return self.root / "weights" / "demo"

    @property
    def sealed(self) -> Path:
        """The staged dataset."""
        return self.root / "dist" / "dataset"


@dataclass(frozen=True)
class DatasetId:
    """``owner/slug`` of the dataset, and everything derived from it.

    Raises:
        ManifestError: an owner or slug that Kaggle would refuse, or whose title would not lead back to the slug.
    """

    owner: str
    slug: str

    def __post_init__(self) -> None:
        if not _SLUG.fullmatch(self.owner.lower()):
            raise ManifestError(f"dataset owner {self.owner!r}: expected letters and digits joined by single hyphens")
        low, high = _TITLE_LENGTH[0], _TITLE_LENGTH[1] - len(_KERNEL_SUFFIX)
        if not _SLUG.fullmatch(self.slug) or not low <= len(self.slug) <= high:
            raise ManifestError(
                f"dataset slug {self.slug!r}: expected {low} to {high} lower-case letters and digits joined by hyphens"
            )

    def __str__(self) -> str:
        return f"{self.owner}/{self.slug}"

    @classmethod
    def parse(cls, text: str) -> DatasetId:
        """Read ``owner/slug``.

        Raises:
            ManifestError: not of that form.
        """
        owner, slash, slug = text.partition("/")
        if not slash:
            raise ManifestError(f"dataset id {text!r}: expected owner/slug")
        return cls(owner, slug)

    @classmethod
    def choose(cls, locked: str | None, owner: str | None = None, slug: str | None = None) -> DatasetId:
        """The id to seal for: what is asked for, else ``KAGGLE_USERNAME``, else what the lock file says."""
        kept = cls.parse(locked) if locked else cls(PLACEHOLDER_OWNER, DEFAULT_SLUG)
        return cls(owner or os.environ.get("KAGGLE_USERNAME") or kept.owner, slug or kept.slug)

    @property
    def is_placeholder(self) -> bool:
        """Whether nobody has said yet whose dataset this is."""
        return self.owner == PLACEHOLDER_OWNER

    @property
    def model(self) -> str:
        """``owner/slug`` of the model under which the same bundle can be published; Kaggle wants it in lower case."""
        return f"{self.owner.lower()}/{self.slug}"

    @property
    def variation(self) -> str:
        """The model's one variation: ``owner/slug/framework/name``, the handle that kagglehub takes."""
        return f"{self.model}/{MODEL_FRAMEWORK}/{MODEL_VARIATION}"

    @property
    def title(self) -> str:
        """The dataset's title, and the model's."""
        return _title(self.slug)

    @property
    def kernel(self) -> str:
        """``owner/slug`` of the notebook that goes with the dataset."""
        return f"{self.owner}/{self.kernel_slug}"

    @property
    def kernel_slug(self) -> str:
        """The notebook's own slug."""
        return self.slug + _KERNEL_SUFFIX

    @property
    def kernel_title(self) -> str:
        """The notebook's title; its slug is the notebook's slug."""
        return _title(self.kernel_slug)


def _title(slug: str) -> str:
    return slug.replace("-", " ").capitalize()
