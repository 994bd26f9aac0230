"""What backbones of fits that are still to begin start from, beside those that have begun (``stages.pretrained``)."""

from __future__ import annotations

from lumbar.bundle.manifest import file_sha256
from lumbar_train.data.folds import parse_folds, read_own_folds, with_seeds
from lumbar_train.files import read_object
from lumbar_train.outputs.kept import FILE
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.pipeline.begun import begun_entries, entries_to_begin
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.recipes import Recipe
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.pretrained import Start, backbone_of
from lumbar_train.stages.registry import chosen_stages

NOTE = "start"  # in recipe.json
RANDOM, TIMM = "random weights", "timm's weights"


def check_start(options: TrainOptions, recipe: Recipe, start: Start) -> None:
    """See that backbones can have what they start from; a run that is gone on with asks only for fits still to begin.

    Raises:
        TrainingError: as ``Start.check``.
        CohortError, LeakError: the folds of the run cannot be read, or are not those that are asked for.
    """
    runs = [RunFolder(folder) for folder in dict.fromkeys((options.out, options.taken_from or options.out))]
    table = next((run.folds for run in runs if run.folds.is_file()), None)
    if not options.resume or table is None:
        start.check(recipe)
        return
    use_folds = with_seeds(parse_folds(options.folds, read_own_folds(table)), options.full_seeds or recipe.full_seeds)
    start.check(recipe, entries_to_begin(runs, recipe, chosen_stages(recipe, options.stages), use_folds))


def start_note(run: RunContext, options: TrainOptions) -> dict[str, str]:
    """What ``recipe.json`` says of the start of each entry's backbone; says in one line where fits start otherwise.

    Entries of which a fit has begun keep what was noted; older runs have noted nothing of them.
    """
    chosen = chosen_stages(run.recipe, options.stages)
    noted = read_object(run.out / FILE).get(NOTE)
    former = {str(name): str(word) for name, word in noted.items()} if isinstance(noted, dict) else {}
    anew = set() if run.resume else {stage.recipe_name or stage.name for stage in chosen}
    begun = begun_entries(run.out, run.recipe) - anew
    now = {name: word for name in run.recipe.stages if (word := _word(run.start, run.recipe, name))}
    to_begin = entries_to_begin([run.folder], run.recipe, chosen, run.use_folds)
    others = [name for name in now if name in begun & to_begin & former.keys() and former[name] != now[name]]
    if others:
        first = others[0]
        print(
            f"{run.out / FILE}: fits of {', '.join(others)} began from {former[first]}, those still to begin start "
            f"from {now[first]}; --pretrained, --no-pretrained and --backbone-weights as before start them alike",
            flush=True,
        )
    kept = {name: word for name, word in former.items() if name in begun}
    return kept | {name: word for name, word in now.items() if name not in begun}


def _word(start: Start, recipe: Recipe, entry: str) -> str:
    """What an entry's backbone starts from, the same on every machine; empty for a network without one."""
    config = backbone_of(recipe.stages[entry])
    if config is None:
        return ""
    file = start.files.get(config.name)
    if file is None:
        return TIMM if start.is_pretrained else RANDOM
    return f"a checkpoint of hash {file_sha256(file)[:12]}" if file.is_file() else f"the checkpoint {file.name}"
