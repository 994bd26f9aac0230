"""Where a training takes its studies from: a cache of decoded ones, or the DICOM folder itself."""

from __future__ import annotations

from typing import Protocol

from lumbar.study import Study


class Studies(Protocol):
    """The studies of a cohort, by id (``cache.Cache``, ``dicom_folder.DicomFolder``); cheap to pickle."""

    def __contains__(self, study_id: int) -> bool:
        """Whether the study was read when the training was prepared."""

    def study(self, study_id: int) -> Study:
        """The study as ``lumbar.study.read_study`` gives it; the same object may be given again: do not change it.

        Raises:
            CohortError: it is not there, or damaged.
        """

    def digest(self, study_id: int) -> str:
        """sha256 of the study's volumes: equal for two studies with the same pixels.

        Raises:
            CohortError: it is not there.
        """
