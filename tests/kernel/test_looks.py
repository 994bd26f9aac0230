"""Further looks at the canal's slices say whether the column of levels stays where it was read."""

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from lumbar.dicom import Stack
from lumbar.geometry import make_grid
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2
from lumbar.models import build
from lumbar.models.inference import Networks
from lumbar.stages import localise as localise_module
from lumbar.stages import looks as looks_module
from lumbar.stages.heat import SagittalHeat, pose_of, sagittal_grid, sagittal_heat
from lumbar.stages.localise import localise
from lumbar.stages.looks import LOOKS, levels_seen, look_again, slices_of, votes_of
from lumbar.stages.numbering import (
    NOT_LOOKED,
    Evidence,
    asks_for_looks,
    column_mm,
    numbering_of,
    settle_numbering,
    shifted_levels,
)
from lumbar.stages.points import Localisation
from lumbar.study import Study

STEP = 34.0
LEVELS_MM = {level: (0.0, 1.2 * k**2, 68.0 - STEP * k) for k, level in enumerate(LEVELS)}
COLUMN = column_mm(LEVELS_MM)
FIVE = (0.0, 1.0, 1.0, 8.0, 5.0)
SEVEN = (*FIVE, 0.0, 1.0)


def a_stack(n_slices=3, seed=0):
    """A stack of noise over a gradient, 300 mm square."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 800, 150, dtype=np.float32)
    return Stack(
        series_id="t2",
        volume=(rng.random((n_slices, 150, 150), dtype=np.float32) * 200 + ramp).astype(np.float32),
        origins_mm=np.array([[4.0 * k - 4.0, -150.0, 150.0] for k in range(n_slices)]),
        row_mm=np.array([0.0, 0.0, -2.0]),
        column_mm=np.array([0.0, 2.0, 0.0]),
        instance_numbers=list(range(1, n_slices + 1)),
    )


def a_study(stack):
    return Study(7, {SAGITTAL_T2: [stack], SAGITTAL_T1: [], AXIAL_T2: []})


def a_network(context=3):
    return build("heatmap", {"points": 11, "size": 128, "mm_per_px": 2.5, "context": context, "widths": [8, 8]}).eval()


@pytest.mark.parametrize(("by", "place"), [(0, 0), (-1, 1), (1, 2)])
def test_levels_vote_for_the_disc_that_they_lie_on(by, place):
    votes = votes_of(shifted_levels(LEVELS_MM, by), COLUMN, np.ones(5))
    assert votes[place] == pytest.approx(1.0)
    assert votes.sum() == pytest.approx(1.0)


def test_levels_that_are_absent_or_between_two_discs_are_elsewhere():
    some = {level: xyz for level, xyz in LEVELS_MM.items() if level not in ("l1_l2", "l5_s1")}
    np.testing.assert_allclose(votes_of(some, COLUMN, np.ones(5)), (0.6, 0.0, 0.0, 0.4))
    assert votes_of({}, COLUMN, np.ones(5))[3] == pytest.approx(1.0)
    aside = {level: (x, y + 0.6 * STEP, z) for level, (x, y, z) in LEVELS_MM.items()}
    assert votes_of(aside, COLUMN, np.ones(5))[3] == pytest.approx(1.0)
    two_off = shifted_levels(shifted_levels(LEVELS_MM, 1), 1)
    assert votes_of(two_off, COLUMN, np.ones(5))[3] == pytest.approx(1.0)


def test_the_distance_across_slices_does_not_count():
    beside = {level: (x + 25.0, y, z) for level, (x, y, z) in LEVELS_MM.items()}
    assert votes_of(beside, COLUMN, np.ones(5))[0] == pytest.approx(1.0)


@pytest.mark.parametrize("look", LOOKS, ids=[look.name for look in LOOKS])
def test_every_look_shows_the_image_otherwise_and_in_its_range(look):
    stack, network = a_stack(), a_network()
    grid = sagittal_grid(stack, network)
    view = make_grid(stack, size=grid.size, mm_per_px=grid.mm_per_px * look.step)
    study = a_study(stack)
    images = np.stack([study.sampled(stack, k, view) for k in range(2)])
    if look.edit is None:
        assert look.step != 1.0
        return
    kept = images.copy()
    edited = look.edit(images, stack, view)
    np.testing.assert_array_equal(images, kept)  # the caller's images stay
    assert edited.shape == images.shape
    assert edited.dtype == np.float32
    assert 0.0 <= edited.min() <= edited.max() <= 1.0
    assert np.abs(edited - images).max() > 0.02
    blank = look.edit(np.zeros_like(images), stack, view)
    assert np.isfinite(blank).all()
    assert not blank.any()


def test_a_cut_look_keeps_the_middle_and_loses_the_edges_of_the_source_image():
    stack, network = a_stack(), a_network()
    view = sagittal_grid(stack, network)
    cut = next(look for look in LOOKS if look.name == "cut")
    edited = cut.edit(np.ones((1, view.size, view.size), np.float32), stack, view)[0]
    middle = view.size // 2
    assert edited[middle, middle] == 1.0
    corners = view.to_grid(np.array([[5.0, 75.0], [75.0, 5.0], [75.0, 145.0], [145.0, 75.0]]))
    assert all(edited[round(y), round(x)] == 0.0 for x, y in corners)


def looked(monkeypatch, answer, levels_mm=LEVELS_MM, stacks=MappingProxyType({})):
    """``look_again`` on two series, where ``answer(description, look)`` tells the levels that are seen."""
    maps = [
        SagittalHeat(name, 0, stack, make_grid(stack, size=64, mm_per_px=4.0), np.zeros((3, 11, 32, 32)))
        for name in (SAGITTAL_T2, SAGITTAL_T1)
        for stack in [stacks.get(name, a_stack())]
    ]

    def levels_seen(_study, one, *_):
        return {look.name: answer(one.description, look) for look in LOOKS}

    monkeypatch.setattr(looks_module, "levels_seen", levels_seen)
    return look_again(a_study(a_stack()), maps, [], levels_mm)


def test_a_column_that_stays_is_the_likelier_and_one_that_moves_the_less_likely(monkeypatch):
    stays = looked(monkeypatch, lambda *_: LEVELS_MM)
    moves = looked(monkeypatch, lambda *_: shifted_levels(LEVELS_MM, -1))
    assert max(stays) == min(stays) == pytest.approx(np.log(0.5 / 7.5))
    assert moves[0] == pytest.approx(np.log(7.5 / 0.5))
    assert moves[1] == moves[2] == 0.0
    lost = looked(monkeypatch, lambda *_: {})
    assert lost[2] == pytest.approx(np.log(7.5 / 0.5))

    def sure(looks):
        return numbering_of(Evidence((1.0, 1.0), (1.0, 1.0), -1.0, looks=looks), SEVEN)

    assert sure(stays).confidence > sure(NOT_LOOKED).confidence > sure(moves).confidence
    assert sure(moves).one_higher > sure(stays).one_higher
    assert sure(lost).elsewhere > sure(stays).elsewhere


def test_series_and_looks_count_alike(monkeypatch):
    lower = shifted_levels(LEVELS_MM, 1)
    one_series = looked(monkeypatch, lambda name, _: lower if name == SAGITTAL_T1 else LEVELS_MM)
    assert one_series[1] == pytest.approx(0.0)  # as many votes for one lower as for the column as read
    one_look = looked(monkeypatch, lambda _, look: lower if look.name == "darker" else LEVELS_MM)
    assert one_look[1] == pytest.approx(np.log(1.5 / 6.5))


def test_too_few_levels_are_not_looked_at_again(monkeypatch):
    two = dict(list(LEVELS_MM.items())[:2])
    assert looked(monkeypatch, lambda *_: pytest.fail("looked at again"), two) == NOT_LOOKED


def test_stacks_that_do_not_show_the_column_are_not_looked_at_again(monkeypatch):
    above = replace(a_stack(), origins_mm=a_stack().origins_mm + np.array([0.0, 0.0, 300.0]))
    answer = {SAGITTAL_T2: LEVELS_MM}
    alone = looked(monkeypatch, lambda name, _: answer[name], stacks={SAGITTAL_T1: above})
    assert alone == looked(monkeypatch, lambda *_: LEVELS_MM)


@pytest.mark.parametrize("numbers", [(), FIVE, (*FIVE, 1.0), (*FIVE, 1.0, 0.0)])
def test_older_bundles_are_not_looked_at_again(numbers):
    assert not asks_for_looks(numbers)


def test_numbers_without_looks_do_not_see_them():
    plain = Evidence((1.0, 2.0), (1.0, 0.5), -1.0, (0.3, 0.2))
    told = replace(plain, looks=(3.0, 3.0, 3.0))
    for numbers in (FIVE, (*FIVE, 0.7)):
        assert numbering_of(told, numbers) == numbering_of(plain, numbers)
    assert asks_for_looks(SEVEN)
    assert numbering_of(told, SEVEN) != numbering_of(plain, SEVEN)


def test_looks_alone_can_move_the_column(monkeypatch):
    stack = a_stack()
    maps = [SagittalHeat(SAGITTAL_T2, 0, stack, make_grid(stack, size=64, mm_per_px=4.0), np.zeros((3, 11, 32, 32)))]
    localisation = Localisation(levels_mm=dict(LEVELS_MM))
    looks = (2.7, -2.7, -2.7)
    settle_numbering(maps, localisation, dict.fromkeys(LEVELS, 0.5), (0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 2.0), looks)
    assert localisation.moved == -1
    assert localisation.levels_mm == shifted_levels(LEVELS_MM, -1)


def test_the_slice_in_the_middle_of_the_levels_is_looked_at_and_those_that_lie_apart():
    stack = a_stack(5)  # at x = -4, 0, 4, 8 and 12 mm
    assert slices_of(stack, LEVELS_MM) == [1]
    aside = {level: (x, *LEVELS_MM[level][1:]) for level, x in zip(LEVELS, (0.1, 0.2, 0.0, 4.1, 8.2), strict=True)}
    assert slices_of(stack, aside) == [1, 3]
    beyond = {level: (-40.0, *xyz[1:]) for level, xyz in LEVELS_MM.items()}
    assert slices_of(stack, beyond) == [0]


@pytest.mark.parametrize("context", [1, 3])
def test_a_look_shows_the_network_its_slices_with_their_neighbours_in_the_patients_pose(monkeypatch, context):
    """With nothing changed, the heat equals that of the same slices in a reading of the whole stack."""
    stack, network = a_stack(5), a_network(context)
    study, kept = a_study(stack), []
    monkeypatch.setattr(looks_module, "fuse_levels", lambda maps, _: kept.append(maps[0]) or {})
    levels = dict(zip(LEVELS, [(0.0, y, z) for _, y, z in LEVELS_MM.values()], strict=True))
    levels["l5_s1"] = (12.0, *levels["l5_s1"][1:])
    whole = sagittal_heat(study, SAGITTAL_T2, 0, [network], pose=pose_of(stack, network, levels))
    plain, softer = looks_module.Look("same"), next(look for look in LOOKS if look.name == "softer")
    seen = levels_seen(study, whole, [network, network], levels, (plain, softer))
    assert list(seen) == ["same", "softer"]
    np.testing.assert_allclose(kept[0].heat, whole.heat[[1, 4]], atol=1e-6)
    assert np.abs(kept[1].heat - kept[0].heat).max() > 1e-6
    np.testing.assert_allclose(kept[0].stack.origins_mm, stack.origins_mm[[1, 4]])
    np.testing.assert_allclose(kept[0].grid.to_source(np.zeros(2)), whole.grid.to_source(np.zeros(2)))


@pytest.mark.parametrize(("numbers", "n_looks"), [(FIVE, 0), (SEVEN, 1)])
def test_localise_looks_again_only_where_the_bundle_has_a_number_for_it(monkeypatch, numbers, n_looks):
    calls = []
    stack, network = a_stack(), a_network()
    heat = sagittal_heat(a_study(stack), SAGITTAL_T2, 0, [network], with_tissue=True)

    def read_levels(study, stacks, networks, localisation, **_):
        localisation.levels_mm.update(LEVELS_MM)
        return [heat], dict.fromkeys(LEVELS, 0.5)

    monkeypatch.setattr(localise_module, "read_levels", read_levels)
    monkeypatch.setattr(localise_module, "place_all", lambda *_arguments, **_options: None)
    monkeypatch.setattr(localise_module, "look_again", lambda *arguments: calls.append(arguments) or NOT_LOOKED)
    networks = Networks(numbering=numbers)
    monkeypatch.setattr(localise_module, "folds_of", lambda *_: [network])
    assert localise(a_study(stack), networks).numbering is not None
    assert len(calls) == n_looks
    assert localise(a_study(stack), networks, augment=False).numbering is None  # when time is short
    assert len(calls) == n_looks
