"""What the data sets of all stages share: they know whose data they give."""

from __future__ import annotations


class StudySamples:
    """A data set that names the study of each of its samples.

    Attributes:
        study_of_sample: set by the data set itself; as many as there are samples in an epoch.
    """

    study_of_sample: list[int]

    @property
    def studies(self) -> set[int]:
        """Every study whose images or labels are given."""
        return set(self.study_of_sample)

    def __len__(self) -> int:
        return len(self.study_of_sample)
