"""Parts of a run over any folder of DICOM: dealt out by text ids, resumed by the files of each study, and merged."""

import json
import os
from dataclasses import replace
from zlib import crc32

import pytest

from hospital_tree import T1, T2, write_series
from kernel_bundles import write_bundle
from kernel_fakes import FAKE, FakeStudy
from lumbar.io.file_names import file_stem
from lumbar.io.tables import files_of
from lumbar.labels import DESCRIPTIONS
from lumbar.output.merge import merge
from lumbar.run import Collector, predict
from lumbar.workers.predictor import Predictor

N_STUDIES = 6


class Indexed:
    """A chain that reads the files which the index tells, and notes the studies that it read."""

    def __init__(self):
        self.read_ids = []
        self.chain = replace(FAKE, read=self.read, predict=self.predict)

    def read(self, root, split, study_id, table, workers):
        self.read_ids.append(study_id)
        assert len(files_of(table, study_id)) == 4
        return FakeStudy(study_id, root, set(), {name: ["stack"] for name in DESCRIPTIONS})

    @staticmethod
    def predict(study, networks, prior, effort):
        return FAKE.predict(replace(study, study_id=crc32(study.study_id.encode())), networks, prior, effort)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A hospital's tree of studies with text ids, a bundle, and what one run writes."""
    folder = tmp_path_factory.mktemp("folder")
    for number in range(N_STUDIES):
        for name, times in (("t1", T1), ("t2", T2)):
            place = folder / "tree" / f"{number % 2}" / f"{number}{name}"
            write_series(place, f"CASE {number}/A", f"1.{number}.{name}", 2, PatientID=None, **times)
    bundle = write_bundle(folder / "bundle")
    outputs = {"record": folder / "one.json", "table": folder / "one-table.csv"}
    predict(folder / "tree", bundle, folder / "one.csv", chain=Indexed().chain, processes=False, **outputs)
    return folder


def part(folder, out, index, root="tree"):
    """Run one of two parts as far as it is not done; returns the studies that were read."""
    indexed = Indexed()
    outputs = {"table": out / "t.csv", "markups": out / "mrk", "report": out / "r.html", "report_layout": "pages"}
    predict(folder / root, folder / "bundle", out / "s.csv", chain=indexed.chain, processes=False, resume=True,
            shard=f"{index}/2", in_memory=False, **outputs)  # fmt: skip
    return indexed.read_ids


def plain(path):
    """A record without what two runs do not share."""
    record = json.loads(path.read_text())
    record["seconds"], record["devices"] = {}, sorted(set(record["devices"]))
    record["index"]["seconds"] = 0
    return record | {"studies": [study | {"seconds": 0} for study in record["studies"]]}


def test_parts_that_were_resumed_and_merged_are_what_one_run_writes(folder, tmp_path):
    read = [part(folder, tmp_path, index) for index in (0, 1)]
    assert sorted([*read[0], *read[1]]) == [f"CASE~20{number}~2fA" for number in range(N_STUDIES)]
    index = int(len(read[1]) > len(read[0]))
    journal = tmp_path / f"s.{index}-of-2.csv.journal"
    journal.write_bytes(journal.read_bytes()[:-9])  # as a kill leaves it
    page = tmp_path / f"r.{index}-of-2" / f"study-{file_stem(read[index][0])}.html"
    before = page.read_bytes()
    assert part(folder, tmp_path, index) == read[index][-1:]
    assert page.read_bytes() == before
    extras = [tmp_path / name for name in ("m.json", "m.html", "m-table.csv")]
    totals = merge(sorted(tmp_path.glob("s.*.csv")), tmp_path / "m.csv", *extras)
    assert totals == {"rows": 25 * N_STUDIES, "studies": N_STUDIES, "predicted": N_STUDIES}
    for name in (".csv", "-table.csv"):
        assert (tmp_path / f"m{name}").read_bytes() == (folder / f"one{name}").read_bytes()
    assert plain(tmp_path / "m.json") == plain(folder / "one.json")
    assert all(len(study["inputs"]) == 2 for study in plain(tmp_path / "m.json")["studies"])
    assert (tmp_path / "m.html").read_text().count("data:image/png") == N_STUDIES
    assert len(list((tmp_path / "mrk").iterdir())) == N_STUDIES


def test_only_a_study_whose_own_files_changed_is_predicted_again(folder, tmp_path):
    read = part(folder, tmp_path, 0)
    assert part(folder, tmp_path, 0) == []
    (folder / "tree").rename(folder / "moved")  # as another machine has it mounted
    try:
        assert part(folder, tmp_path, 0, "moved") == []
        number = read[1][7]  # CASE~20N~2fA
        os.utime(folder / "moved" / f"{int(number) % 2}" / f"{number}t2" / "IM00002", (1, 1))
        assert part(folder, tmp_path, 0, "moved") == [read[1]]
    finally:
        (folder / "moved").rename(folder / "tree")


def test_an_engine_with_processes_of_its_own_takes_any_folder(folder, tmp_path):
    indexed = Indexed()
    predictor = Predictor(folder / "tree", folder / "bundle", chain=indexed.chain)
    with Collector(folder / "tree", folder / "bundle", tmp_path / "s.csv", chain=indexed.chain) as run:
        for study_id in run.left:
            run.add(predictor.text(study_id))
    assert (tmp_path / "s.csv").read_bytes() == (folder / "one.csv").read_bytes()
