"""The whole rehearsal: seal, lay out what Kaggle would mount, run the notebook offline, check what it leaves."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lumbar.errors import CohortError, LumbarError
from lumbar.io.text import one_line
from lumbar.metric import read_table, score
from lumbar_publish.files import write_text
from lumbar_publish.names import COMPETITION, MODEL_FRAMEWORK, MODEL_VARIATION, DatasetId, Layout
from lumbar_publish.rehearsal import sandbox
from lumbar_publish.rehearsal.estimate import Estimate, estimate
from lumbar_publish.rehearsal.submission import check_submission, largest_difference, study_ids
from lumbar_publish.sealing.seal import UPLOAD_METADATA, Sealed, describe_sealed, read_json, seal, verify_against_lock

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
    competition_at = Path(COMPETITION) if mounts.startswith("old") else Path("competitions", COMPETITION)
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
) -> float:
    """Execute the notebook over ``data`` as Kaggle would; wall seconds.

    Raises:
        CohortError: a cell failed; its own line was shown before.
    """
    isolation = sandbox.best_isolation()
    kaggle, competition = lay_out(out, sealed, data, mounts=mounts, link_data=not isolation.has_mounts)
    sandbox.write_sitecustomize(out / _SITE, block_network=not isolation.has_namespace)
    tree = str((kaggle / "input").resolve())
    plan = {
        "notebook": str(notebook.resolve()),
        "executed": str((out / "executed.ipynb").resolve()),
        "working": str((kaggle / "working").resolve()),
        "namespace": isolation.has_namespace,
        "mounts": [(tree, tree), (str(data.resolve()), str(competition.resolve()))] if isolation.has_mounts else [],
        "kaggle_like": kaggle_like,
        "timeout_s": None,
        "environment": sandbox.notebook_environment(kaggle.resolve(), (out / _SITE).resolve(), out.resolve() / _HOME),
    }
    path = out / "plan.json"
    write_text(path, json.dumps(plan, indent=1))
    command = [*isolation.prefix, sys.executable, "-m", "lumbar_publish.rehearsal.execute", str(path.resolve())]
    print(f"rehearsal: {isolation}{limits(kaggle_like)}", flush=True)
    start_s = time.monotonic()
    done = subprocess.run(command, env=sandbox.our_environment(), stdin=subprocess.DEVNULL, check=False)
    seconds = time.monotonic() - start_s
    if done.returncode:
        raise CohortError(f"{notebook}: the notebook failed, see {plan['executed']}")
    return seconds


def limits(kaggle_like: bool) -> str:
    """The part of the rehearsal's first line that names Kaggle's limits; empty without them."""
    if not kaggle_like:
        return ""
    return f", at most {sandbox.KAGGLE_CPUS} cores and {sandbox.KAGGLE_GIB} GiB a process"


def check_rehearsal(
    data: Path, out: Path, seconds: float, agree_with: Path | None = None, tolerance: float = 1e-4
) -> Estimate:
    """Check what the rehearsal left, and print it.

    Raises:
        CohortError: no valid submission, or one that differs from ``agree_with`` by more than ``tolerance``.
    """
    working = out / "kaggle" / "working"
    sample = data / "sample_submission.csv"
    table = check_submission(working / "submission.csv", sample if sample.is_file() else None)
    record = read_json(working / "record.json")
    prediction = estimate(record, seconds)
    rows = f"{len(table)} of {len(table)}" if sample.is_file() else f"{len(table)} (no {sample.name} to compare with)"
    kept = [study for study in record["studies"] if study["status"] != "predicted"]
    print(f"rows         {rows}, valid; {len(kept)} of {len(record['studies'])} studies left at the prior")
    if len(kept) == len(record["studies"]):
        raise CohortError(f"{data}: no study was predicted, all were left at the prior: see {working / 'report.html'}")
    for line in (truth_line(data, working / "submission.csv"), *prediction.lines()):
        print(line)
    if agree_with:
        difference = largest_difference(working / "submission.csv", agree_with)
        print(f"agreement    largest difference {difference:.2g} from {agree_with}, allowed {tolerance:g}")
        if difference > tolerance:
            raise CohortError(f"{working / 'submission.csv'}: differs by {difference:.2g} from {agree_with}")
    for name in ("submission.csv", "report.html", "record.json"):
        print(f"{name.partition('.')[0]:<12} {working / name}")
    print(f"notebook     {out / 'executed.ipynb'}")
    return prediction


def truth_line(data: Path, submission: Path) -> str:
    """The score where the truth of these studies lies beside them."""
    solution = data / "solution.csv"
    if not solution.is_file():
        return "score        unknown: no solution.csv beside the data"
    truth, table = read_table(solution, "the solution"), read_table(submission, "the submission")
    result = score(truth[truth["study_id"].isin(study_ids(submission))], table)
    return (
        f"score        {result.total:.4f} (spinal {result.spinal:.4f}, foraminal {result.foraminal:.4f}, "
        f"subarticular {result.subarticular:.4f}, any severe {result.any_severe:.4f})"
    )


def _remove(folder: Path) -> None:
    for path, _, _ in os.walk(folder):
        os.chmod(path, 0o755)
    shutil.rmtree(folder, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    """``python -m lumbar_publish.rehearsal.dry_run``: 0 when the submission is valid and the hidden test would fit."""
    options = _parser().parse_args(argv)
    layout = Layout(options.root.resolve())
    try:
        sealed = _sealed(layout, options)
        options.out.mkdir(parents=True, exist_ok=True)
        if not options.data.is_dir():
            raise CohortError(f"{options.data}: no such folder, expected a competition folder with test_images")
        seconds = rehearse(
            layout.notebook, sealed, options.data, options.out, mounts=options.mounts, kaggle_like=options.kaggle_like
        )
        prediction = check_rehearsal(options.data, options.out, seconds, agree_with=options.agree_with)
        prediction.require_fit()
    except (LumbarError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _sealed(layout: Layout, options: argparse.Namespace) -> Sealed:
    if not options.keep_seal:
        return seal(layout, run=options.run, force=options.force)
    verify_against_lock(layout, layout.sealed)
    locked: dict[str, Any] = read_json(layout.lock)
    return describe_sealed(layout.sealed, DatasetId.parse(locked["dataset"]["id"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lumbar_publish.rehearsal.dry_run", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="competition folder (test split)")
    parser.add_argument("--out", type=Path, default=Path("dist/dry-run"), help="rehearsal's folder (%(default)s)")
    parser.add_argument("--root", type=Path, default=Path("."), help="the repository (%(default)s)")
    parser.add_argument("--run", type=Path, help="training run to seal; default: the weights of the lock file")
    parser.add_argument("--force", action="store_true", help="seal an incomplete or mixed run")
    parser.add_argument("--keep-seal", action="store_true", help="run what lies sealed in dist/dataset")
    parser.add_argument("--kaggle-like", action="store_true", help="Kaggle's limits of cores and memory")
    parser.add_argument("--mounts", choices=MOUNTS, default="new", help="form of the mount points (%(default)s)")
    parser.add_argument("--agree-with", type=Path, metavar="CSV", help="submission to agree with to 1e-4")
    return parser


if __name__ == "__main__":
    sys.exit(main())
