"""The whole rehearsal: seal, lay out what Kaggle would mount, run the notebook offline, check what it leaves."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lumbar.bundle.manifest import read_manifest
from lumbar.competitions.contract import Competition
from lumbar.competitions.lumbar_spine import COMPETITION as LUMBAR_SPINE
from lumbar.errors import CohortError, LumbarError
from lumbar.io.arguments import Parser
from lumbar.io.competition import check_competition, check_root
from lumbar.io.files import make_folder
from lumbar.io.path_options import FILE, FOLDER, NEW_FOLDER, check_paths
from lumbar.io.signals import in_order, run_as_process
from lumbar.io.text import counted, one_line
from lumbar_publish.files import write_text
from lumbar_publish.names import MODEL_FRAMEWORK, MODEL_VARIATION, DatasetId, Layout
from lumbar_publish.rehearsal import sandbox
from lumbar_publish.rehearsal.estimate import Estimate, Timing, estimate, expected_s
from lumbar_publish.rehearsal.processes import Usage, run_timed
from lumbar_publish.rehearsal.submission import check_submission, largest_difference, study_ids
from lumbar_publish.sealing.seal import (
    UPLOAD_METADATA,
    Sealed,
    describe_sealed,
    read_json,
    seal,
    source_of,
    verify_against_lock,
)

if TYPE_CHECKING:
    import pandas as pd

# The dataset and the competition: /kaggle/input/{datasets/<owner>,competitions}/<slug>, and formerly
# /kaggle/input/<slug>; the model: /kaggle/input/[models/<owner>/]<slug>/<framework>/<variation>/<version>.
MOUNTS = ("new", "old", "model", "old-model")
_SITE, _HOME = "site", "home"


def lay_out(out: Path, sealed: Sealed, data: Path, *, mounts: str = "new", link_data: bool) -> tuple[Path, Path]:
    """Build what ``/kaggle`` looks like under ``out``.

    Args:
        out: the rehearsal's folder; an older rehearsal in it is removed.
        sealed: the dataset, copied in.
        data: competition folder; linked in when ``link_data``, else an empty folder is left to mount it on.
        mounts: form of the mount points, one of ``MOUNTS``.
        link_data: link the data instead of leaving an empty folder.

    Returns:
        the tree's root and the competition's place in it.
    """
    kaggle = out / "kaggle"
    _remove(kaggle)
    for name in ("site", "home"):
        _remove(out / name)
    slug = sealed.competition.slug
    competition_at = Path(slug) if mounts.startswith("old") else Path("competitions", slug)
    place = kaggle / "input" / _bundle_at(sealed.dataset, mounts)
    shutil.copytree(sealed.folder, place, ignore=shutil.ignore_patterns(*UPLOAD_METADATA))  # Kaggle keeps those
    competition = kaggle / "input" / competition_at
    competition.parent.mkdir(parents=True, exist_ok=True)
    if link_data:
        competition.symlink_to(data.resolve())
    else:
        competition.mkdir()
    (kaggle / "working").mkdir()
    for folder, _, names in os.walk(place):
        for name in names:
            os.chmod(Path(folder, name), 0o444)
        os.chmod(folder, 0o555)
    return kaggle, competition


def _bundle_at(bundle: DatasetId, mounts: str) -> Path:
    """Where Kaggle mounts the bundle, below ``/kaggle/input``."""
    version = Path(MODEL_FRAMEWORK.lower(), MODEL_VARIATION, "1")
    return {
        "new": Path("datasets", bundle.owner, bundle.slug),
        "old": Path(bundle.slug),
        "model": Path("models", bundle.owner, bundle.slug) / version,
        "old-model": Path(bundle.slug) / version,
    }[mounts]


def rehearse(
    notebook: Path, sealed: Sealed, data: Path, out: Path, *, mounts: str = "new", kaggle_like: bool = False
) -> Usage:
    """Execute the notebook over ``data`` as Kaggle would; what it took.

    Raises:
        CohortError: a cell failed; its own line was shown before.
    """
    link_data = not sandbox.best_isolation().has_mounts
    kaggle, competition = lay_out(out, sealed, data, mounts=mounts, link_data=link_data)
    return run_offline(notebook, out, kaggle, {data: competition}, kaggle_like=kaggle_like)


def run_offline(
    notebook: Path, out: Path, kaggle: Path, mounts: Mapping[Path, Path], *, kaggle_like: bool = False
) -> Usage:
    """Execute a notebook as Kaggle would, without network, on a tree that is laid out; what it took.

    Args:
        notebook: what is executed; with its outputs it is written to ``out``.
        out: the rehearsal's folder.
        kaggle: what ``/kaggle`` would be; ``input`` in it is read-only.
        mounts: folders that are shown read-only at places in ``input``, where the system can do that.
        kaggle_like: with Kaggle's limits of cores and memory.

    Raises:
        CohortError: a cell failed; its own line was shown before.
    """
    isolation = sandbox.best_isolation()
    sandbox.write_sitecustomize(out / _SITE, block_network=not isolation.has_namespace)
    shown = {kaggle / "input": kaggle / "input", **mounts} if isolation.has_mounts else {}
    plan: dict[str, Any] = {
        "notebook": str(notebook.resolve()),
        "executed": str((out / "executed.ipynb").resolve()),
        "working": str((kaggle / "working").resolve()),
        "namespace": isolation.has_namespace,
        "mounts": [(str(source.resolve()), str(target.resolve())) for source, target in shown.items()],
        "kaggle_like": kaggle_like,
        "timeout_s": None,
        "environment": sandbox.notebook_environment(kaggle.resolve(), (out / _SITE).resolve(), out.resolve() / _HOME),
    }
    print(f"rehearsal: {isolation}{limits(kaggle_like)}", flush=True)
    command = [*isolation.prefix, sys.executable, "-m", "lumbar_publish.rehearsal.execute"]
    # Kaggle throws the notebook's machine away; here what it leaves in the folder for temporary files goes with it.
    with tempfile.TemporaryDirectory(prefix="lumbar-", ignore_cleanup_errors=True) as scratch:
        plan["environment"] |= {"TMPDIR": scratch}
        path = out / "plan.json"
        write_text(path, json.dumps(plan, indent=1))
        status, usage = run_timed([*command, str(path.resolve())], sandbox.our_environment())
    if status:
        raise CohortError(f"{notebook}: the notebook failed, see {plan['executed']}")
    return usage


def limits(kaggle_like: bool) -> str:
    """The part of the rehearsal's first line that names Kaggle's limits; empty without them."""
    if not kaggle_like:
        return ""
    return f", at most {sandbox.KAGGLE_CPUS} cores and {sandbox.KAGGLE_GIB} GiB a process"


def check_rehearsal(
    data: Path,
    out: Path,
    usage: Usage,
    sealed: Path,
    agree_with: Path | None = None,
    tolerance: float = 1e-4,
    competition: Competition = LUMBAR_SPINE,
) -> Estimate:
    """Check what the rehearsal left, and print it. ``sealed`` is the dataset, whose prior is scored for comparison.

    Raises:
        CohortError: no valid submission, or one that differs from ``agree_with`` by more than ``tolerance``.
    """
    working = out / "kaggle" / "working"
    sample = data / competition.sample
    table = check_submission(working / "submission.csv", sample if sample.is_file() else None, competition)
    record = read_json(working / "record.json")
    prediction = estimate(record, usage.wall_s, competition, usage.waiting_share)
    rows = f"{len(table)} of {len(table)}" if sample.is_file() else f"{len(table)} (no {sample.name} to compare with)"
    kept = [study for study in record["studies"] if study["status"] != "predicted"]
    print(f"rows         {rows}, valid; {len(kept)} of {len(record['studies'])} studies left at the prior")
    if len(kept) == len(record["studies"]):
        raise CohortError(f"{data}: no study was predicted, all were left at the prior: see {working / 'report.html'}")
    lines = score_lines(data, working / "submission.csv", sealed, competition)
    for line in (*lines, *prediction.lines(), usage.line()):
        print(line)
    if agree_with:
        difference = largest_difference(working / "submission.csv", agree_with, competition)
        print(f"agreement    largest difference {difference:.2g} from {agree_with}, allowed {tolerance:g}")
        if difference > tolerance:
            raise CohortError(f"{working / 'submission.csv'}: differs by {difference:.2g} from {agree_with}")
    for name in ("submission.csv", "report.html", "record.json"):
        print(f"{name.partition('.')[0]:<12} {working / name}")
    print(f"notebook     {out / 'executed.ipynb'}")
    return prediction


def score_lines(data: Path, submission: Path, sealed: Path, competition: Competition = LUMBAR_SPINE) -> list[str]:
    """The score where the truth lies beside the studies, and what two answers that look at no image would get."""
    from lumbar.competitions.scoring import evaluate
    from lumbar.competitions.tables import read_answer, read_solution
    from lumbar.output.submission import Submission

    solution = data / competition.solution
    if not solution.is_file():
        return [f"score        unknown: no {solution.name} beside the data"]
    truth = read_solution(solution, "the solution", competition)
    if competition.study_column not in truth.columns:
        raise CohortError(f"{solution}: found no column {competition.study_column}, expected one of study ids")
    truth = truth[truth[competition.study_column].isin(study_ids(submission, competition))]
    total, *terms = evaluate(competition, truth, read_answer(submission, "the submission", competition)).items()
    detail = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in terms)
    studies = [int(study) for study in truth[competition.study_column]]
    level = 1.0 / len(competition.values) if competition.sums_to_one else 0.5
    blind = {
        "the prior": read_manifest(sealed).prior,
        f"{level:.2g} everywhere": {key: (level,) * len(competition.values) for key in competition.keys},
    }
    scores = [
        f"{name} {evaluate(competition, truth, Submission(studies, rows, None, competition).frame())['total']:.4f}"
        for name, rows in blind.items()
    ]
    return [
        f"score        {total[1]:.4f}" + (f" ({detail})" if detail else ""),
        f"to compare   {', '.join(scores)}, on the same {counted(len(studies), 'study')}{_disease(truth, competition)}",
    ]


def _disease(truth: pd.DataFrame, competition: Competition) -> str:
    """How much disease the studies of a rehearsal hold; empty for a competition without grades."""
    if competition.slug != LUMBAR_SPINE.slug:
        return ""
    from lumbar.metric import read_labels

    _, labels = read_labels(truth)
    n_moderate, n_severe = int((labels == 1).sum()), int((labels == 2).sum())
    if n_moderate + n_severe == 0:
        return ", which are all normal or mild: the score says nothing of how well disease is found"
    return f" with {n_moderate} moderate and {n_severe} severe grades"


def _remove(folder: Path) -> None:
    for path, _, _ in os.walk(folder):
        os.chmod(path, 0o755)
    shutil.rmtree(folder, ignore_errors=True)


def main(argv: list[str] | None = None, name: str = "python -m lumbar_publish.rehearsal.dry_run") -> int:
    """``python -m lumbar_publish.rehearsal.dry_run``: 0 when the submission is valid.

    With Kaggle's limits the projected time of the hidden test must fit too.

    Args:
        argv: the arguments; None for the process's own.
        name: what help calls the command.
    """
    parser = _parser(name)
    options = parser.parse_args(argv)

    def work() -> int:
        try:
            check_paths(parser, options)
            _rehearse_whole(options)
        except (LumbarError, OSError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 1
        return 0

    def tell(reason: str) -> None:
        print(f"error: {reason}: run the same command again, it begins anew", file=sys.stderr, flush=True)

    return in_order(work, tell)


def _rehearse_whole(options: argparse.Namespace) -> None:
    layout = Layout(options.root.resolve())
    check_root(options.data, "test")
    competition = read_manifest(source_of(layout, options.run)[0]).competition
    if competition.slug == LUMBAR_SPINE.slug:
        # what the kernel needs besides it says itself
        check_competition(options.data, "test", needs_table=False, has_split=False)
    make_folder(options.out)
    timing = Timing.read(options.out)
    images = options.data / competition.path(competition.images, "test")
    n_studies = sum(entry.is_dir() for entry in os.scandir(images)) if images.is_dir() else 1
    print(f"dry run of {counted(n_studies, 'study')}: {expected_s(n_studies, timing)}", flush=True)
    sealed = _sealed(layout, options)
    usage = rehearse(
        layout.notebook, sealed, options.data, options.out, mounts=options.mounts, kaggle_like=options.kaggle_like
    )
    prediction = check_rehearsal(
        options.data, options.out, usage, sealed.folder, agree_with=options.agree_with, competition=competition
    )
    Timing(prediction.once_s, prediction.study_s).write(options.out)
    if options.kaggle_like:
        prediction.require_fit()
    elif warning := prediction.misfit():
        print(f"warning: {warning}; KAGGLE_LIKE=1 makes this an error", file=sys.stderr)


def _sealed(layout: Layout, options: argparse.Namespace) -> Sealed:
    if not options.keep_seal:
        return seal(layout, run=options.run, force=options.force)
    verify_against_lock(layout, layout.sealed)
    locked: dict[str, Any] = read_json(layout.lock)
    return describe_sealed(layout.sealed, DatasetId.parse(locked["dataset"]["id"]))


def _parser(name: str) -> argparse.ArgumentParser:
    parser = Parser(prog=name, description=__doc__)
    parser.add_argument("--data", type=FOLDER, required=True, metavar="ROOT", help="competition folder (test split)")
    parser.add_argument("--out", type=NEW_FOLDER, default=Path("dist/dry-run"), help="rehearsal's folder (%(default)s)")
    parser.add_argument("--root", type=FOLDER, default=Path("."), help="the repository (%(default)s)")
    parser.add_argument("--run", type=FOLDER, help="training run to seal; default: the weights of the lock file")
    parser.add_argument("--force", action="store_true", help="seal an incomplete or mixed run")
    parser.add_argument("--keep-seal", action="store_true", help="run what lies sealed in dist/dataset")
    parser.add_argument(
        "--kaggle-like", action="store_true", help="Kaggle's limits of cores and memory, and of the projected hours"
    )
    parser.add_argument("--mounts", choices=MOUNTS, default="new", help="form of the mount points (%(default)s)")
    parser.add_argument("--agree-with", type=FILE, metavar="CSV", help="submission to agree with to 1e-4")
    return parser


if __name__ == "__main__":
    run_as_process(main)
