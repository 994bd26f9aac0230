"""The command line of ``build_dataset.py``: seal, verify, publish."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lumbar.bundle.manifest import FILE_NAME as MANIFEST
from lumbar.bundle.manifest import manifest_hash, read_manifest
from lumbar.competitions.contract import Competition
from lumbar.competitions.lumbar_spine import COMPETITION as LUMBAR_SPINE
from lumbar.errors import LumbarError
from lumbar.io.arguments import Parser
from lumbar.io.competition import check_competition, check_root
from lumbar.io.path_options import FOLDER, check_paths
from lumbar.io.signals import in_order
from lumbar.io.text import one_line
from lumbar_publish.files import write_text
from lumbar_publish.kaggle import step_dataset, step_kernel, step_submit, step_tag
from lumbar_publish.kaggle.client import Client, KaggleError, require_client
from lumbar_publish.kaggle.publication import Publication, require_owner
from lumbar_publish.kaggle.quota import quota_line
from lumbar_publish.kaggle.store import TARGETS, store_of
from lumbar_publish.names import DEFAULT_SLUG, DatasetId, Layout
from lumbar_publish.sealing.accelerators import (
    ACCELERATORS,
    DEFAULT,
    IMAGES,
    Accelerator,
    accelerator,
    machine_metadata,
)
from lumbar_publish.sealing.completeness import chain_of
from lumbar_publish.sealing.member_seconds import keep_seconds, kept_seconds, measured
from lumbar_publish.sealing.metadata import bundle_sources, configured_machine, configured_model_version, write_json
from lumbar_publish.sealing.model_card import remove_model_metadata, write_model_metadata
from lumbar_publish.sealing.seal import (
    Sealed,
    describe_sealed,
    locked_dataset,
    read_data,
    read_json,
    seal,
    source_of,
    verify_against_lock,
)
from lumbar_publish.sealing.smoke_test import run_chain, run_networks

ALL = "all"
BUNDLE = "bundle"  # the step that goes by its target's name on the command line
STEPS = {BUNDLE: step_dataset.run, "kernel": step_kernel.run, "submit": step_submit.run}  # in their order
LATER = ("kernel", "submit")  # steps that go on with what lies sealed
MakeSample = Callable[[Path], None]


def main(layout: Layout, make_sample: MakeSample, argv: list[str] | None = None) -> int:
    """Run the command; 0 only on success, 1 with one line on bad input.

    Args:
        layout: the repository.
        make_sample: writes a competition folder with one test study into an empty folder.
        argv: arguments; None takes the process's.
    """
    parser = _parser()
    options = parser.parse_args(argv)

    def tell(reason: str) -> None:
        print(f"error: {reason}: run the same command again, it goes on from here", file=sys.stderr, flush=True)

    return in_order(lambda: _run(layout, make_sample, parser, options), tell)


def _run(layout: Layout, make_sample: MakeSample, parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        check_paths(parser, options)
        if options.sample:
            _check_sample(layout, options)
        if options.verify:
            print(f"{options.verify}: manifest {verify_against_lock(layout, options.verify)}, as the lock file says")
            return 0
        _check_options(options)
        if options.tag:
            step_tag.require_repository(layout)
        target = _target(layout, options)
        machine = accelerator(options.accelerator or configured_machine(layout.kernel_metadata)[0])
        if options.publish:
            dataset = DatasetId.choose(locked_dataset(layout), options.owner, options.slug)
            hours = machine.hours(_competition(layout, options))
            _check_account(dataset, target, options.publish, None if options.no_run else machine, hours)
        sealed = _seal(layout, options, make_sample)
        _note_machine(layout, options, sealed.competition)
        _note_target(layout, sealed, target)
        print(summary(sealed))
        if options.publish:
            publication = Publication(layout, sealed, options.message, runs_notebook=not options.no_run, target=target)
            if options.tag:
                step_tag.warn_of_changes(publication)
            for step, run in STEPS.items():
                if options.publish in (step, ALL) and not (options.no_run and step == "submit"):
                    run(publication)
            if options.tag:
                step_tag.run(publication)
    except (LumbarError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        if isinstance(error, KaggleError) and error.hint:
            print("\n".join(f"  {line.strip()}" for line in error.hint.splitlines()))  # the client's own advice
        return 1
    return 0


def _check_sample(layout: Layout, options: argparse.Namespace) -> None:
    """See that the folder to try the sealed chain on is a competition folder, before the minutes that sealing takes.

    Raises:
        CohortError: it is not; says what lies there instead.
    """
    check_root(options.sample, "test")
    if read_manifest(source_of(layout, options.run)[0]).competition.slug == LUMBAR_SPINE.slug:
        check_competition(options.sample, "test", has_split=False)  # another one's layout is its chain's to check


def _check_options(options: argparse.Namespace) -> None:
    """Refuse options that lack the one that they belong to.

    Raises:
        LumbarError: says which to add.
    """
    if options.publish and not options.message:
        raise LumbarError("--publish needs notes for the version: add -m NOTES")
    if options.no_run and options.publish not in ("kernel", ALL):
        raise LumbarError("--no-run saves the notebook without running it: add --publish kernel -m NOTES")
    if options.tag and (options.no_run or options.publish not in ("submit", ALL)):
        raise LumbarError("--tag names the score: add --publish -m NOTES, or --publish submit -m NOTES")


def _competition(layout: Layout, options: argparse.Namespace) -> Competition:
    """The competition of what is to be sealed."""
    return read_manifest(source_of(layout, options.run)[0]).competition


def _target(layout: Layout, options: argparse.Namespace) -> str:
    """Where the bundle goes: as asked for, else as last; the step that takes it there gets one name for both.

    Raises:
        LumbarError: a step that names one and ``--as`` the other.
    """
    asked = options.target
    if options.publish in TARGETS:
        if asked not in (None, options.publish):
            raise LumbarError(f"--publish {options.publish}: found --as {asked}, expected --as {options.publish}")
        asked, options.publish = options.publish, BUNDLE
    return asked or ("dataset" if configured_model_version(layout.kernel_metadata) is None else "model")


def _check_account(dataset: DatasetId, target: str, step: str, machine: Accelerator | None, hours: float) -> None:
    """Meet an account that Kaggle refuses, or a network that is not there, before the minutes that sealing takes.

    Also says what quota is left, where a notebook may be run (``machine`` is None where it will not), for up to
    ``hours``.
    """
    require_owner(dataset)
    require_client()
    client = Client()
    if step not in LATER:
        try:
            store_of(target, client, dataset).is_ready()
        except KaggleError as error:
            if error.trouble.is_no_answer:
                raise
    if machine is not None and step in ("kernel", ALL):
        print(quota_line(client, machine, hours), flush=True)


def _note_machine(layout: Layout, options: argparse.Namespace, competition: Competition) -> None:
    """Write what is asked for into the notebook's metadata, whose other fields stay; say where it will run."""
    machine, image = configured_machine(layout.kernel_metadata)
    machine, image = options.accelerator or machine, options.image or image
    if options.accelerator or options.image:
        data = read_json(layout.kernel_metadata)
        write_json(layout.kernel_metadata, data | machine_metadata(accelerator(machine), image))
    hours = accelerator(machine).hours(competition)
    print(f"notebook: {accelerator(machine)}, image {image}, at most {hours:g} hours")


def _note_target(layout: Layout, sealed: Sealed, target: str) -> None:
    """Write what the plain client needs for the target: which of the two the notebook gets, and a model's card."""
    data = read_json(layout.kernel_metadata)
    if target == "model":
        write_model_metadata(sealed.folder, sealed.dataset)
        version = configured_model_version(layout.kernel_metadata) or 1
        sources = bundle_sources(sealed.dataset, version)
    else:
        remove_model_metadata(sealed.folder)
        sources = bundle_sources(sealed.dataset)
    if any(data.get(name) != value for name, value in sources.items()):
        write_json(layout.kernel_metadata, data | sources)


def summary(sealed: Sealed) -> str:
    """The lines printed after sealing: size of each entry of the folder, and the manifest's hash."""
    lines = [f"{name:<24}{size / 1e6:10.3f} MB" for name, size in sealed.sizes.items()]
    total = sum(sealed.sizes.values())
    lines.append(f"{sealed.folder}: {sealed.dataset}, {total / 1e6:.3f} MB, manifest {sealed.manifest_hash}")
    return "\n".join(lines)


def _seal(layout: Layout, options: argparse.Namespace, make_sample: MakeSample) -> Sealed:
    data = read_data(source_of(layout, options.run)[0])
    locked_id = locked_dataset(layout)
    dataset = DatasetId.choose(locked_id, options.owner, options.slug)
    if options.publish in LATER and options.run is None and str(dataset) == locked_id and layout.sealed.is_dir():
        verify_against_lock(layout, layout.sealed)
        return describe_sealed(layout.sealed, dataset)

    with tempfile.TemporaryDirectory(prefix="lumbar-sample-") as scratch:
        sample = _Sample(layout, options, make_sample, Path(scratch))

        def rehearse(folder: Path) -> None:
            # What ran once need not run again; the mark is the manifest's hash, which covers code and weights.
            mark = layout.sealed.parent / "rehearsed"
            staged = manifest_hash(folder)
            if mark.is_file() and mark.read_text(encoding="utf-8").strip() == staged:
                return
            print(
                "trying what was sealed before it takes its place: a minute or two, more on a busy machine", flush=True
            )
            if read_manifest(folder).forced:
                run_networks(folder)
            else:
                run_chain(folder, sample.folder(), chain_of(data))
            write_text(mark, staged + "\n")

        def measure(folder: Path) -> dict[str, Any]:
            machine = accelerator(options.accelerator or configured_machine(layout.kernel_metadata)[0])
            kept = kept_seconds(options.run, read_data(folder / MANIFEST), machine)
            if kept is None:
                print("timing the ensemble's members on one study: a minute or two", flush=True)
            return kept or measured(folder, sample.folder(), machine)

        sealed = seal(
            layout, run=options.run, dataset=dataset, force=options.force, as_demo=options.demo,
            measure=measure, rehearse=rehearse,
        )  # fmt: skip
    if options.run is not None:
        keep_seconds(options.run, read_data(sealed.folder / MANIFEST))
    return sealed


class _Sample:
    """A competition folder with a study to try a bundle on: the one that was named, or a phantom."""

    def __init__(self, layout: Layout, options: argparse.Namespace, make_sample: MakeSample, scratch: Path) -> None:
        self._layout, self._options, self._make, self._scratch = layout, options, make_sample, scratch

    def folder(self) -> Path:
        """Where it lies.

        Raises:
            LumbarError: another competition's bundle, and no study of it was named.
        """
        if self._options.sample is not None:
            return Path(self._options.sample)
        cohort = self._scratch / "cohort"
        if not cohort.exists():
            _require_phantom(_competition(self._layout, self._options))
            self._make(cohort)
        return cohort


def _require_phantom(competition: Competition) -> None:
    """Refuse to try another competition's chain on a phantom of the lumbar spine."""
    if competition.slug != LUMBAR_SPINE.slug:
        raise LumbarError(
            f"--sample: found none, expected a folder of {competition.slug} with studies to try the sealed chain on "
            "(phantoms are of the lumbar spine)"
        )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="build_dataset.py",
        description="Seal code, weights and manifest into dist/dataset, and the notebook and metadata to match.",
    )
    parser.add_argument(
        "--run",
        type=FOLDER,
        metavar="RUN",
        help="training run; default: the weights of the lock file (the demo's, or those sealed last)",
    )
    parser.add_argument("--owner", help="Kaggle user; default: KAGGLE_USERNAME, else the lock file's")
    parser.add_argument("--slug", help=f"dataset's name on Kaggle; default: the lock file's, else {DEFAULT_SLUG}")
    parser.add_argument("--force", action="store_true", help="seal an incomplete or mixed run; the manifest records it")
    parser.add_argument("--demo", action="store_true", help="also keep the run's weights in weights/demo")
    parser.add_argument(
        "--sample",
        type=FOLDER,
        metavar="ROOT",
        help="studies to try the sealed chain on; default: one phantom (of the lumbar spine)",
    )
    parser.add_argument(
        "--publish",
        nargs="?",
        choices=[ALL, *TARGETS, *LATER],
        const=ALL,
        help="then create or version the dataset (or model), push the notebook, submit it; or one of these steps",
    )
    parser.add_argument(
        "--as",
        dest="target",
        choices=TARGETS,
        help="publish the bundle as a Kaggle Dataset or as a version of a Kaggle Model; default: as last, else dataset",
    )
    parser.add_argument("-m", "--message", metavar="NOTES", help="version notes and submission message")
    parser.add_argument(
        "--accelerator",
        metavar="NAME",
        help=f"machine of the notebook: {', '.join(ACCELERATORS)}; default: the one asked for last, else {DEFAULT}",
    )
    parser.add_argument(
        "--image",
        choices=IMAGES,
        help="image of the notebook: the latest, or that of its first version; default: as last, else latest",
    )
    parser.add_argument(
        "--no-run", action="store_true", help="with --publish kernel: save the notebook on Kaggle, do not run it"
    )
    parser.add_argument(
        "--tag", action="store_true", help="then tag the commit with versions, manifest and score (git tag)"
    )
    parser.add_argument("--verify", type=FOLDER, metavar="FOLDER", help="check a sealed folder against the lock file")
    return parser
