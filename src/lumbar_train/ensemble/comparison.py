"""Several answers to the same studies, compared in pairs, term by term of the metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lumbar_train.evaluation.scoring import TERMS, Interval, difference, scores

Probs = NDArray[np.float64]
SAME = "cannot be told apart"
NOTES = "ensemble.json"  # in the folder of an ensemble: how its members were chosen


@dataclass(frozen=True)
class Comparison:
    """Several answers to the same studies.

    Attributes:
        title: what is compared, in words.
        study_ids: (N,).
        labels: (N, 25) class, -1 without label.
        answers: probabilities (N, 25, 3) by name, those of constants among them.
        runs: the names that are compared in pairs; those without an answer are passed over.
        left_out: studies that other runs have answered and this one has not, by run.
        notes: what a reader of the scores must know, a line each.
    """

    title: str
    study_ids: NDArray[np.int64]
    labels: NDArray[Any]
    answers: Mapping[str, Probs]
    runs: tuple[str, ...] = ("baseline", "chain")
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def figures(self) -> dict[str, Any]:
        """Scores and paired differences, each ``[value, low, high]`` by term of the metric, and the verdicts."""
        pairs = {(after, before): self._difference(after, before) for after, before in self._pairs()}
        verdicts = [
            {"run": after, "beside": before, "verdict": verdict(pair["total"]), "line": line(after, before, pair)}
            for (after, before), pair in pairs.items()
            if before != "prior"
        ]
        return {
            "title": self.title,
            "studies": len(self.study_ids),
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
            "scores": {
                name: {term: value.as_list() for term, value in scores(self.labels, probs).items()}
                for name, probs in self.answers.items()
            },
            "differences": {
                f"{after} minus {before}": {term: value.as_list() for term, value in pair.items()}
                for (after, before), pair in pairs.items()
            },
            "verdicts": verdicts,
            "verdict": " ".join(f"{entry['line']}." for entry in verdicts),
        }

    def _pairs(self) -> Iterator[tuple[str, str]]:
        names = [name for name in self.runs if name in self.answers]
        if "prior" in self.answers:
            yield from ((name, "prior") for name in names)
        yield from ((after, before) for before, after in combinations(names, 2))

    def _difference(self, after: str, before: str) -> dict[str, Interval]:
        return difference(self.labels, self.answers[before], self.answers[after])


def verdict(total: Interval) -> str:
    """``better`` or ``worse`` if the whole interval of the difference lies on that side of zero."""
    if total.high < 0:
        return "better"
    return "worse" if total.low > 0 else SAME


def line(after: str, before: str, pair: Mapping[str, Interval]) -> str:
    """One line about two runs: the verdict, the difference in the metric and its interval."""
    total = pair["total"]
    figures = f"{total.value:+.4f} in total (95 %: {total.low:+.4f} to {total.high:+.4f})"
    said = verdict(total)
    if said == SAME:
        least = max(TERMS[1:], key=lambda term: -np.inf if np.isnan(pair[term].value) else pair[term].value)
        return f"{after} and {before} {SAME}: {figures}; {after} gains least in {least.replace('_', ' ')}"
    return f"{after} is {said} than {before}: {figures}"
