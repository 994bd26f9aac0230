"""The command line: ``lumbar predict | merge | score | inspect``, or ``python -m lumbar``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lumbar import __version__
from lumbar.bundle.manifest import read_manifest
from lumbar.bundle.presence import check_presence
from lumbar.competitions.lumbar_spine import NAME as DEFAULT
from lumbar.errors import CohortError, DicomError, LumbarError
from lumbar.io.arguments import Parser, program
from lumbar.io.competition import check_competition, check_root, folder_to_index
from lumbar.io.numba_cache import compiling_decoders, use_numba_cache
from lumbar.io.path_options import (
    FILE,
    NEW_CSV,
    NEW_FOLDER,
    NEW_HTML,
    NEW_JSON,
    PLACE,
    STUDIES,
    STUDIES_OR_FILE,
    check_paths,
)  # fmt: skip
from lumbar.io.signals import in_order, run_as_process
from lumbar.io.streams import ReaderGone, guard_streams
from lumbar.io.text import counted, one_line, printable, printable_log
from lumbar.output.report_layout import LAYOUTS
from lumbar.workers.budget import parse_time_limit, process_start
from lumbar.workers.shards import find_shard

RESEARCH = "Research use only: not a medical device."


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands and options."""
    main_parser = Parser(
        prog=program("lumbar", "lumbar"),
        description=f"Graded probabilities from lumbar spine MR studies, offline. {RESEARCH}",
    )
    main_parser.add_argument("--version", action="version", version=f"lumbar {__version__}")
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    predict = commands.add_parser(
        "predict",
        help="predict every study of a folder: the competition's, or any folder of DICOM",
        description="Predict every study of a folder: the competition's, or any folder of DICOM as a PACS or a CD "
        "wrote it, whose headers tell studies and series apart (try `inspect` first). The bundle is verified first; "
        f"then prior rows are written, and each study replaces its own. {RESEARCH}",
    )
    predict.add_argument(
        "--data",
        required=True,
        type=STUDIES,
        metavar="PATH",
        help="competition folder ({test,train}_images and its tables), or any folder of DICOM, however nested: which "
        "series is sagittal T1, sagittal T2/STIR or axial T2 is then told from the headers, with reason and doubt in "
        "the record",
    )
    predict.add_argument(
        "--weights", required=True, type=PLACE, metavar="DIR", help="folder with weights_manifest.json and its weights"
    )
    predict.add_argument(
        "--out", required=True, type=NEW_CSV, metavar="CSV", help="submission.csv to write; a missing folder is made"
    )
    predict.add_argument("--split", choices=("test", "train"), default="test", help="images to predict (default: test)")
    predict.add_argument(
        "--chain", choices=("main", "baseline"), default="main", help="which models of the bundle (default: main)"
    )
    predict.add_argument(
        "--time-limit",
        default="8.5h",
        metavar="T",
        help="8.5h, 30m or 90s from the command's start, and it ends within it; none for no limit (default: 8.5h)",
    )
    predict.add_argument(
        "--report",
        type=NEW_HTML,
        metavar="HTML",
        help="also write a report: one page up to ten studies, else an index and a folder with a page for each study",
    )
    predict.add_argument(
        "--report-layout",
        choices=LAYOUTS,
        default="auto",
        help="single: always one page, with pictures of the first ten studies; pages: always an index (default: auto)",
    )
    predict.add_argument(
        "--pictures", type=NEW_FOLDER, metavar="DIR", help="also write PNG files of every study, with levels and points"
    )
    predict.add_argument(
        "--table",
        type=NEW_CSV,
        metavar="CSV",
        help="also write one row a study, condition, level and side (docs/findings-table.md)",
    )
    predict.add_argument(
        "--markups", type=NEW_FOLDER, metavar="DIR", help="also write the points of every study as 3D Slicer markups"
    )
    predict.add_argument("--record", type=NEW_JSON, metavar="JSON", help="also write the run record")
    predict.add_argument("--studies", type=_positive, metavar="N", help="only the first N studies")
    predict.add_argument(
        "--workers",
        type=_positive,
        metavar="W",
        help="worker processes, which share the cores (default: one per GPU; without a GPU one per core, with one "
        "thread each, as far as the memory goes)",
    )
    predict.add_argument(
        "--shard",
        metavar="I/N",
        help="only part I of N (from 0), in files named submission.I-of-N.csv; auto, or auto/N: as torchrun, a Slurm "
        "array or a Kubernetes indexed job numbers this process (under torchrun this is the default)",
    )
    predict.add_argument(
        "--resume", action="store_true", help="go on from the journal beside --out, where there is one; repeat nothing"
    )
    predict.add_argument(
        "--manifest-hash", metavar="SHA256", help="refuse a bundle whose manifest does not have this hash"
    )
    predict.add_argument(
        "--trust-members", action="store_true", help="run the code of external members that lies in the bundle"
    )

    _add_score(commands)
    _add_merge(commands)

    inspect = commands.add_parser(
        "inspect",
        help="describe a folder of DICOM as predict takes it; a file, series or study in detail",
        description="Show what predict would make of a folder of DICOM: a table of study, series, slices, kind (or "
        "left out) and why. Of a single DICOM file, series folder or study folder also syntax, geometry, stacks, "
        "problems. No patient's name, id or birth date is printed.",
    )
    inspect.add_argument(
        "path", type=STUDIES_OR_FILE, nargs="+", metavar="PATH", help="a DICOM file, or any folder of DICOM; or several"
    )
    inspect.add_argument(
        "--weights",
        type=PLACE,
        metavar="DIR",
        help="a bundle, whose small network tells contrasts that headers leave open (default: headers alone)",
    )
    return main_parser


def _add_score(commands: Any) -> None:
    """The options of ``score``."""
    score = commands.add_parser(
        "score",
        help="the competition's metric and its four terms",
        description="Score a submission against a table like train.csv. Lower is better.",
    )
    score.add_argument("--solution", required=True, type=FILE, metavar="CSV", help="labels, as train.csv")
    score.add_argument("--submission", required=True, type=FILE, metavar="CSV", help="as sample_submission.csv")
    score.add_argument(
        "--competition",
        default=DEFAULT,
        metavar="NAME",
        help="whose metric: a module of lumbar/competitions (%(default)s)",
    )


def _add_merge(commands: Any) -> None:
    """The options of ``merge``."""
    merge = commands.add_parser(
        "merge",
        help="join the submissions of several shards",
        description="Join submissions that predict --shard has written, each with its journal beside it, into one. "
        "Bundle and versions must agree and each study be there once; what is missing is named.",
    )
    merge.add_argument("--out", required=True, type=NEW_CSV, metavar="CSV", help="the submission to write")
    merge.add_argument("--record", type=NEW_JSON, metavar="JSON", help="also write the run record of all parts")
    merge.add_argument(
        "--report",
        type=NEW_HTML,
        metavar="HTML",
        help="also write one report of all parts: one page, with pictures of the first ten studies",
    )
    merge.add_argument("--table", type=NEW_CSV, metavar="CSV", help="also write one table of findings of all parts")
    merge.add_argument("parts", type=FILE, nargs="+", metavar="PART", help="submission.0-of-4.csv and the others")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


def run_predict(arguments: argparse.Namespace, started: float) -> None:
    """Run ``predict`` and print one line at the end. The time limit counts from ``started`` (``time.monotonic``)."""
    # Names first: a wrong one is answered before anything heavy is imported.
    parse_time_limit(arguments.time_limit)
    shard = find_shard(arguments.shard)
    arguments.written = arguments.out if shard is None else shard.path(arguments.out)
    check_presence(arguments.weights)
    check_root(arguments.data, arguments.split, may_be_any=True)
    is_known = read_manifest(arguments.weights).competition_name == DEFAULT
    if is_known and folder_to_index(arguments.data, arguments.split) is None:
        check_competition(arguments.data, arguments.split)

    from tqdm.contrib.logging import logging_redirect_tqdm

    from lumbar.run import predict

    with logging_redirect_tqdm():
        _, record = predict(
            arguments.data,
            arguments.weights,
            arguments.out,
            split=arguments.split,
            chain=arguments.chain,
            time_limit=arguments.time_limit,
            report=arguments.report,
            record=arguments.record,
            studies=arguments.studies,
            workers=arguments.workers,
            shard=shard,
            resume=arguments.resume,
            pictures=arguments.pictures,
            table=arguments.table,
            markups=arguments.markups,
            report_layout=arguments.report_layout,
            manifest_hash=arguments.manifest_hash,
            trust_members=arguments.trust_members,
            started=started,
            progress=True,
            in_memory=False,
        )
    _print_totals(arguments.written, record["totals"], "the lines above and the record say why")


def _print_totals(path: Path, totals: dict[str, int], why: str) -> None:
    """The last lines of ``predict`` and ``merge``."""
    rows, some = counted(totals["rows"], "row"), counted(totals["studies"], "study")
    print(f"{printable(path)}: {rows}; {totals['predicted']} of {some} predicted")
    if n_prior := totals["studies"] - totals["predicted"]:
        print(f"{n_prior} kept their prior; {why}")


def run_merge(arguments: argparse.Namespace, _started: float) -> None:
    """Run ``merge``."""
    from lumbar.output.merge import merge

    totals = merge(arguments.parts, arguments.out, arguments.record, arguments.report, arguments.table)
    _print_totals(arguments.out, totals, "the record says why")


def run_score(arguments: argparse.Namespace, _started: float) -> None:
    """Run ``score``: print the total and its terms."""
    for path, what in ((arguments.solution, "the solution"), (arguments.submission, "a submission")):
        if not os.path.lexists(path):
            raise CohortError(f"{path}: cannot be read (no such file), expected {what}")

    from lumbar.competitions.registry import competition_named
    from lumbar.competitions.scoring import evaluate
    from lumbar.competitions.tables import read_answer, read_solution

    competition = competition_named(arguments.competition)
    solution = read_solution(arguments.solution, "the solution", competition)
    terms = evaluate(competition, solution, read_answer(arguments.submission, "a submission", competition))
    for name, value in terms.items():
        print(f"{name:<12} {value:.6f}")


def run_inspect(arguments: argparse.Namespace, _started: float) -> None:
    """Run ``inspect``: print a description."""
    for path in arguments.path:
        if not os.path.lexists(path):
            raise DicomError(f"{path}: no such file or folder, expected a DICOM file, a series' or a study's folder")

    if line := compiling_decoders():
        printable_log().info("%s", line)

    from lumbar.bundle.manifest import verify
    from lumbar.intake.inspect import inspect

    manifest = verify(arguments.weights) if arguments.weights is not None else None
    for number, path in enumerate(arguments.path):
        print(("\n" if number else "") + inspect(path, manifest))


def main(argv: Sequence[str] | None = None, started: float | None = None) -> int:
    """Run a command; 0 on success, 1 with one line on bad input, 2 (from argparse) on wrong usage.

    Args:
        argv: the arguments; None for the process's own.
        started: ``time.monotonic`` from which a time limit counts; None for this call, as in a notebook.
    """
    started = time.monotonic() if started is None else started
    began = time.time()
    options = parser()
    arguments = options.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    printable_log().setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # characters that the terminal's encoding lacks are written as escapes
            stream.reconfigure(errors="backslashreplace")
    use_numba_cache()
    commands = {"predict": run_predict, "score": run_score, "inspect": run_inspect, "merge": run_merge}

    def work() -> int:
        try:
            check_paths(options, arguments)
            commands[arguments.command](arguments, started)
        except LumbarError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 1
        except OSError as error:  # a folder that may not be looked into, wherever that shows
            name = printable(error.filename or "a file")
            print(f"error: {name}: {error.strerror or one_line(error)}", file=sys.stderr)
            return 1
        return 0

    def tell(reason: str) -> None:
        print(f"error: {reason}: {_how_to_go_on(arguments, began)}", file=sys.stderr, flush=True)

    return in_order(work, tell)


def _how_to_go_on(arguments: argparse.Namespace, began: float) -> str:
    """What an interrupted command leaves, and what to do next. ``began`` is the time of day when it started."""
    again = "run the same command again"
    written = getattr(arguments, "written", None)
    if arguments.command != "predict":
        return f"nothing was written; {again}"
    try:
        is_written = written is not None and written.stat().st_mtime >= began - 1.0
    except OSError:
        is_written = False
    if not is_written:
        return f"nothing was written; {again}"
    answers = f"{printable(written)} holds the answers so far and the prior for the other studies"
    return f"{answers}; {again}{'' if arguments.resume else ' with --resume'} to predict the others"


def command() -> int:
    """Run ``main`` as a process: a time limit counts from the process's start, and signals end it in an orderly way.

    Where standard output cannot be written any more (its reader is gone, the disk is full), ``predict`` goes on, since
    its result is files. The other commands have no result but their output: they fail, and in silence where its reader
    is gone.
    """
    output = guard_streams()
    try:
        code = main(started=process_start())
    except SystemExit as end:  # of argparse: after its help, or a refusal
        output.flush()
        if not end.code and isinstance(output.failure, BrokenPipeError):
            raise ReaderGone from None
        raise
    output.flush()
    if output.failure is None or code != 0 or sys.argv[1:2] == ["predict"]:
        return code
    if isinstance(output.failure, BrokenPipeError):
        raise ReaderGone
    print(f"error: standard output: cannot be written ({output.failure.strerror}), expected a reader", file=sys.stderr)
    return 1


def script() -> None:
    """The installed command ``lumbar``."""
    run_as_process(command, ends_with_reader=False)


if __name__ == "__main__":
    script()
