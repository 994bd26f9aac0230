"""Who does which studies: the numbers that launchers give, and how studies are dealt out."""

import types

import pytest

from lumbar.errors import CohortError
from lumbar.run import _layout
from lumbar.workers.shards import Shard, find_shard, shard_of

GPUS = ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]


def test_every_study_has_one_part_which_no_later_study_changes():
    ids = [*range(1, 2000), "1.2.840.113619.2", "Müller\udce9"]
    parts = [Shard(index, 7).own(ids) for index in range(7)]
    assert sorted(str(study_id) for part in parts for study_id in part) == sorted(map(str, ids))
    assert Shard(3, 7).own([*ids, 5000, "x"])[: len(parts[3])] == parts[3]
    assert min(map(len, parts)) > 200  # dealt out evenly, about 286 each


def test_the_part_of_an_id_is_that_of_its_text_and_never_changes():
    assert [shard_of(study_id, 4) for study_id in (1, 2, 3, "3", "a")] == [2, 0, 1, 1, 3]


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        (None, {}, None),
        ("2/5", {"RANK": "0", "WORLD_SIZE": "2"}, Shard(2, 5)),
        (" 0 / 1 ", {}, Shard(0, 1)),
        (None, {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Shard(1, 4, 1, 2)),
        (None, {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Shard(3, 4, 1, 2)),
        (None, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, None),
        (None, {"RANK": "1"}, None),
        (None, {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4"}, None),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4"}, Shard(1, 4)),
        ("auto/9", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "7"},
         Shard(7, 9)),
        ("auto/4", {"JOB_COMPLETION_INDEX": "3"}, Shard(3, 4)),
        ("auto", {"RANK": "1", "WORLD_SIZE": "2", "SLURM_ARRAY_TASK_ID": "9"}, Shard(1, 2, 0, 1)),
    ],
)  # fmt: skip
def test_a_process_knows_its_part(text, variables, expected):
    assert find_shard(text, variables) == expected


@pytest.mark.parametrize(
    ("text", "variables", "message"),
    [
        ("3/2", {}, r"shard '3/2': found part 3 of 2, expected 0 to 1$"),
        ("2/2", {}, "found part 2 of 2, expected 0 to 1"),
        ("0/0", {}, "found 0 parts, expected 1 to 1000000"),
        ("-1/2", {}, "shard '-1/2': expected I/N with I from 0"),
        ("1", {}, "shard '1': expected I/N"),
        ("a/b", {}, "shard 'a/b': expected I/N"),
        ("", {}, "shard '': expected I/N"),
        ("auto", {}, r"found none of the variables RANK \(torchrun\), SLURM_ARRAY_TASK_ID \(Slurm\), JOB_COMP"),
        ("auto", {"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETION_INDEX without the number of parts.*expected auto/N"),
        ("auto/2", {"JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETION_INDEX=2: found part 2 of 2, expected 0 to 1"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "x", "SLURM_ARRAY_TASK_COUNT": "2"}, "SLURM_ARRAY_TASK_ID: found 'x', expect"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "0"}, "SLURM_ARRAY_TASK_COUNT: found None, expected a whole number"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1",
                  "SLURM_ARRAY_TASK_MAX": "4"}, "found 4 Slurm tasks numbered 1 to 4, expected 0 to 3; auto/N"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0",
                  "SLURM_ARRAY_TASK_MAX": "2"}, "found 2 Slurm tasks numbered 0 to 2, expected 0 to 1"),
        (None, {"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4: found part 4 of 4, expected 0 to 3"),
    ],
)  # fmt: skip
def test_what_names_no_part_is_refused(text, variables, message):
    with pytest.raises(CohortError, match=message):
        find_shard(text, variables)


def test_files_bear_the_part_in_their_name():
    assert [str(Shard(0, 4).path(name)) for name in ("out/submission.csv", "s", "a.b.html")] == [
        "out/submission.0-of-4.csv", "s.0-of-4", "a.b.0-of-4.html",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (None, GPUS),
        (Shard(1, 2), GPUS),
        (Shard(5, 8, 1, 4), ["cuda:1"]),
        (Shard(0, 2, 0, 2), ["cuda:0", "cuda:2"]),
        (Shard(5, 6, 5, 6), ["cuda:1"]),
    ],
)
def test_each_process_of_a_machine_has_its_own_gpus(part, expected, monkeypatch):
    monkeypatch.setattr("lumbar.run.cuda_devices", lambda: GPUS)
    options = types.SimpleNamespace(workers=None, processes=True)
    chain = types.SimpleNamespace(uses_gpu=True)
    assert _layout(chain, None, options, part).of(100) == expected
