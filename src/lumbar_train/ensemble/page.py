"""``ENS/report/ensemble.html``: what each member adds, how their errors go together, and where they differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from lumbar.bundle.manifest import read_manifest
from lumbar.bundle.weights import load_network
from lumbar.io.text import page_value
from lumbar.labels import GROUPS, SEVERITIES
from lumbar.models.aggregator import Aggregator
from lumbar_train.ensemble.agreement import error_correlation, most_different
from lumbar_train.ensemble.build import Ensemble
from lumbar_train.ensemble.comparison import NOTES
from lumbar_train.evaluation.evaluate import Evaluation
from lumbar_train.evaluation.page_parts import case_pictures, column_title
from lumbar_train.evaluation.plots import BLUE, GREY, ORANGE, data_uri, png_uri
from lumbar_train.evaluation.scoring import TERMS
from lumbar_train.files import write_text

PAGE = "ensemble.html"


def write_page(made: Ensemble, evaluation: Evaluation, verdict: str, unit: str) -> Path:
    """Write the page beside the run's own report; returns its path.

    Args:
        made: the ensemble.
        evaluation: of the run, for the overlays.
        verdict: one line about ensemble and best single member.
        unit: of the members' cost.
    """
    notes = json.loads((made.out / NOTES).read_text("utf-8"))
    members = made.candidates.members
    table = error_correlation(members)
    n_chosen = 0 if made.keeps_all else len(made.selection.picks)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=page_value,
    )
    text = environment.get_template("page.html.j2").render(
        title="An ensemble: what each member adds",
        verdict=verdict,
        n_studies=len(members),
        unit=unit,
        terms=[term.replace("_", " ") for term in TERMS],
        score_rows=[
            (title, [notes[key][term] for term in TERMS])
            for title, key in (("ensemble", "honest"), ("best single", "best_single"))
        ],
        gain=[notes["gain"][term] for term in TERMS],
        path=[(step["adds"], step["held_out"]["total"], step["chosen_on"]) for step in notes["path"]],
        n_chosen=n_chosen,
        keeps_all=made.keeps_all,
        curve=data_uri(plot_path(notes["path"], notes["best_single"]["total"][0], n_chosen)),
        members=notes["members"],
        shed=notes["shed"],
        by_fold=[(fold, ", ".join(dict.fromkeys(names))) for fold, names in notes["by_fold"].items()],
        names=list(members.names),
        correlation=[[None if np.isnan(v) else float(v) for v in row] for row in table],
        groups=list(GROUPS),
        weights=list(zip(made.names, pool_weights(made.out), strict=True)),
        left_out=list(notes["left_out"].items()),
        cases=_cases(made, evaluation),
    )
    write_text(made.out / "report" / PAGE, text)
    return made.out / "report" / PAGE


def plot_path(path: Sequence[dict[str, Any]], single: float, n_chosen: int) -> Figure:
    """The held-out score after each pick with its interval; the best single member as a line, the choice as a mark."""
    figure = Figure(figsize=(8.6, 3.2), dpi=120, layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    x = np.arange(1, len(path) + 1)
    value, low, high = (np.array([step["held_out"]["total"][k] for step in path]) for k in range(3))
    axis.fill_between(x, low, high, color=BLUE, alpha=0.15, lw=0, label="95 % over studies")
    axis.plot(x, value, "o-", color=BLUE, label="held out")
    axis.plot(x, [step["chosen_on"] for step in path], ":", color=GREY, label="on the studies chosen on")
    axis.axhline(single, color=ORANGE, lw=1, label="best single")
    if n_chosen:
        axis.axvline(n_chosen, color=GREY, lw=0.8)
    axis.set_xticks(x, [step["adds"] for step in path], rotation=30, ha="right", fontsize=7)
    axis.set_ylabel("metric", fontsize=8)
    axis.legend(fontsize=7, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))  # above the curves
    return figure


def pool_weights(out: Path) -> list[list[float | None]]:
    """The aggregator's pool: of each member (M) its weight in each condition group (3), None where it answers none.

    The weights of a group sum to 1 over the members that answer it.
    """
    manifest = read_manifest(out / "export")
    (entry, *_) = manifest.of_stage("aggregator")
    network = load_network(manifest.path(entry), entry)
    assert isinstance(network, Aggregator)
    weights = network.pool.detach().softmax(dim=-1).numpy()
    answers = np.array(
        [[bool({*group} & {*one.conditions}) for one in manifest.classifiers] for group in GROUPS.values()]
    )
    shares = np.where(answers, weights, 0.0)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return [
        [float(shares[g, m]) if answers[g, m] else None for g in range(len(GROUPS))] for m in range(weights.shape[1])
    ]


def _cases(made: Ensemble, evaluation: Evaluation) -> list[dict[str, Any]]:
    members = made.candidates.members
    cases = []
    for case in most_different(members, made.kept):
        study_id = int(made.candidates.cohort.study_ids[case.row])
        columns = [
            f"{column_title(c)}: mean grade {low:.1f} to {high:.1f}, "
            + (f"labelled {SEVERITIES[grade]}" if grade >= 0 else "without label")
            for c, low, high, grade in case.columns
        ]
        pictures = [(picture.title, png_uri(picture.png)) for picture in case_pictures(evaluation, study_id)]
        cases.append({"study_id": study_id, "spread": case.spread, "columns": columns, "pictures": pictures})
    return cases
