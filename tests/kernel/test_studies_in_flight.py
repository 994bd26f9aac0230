"""Two studies in flight on a GPU: while one is in the networks, another is cut and decoded. A fake takes its place."""

import threading
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernel_bundles import write_bundle
from kernel_fakes import FAKE, probs_of, write_cohort
from kernel_fakes import predict as fake_predict
from kernel_fakes import read as fake_read
from kernel_untrained import CONFIGS, write_untrained_bundle
from lumbar.chains.registry import MAIN, chain_of
from lumbar.competitions.registry import DEFAULT
from lumbar.config import to_dict
from lumbar.labels import row_ids
from lumbar.models import build, name_of
from lumbar.models.inference import forward
from lumbar.output.submission import normalise
from lumbar.run import predict
from lumbar.workers.effort import Effort
from lumbar.workers.handle import InNetworks, Worker

PRIOR = [0.6, 0.3, 0.1]
PATIENCE_S = 600


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch):
    """As if the machine had one; the fakes do not care."""
    monkeypatch.setattr("lumbar.run.cuda_devices", lambda: ["cuda:0"])


def in_flight(count=2, **functions):
    return replace(FAKE, uses_gpu=True, gpu_studies=count, **functions)


def cohort(tmp_path, n_studies, **traits):
    return write_cohort(
        tmp_path / "data", {k: (traits[f"s{k}"],) if f"s{k}" in traits else () for k in range(1, n_studies + 1)}
    )


def assert_all_predicted_but(frame, *given_up):
    for study_id in sorted({int(row_id.partition("_")[0]) for row_id in frame["row_id"]}):
        rows = frame[frame["row_id"].isin(row_ids(study_id))].iloc[:, 1:].to_numpy(dtype=float)
        expected = [PRIOR] * 25 if study_id in given_up else normalise(probs_of(study_id))
        np.testing.assert_allclose(rows, expected, atol=1e-8, err_msg=f"study {study_id}")


def problems(record, study_id):
    return next(study["problems"] for study in record["studies"] if study["study_id"] == study_id)


class Counted:
    """Counts the studies that a chain has open; ``predict`` waits until two are in it, or no other is to come."""

    def __init__(self, n_studies):
        self.changed = threading.Condition()
        self.n_studies, self.n_read, self.n_done = n_studies, 0, 0
        self.inside, self.most_inside, self.most_open = 0, 0, 0

    def read(self, *arguments):
        with self.changed:
            self.n_read += 1
            self.most_open = max(self.most_open, self.n_read - self.n_done)
        return fake_read(*arguments)

    def predict(self, *arguments):
        with self.changed:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
            self.changed.notify_all()
            # The first of each pair waits for the second
            assert self.changed.wait_for(
                lambda: self.inside > 1 or self.n_done % 2 or self.n_done == self.n_studies - 1, PATIENCE_S
            )
        try:
            return fake_predict(*arguments)
        finally:
            with self.changed:
                self.inside, self.n_done = self.inside - 1, self.n_done + 1
                self.changed.notify_all()


def test_two_studies_are_in_the_networks_and_one_more_is_read(tmp_path, bundle):
    counted = Counted(6)
    chain = in_flight(read=counted.read, predict=counted.predict)
    frame, record = predict(cohort(tmp_path, 6), bundle, tmp_path / "s.csv", chain=chain, processes=False)
    assert_all_predicted_but(frame)
    assert counted.most_inside == 2
    assert counted.most_open <= 3
    assert [study["study_id"] for study in record["studies"]] == [1, 2, 3, 4, 5, 6]
    assert list(frame["row_id"]) == [row for k in range(1, 7) for row in row_ids(k)]


@pytest.mark.parametrize(("count", "gpus"), [(1, ["cuda:0"]), (2, [])])
def test_one_study_at_a_time_on_a_cpu_and_where_a_chain_allows_no_more(tmp_path, bundle, monkeypatch, count, gpus):
    monkeypatch.setattr("lumbar.run.cuda_devices", lambda: gpus)
    inside, most = [], []

    def one(*arguments):
        inside.append(1)
        most.append(len(inside))
        try:
            return fake_predict(*arguments)
        finally:
            inside.pop()

    chain = in_flight(count, predict=one)
    frame, _ = predict(cohort(tmp_path, 3), bundle, chain=chain, processes=False, workers=None if gpus else 1)
    assert_all_predicted_but(frame)
    assert max(most) == 1


@pytest.mark.parametrize(("trait", "line"), [("raise-predict", "index 5 is out of bounds"), ("exit", "SystemExit: 3")])
def test_a_study_that_raises_costs_itself_and_not_the_one_beside_it(tmp_path, bundle, trait, line):
    root = cohort(tmp_path, 4, s2=trait)
    frame, record = predict(root, bundle, chain=in_flight(), processes=False)
    assert_all_predicted_but(frame, 2)
    assert line in problems(record, 2)[0]
    assert [problems(record, k) for k in (1, 3, 4)] == [[]] * 3


def test_a_study_that_hangs_costs_itself_and_not_the_one_beside_it(tmp_path, bundle, caplog):
    """Study 1 is in the networks too, and goes no further until study 2 does: both are tried again, each alone."""
    root, is_hanging, release = cohort(tmp_path, 4), threading.Event(), threading.Event()
    now, tries = [0.0], []

    def stuck(study, *rest):
        tries.append(study.study_id)
        if study.study_id == 2:
            is_hanging.set()
            now[0] += 2000.0 * tries.count(1)
            release.wait(PATIENCE_S)
        elif study.study_id == 1 and tries.count(1) == 1:
            is_hanging.wait(PATIENCE_S)
            release.wait(PATIENCE_S)
        return fake_predict(study, *rest)

    try:
        frame, record = predict(root, bundle, chain=in_flight(predict=stuck), processes=False, clock=lambda: now[0])
    finally:
        release.set()
    assert_all_predicted_but(frame, 2)
    assert problems(record, 1) == []
    assert "no prediction after" in problems(record, 2)[0]
    assert sorted(tries) == [1, 1, 2, 2, 3, 4]


def test_a_device_that_is_lost_costs_no_study_but_the_one_that_loses_it(tmp_path, bundle):
    root = cohort(tmp_path, 5, s2="lost")
    frame, record = predict(root, bundle, chain=in_flight(), processes=False)
    assert_all_predicted_but(frame, 2)
    assert problems(record, 2) == ["study 2: RuntimeError: CUDA error: device-side assert triggered"]


def test_a_process_that_dies_costs_the_study_that_kills_it_and_not_the_one_beside_it(tmp_path, bundle):
    root = cohort(tmp_path, 4, s2="die")
    frame, record = predict(root, bundle, chain=in_flight())
    assert_all_predicted_but(frame, 2)
    assert problems(record, 2) == ["study 2: worker lost while predicting (its process ended with exit code 9)"]


def test_two_in_flight_give_the_bits_of_one_after_the_other(tmp_path, phantom_cohort):
    untrained = write_untrained_bundle(tmp_path / "bundle")
    inside, both = [0], threading.Barrier(2)

    def meeting(study, *rest):
        inside[0] += 1
        both.wait(PATIENCE_S)
        return MAIN.predict(study, *rest)

    chain = replace(MAIN, load=lambda manifest, _device: MAIN.load(manifest, "cpu"))
    assert chain.gpu_studies == 2
    together, record = predict(phantom_cohort, untrained, chain=replace(chain, predict=meeting), processes=False)
    one, _ = predict(phantom_cohort, untrained, chain=replace(chain, gpu_studies=1), processes=False)
    np.testing.assert_array_equal(together.iloc[:, 1:].to_numpy(), one.iloc[:, 1:].to_numpy())
    assert (inside[0], record["devices"]) == (2, ["cuda:0"])


@pytest.mark.parametrize(("external", "count"), [([None, None], 2), ([None, "code of others"], 1)])
def test_code_of_external_members_never_runs_for_two_studies_at_once(external, count):
    members = [types.SimpleNamespace(external=one) for one in external]
    manifest = types.SimpleNamespace(competition_name=DEFAULT, classifiers=members)
    chain = chain_of("main", manifest)
    assert (chain.studies_at_once("cuda:1"), chain.studies_at_once("cpu")) == (count, 1)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_passes_that_two_threads_queue_on_a_gpu_give_the_bits_of_one():
    torch.manual_seed(0)
    network = build(name_of(CONFIGS["sagittal_xy"]), to_dict(CONFIGS["sagittal_xy"])).cuda().eval()
    inputs = [torch.rand(16, 3, 64, 64) for _ in range(40)]
    alone = [forward(network, images) for images in inputs]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda images: forward(network, images), inputs))
    torch.cuda.synchronize()
    for one, other in zip(alone, together, strict=True):
        assert (other.device.type, other.dtype) == ("cpu", torch.float32)
        np.testing.assert_array_equal(one.numpy(), other.numpy())


# ---- seconds that a study added --------------------------------------------------------------------------------


def worker_of(most_busy):
    """A worker whose networks take so many studies at once, without a process."""

    class Idle(Worker):
        def __init__(self):
            self.busy, self._ends, self._first_s = {}, [], 0.0

        most_busy = property(lambda self: most_busy)

    return Idle()


def ended(worker, began_s, now_s):
    return worker.ended(InNetworks(began_s, began_s, Effort.FULL), now_s)


def test_a_study_added_the_time_since_the_one_before_or_since_its_own_reading():
    worker = worker_of(1)
    assert ended(worker, 0.0, 10.0) == 10.0
    assert ended(worker, 3.0, 18.0) == 8.0  # read ahead
    assert ended(worker, 30.0, 35.0) == 5.0  # the networks had nothing to do


def test_studies_side_by_side_that_end_together_added_their_share_each():
    worker = worker_of(2)
    worker.busy = {"other": None}
    added = [ended(worker, began, now) for began, now in ((0, 20), (0, 20.5), (5, 40), (5, 40.5), (25, 60), (25, 60.5))]
    assert added == [20.0, 10.25, 10.0, 10.0, 10.0, 10.0]
    worker.busy = {}
    assert ended(worker, 100.0, 115.0) == 15.0
