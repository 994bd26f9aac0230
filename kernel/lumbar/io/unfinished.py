"""Whether a folder holds a cohort of phantoms that is not finished: its tables are written last.

The journals that tell are those of ``lumbar_phantom`` (``parts/SPLIT.journal``, ``parts/SPLIT.I-of-N.journal``).
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from lumbar.errors import CohortError
from lumbar.io.arguments import python_word
from lumbar.io.checked_lines import read_heads
from lumbar.io.text import counted

_MODULE = ("-m", "lumbar_phantom", "--out")
# settings in a journal's header → the option, and its default, which need not be said
_OPTIONS = {
    "pitfalls": ("--pitfalls", ["real"]),
    "wild": ("--wild", 0.3),
    "hard": ("--hard", 0.0),
    "syntax": ("--syntax", "rle"),
}


def unfinished_hint(root: Path, split: str) -> str:
    """Put behind a refusal of a folder whose tables are missing: how a cohort of phantoms is finished; or empty."""
    if (root / "parts" / f"{split}.journal").is_file():
        return _whole(root, split)
    if any((root / "parts").glob(f"{split}.*.journal")):
        command = shlex.join([python_word(), *_MODULE, str(root), "--split", split, "--merge"])
        return f": parts of a cohort of phantoms lie there; once all are made, {command} writes its tables"
    return ""


def _whole(root: Path, split: str) -> str:
    try:
        heads = [head for _, head in read_heads(root / "parts" / f"{split}.journal") if head is not None]
        header, n_done = heads[0], len(heads) - 1
        first, last = header["range"]
        command = _command(root, split, last - first + 1, header["settings"])
    except (CohortError, ValueError, LookupError, TypeError):
        return ": a cohort of phantoms is not finished there; run its lumbar_phantom command again with --resume"
    return (
        f": the cohort of phantoms is not finished ({n_done} of {counted(last - first + 1, 'study')}); finish it with "
        f"{command}"
    )


def _command(root: Path, split: str, n_studies: int, settings: dict[str, Any]) -> str:
    words = [python_word(), *_MODULE, str(root), "--studies", str(n_studies), "--seed", str(settings["seed"])]
    words += ["--split", split] if split != "train" else []
    for name, (option, default) in _OPTIONS.items():
        value = settings.get(name, default)
        if value != default:
            words += [option, ",".join(value) if isinstance(value, list) else str(value)]
    words += ["--masks"] if settings["masks"] else []
    return shlex.join([*words, "--resume"])
