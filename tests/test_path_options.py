"""Options that name a file or a folder: one of the wrong kind, or a slip of the pen, is answered in one line."""

import argparse
import shlex
from pathlib import Path

import pytest

import lumbar_phantom.oracle as oracle
import lumbar_publish.cli as build_dataset
import lumbar_train.__main__ as lumbar_train
from lumbar import __main__ as lumbar
from lumbar.errors import CohortError
from lumbar.io.competition import check_competition
from lumbar.io.files import make_folder
from lumbar.io.path_options import PathUse, check_paths, did_you_mean_path
from lumbar.io.unfinished import unfinished_hint
from lumbar_phantom import __main__ as lumbar_phantom
from lumbar_phantom.parts import PartJournal, Plan
from lumbar_phantom.pitfalls import parse
from lumbar_phantom.study import Request
from lumbar_publish.names import Layout
from lumbar_publish.rehearsal import dry_run
from lumbar_publish.training import command as train_on_kaggle

PARSERS = {
    "lumbar": lumbar.parser(),
    "lumbar_train": lumbar_train._parser(),
    "lumbar_phantom": lumbar_phantom.parser(),
    "build_dataset": build_dataset._parser(),
    "dry-run": dry_run._parser("dry-run"),
    "train": train_on_kaggle._parser("train"),
}
# Options whose value is a path in one of its forms: the commands themselves look at them.
IN_PART = {"--cache", "--backbone-weights", "--folds"}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder with ``notes.md``, ``weights.csv`` and the folders ``dataset`` and ``Schmidt``; the current one."""
    monkeypatch.chdir(tmp_path)
    Path("notes.md").write_text("# Notes\n")
    Path("weights.csv").write_text("row_id,normal_mild\n")
    for name in ("dataset", "Schmidt"):
        Path(name).mkdir()
    return tmp_path


def options_of(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from ((f"{name} {text}", one) for text, one in options_of(command))
        else:
            yield action.option_strings[-1] if action.option_strings else "PATH", action


def refusal(use, path):
    parser = argparse.ArgumentParser()
    parser.add_argument("--place", type=use)
    with pytest.raises(CohortError) as caught:
        check_paths(parser, parser.parse_args(["--place", str(path)]))
    return str(caught.value)


@pytest.mark.parametrize("program", PARSERS)
def test_every_option_that_is_a_path_says_what_it_is_for(program):
    paths = {name: action for name, action in options_of(PARSERS[program]) if action.type is Path}
    assert not paths.keys() - {name for name in paths if name.split()[-1] in IN_PART}
    assert any(isinstance(action.type, PathUse) for _, action in options_of(PARSERS[program]))


USES = {
    f"{program} {name}": action.type
    for program, parser in PARSERS.items()
    for name, action in options_of(parser)
    if isinstance(action.type, PathUse)
}


# One option for each use that there is, and none for those that take a file and a folder alike.
OF_ONE_KIND = {use: name for name, use in USES.items() if use.kind in ("folder", "file")}


@pytest.mark.parametrize("use", OF_ONE_KIND, ids=OF_ONE_KIND.values())
def test_a_file_where_a_folder_is_meant_and_the_reverse_are_told_apart(places, use):
    if use.kind == "folder":
        there = "found a file" if use.is_input else "notes.md is a file"
        assert refusal(use, "notes.md").startswith(f"--place notes.md: {there}, expected a folder")
    else:
        assert refusal(use, "dataset").startswith("--place dataset: found a folder, expected a file")
    if not use.is_input:
        assert refusal(use, "notes.md/x") == "--place notes.md/x: notes.md is a file, expected a folder to write into"


EITHER = {use: name for name, use in USES.items() if use.kind == "file or folder"}


@pytest.mark.parametrize("use", EITHER, ids=EITHER.values())
def test_a_file_and_a_folder_are_both_taken_where_either_is_meant(places, use):
    parser = argparse.ArgumentParser()
    parser.add_argument("--place", type=use)
    for name in ("notes.md", "dataset"):
        check_paths(parser, parser.parse_args(["--place", name]))
    assert "found a f" not in refusal(use, "datset")


@pytest.mark.parametrize("name", [name for name, use in USES.items() if use.is_input and not use.is_private])
def test_a_misspelt_input_gets_the_nearest_name_of_its_kind(places, name):
    if "folder" in USES[name].kind:
        assert refusal(USES[name], "datset").endswith("expected one that exists (did you mean dataset?)")
    if "file" in USES[name].kind:
        assert refusal(USES[name], places / "wieghts.csv").endswith(f"(did you mean {places / 'weights.csv'}?)")


def test_a_slip_in_the_middle_of_a_path_is_mended_where_the_rest_exists(places):
    (places / "dataset" / "weights").mkdir()
    assert did_you_mean_path("datset/wieghts") == " (did you mean dataset/weights?)"
    assert did_you_mean_path("datset/other") == ""
    assert did_you_mean_path("no.csv") == "", "the same ending alone is no likeness"
    assert did_you_mean_path("dataset") == ""


def test_a_name_beside_the_studies_that_may_be_a_patients_is_not_printed(places):
    assert did_you_mean_path("Schmitd", "folder") == " (did you mean Schmidt?)"
    use = PARSERS["lumbar"]._subparsers._group_actions[0].choices["inspect"]._actions[1].type
    assert did_you_mean_path("Schmitd", use.kind, use.may_show) == ""
    assert did_you_mean_path("datset", use.kind, use.may_show) == " (did you mean dataset?)"


def test_a_file_of_another_kind_is_not_written_over(places, capsys):
    words = ["predict", "--data", "dataset", "--weights", "dataset", "--out", "notes.md"]
    assert lumbar.main(words) == 1
    assert capsys.readouterr().err.startswith("error: --out notes.md: found a file that is no .csv and would be lost")
    Path("answer.txt").write_text("row_id,normal_mild\n")
    Path("empty.txt").write_text("")
    for free in ("answer.txt", "empty.txt", "weights.csv", "new.md"):
        check_paths(PARSERS["lumbar"], PARSERS["lumbar"].parse_args([*words[:-1], free]))


@pytest.mark.parametrize("name", [name for name, use in USES.items() if use.kind == "file" and not use.is_input])
def test_a_file_to_write_without_an_ending_is_refused(places, name):
    use = USES[name]
    for meant in ("out", "new/out", "v1.2/out", ".csv"):
        line = refusal(use, meant)
        assert line.startswith(f"--place: found '{meant}', expected a file's name such as {meant}/"), line
        assert line.endswith(use.ending)
    Path("answer").write_text("row_id,normal_mild\n")
    assert refusal(use, "answer").startswith("--place: found 'answer', expected a file's name")


def test_a_folder_for_out_leaves_nothing_behind(places, capsys):
    assert lumbar.main(["predict", "--data", "dataset", "--weights", "dataset", "--out", "out"]) == 1
    line = "error: --out: found 'out', expected a file's name such as out/submission.csv\n"
    assert capsys.readouterr().err == line
    assert not Path("out").exists()
    assert not Path("out.journal").exists()


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (lumbar.main, ["predict", "--data", "dataset", "--weights", "datset", "--out", "s.csv"]),
        (lumbar.main, ["score", "--solution", "dataset", "--submission", "weights.csv"]),
        (lumbar_train.main, ["train", "--data", "datset", "--out", "run"]),
        (lumbar_train.main, ["train", "--data", "dataset", "--out", "run", "--resume", "datset"]),
        (
            lumbar_train.main,
            ["compare", "--data", ".", "--baseline", "wieghts.csv", "--chain", "c", "--out", "."],
        ),
        (lumbar_phantom.main, ["--out", "notes.md", "--studies", "1"]),
        (oracle.main, ["--data", "datset", "--out", "s.csv"]),
        (dry_run.main, ["--data", "datset"]),
        (train_on_kaggle.main, ["--recipe", "demo", "--root", "datset"]),
        (lambda words: build_dataset.main(Layout(Path()), lambda _: None, words), ["--run", "datset"]),
    ],
)
def test_each_program_answers_in_one_line(places, capsys, main, words):
    assert main(words) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert any(text in line for text in ("found a f", "is a file", "did you mean"))


def test_a_folder_that_cannot_be_made_says_which_file_is_in_the_way(places):
    with pytest.raises(CohortError, match=r"notes.md/a: cannot be written \(notes.md is a file\), expected a folder"):
        make_folder(Path("notes.md/a"))


def request(root, index):
    return Request(str(root), "train", 3, index, ("missing_t1", "one_sided_points"))


def test_a_cohort_that_was_interrupted_is_named_with_the_command_that_finishes_it(places, capsys):
    root = places / "Jürgens Daten"
    (root / "train_images").mkdir(parents=True)
    PartJournal(Plan([request(root, index) for index in range(5)]), resume=False).close()
    with pytest.raises(CohortError) as caught:
        check_competition(root, "train")
    told, _, command = str(caught.value).partition("; finish it with ")
    assert told.endswith(": the cohort of phantoms is not finished (0 of 5 studies)")
    assert command == (
        f"python -m lumbar_phantom --out '{root}' --studies 5 --seed 3 --pitfalls missing_t1,one_sided_points --resume"
    )
    assert lumbar_train.main(["train", "--data", str(root), "--out", "run"]) == 1
    assert "is not finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    ["", "--seed 0 --pitfalls real --wild 0.3 --syntax rle",
     "--pitfalls none --wild 0 --masks --syntax jpeg_ls --seed 9",
     "--split test --pitfalls missing_t1,one_sided_points --wild 0.25", "--hard 0.4", "--hard 0"],
)  # fmt: skip
def test_the_command_that_finishes_a_cohort_means_what_its_parser_reads(places, words):
    """Defaults are left out of the command: they must be the parser's own."""
    parser = PARSERS["lumbar_phantom"]
    asked = parser.parse_args(["--out", "cohort", "--studies", "2", *words.split()])
    root = (places / "cohort").resolve()
    requests = [
        Request(
            str(root),
            asked.split,
            asked.seed,
            index,
            parse(asked.pitfalls),
            asked.masks,
            asked.wild,
            asked.syntax,
            asked.hard,
        )
        for index in range(2)
    ]
    PartJournal(Plan(requests), resume=False).close()
    command = shlex.split(unfinished_hint(root, asked.split).partition("; finish it with ")[2])
    assert command[:3] == ["python", "-m", "lumbar_phantom"]
    told = parser.parse_args(command[3:])
    asked.out, asked.resume = root, True
    assert vars(told) == vars(asked)


def test_parts_of_a_cohort_that_are_not_joined_are_named_with_the_command_that_joins_them(places):
    PartJournal(Plan([request(places, 0)], first=0), resume=False).close()
    with pytest.raises(CohortError, match=r"lumbar_phantom --out \S+ --split train --merge writes its tables"):
        check_competition(places, "train")
