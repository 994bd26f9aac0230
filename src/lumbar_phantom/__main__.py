"""Command line: ``lumbar-phantom --out ROOT --studies N --seed S``, in parts with ``--shard``; or ``python -m``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from lumbar.errors import LumbarError
from lumbar.io.arguments import Parser, program
from lumbar.io.files import make_folder, without_empty_folders
from lumbar.io.path_options import NEW_FOLDER, check_paths
from lumbar.io.signals import in_order, run_as_process
from lumbar.io.text import counted, one_line
from lumbar.workers.shards import Shard, find_shard
from lumbar_phantom import pitfalls

if TYPE_CHECKING:
    from lumbar_phantom.tables import StudyTables

FAMILIES = ("contrast", "noise", "thickness", "resolution")  # families.NAMES
# The keys of dicom_files.SYNTAXES, which cannot be imported before the arguments are known to be right: it is slow.
SYNTAXES = ("rle", "explicit", "implicit", "deflated", "big", "jpeg_lossless", "jpeg_ls", "jpeg_2000")


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    cli = Parser(prog=program("lumbar_phantom", "lumbar-phantom"), description="Write a synthetic lumbar MR cohort.")
    cli.add_argument("--out", required=True, type=NEW_FOLDER, help="folder to fill, in the competition's layout")
    cli.add_argument("--studies", type=int, help="number of studies; needed, but with --merge")
    cli.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    cli.add_argument(
        "--pitfalls", default="real", help=f"real (default), none, all, or names: {', '.join(pitfalls.NAMES)}"
    )
    cli.add_argument("--split", choices=("train", "test"), default="train")
    cli.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    cli.add_argument(
        "--masks",
        action="store_true",
        help="also write truth_masks/<study>/<series>.npz of sagittal series: 1 body, 2 disc, 3 sac, "
        "4 sacrum below S1, 5 S1, 6 disc S1/S2 or the line where it was",
    )
    cli.add_argument(
        "--wild",
        type=float,
        default=0.3,
        help="share of series, 0 to 1, whose contrast is randomised far beyond the realistic (default 0.3)",
    )
    cli.add_argument(
        "--hard",
        type=float,
        metavar="SHARE",
        default=0.0,
        help="share of patients, 0 to 1, that are hard to number: steep sacrum, disc S1/S2, operated or bent back, and "
        "images with little contrast, strong fall-off, few slices or an unknown scale (default 0: as before there was "
        "this option)",
    )
    cli.add_argument(
        "--family",
        choices=FAMILIES,
        default="",
        help="all series look as no ordinary or hard one does; to measure and calibrate weights that have not seen it",
    )
    cli.add_argument("--syntax", choices=SYNTAXES, default="rle", help="transfer syntax (default rle)")
    cli.add_argument(
        "--shard",
        metavar="I/N",
        help="only part I of N (from 0), or auto or auto/N, as of python -m lumbar predict; --merge writes the tables",
    )
    cli.add_argument(
        "--first",
        type=int,
        metavar="K",
        help="make the --studies studies from index K on, as part of a cohort; --merge writes the tables",
    )
    cli.add_argument("--resume", action="store_true", help="go on where an earlier run with the same options ended")
    cli.add_argument(
        "--overwrite",
        action="store_true",
        help="remove another cohort of the same --split that lies in --out, finished or begun (its studies and "
        "tables), and begin anew; not for a part",
    )
    cli.add_argument(
        "--merge", action="store_true", help="write the tables of all parts of --split that lie in --out, and no study"
    )
    return cli


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    cli = parser()
    options = cli.parse_args(arguments)
    _check(cli, options)

    def tell(reason: str) -> None:
        lacks = "not all tables of the parts" if options.merge else "no tables yet"
        how = "" if options.merge or options.resume else " with --resume"
        again = f"run the same command again{how} to go on"
        print(f"error: {reason}: {options.out} has {lacks}; {again}", file=sys.stderr, flush=True)

    return in_order(lambda: _run(cli, options), tell)


def _run(cli: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        check_paths(cli, options)
        if options.merge:
            from lumbar_phantom.cohort import merge_cohort, summary

            print(summary(merge_cohort(options.out, options.split)))
            return 0
        # Under torchrun alone a part is meant; without it one process makes all
        shard = find_shard(options.shard)
        with without_empty_folders([options.out]):
            done = _make(options, shard)
    except (LumbarError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    if shard is not None or options.first is not None:
        print(f"{options.out}: {counted(len(done), 'study')} of this part; --merge writes the tables of all parts")
    else:
        from lumbar_phantom.cohort import summary

        print(summary(done))
    return 0


def _make(options: argparse.Namespace, shard: Shard | None) -> list[StudyTables]:
    """Make the studies that are asked for."""
    chosen = pitfalls.parse(options.pitfalls)
    make_folder(options.out)

    from lumbar_phantom.cohort import make_cohort  # numba and scipy: seconds

    return make_cohort(
        options.out,
        options.studies,
        options.seed,
        pitfalls=chosen,
        split=options.split,
        workers=options.workers,
        masks=options.masks,
        randomised_share=options.wild,
        hard_share=options.hard,
        family=options.family,
        syntax=options.syntax,
        shard=shard,
        first=options.first,
        resume=options.resume,
        overwrite=options.overwrite,
    )


def _check(cli: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse numbers out of range, and options that do not go together."""
    if options.merge:
        if (
            options.shard
            or options.resume
            or options.overwrite
            or options.first is not None
            or options.studies is not None
        ):
            cli.error("--merge takes --out and --split alone")
        return
    if options.studies is None:
        cli.error("the following arguments are required: --studies")
    if options.studies < 1 or options.workers < 1 or options.seed < 0:
        cli.error("--studies and --workers must be at least 1, --seed at least 0")
    for name in ("wild", "hard"):
        if not 0 <= getattr(options, name) <= 1:
            cli.error(f"--{name}: found {getattr(options, name)}, expected a share in 0..1")
    if options.overwrite and (options.shard or options.first is not None):
        cli.error("--overwrite is for a cohort in one go, not for --shard or --first")
    if options.first is not None and options.first < 0:
        cli.error("--first must be at least 0")


def script() -> None:
    """The installed command ``lumbar-phantom``."""
    run_as_process(main)


if __name__ == "__main__":
    script()
