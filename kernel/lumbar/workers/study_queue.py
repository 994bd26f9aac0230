"""The studies of a run: which are still to be done, which are tried again, and what became of the others.

A study that was open in a worker when it died, or whose reading or prediction hung, is tried once more at the end, with
nothing beside it in its worker. At its second death or second hang its prior stays; deaths and hangs are counted apart.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, MutableMapping, Sequence

from lumbar.chains.contract import Outcome
from lumbar.workers.budget import Budget

log = logging.getLogger("lumbar")

_MAX_TRIES = 2  # of a study that was open when its worker died, or that hung


class StudyQueue:
    """Hands out studies, and keeps one outcome for each.

    Args:
        study_ids: in the order of the file.
        budget: the run's time, which counts the studies that are left.
        outcomes: takes what becomes of each study; those that it has already are not handed out. None for a new one.
    """

    def __init__(
        self,
        study_ids: Sequence[int | str],
        budget: Budget,
        outcomes: MutableMapping[int | str, Outcome] | None = None,
    ) -> None:
        self.study_ids, self.budget = study_ids, budget
        self.outcomes: MutableMapping[int | str, Outcome] = {} if outcomes is None else outcomes
        self._pending = deque(study_id for study_id in study_ids if study_id not in self.outcomes)
        self._retries: deque[int | str] = deque()  # each of them alone in its worker
        self._deaths: Counter[int | str] = Counter()
        self._hangs: Counter[int | str] = Counter()
        self._retry_reasons: dict[int | str, str] = {}
        budget.n_left = len(self._pending)

    @property
    def is_empty(self) -> bool:
        """Whether no study waits to be handed out."""
        return not self._pending and not self._retries

    @property
    def is_done(self) -> bool:
        """Whether every study has its outcome."""
        return len(self.outcomes) == len(self.study_ids)

    def take(self) -> int | str | None:
        """The next study; None where only retries are left."""
        return self._pending.popleft() if self._pending else None

    def take_retry(self) -> int | str | None:
        """The next study that must be alone in its worker; None while others wait."""
        return self._retries.popleft() if self._retries and not self._pending else None

    def put_back(self, study_ids: Iterable[int | str]) -> None:
        """Let studies that were handed out be handed out again first, in this order."""
        self._pending.extendleft(reversed(list(study_ids)))

    def worker_died(self, outcome: Outcome) -> None:
        """Note that a study was open in a worker that died: it is tried again, the second time its prior stays."""
        self._retry_or_fail(self._deaths, outcome)

    def hung(self, study_id: int | str, what: str) -> None:
        """Note that a study's reading or prediction hung: it is tried again, the second time its prior stays."""
        log.error("study %s: %s, set aside", study_id, what)
        self._retry_or_fail(self._hangs, Outcome(study_id, failure=what))

    def _retry_or_fail(self, tries: Counter[int | str], outcome: Outcome) -> None:
        study_id = outcome.study_id
        tries[study_id] += 1
        if tries[study_id] < _MAX_TRIES:
            self._retry_reasons[study_id] = outcome.failure
            self._retries.append(study_id)
        else:
            self.budget.gave_up()
            outcome.is_final = False
            self.fail(outcome)

    def fail(self, outcome: Outcome) -> None:
        """Leave a study at its prior, and say why."""
        name = f"study {outcome.study_id}:"
        line = outcome.failure if outcome.failure.startswith(name) else f"{name} {outcome.failure}"
        log.warning("%s; its prior stays", line)
        outcome.problems.append(line)
        self.outcomes[outcome.study_id] = outcome

    def fail_rest(self, reason: str) -> None:
        """Leave all studies without an outcome at their prior."""
        for study_id in self.study_ids:
            if study_id in self.outcomes:
                continue
            retry_reason = self._retry_reasons.get(study_id)
            end = f"before it was tried again ({retry_reason})" if retry_reason else "before it was predicted"
            self.fail(Outcome(study_id, failure=f"{reason} {end}", is_final=False))
