"""The index of a report of many studies: a table with filters, each row linked to its study's page.

The rows stand in the page, so that it works from a file and without its script, which only searches and sorts. Filters
are radio buttons that the style sheet obeys. Each page of the index holds at most ``ROWS_A_PAGE`` studies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lumbar.bundle.manifest import Manifest
from lumbar.chains.contract import Outcome, Probs
from lumbar.competitions.contract import Competition
from lumbar.io.file_names import file_stem
from lumbar.output.findings import rows_at_prior
from lumbar.output.findings_table import normalised_prior
from lumbar.output.notes import Distances, lines_of
from lumbar.output.report import number_text, worst_of
from lumbar.output.report_page import FOOTER, HEAD, RUN, TABLES
from lumbar.output.report_study import what_of
from lumbar.output.submission import Submission

ROWS_A_PAGE = 2000  # a row has at most some 2 kB: a page stays under 5 MB
_PROBLEM_LENGTH = 160
_LIKELY = 0.5  # from which a probability counts as a finding, where a row is no distribution

INDEX = (
    HEAD
    + """<style>
.filters { display: flex; gap: 8px; flex-wrap: wrap; align-items: center; margin: 18px 0 10px; }
.list > input { position: absolute; opacity: 0; width: 1px; height: 1px; }
.filters label { border: 1px solid #b9cbdd; border-radius: 999px; padding: 5px 14px; background: var(--card);
                 cursor: pointer; color: var(--accent); white-space: nowrap; }
.filters label b { font-variant-numeric: tabular-nums; color: var(--ink); margin-left: 5px; }
.filters input { font: inherit; padding: 5px 12px; border: 1px solid #b9cbdd; border-radius: 999px; width: 210px;
                 margin-left: auto; }
{% for name in ("all", "severe", "warned", "failed") %}
#show-{{ name }}:checked ~ .filters label[for=show-{{ name }}] { background: var(--accent); color: #fff; }
#show-{{ name }}:checked ~ .filters label[for=show-{{ name }}] b { color: #fff; }
#show-{{ name }}:focus-visible ~ .filters label[for=show-{{ name }}] { outline: 2px solid var(--ink); }
{% if name != "all" %}#show-{{ name }}:checked ~ .panel tbody tr:not(.{{ name }}) { display: none; }{% endif %}
{% endfor %}
.studies th[data-sort] { cursor: pointer; } .studies th[data-sort]:hover { color: var(--accent); }
.studies th[aria-sort=ascending]::after { content: " ▲"; } .studies th[aria-sort=descending]::after { content: " ▼"; }
.studies td { overflow-wrap: anywhere; } .studies td:first-child { min-width: 110px; }
.studies tr:target { background: #e8f1fa; } .studies tbody tr:hover { background: #f0f5fa; }
.studies .warn { min-width: 220px; font-size: 12.5px; } .studies .many { color: var(--severe); font-weight: 650; }
.panel { overflow-x: auto; }
@media (max-width: 1000px) { .studies .time { display: none; } .filters input { margin-left: 0; } }
</style>
<main>
<header>
  <div><h1>{{ title }} run report</h1>
  <div class="soft">{{ total.n }} studies, {{ answer }}; each has a page of its own in the folder {{ folder }}</div>
  </div>
  <div class="badge">Research use only</div>
</header>
<section class="cards">
  <div class="card"><b>{{ total.n - total.failed }}</b><span class="soft">predicted</span></div>
  <div class="card"><b>{{ total.failed }}</b><span class="soft">studies left at the prior</span></div>
  <div class="card"><b>{{ total.prior_rows }}</b><span class="soft">of {{ total.rows }} {{ what }} are the
  prior</span></div>
  <div class="card"><b>{{ total.severe }}</b><span class="soft">with {{ finding_words }}</span></div>
  <div class="card"><b>{{ total.warned }}</b><span class="soft">with warnings</span></div>
  <div class="card"><b>{{ seconds_a_study }}</b><span class="soft">seconds a study (median)</span></div>
  <div class="card"><b>{{ devices | length }} × {{ device_kind }}</b><span class="soft">at work</span></div>
</section>
{% if blocks | length > 1 %}
<nav>{% for block in blocks %}{% if block.is_here %}<span class="here">studies {{ block.first }} to {{ block.last
}}</span>{% else %}<a href="{{ block.href }}">studies {{ block.first }} to {{ block.last }}</a>{% endif %}
 <span class="soft">({{ block.severe }} severe, {{ block.warned }} warned, {{ block.failed }} failed)</span>{% endfor
%}</nav>
{% endif %}
<div class="list">
<input type="radio" name="show" id="show-all" checked><input type="radio" name="show" id="show-severe">
<input type="radio" name="show" id="show-warned"><input type="radio" name="show" id="show-failed">
<div class="filters"><label for="show-all">All<b>{{ here.n }}</b></label>
<label for="show-severe">{{ finding_words | capitalize }}<b>{{ here.severe }}</b></label>
<label for="show-warned">Warnings<b>{{ here.warned }}</b></label>
<label for="show-failed">Not predicted<b>{{ here.failed }}</b></label>
<input type="search" id="search" placeholder="study id" aria-label="search a study id" hidden></div>
<div class="panel"><table class="studies">
<thead><tr><th data-sort>study</th><th data-sort>status</th><th class="right" data-sort>{{ finding_words }}</th>
<th class="right" data-sort>{{ highest }}</th><th data-sort>finding</th>
<th class="right" data-sort>{{ what }} at the prior</th><th data-sort>warnings</th>
<th class="right time" data-sort>seconds</th></tr></thead>
<tbody>
{% for row in rows %}
<tr id="study-{{ row.anchor }}" class="{{ row.classes }}"><td><a href="{{ base }}study-{{ row.anchor }}.html">{{
row.study_id }}</a></td>
<td><span class="pill {{ row.status }}">{{ row.status }}</span></td>
<td class="right{% if row.n_severe %} many{% endif %}">{{ row.n_severe }}</td>
<td class="right">{% if row.worst is not none %}{{ row.worst }} %{% endif %}</td><td>{{ row.finding }}</td>
<td class="right">{{ row.n_prior }}</td>
<td class="warn">{{ row.warning }}{% if row.n_more %} <span class="soft">and {{ row.n_more }} more</span>{% endif %}
</td>
<td class="right time">{{ row.seconds }}</td></tr>
{% endfor %}
</tbody></table></div></div>
<p class="soft">{{ meaning }} A study that was not predicted has the prior's numbers, which say nothing about it.</p>
"""
    + TABLES
    + RUN
    + """<script>
(function () {
  "use strict";
  var table = document.querySelector(".studies"), body = table.tBodies[0], rows = Array.from(body.rows);
  var search = document.getElementById("search"), heads = Array.from(table.tHead.rows[0].cells);
  function find() {
    var text = search.value.trim().toLowerCase();
    rows.forEach(function (row) { row.hidden = row.cells[0].textContent.toLowerCase().indexOf(text) < 0; });
  }
  function key(row, column) {
    var text = row.cells[column].textContent.trim(), number = parseFloat(text);
    return /^[\\d.]+( %)?$/.test(text) && text.length < 15 ? number : text;
  }
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") { return a - b; }
    if (a === "" || b === "") { return a === b ? 0 : a === "" ? -1 : 1; }
    return String(a).localeCompare(String(b));
  }
  heads.forEach(function (head, column) {
    head.addEventListener("click", function () {
      var down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows.map(function (row) { return [key(row, column), row]; })
        .sort(function (a, b) { return (down ? -1 : 1) * compare(a[0], b[0]); })
        .forEach(function (pair) { body.appendChild(pair[1]); });
    });
  });
  search.hidden = false;
  search.addEventListener("input", find);
  find();
})();
</script>
"""
    + FOOTER
)


@dataclass
class Counts:
    """How many studies there are of each kind that the filters know, and how many of all answers are the prior."""

    n: int = 0
    rows: int = 0
    prior_rows: int = 0
    severe: int = 0
    warned: int = 0
    failed: int = 0

    def add(self, outcome: Outcome, n_severe: int, is_prior: NDArray[np.bool_], is_warned: bool) -> None:
        """Count one study."""
        self.n += 1
        self.rows += len(is_prior)
        self.prior_rows += int(is_prior.sum())
        self.severe += n_severe > 0
        self.warned += is_warned
        self.failed += outcome.probs is None


@dataclass
class Summary:
    """What the index says above its table: counts of the whole run and of each page of the index."""

    total: Counts = field(default_factory=Counts)
    pages: list[Counts] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def seconds_a_study(self) -> str:
        """The median of the studies predicted."""
        return number_text(float(np.median(self.seconds))) if self.seconds else "–"


def summarise(
    outcomes: Iterable[Outcome],
    submission: Submission,
    manifest: Manifest,
    distances: Mapping[int | str, Distances] = MappingProxyType({}),
) -> Summary:
    """Count a run's studies, one at a time. ``distances`` are those of studies with points far from the truth."""
    summary, competition, prior = Summary(), manifest.competition, normalised_prior(manifest)
    for number, outcome in enumerate(outcomes):
        if number % ROWS_A_PAGE == 0:
            summary.pages.append(Counts())
        n_severe = count_severe(outcome, competition)
        is_prior = rows_at_prior(outcome, submission.probs(outcome.study_id), prior)
        is_warned = bool(lines_of(outcome, is_prior, distances.get(outcome.study_id, {}), what_of(manifest)))
        for counts in (summary.pages[-1], summary.total):
            counts.add(outcome, n_severe, is_prior, is_warned)
        if outcome.probs is not None:
            summary.seconds.append(outcome.seconds.get("study", 0.0))
    return summary


def count_severe(outcome: Outcome, competition: Competition) -> int:
    """How many answers have the last grade as their likeliest; none where a study was not predicted.

    Where an answer is no distribution over grades, its probabilities of one half and more count.
    """
    if outcome.probs is None:
        return 0
    if not competition.sums_to_one:
        return int((outcome.probs >= _LIKELY).sum())
    return int((outcome.probs.argmax(axis=1) == outcome.probs.shape[1] - 1).sum())


def index_row(
    outcome: Outcome, probs: Probs, manifest: Manifest, distances: Distances = MappingProxyType({})
) -> dict[str, Any]:
    """One study's row, with the first of the lines that the list of a single page has too.

    Args:
        outcome: what became of the study.
        probs: the rows that stand.
        manifest: of the bundle.
        distances: of its points from the truth, if some lie far from it.
    """
    competition = manifest.competition
    is_prior = rows_at_prior(outcome, probs, normalised_prior(manifest))
    n_prior = int(is_prior.sum())
    n_severe = count_severe(outcome, competition)
    worst, finding = worst_of(probs, competition)
    is_predicted = outcome.probs is not None
    lines = lines_of(outcome, is_prior, distances, what_of(manifest))
    classes = {"severe": n_severe > 0, "warned": bool(lines), "failed": not is_predicted}
    return {
        "study_id": outcome.study_id,
        "anchor": file_stem(outcome.study_id),
        "status": outcome.status,
        "classes": " ".join(name for name, is_so in classes.items() if is_so),
        "n_severe": n_severe or "",
        "worst": round(worst * 100) if is_predicted else None,
        "finding": finding if is_predicted else "",
        "n_prior": n_prior or "",
        "warning": lines[0][:_PROBLEM_LENGTH] if lines else "",
        "n_more": max(0, len(lines) - 1),
        "seconds": number_text(outcome.seconds.get("study", 0.0)),
    }


def index_words(competition: Competition) -> dict[str, str]:
    """What the index calls a finding that matters, and what that means."""
    if competition.sums_to_one:
        grade = competition.titles[-1]
        meaning = f"A finding counts as {grade} where that has the largest share of its grades."
        return {"finding_words": f"{grade} findings", "meaning": meaning}
    return {"finding_words": "likely findings", "meaning": "A finding counts as likely from 50 % on."}
