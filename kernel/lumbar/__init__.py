"""Localise, crop, classify, aggregate: lumbar spine MR studies to graded probabilities, offline.

``predict`` and ``score`` are the two functions that most callers want; ``lumbar.dicom`` reads DICOM. Importing the
package loads neither torch nor numba: the module behind a name is imported when the name is first used.

Research use only. This package is all that ships to Kaggle; it imports no other package of this repository.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lumbar.errors import CohortError, DicomError, LumbarError, ManifestError
    from lumbar.metric import Score, score
    from lumbar.run import predict

__version__ = "0.1.0"

_HOMES = {
    "predict": "lumbar.run",
    "score": "lumbar.metric",
    "Score": "lumbar.metric",
    "LumbarError": "lumbar.errors",
    "DicomError": "lumbar.errors",
    "ManifestError": "lumbar.errors",
    "CohortError": "lumbar.errors",
}
__all__ = ["CohortError", "DicomError", "LumbarError", "ManifestError", "Score", "__version__", "predict", "score"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
