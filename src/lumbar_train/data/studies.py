"""Where a training takes its studies from: a cache of decoded ones, or the DICOM folder itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Any, Protocol

from lumbar.study import Study

_OPEN_STUDIES = 64  # that a process keeps; a cached one holds a file descriptor


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


class OpenStudies(ABC):
    """Keeps the studies that were asked for last, so that their notes are read once."""

    def __init__(self) -> None:
        self._open: OrderedDict[int, Study] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def study(self, study_id: int) -> Study:
        """The study as ``lumbar.study.read_study`` gives it: equal arrays, geometry, windows, problems.

        The same object may be given again: do not change it.

        Raises:
            CohortError: the study is not there, or damaged.
        """
        study_id = int(study_id)
        if study_id in self._open:
            self._open.move_to_end(study_id)
            return self._open[study_id]
        study = self._read(study_id)
        self._open[study_id] = study
        if len(self._open) > _OPEN_STUDIES:
            self._open.popitem(last=False)
        return study

    @abstractmethod
    def _read(self, study_id: int) -> Study:
        """The study, from what was noted of it."""
