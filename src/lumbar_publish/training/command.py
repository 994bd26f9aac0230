"""Command line: ``python -m lumbar_publish train``, a whole training on Kaggle, session after session."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lumbar.errors import LumbarError
from lumbar.io.arguments import Parser
from lumbar.io.path_options import FOLDER, NEW_FOLDER, check_paths
from lumbar.io.signals import in_order
from lumbar.io.text import one_line
from lumbar_publish.kaggle.client import Client, KaggleError, require_client
from lumbar_publish.kaggle.notebook_run import as_slug
from lumbar_publish.kaggle.publication import require_owner
from lumbar_publish.kaggle.quota import quota_line
from lumbar_publish.names import DatasetId, Layout
from lumbar_publish.sealing.accelerators import ACCELERATORS, DEFAULT, IMAGES, Accelerator, accelerator
from lumbar_publish.sealing.metadata import write_json
from lumbar_publish.sealing.seal import locked_dataset, read_json
from lumbar_publish.training.notebook import Session
from lumbar_publish.training.options import add_training_options, training_arguments
from lumbar_publish.training.plan import Places, Plan, TrainingNames
from lumbar_publish.training.session import EVIDENCE, read_evidence
from lumbar_publish.training.sessions import Sessions
from lumbar_publish.training.staging import Staged, check_options, describe, stage
from lumbar_publish.training.upload import CodePublication, upload

HOURS = 11.5
_LEAST_HOURS = 0.05


def main(argv: list[str] | None = None, prog: str = "python -m lumbar_publish train") -> int:
    """``python -m lumbar_publish train``: 0 when the run is here, or a session is at work there; 1 with one line."""
    parser = _parser(prog)
    options = parser.parse_args(argv)

    def work() -> int:
        try:
            check_paths(parser, options)
            _train(options)
        except (LumbarError, OSError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
            if isinstance(error, KaggleError) and error.hint:
                print("\n".join(f"  {line.strip()}" for line in error.hint.splitlines()))
            return 1
        return 0

    def tell(reason: str) -> None:
        goes_on = "it goes on from here; a session that runs on Kaggle goes on there"
        print(f"error: {reason}: run the same command again, {goes_on}", file=sys.stderr, flush=True)

    return in_order(work, tell)


def _train(options: argparse.Namespace) -> None:
    layout = Layout(options.root.resolve())
    machine = accelerator(options.accelerator)
    _check_hours(options.hours, machine)
    names = _names(layout, options)
    places = Places(layout, names.name)
    with alone(places.folder):
        _go_on(options, layout, machine, names, places)


def _go_on(
    options: argparse.Namespace, layout: Layout, machine: Accelerator, names: TrainingNames, places: Places
) -> None:
    """Take the run as far as this call can."""
    out = options.out or Path("runs") / names.name
    arguments, files = training_arguments(options)
    plan = Plan(options.recipe, tuple(arguments), tuple(files))
    client = Client()
    if not options.no_push:
        require_owner(names.dataset)
        require_client()
        print(quota_line(client, machine, options.hours), flush=True)
    staged = _stage(layout, names, places, plan, options)
    _check_out(out, staged.plan_hash)
    jobs = max(1, machine.gpus) if options.jobs is None else options.jobs
    fetched = _fetched_weights(places, staged, plan, jobs)
    if fetched:
        print(
            f"internet is on: weights of {', '.join(fetched)} are fetched; --backbone-weights takes them along instead"
        )
    first = Session(
        names,
        1,
        options.hours,
        machine,
        options.image,
        jobs,
        bool(fetched),
        plan.competition,
        staged.sealed.manifest_hash,
    )
    sessions = Sessions(first, places, staged.plan_hash, client, options.wait)
    if options.no_push:
        _say_how_to_push(sessions, places)
        return
    upload(CodePublication(layout, staged.sealed, "training code", place=places.folder))
    number = sessions.run()
    if number is not None:
        if not (out / EVIDENCE).is_file():
            sessions.fetch(number, out)
        _say_how_to_seal(out, names)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let no second call work on a run in a block: both would push the same session.

    Raises:
        LumbarError: another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise LumbarError(f"{folder}: found another call at work on this run, expected none: wait for it") from None
    finally:
        os.close(descriptor)


def _check_hours(hours: float, machine: Accelerator) -> None:
    """A session must end in order before Kaggle ends it.

    Raises:
        LumbarError: too many hours, or hardly any; a machine that this training cannot use.
    """
    if machine.kind == "tpu":
        raise LumbarError(f"--accelerator: found {machine.name}, expected one with GPUs, or none: TPUs are not used")
    if not _LEAST_HOURS <= hours < machine.session_hours:
        raise LumbarError(
            f"--hours: found {hours:g}, expected {_LEAST_HOURS:g} to less than {machine.session_hours:g}, a session's "
            f"limit on {machine.name}"
        )


def _names(layout: Layout, options: argparse.Namespace) -> TrainingNames:
    """Owner and name of the run.

    Raises:
        ManifestError: a name that Kaggle would refuse.
    """
    owner = DatasetId.choose(locked_dataset(layout), options.owner).owner
    return TrainingNames(owner, options.name or f"lumbar-train-{as_slug(options.recipe)}")


def _stage(layout: Layout, names: TrainingNames, places: Places, plan: Plan, options: argparse.Namespace) -> Staged:
    """The dataset of a run that has begun as it was staged then, else a new one.

    Raises:
        LumbarError: the run has begun with another recipe, or something cannot be staged.
    """
    path = places.folder / "notes.json"
    notes: dict[str, Any] = read_json(path) if path.is_file() else {}
    asked = plan.data()
    if notes.get("sessions") and notes.get("plan") not in (None, asked):
        raise LumbarError(f"{_difference(notes['plan'], asked)}: the run {names.name} has begun; --name begins another")
    wheels = sorted(options.wheels.glob("*.whl")) if options.wheels else []
    if options.wheels and not wheels:
        raise LumbarError(f"--wheels: found no *.whl in {options.wheels}, expected some")
    if notes.get("sessions") and places.dataset.is_dir() and not options.new_code:
        staged = describe(places.dataset, names)
    else:
        staged = stage(layout, names, plan, wheels, places.dataset)
    if notes.get("plan") != asked:
        write_json(path, notes | {"plan": asked})
    print(f"{places.dataset}: {names.dataset}, manifest {staged.sealed.manifest_hash[:12]}", flush=True)
    return staged


def _difference(begun: dict[str, Any], asked: dict[str, Any]) -> str:
    """What a call asks for that the run was not begun with, in words."""
    for key in ("recipe", "arguments", "files", "competition"):
        if begun.get(key) != asked[key]:
            was, now = begun.get(key), asked[key]
            if isinstance(now, list):
                was, now = " ".join(was or []) or "none", " ".join(now) or "none"
            elif isinstance(now, dict):
                was, now = (", ".join(f"{k} {v[:12]}" for k, v in one.items()) or "none" for one in (was or {}, now))
            return (
                f"--recipe: found {now}, expected {was}" if key == "recipe" else f"{key}: found {now}, expected {was}"
            )
    return "plan: found another, expected the one that was begun"


def _check_out(out: Path, expected: str) -> None:
    """See that the place for the run is free, before a session is spent on it.

    Raises:
        LumbarError: something else lies there.
    """
    if out.exists() and plan_of(out) != expected:
        raise LumbarError(f"--out: found {out}, which is not this run, expected a folder that is not there yet")


def plan_of(run: Path) -> str | None:
    """Hash of the plan of a run that was fetched."""
    return read_evidence(run / EVIDENCE).get("plan")


def _fetched_weights(places: Places, staged: Staged, plan: Plan, jobs: int) -> list[str]:
    """The backbones whose weights a session fetches, once the staged code has read its options."""
    path = places.folder / "notes.json"
    notes = read_json(path)
    known = notes.get("checked") or {}
    asked = f"{staged.sealed.manifest_hash} {jobs}"
    if known.get("of") != asked:
        print("letting the staged code read its options: half a minute", flush=True)
        command = ["train", "--data", ".", "--out", "run", "--recipe", plan.recipe, "--cache", "none"]
        command += ["--jobs", str(jobs), "--time-limit", "11h", *plan.arguments]
        known = {"of": asked, "fetched": check_options(places.dataset, command)}
        write_json(path, notes | {"checked": known})
    return list(known["fetched"])


def _say_how_to_push(sessions: Sessions, places: Places) -> None:
    number = sessions.write_next()
    print(
        f"session {number} is written, nothing was sent:\n"
        f"  kaggle datasets create -p {places.dataset} --dir-mode zip    (the first time)\n"
        f"  kaggle kernels push -p {places.kernel}\n"
        "then this command without --no-push goes on"
    )


def _say_how_to_seal(out: Path, names: TrainingNames) -> None:
    if not (out / "export").is_dir():
        raise LumbarError(f"{out}: found no export/, expected the weights of a whole run")
    print(f"{out}: the run is whole; seal it: python build_dataset.py --run {out} --owner {names.owner}")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="Train on Kaggle's machines, session after session, until the run folder is whole and here.",
    )
    add = parser.add_argument
    add("--recipe", required=True, metavar="NAME", help="demo, model2 or strong")
    add("--owner", help="Kaggle user; default: KAGGLE_USERNAME, else the lock file's")
    add("--name", help="of dataset and notebooks there, and of the run; default: lumbar-train-RECIPE")
    add("--out", type=NEW_FOLDER, metavar="RUN", help="folder for the whole run; default: runs/NAME")
    add("--wait", action="store_true", help="stay until the run is whole; default: return while a session is at work")
    add("--hours", type=float, default=HOURS, help="that a session trains before it ends in order (%(default)s)")
    add("--accelerator", metavar="NAME", default=DEFAULT, help=f"{', '.join(ACCELERATORS)}; default: %(default)s")
    add("--image", choices=IMAGES, default=IMAGES[0], help="of the notebooks (%(default)s)")
    add("--jobs", type=int, metavar="N", help="folds side by side; default: one for each GPU of the machine")
    add("--wheels", type=FOLDER, metavar="FOLDER", help="*.whl of what Kaggle's image lacks, installed there offline")
    add("--new-code", action="store_true", help="go on with the code as it is now, not with that of the first session")
    add("--no-push", action="store_true", help="write dataset and notebook for the plain client, send nothing")
    add("--root", type=FOLDER, default=Path("."), help="the repository (%(default)s)")
    add_training_options(parser.add_argument_group("what is trained, as python -m lumbar_train train takes it"))
    return parser
