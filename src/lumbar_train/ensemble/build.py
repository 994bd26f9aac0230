"""Makes one run of several: members chosen on their out-of-fold logits, one aggregator, and what is sealed."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import lumbar
from lumbar.bundle.manifest import Manifest
from lumbar.config import CONFIGS, AggregatorConfig, from_dict, to_dict
from lumbar.errors import CohortError
from lumbar.stages.classifiers import EXTERNAL, Classifier
from lumbar_train.data.folds import FULL, is_full
from lumbar_train.data.tables import Cohort, read_cohort
from lumbar_train.ensemble.budget import Target, measured_seconds, views_of
from lumbar_train.ensemble.comparison import NOTES, SAME, verdict
from lumbar_train.ensemble.export import (
    Member,
    OwnLocalisers,
    Shipped,
    export_ensemble,
    joined,
    member_of,
    own_localisers,
    shipped_by,
    verified_export,
)
from lumbar_train.ensemble.external import ExternalFolder
from lumbar_train.ensemble.localisers import chosen_localiser, localiser_figures, localiser_lines, named_localisers
from lumbar_train.ensemble.members import Candidates, Source, gather
from lumbar_train.ensemble.selection import Selection, Shed, keeping, select, shedding_order
from lumbar_train.ensemble.tables import write_tables
from lumbar_train.errors import TrainingError
from lumbar_train.evaluation.pool import Sum, fit_scales
from lumbar_train.evaluation.scoring import Interval, difference, scores
from lumbar_train.files import make_folder, write_text
from lumbar_train.outputs.kept import FILE as RECIPE
from lumbar_train.outputs.kept import read_recipe
from lumbar_train.outputs.session import SCHEMA
from lumbar_train.pipeline.counts import CohortCounts, count_cohort
from lumbar_train.recipes import Fit, StageRecipe
from lumbar_train.stages.aggregate import PoolStart
from lumbar_train.stages.aggregate_folds import fit_aggregator_folds

NAME = "ensemble"


@dataclass(frozen=True)
class Ensemble:
    """What was made, and why.

    Attributes:
        out: the run folder.
        candidates: all that could have been chosen.
        selection: what was chosen, with its honest score.
        kept: the members of the ensemble, indices into the candidates.
        shed: the order in which they are left out near the deadline.
        localiser: the name of the run whose localisers ship.
        localisers: by run how well its localisers find levels (``localiser_figures``).
        keeps_all: every member was kept, whatever the selection would have chosen.
        own: the further sets of localisers that ship, by name.
    """

    out: Path
    candidates: Candidates
    selection: Selection
    kept: tuple[int, ...]
    shed: tuple[Shed, ...]
    localiser: str
    localisers: Mapping[str, Mapping[str, float]]
    keeps_all: bool = False
    own: Mapping[str, OwnLocalisers] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the members that were kept."""
        return tuple(self.candidates.members.names[k] for k in self.kept)

    def start(self, fold: int) -> PoolStart:
        """The pool that the aggregator of a fold begins with; no label of the fold has a say in its scales.

        The shares are those of the members, which were chosen on all studies.
        """
        members, picks = self.candidates.members, self.selection.picks
        shares = self.selection.weights(len(members.names))[list(self.kept)]
        scales = self.selection.scales
        if not is_full(fold):
            rows = np.flatnonzero(members.folds != fold)
            scales = fit_scales(Sum.of(members, picks, rows), members.labels[rows])
        return PoolStart(tuple(map(float, shares)), tuple(map(float, scales)))


def build_ensemble(
    runs: Mapping[str, Path],
    root: Path,
    out: Path,
    *,
    how: str = "greedy",
    target: Target | None = None,
    localiser: str | None = None,
    keeps_own: bool = False,
    seed: int = 0,
    externals: Mapping[str, ExternalFolder] | None = None,
) -> Ensemble:
    """Choose members, fit one aggregator on them, and leave a run folder that can be sealed.

    Args:
        runs: folders by name.
        root: the cohort that all were trained on.
        out: the new run folder; it stands there whole, or not at all.
        how: ``greedy``, or ``all`` to keep every member.
        target: the machine and the time limit that the members must fit; None: no limit.
        localiser: the run whose localisers ship; None: the one that finds levels best out of fold.
        keeps_own: members look where the localisers of their own runs point, which ship too.
        seed: of what is drawn at random.
        externals: team mates' folders by name (``ensemble.external``).

    Raises:
        LeakError: a member whose logits are not out of fold as the others' are.
        CohortError: other cohorts, logits or labels that are missing, a folder that is taken.
        ManifestError: a run whose export is damaged, an external member that fails.
        TrainingError: a run without weights that ship.
    """
    check_free(out)
    named_localisers(runs, localiser)  # a wrong name ends here
    whole = read_cohort(root)
    externals = externals or {}
    candidates = gather(runs, whole, externals)
    manifests = {name: verified_export(path) for name, path in runs.items()}
    shipped = _shipped(candidates, externals, manifests)
    figures = localiser_figures(runs, whole)
    places = chosen_localiser(runs, localiser, figures)
    measured = {} if target is None else _measured(runs, manifests, target)
    candidates = _with_seconds(candidates, shipped, target, count_cohort(whole), measured)
    selection = select(candidates.members, limit_s=np.inf if target is None else target.study_s, seed=seed)
    if how == "all":
        selection = _all_kept(candidates, selection, target)
    kept = tuple(sorted(set(selection.picks)))
    shed = tuple(shedding_order(candidates.members, selection.picks))
    own = own_localisers(places, _members_of(candidates, kept), manifests) if keeps_own else {}
    made = Ensemble(out, candidates, selection, kept, shed, places, figures, how == "all", own)
    make_folder(out.parent)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write(part, made, runs, whole, shipped, manifests[places], seed)
        part.chmod(0o755)
        if out.is_dir():
            out.rmdir()  # it is empty
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return made


def _shipped(
    candidates: Candidates, externals: Mapping[str, ExternalFolder], manifests: Mapping[str, Manifest]
) -> list[Member]:
    """What ships of each candidate; the code of external members runs once, on a made-up study."""
    return [
        joined(source, externals[source.run]) if source.run in externals else member_of(source, manifests[source.run])
        for source in candidates.sources
    ]


def _all_kept(candidates: Candidates, selection: Selection, target: Target | None) -> Selection:
    """The selection of every member.

    Raises:
        CohortError: together they take longer than the target allows.
    """
    spent = float(candidates.members.seconds.sum())
    if target is not None and spent > target.study_s:
        raise CohortError(
            f"--select all: found {spent:.3g} s a study for all members, expected {target.study_s:.3g} s at most "
            f"({target.text}); let greedy choose"
        )
    return keeping(candidates.members, selection, tuple(range(len(candidates.sources))))


def check_free(out: Path) -> None:
    """Refuse a place where something lies.

    Raises:
        CohortError: it is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CohortError(f"--out {out}: found files there, expected an empty folder, or none")


def _members_of(candidates: Candidates, kept: Sequence[int]) -> dict[str, list[str]]:
    """Of each run the members that are kept."""
    members: dict[str, list[str]] = {}
    for source in (candidates.sources[k] for k in kept):
        members.setdefault(source.run, []).append(source.name)
    return members


def _measured(
    runs: Mapping[str, Path], manifests: Mapping[str, Manifest], target: Target
) -> dict[tuple[str, str], float]:
    """Seconds of a fit and a view of each classifier whose run's sealing has timed it for the target's machine."""
    return {
        (name, classifier): seconds
        for name, path in runs.items()
        for classifier, seconds in measured_seconds(path, manifests[name].data, target.machine).items()
    }


def _with_seconds(
    candidates: Candidates,
    shipped: Sequence[Member],
    target: Target | None,
    counts: CohortCounts,
    measured: Mapping[tuple[str, str], float],
) -> Candidates:
    """The candidates with what each member costs a study: seconds on the target, else in units of 10^12 operations.

    ``measured`` has the seconds of a fit and a view where sealing has measured them, by run and classifier.
    """
    rate = 1e12 if target is None else target.machine.rate
    counted: dict[str, float] = {}
    seconds = []
    for one in shipped:
        known = measured.get((one.source.run, one.source.classifier))
        if known is not None and isinstance(one, Shipped):
            seconds.append(known * views_of(one.config) * len(one.entries))
        else:
            seconds.append(one.operations(counts, counted) / rate)
    return replace(candidates, members=replace(candidates.members, seconds=np.array(seconds)))


def _write(
    part: Path,
    made: Ensemble,
    runs: Mapping[str, Path],
    whole: Cohort,
    shipped: list[Member],
    base: Manifest,
    seed: int,
) -> None:
    candidates, cohort = made.candidates, made.candidates.cohort
    write_tables(part, candidates, [shipped[k] for k in made.kept], runs[made.localiser], whole)
    stage = aggregator_of(runs[made.localiser], base, made.names)
    listed = [shipped[k].listed(name) for name, k in zip(made.names, made.kept, strict=True)]
    write_text(part / RECIPE, json.dumps(_recipe(made, stage, listed, whole, seed), indent=1) + "\n")
    folds = [*sorted(set(candidates.fold_of.values())), FULL]
    fit_aggregator_folds(part, cohort, candidates.fold_of, folds, stage, seed=seed, start=made.start)
    notes = describe(made)
    write_text(part / NOTES, json.dumps(notes, indent=1) + "\n")
    export_ensemble(
        part, [shipped[k] for k in made.kept], made.names, listed, base, stage.network,
        cohort=cohort, fingerprint=whole.fingerprint, shed=[made.candidates.members.names[s.member] for s in made.shed],
        notes={"members": notes["members"], "honest": notes["honest"]}, own=made.own,
    )  # fmt: skip


def aggregator_of(run: Path, manifest: Manifest, names: tuple[str, ...]) -> StageRecipe:
    """The aggregator of a run, for other members: its network's kind and sizes, and how it was fitted.

    Raises:
        TrainingError: the run has exported none.
        CohortError: its recipe does not say how it was fitted.
    """
    entries = shipped_by(Source("aggregator", run.name, run, "aggregator"), manifest).entries
    config: Any = from_dict(CONFIGS[entries[0]["model"]], entries[0]["config"])
    if not isinstance(config, AggregatorConfig):
        raise TrainingError(f"{run}: found an aggregator of kind {entries[0]['model']}, expected one that joins logits")
    try:
        fit = Fit(**read_recipe(run)["stages"]["aggregator"]["fit"])
    except (KeyError, TypeError):
        raise CohortError(f"{run / RECIPE}: found no fit of the aggregator, expected how it was fitted") from None
    return StageRecipe(replace(config, models=names), fit)


def _recipe(made: Ensemble, stage: StageRecipe, listed: list[Classifier], whole: Cohort, seed: int) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "lumbar": lumbar.__version__,
        "name": NAME,
        "seed": seed,
        "cohort": whole.fingerprint,
        "runs": sorted({made.candidates.sources[k].run for k in made.kept}),
        "localiser": made.localiser,
        "classifiers": [one.as_json() for one in listed],
        "stages": {"aggregator": {"network": to_dict(stage.network), "fit": to_dict(stage.fit)}},
    }


def describe(made: Ensemble) -> dict[str, Any]:
    """Everything that was decided, as plain JSON types; ``ENS/ensemble.json``."""
    members, chosen = made.candidates.members, made.selection
    weights = chosen.weights(len(members.names))
    labels = members.labels
    return {
        "runs": {source.run: source.path.name for source in made.candidates.sources},
        "left_out": made.candidates.left_out,
        "localiser": made.localiser,
        "own_localisers": {name: list(one.listed.members) for name, one in made.own.items()},
        "localisers": {
            name: {key: value if np.isfinite(value) else None for key, value in row.items()}
            for name, row in made.localisers.items()
        },
        "members": [
            {
                "name": members.names[k],
                "run": source.run,
                "classifier": source.classifier or EXTERNAL,
                "weight": float(weights[k]),
                "cost": float(members.seconds[k]),
            }
            for k, source in enumerate(made.candidates.sources)
        ],
        "path": [
            {"adds": members.names[pick.member], "chosen_on": pick.score, "held_out": _lists(scores(labels, probs))}
            for pick, probs in zip(chosen.path, chosen.path_probs, strict=False)
        ],
        "honest": _lists(scores(labels, chosen.honest)),
        "best_single": _lists(scores(labels, chosen.single)),
        "gain": _lists(difference(labels, chosen.single, chosen.honest)),
        "by_fold": {str(fold): [members.names[k] for k in own] for fold, own in chosen.by_fold.items()},
        "shed": [{"name": members.names[shed.member], "adds": shed.adds, "cost": shed.seconds} for shed in made.shed],
    }


def _lists(intervals: Mapping[str, Any]) -> dict[str, list[float]]:
    return {name: interval.as_list() for name, interval in intervals.items()}


def unit_of(target: Target | None) -> str:
    """What the cost of members is given in."""
    return "10^12 operations" if target is None else f"seconds on a {target.machine.name}"


def summary(made: Ensemble, target: Target | None) -> list[str]:
    """What the terminal shows: the path, the members with weight and cost, and what the choice is worth."""
    notes = json.loads((made.out / NOTES).read_text("utf-8"))
    unit = unit_of(target)
    lines = [f"{len(made.candidates.members)} studies, {len(notes['members'])} members"]
    lines += [f"masked, as {name} has left them out: {count}" for name, count in notes["left_out"].items()]
    if target is not None:
        lines.append(f"budget {target.text}: {target.study_s:.3g} s a study for the classifiers")
    lines.append("greedy path, held-out score after each pick:")
    for k, step in enumerate(notes["path"]):
        value, low, high = step["held_out"]["total"]
        lines.append(f"  {k + 1:>2} {step['adds']:<44} {value:.4f} (95 %: {low:.4f} to {high:.4f})")
    lines.append(f"members ({unit} a study):")
    for member in notes["members"]:
        lines.append(f"  {member['name']:<47} weight {member['weight']:.2f}  {member['cost']:.3g}")
    lines += localiser_lines(notes)
    if notes["shed"]:
        lines.append(f"left out near the deadline, in this order: {', '.join(one['name'] for one in notes['shed'])}")
    of_all = "pool of all members" if made.keeps_all else "ensemble, chosen without the fold"
    for title, key in ((of_all, "honest"), ("best single, chosen without the fold", "best_single")):
        value, low, high = notes[key]["total"]
        lines.append(f"{title}: {value:.4f} (95 %: {low:.4f} to {high:.4f})")
    value, low, high = notes["gain"]["total"]
    judged = verdict(Interval(value, low, high))
    said = f"ensemble and best single {SAME}" if judged == SAME else f"the ensemble is {judged} than the best single"
    lines.append(f"{said}: {value:+.4f} (95 %: {low:+.4f} to {high:+.4f})")
    return lines
