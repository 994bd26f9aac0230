"""A competition's metric, whatever it raises or returns."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from lumbar.competitions.contract import Competition
from lumbar.errors import CohortError, LumbarError
from lumbar.io.text import one_line
from lumbar.rules import shown


def evaluate(competition: Competition, solution: pd.DataFrame, submission: pd.DataFrame) -> dict[str, float]:
    """The metric's value and terms by name, ``total`` first.

    Raises:
        CohortError: the metric refuses the tables, fails, or returns something else than finite numbers with a total.
    """
    where = f"metric of {competition.slug}"
    try:
        result = competition.score(solution, submission)
    except LumbarError:
        raise
    except Exception as error:  # somebody's function may raise anything
        raise CohortError(f"{where}: {one_line(error)}, expected a score") from None
    terms = dict(result) if isinstance(result, Mapping) else {"total": result}
    if "total" not in terms:
        raise CohortError(f"{where}: found {shown(sorted(map(str, terms)))}, expected a total among its terms")
    values: dict[str, float] = {}
    for name in sorted(terms, key=lambda name: name != "total"):
        try:
            values[str(name)] = float(terms[name])
        except (TypeError, ValueError):
            values[str(name)] = math.nan
        if not math.isfinite(values[str(name)]):
            raise CohortError(f"{where}: {name} is {shown(terms[name])}, expected a finite number")
    return values
