"""Command line: ``lumbar-publish dry-run``, or ``python -m lumbar_publish``; what ``make dry-run`` runs; ``train``."""

from __future__ import annotations

import sys

from lumbar.io.arguments import Parser, program
from lumbar.io.signals import run_as_process
from lumbar_publish.rehearsal import dry_run
from lumbar_publish.training import command as train

COMMANDS = {"dry-run": dry_run.main, "train": train.main}


def main(argv: list[str] | None = None) -> int:
    """Run a command; its own arguments follow its name."""
    words = sys.argv[1:] if argv is None else argv
    name = program("lumbar_publish", "lumbar-publish")
    parser = Parser(
        prog=name,
        description="Rehearse a submission here, train on Kaggle. To seal and publish: python build_dataset.py --help",
        epilog=f"{name} dry-run --help lists the options of a command",
    )
    parser.add_argument(
        "command",
        choices=tuple(COMMANDS),
        help="dry-run: run the sealed notebook offline, as Kaggle would; train: train on Kaggle, session after session",
    )
    command = parser.parse_args(words[:1]).command
    return COMMANDS[command](words[1:], f"{name} {command}")


def script() -> None:
    """The installed command ``lumbar-publish``."""
    run_as_process(main)


if __name__ == "__main__":
    script()
