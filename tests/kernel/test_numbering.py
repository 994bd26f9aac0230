"""The numbering of the levels gets a probability, and where it is in doubt every reading counts."""

from dataclasses import replace

import numpy as np
import pytest

from lumbar.chains.contract import Outcome
from lumbar.dicom import Stack
from lumbar.geometry import make_grid, project
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2
from lumbar.models import build
from lumbar.models.inference import Networks
from lumbar.output.outcome_json import outcome_from, outcome_text
from lumbar.output.record import with_studies
from lumbar.stages import localise as localise_module
from lumbar.stages import place as place_module
from lumbar.stages.aggregate import mixed_readings
from lumbar.stages.decode import source_to_heat
from lumbar.stages.heat import SAGITTAL_POINTS, STRIDE, SagittalHeat, run_batches
from lumbar.stages.localise import localise
from lumbar.stages.numbering import (
    DOUBTFUL,
    column_mm,
    evidence_of,
    fill_absent,
    numbering_doubt,
    numbering_of,
    other_readings,
    say_of,
    settle_numbering,
    shifted_levels,
)
from lumbar.stages.points import AxialLevel, Localisation, Numbering, SagittalPoint
from lumbar.study import Study

STEP = 34.0
# Of discs counted from L1/2, which is 0, down a spine that bends backwards below
DISCS_MM = {k: (0.0, 1.2 * k**2, 68.0 - STEP * k) for k in range(-1, 7)}
LEVELS_MM = {level: DISCS_MM[k] for k, level in enumerate(LEVELS)}
NUMBERS = (0.0, 1.0, 1.0, 8.0, 5.0)


def maps_of(labelled_at=0, *, height=0.5, sacrum_at=5, has_tissue=True, first_at=None):
    """Heatmaps of one slice, each level's spot ``labelled_at`` discs below its own; sacrum from a vertebra on.

    With ``first_at`` the vertebra of this number, and the line below it, are told as S1 and the line of the disc S1/S2.
    """
    stack = Stack(
        series_id="t2",
        volume=np.zeros((1, 150, 150), np.float32),
        origins_mm=np.array([[0.0, -150.0, 150.0]]),
        row_mm=np.array([0.0, 0.0, -2.0]),
        column_mm=np.array([0.0, 2.0, 0.0]),
        instance_numbers=[1],
    )
    grid = make_grid(stack, size=192, mm_per_px=1.6)
    y, x = np.mgrid[:96, :96]

    def place(disc):
        return source_to_heat(grid, STRIDE, np.array(project(stack, np.array(DISCS_MM[disc]))[1:]))

    heat = np.full((1, SAGITTAL_POINTS, 96, 96), 1e-3, np.float32)
    for level in range(len(LEVELS)):
        cx, cy = place(level + labelled_at)
        heat[0, level] += height * np.exp(-0.5 * ((x - cx) ** 2 + (y - cy) ** 2) / 1.5**2)
    tissue = np.zeros((1, 2 if first_at is None else 4, 96, 96), np.float32)
    for vertebra in range(6):  # 0 is L2, below the disc L1/2; 5 lies below the disc under L5/S1
        upper, lower = place(vertebra), place(vertebra + 1)
        middle = (upper + lower) / 2 - (0.6 * STEP / 3.2, 0.0)
        tissue[0, int(vertebra >= sacrum_at - 1)] += np.hypot(x - middle[0], y - middle[1]) < 4
        if first_at is not None and vertebra == first_at - 1:
            tissue[0, 2] += np.hypot(x - middle[0], y - middle[1]) < 4
            tissue[0, 3] += np.hypot(x - lower[0] + 0.6 * STEP / 3.2, y - lower[1]) < 2
    return [SagittalHeat("Sagittal T2/STIR", 0, stack, grid, heat, tissue=tissue if has_tissue else None)]


def test_the_column_goes_on_beyond_its_ends_as_the_spine_bends():
    column = column_mm(LEVELS_MM)
    assert column.shape == (7, 3)
    for place, disc in ((0, -1), (6, 5)):
        assert np.linalg.norm(column[place] - DISCS_MM[disc]) < 6.0


def test_a_level_that_is_absent_lies_between_its_neighbours():
    some = {level: xyz for level, xyz in LEVELS_MM.items() if level != "l3_l4"}
    assert np.linalg.norm(column_mm(some)[3] - LEVELS_MM["l3_l4"]) < 1.0
    assert column_mm(dict(list(LEVELS_MM.items())[:2])) is None


def test_a_level_that_is_absent_follows_a_curve_to_the_side():
    bent = {level: (12.0 * np.sin(1.2 * k), y, z) for k, (level, (_, y, z)) in enumerate(LEVELS_MM.items())}
    some = {level: xyz for level, xyz in bent.items() if level != "l3_l4"}
    assert abs(column_mm(some)[3][0] - bent["l3_l4"][0]) < 4.0  # a straight line is 5 mm off


@pytest.mark.parametrize("by", [-1, 1])
def test_a_shifted_column_lies_on_the_next_discs(by):
    shifted = shifted_levels(LEVELS_MM, by)
    assert list(shifted) == list(LEVELS)
    inner = [level for k, level in enumerate(LEVELS) if 0 <= k + by < 5]
    for level in inner:
        np.testing.assert_allclose(shifted[level], DISCS_MM[LEVELS.index(level) + by])


def test_heat_and_sacrum_speak_for_the_column_that_they_show():
    evidence = evidence_of(maps_of(), LEVELS_MM)
    assert min(*evidence.heat, *evidence.sacrum) > 1.0
    assert numbering_of(evidence, NUMBERS).confidence > 0.95


@pytest.mark.parametrize(("by", "place"), [(-1, 0), (1, 1)])
def test_a_column_read_one_disc_off_is_the_less_likely_one(by, place):
    evidence = evidence_of(maps_of(by, sacrum_at=5 + by), LEVELS_MM)
    assert evidence.heat[place] < -1.0
    assert evidence.sacrum[place] < -1.0
    numbering = numbering_of(evidence, NUMBERS)
    assert (numbering.one_higher, numbering.one_lower)[place] > 0.9


def test_the_sacrum_alone_can_cast_doubt():
    sure = numbering_of(evidence_of(maps_of(), LEVELS_MM), NUMBERS)
    lower = numbering_of(evidence_of(maps_of(sacrum_at=6), LEVELS_MM), NUMBERS)
    assert lower.one_lower > 10 * sure.one_lower
    none = evidence_of(maps_of(has_tissue=False), LEVELS_MM)
    assert none.sacrum == (0.0, 0.0)


def test_s1_and_the_line_below_it_speak_for_the_column_that_has_them_below_l5_s1():
    evidence = evidence_of(maps_of(first_at=5), LEVELS_MM)
    assert min(evidence.first) > 2.0
    assert evidence_of(maps_of(first_at=4), LEVELS_MM).first[0] < -2.0  # S1 where the column has L5: one too low
    assert evidence_of(maps_of(first_at=6), LEVELS_MM).first[1] < 0.0
    assert evidence_of(maps_of(), LEVELS_MM).first == (0.0, 0.0)


def test_a_sixth_number_weighs_s1_and_five_leave_it_out():
    beside, above = (evidence_of(maps_of(first_at=at), LEVELS_MM) for at in (5, 4))
    assert numbering_of(above, NUMBERS) == numbering_of(beside, NUMBERS)
    assert numbering_of(above, (*NUMBERS, 1.0)).one_higher > 10 * numbering_of(beside, (*NUMBERS, 1.0)).one_higher


def test_a_network_that_tells_s1_tells_the_whole_sacrum_as_well():
    network = build("heatmap", {"points": 11, "size": 32, "segments": 7, "widths": [8, 8]}).eval()
    tissue: list[np.ndarray] = []
    run_batches(network, np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32), tissue)
    (shares,) = tissue
    assert shares.shape == (2, 4, 16, 16)
    assert (shares[:, 1] > shares[:, 2] + shares[:, 3]).all()
    assert (shares[:, :2].sum(axis=1) < 1).all()


def test_faint_heat_everywhere_means_that_the_levels_may_lie_elsewhere():
    assert numbering_of(evidence_of(maps_of(height=0.0), LEVELS_MM), NUMBERS).elsewhere > 0.5


def test_evidence_does_not_depend_on_the_scale_that_the_header_tells():
    (stack_heat,) = maps_of()
    stack = stack_heat.stack
    larger = replace(
        stack, row_mm=stack.row_mm * 1.4, column_mm=stack.column_mm * 1.4, origins_mm=stack.origins_mm * 1.4
    )
    other = replace(stack_heat, stack=larger, grid=make_grid(larger, size=192, mm_per_px=1.6 * 1.4))
    levels = {level: tuple(1.4 * np.array(xyz)) for level, xyz in LEVELS_MM.items()}
    one, two = evidence_of([stack_heat], LEVELS_MM), evidence_of([other], levels)
    np.testing.assert_allclose(one.heat, two.heat, atol=1e-3)
    np.testing.assert_allclose(one.sacrum, two.sacrum, atol=1e-3)


def beside_the_column():
    """Stacks that hold nothing of the column: a station above it, slices far beside the canal."""
    (one,) = maps_of()
    empty = replace(one, heat=np.zeros_like(one.heat), tissue=np.zeros_like(one.tissue))
    for move_mm in ((0.0, 0.0, 300.0), (25.0, 0.0, 0.0)):
        yield replace(empty, stack=replace(one.stack, origins_mm=one.stack.origins_mm + move_mm))


@pytest.mark.parametrize("other", list(beside_the_column()), ids=["station", "lateral"])
def test_stacks_that_hold_nothing_of_the_column_do_not_speak_against_it(other):
    (one,) = maps_of()
    alone, both = (evidence_of(maps, LEVELS_MM) for maps in ([one], [one, other]))
    for name in ("heat", "sacrum", "height"):
        np.testing.assert_allclose(getattr(both, name), getattr(alone, name))
    np.testing.assert_array_equal(say_of([one.stack, other.stack], column_mm(LEVELS_MM)), [[1.0] * 7, [0.0] * 7])


def test_two_stations_of_one_column_speak_for_the_discs_that_they_show():
    (whole,) = maps_of()
    rows = int((150 - LEVELS_MM["l3_l4"][2] - 17) / 2)  # the border lies above L3/4
    upper = replace(whole.stack, volume=whole.stack.volume[:, :rows])
    lower = replace(whole.stack, volume=whole.stack.volume[:, rows:])
    lower = replace(lower, origins_mm=whole.stack.origins_mm + rows * whole.stack.row_mm)
    say = say_of([upper, lower], column_mm(LEVELS_MM))
    np.testing.assert_array_equal(say, [[1.0] * 3 + [0.0] * 4, [0.0] * 3 + [1.0] * 4])
    nowhere = say_of([upper, upper], column_mm(LEVELS_MM))
    np.testing.assert_array_equal(nowhere, np.full((2, 7), 0.5))  # what none shows counts as before


def test_a_bundle_without_numbers_tells_nothing_and_changes_nothing():
    localisation, confidence = Localisation(levels_mm=dict(LEVELS_MM)), dict.fromkeys(LEVELS, 0.5)
    assert settle_numbering(maps_of(1), localisation, confidence, ()) is confidence
    assert localisation.numbering is None
    assert localisation.levels_mm == LEVELS_MM
    assert other_readings(localisation) == []


def test_the_column_moves_only_where_the_next_disc_is_far_likelier():
    localisation = Localisation(levels_mm=dict(LEVELS_MM))
    confidence = settle_numbering(maps_of(1, sacrum_at=6), localisation, dict.fromkeys(LEVELS, 0.5), NUMBERS)
    assert set(confidence) == set(LEVELS)
    assert localisation.levels_mm == shifted_levels(LEVELS_MM, 1)
    assert localisation.numbering.confidence > 0.9
    assert localisation.numbering.one_lower == 0.0
    right = Localisation(levels_mm=dict(LEVELS_MM))
    settle_numbering(maps_of(), right, dict.fromkeys(LEVELS, 0.5), NUMBERS)
    assert right.levels_mm == LEVELS_MM


def localised(monkeypatch, *, sacrum_at, labelled_at, absent=()):
    """Two series of one study through ``localise``, without networks: levels as fused, no points placed."""
    maps = [
        replace(one, stack=replace(one.stack, series_id=name))
        for name in ("t2", "t1")
        for one in maps_of(labelled_at, sacrum_at=sacrum_at)
    ]

    def read_levels(study, stacks, networks, localisation, **_):
        levels = {level: xyz for level, xyz in LEVELS_MM.items() if level not in absent}
        localisation.levels_mm.update(levels)
        return maps, dict.fromkeys(levels, 0.5)

    def fuse_levels(alone, localisation):
        localisation.levels_mm.update(LEVELS_MM)  # each series, read alone, agrees with both together
        return {}

    monkeypatch.setattr(localise_module, "read_levels", read_levels)
    monkeypatch.setattr(localise_module, "place_all", lambda *_arguments, **_options: None)
    monkeypatch.setattr(place_module, "fuse_levels", fuse_levels)
    series = {SAGITTAL_T2: [maps[0].stack], SAGITTAL_T1: [maps[1].stack], AXIAL_T2: []}
    return localise(Study(7, series), Networks(numbering=NUMBERS))


def test_series_that_agree_get_no_warning_where_the_whole_column_moves(monkeypatch):
    localisation = localised(monkeypatch, labelled_at=-1, sacrum_at=4)
    assert localisation.levels_mm == shifted_levels(LEVELS_MM, -1)
    share = localisation.numbering.confidence
    assert localisation.problems == [f"study 7: all levels moved one disc higher ({share:.0%})"]


def test_levels_that_the_move_fills_in_are_not_reported_as_absent_but_as_not_seen(monkeypatch):
    moved = localised(monkeypatch, labelled_at=-1, sacrum_at=4, absent=["l1_l2"])
    assert set(moved.levels_mm) == set(LEVELS)
    assert moved.filled == ["l2_l3"]  # on the disc where L1/2 was not seen
    assert not any("levels not found" in line for line in moved.problems)
    stayed = localised(monkeypatch, labelled_at=0, sacrum_at=5, absent=["l1_l2"])
    assert stayed.problems == ["study 7: levels not seen, placed by the others: L1/L2"]


def test_a_level_that_the_move_puts_outside_of_the_images_is_absent():
    maps = maps_of(1, sacrum_at=6)
    rows = int((150 - DISCS_MM[5][2]) / 2) + 2  # they end 4 mm below the disc under L5/S1
    cut = [replace(one, stack=replace(one.stack, volume=np.zeros((1, rows, 150), np.float32))) for one in maps]
    localisation = Localisation(levels_mm=dict(LEVELS_MM))
    confidence = settle_numbering(cut, localisation, dict.fromkeys(LEVELS, 0.5), NUMBERS)
    assert list(localisation.levels_mm) == list(confidence) == list(LEVELS[:-1])
    assert (localisation.moved, localisation.filled) == (1, [])


def stacks_of(rows=150):
    """One slice of 300 mm from front to back, that shows 2 mm for each row from 150 mm above the middle on."""
    (stack_heat,) = maps_of()
    return [replace(stack_heat.stack, volume=np.zeros((1, rows, 150), np.float32))]


@pytest.mark.parametrize("absent", [["l3_l4"], ["l1_l2"], ["l5_s1"], ["l2_l3", "l3_l4"], ["l1_l2", "l4_l5"]])
def test_a_level_that_was_not_seen_lies_where_the_others_leave_it_a_place(absent):
    some = {level: xyz for level, xyz in LEVELS_MM.items() if level not in absent}
    localisation, confidence = Localisation(levels_mm=dict(some)), dict.fromkeys(some, 0.5)
    assert fill_absent(stacks_of(), localisation, confidence) == absent
    assert list(localisation.levels_mm) == list(LEVELS)
    for level in absent:
        assert np.linalg.norm(np.subtract(localisation.levels_mm[level], LEVELS_MM[level])) < 8.0
        assert confidence[level] == 0.5
    assert {level: localisation.levels_mm[level] for level in some} == some


def test_a_level_outside_of_the_images_or_far_from_all_others_stays_absent():
    lower = {level: xyz for level, xyz in LEVELS_MM.items() if level != "l5_s1"}
    rows = int((150 - LEVELS_MM["l4_l5"][2] + 12) / 2)  # they end 12 mm below L4/5
    localisation, confidence = Localisation(levels_mm=dict(lower)), dict.fromkeys(lower, 0.5)
    assert fill_absent(stacks_of(rows), localisation, confidence) == []
    assert (localisation.levels_mm, set(confidence)) == (lower, set(lower))
    upper = {level: LEVELS_MM[level] for level in LEVELS[2:]}
    localisation = Localisation(levels_mm=dict(upper))
    assert fill_absent(stacks_of(), localisation, dict.fromkeys(upper, 0.5)) == ["l2_l3"]
    two = dict(list(LEVELS_MM.items())[:2])
    assert fill_absent(stacks_of(), Localisation(levels_mm=dict(two)), dict.fromkeys(two, 0.5)) == []


def test_points_of_what_was_filled_in_are_less_sure_and_those_of_other_readings_are_not(monkeypatch):
    placed = []
    maps = maps_of(sacrum_at=5)

    def read_levels(study, stacks, networks, localisation, **_):
        localisation.levels_mm.update({level: xyz for level, xyz in LEVELS_MM.items() if level != "l1_l2"})
        return maps, dict.fromkeys(localisation.levels_mm, 0.5)

    monkeypatch.setattr(localise_module, "read_levels", read_levels)

    def place_all(study, maps, networks, localisation, confidence, **_):
        placed.append(confidence)
        for level in ("l1_l2", "l2_l3"):
            xyz = LEVELS_MM[level]
            localisation.sagittal_points.append(
                SagittalPoint("t2", level, None, 1, 0.0, 0.0, xyz, 0.8, 0, 0, SAGITTAL_T2)
            )
            localisation.axial_levels.append(AxialLevel("t2", level, 1, 0.0, (0.0, 0.0), (9.0, 0.0), 0.8))

    monkeypatch.setattr(localise_module, "place_all", place_all)
    study = Study(7, {SAGITTAL_T2: [maps[0].stack], SAGITTAL_T1: [], AXIAL_T2: []})
    doubtful = (0.0, 0.0, 0.0, 8.0, 0.0)  # whatever the images show
    networks = Networks(numbering=doubtful)
    unfilled = localise(study, networks, fill=False)
    assert unfilled.filled == []
    assert "l1_l2" not in unfilled.levels_mm
    assert "study 7: levels not found: L1/L2" in unfilled.problems
    placed.clear()
    localisation = localise(study, networks)
    assert localisation.filled == ["l1_l2"]
    assert len(placed) == 3
    assert all(confidence == dict.fromkeys(LEVELS, 0.5) for confidence in placed)
    for points in (localisation.sagittal_points, localisation.axial_levels):
        assert [point.confidence for point in points] == pytest.approx([0.08, 0.8])
    for _, reading in localisation.readings:
        assert {point.confidence for point in reading.sagittal_points + reading.axial_levels} == {0.8}


def test_doubt_is_said_and_brings_the_other_readings_with_their_probabilities():
    doubtful = Localisation(levels_mm=dict(LEVELS_MM), numbering=Numbering(0.55, 0.02, 0.4, 0.03))
    ((share, lower),) = other_readings(doubtful)
    assert share == 0.4
    assert lower.levels_mm == shifted_levels(LEVELS_MM, 1)
    (line,) = numbering_doubt(doubtful.numbering)
    assert line == "the numbering may be one level off: 55% as given, 2% one higher, 40% one lower, 3% elsewhere"
    sure = replace(doubtful, numbering=Numbering(DOUBTFUL, 0.1, 0.1, 0.1))
    assert other_readings(sure) == []
    assert numbering_doubt(sure.numbering) == []


def test_grades_are_mixed_by_the_probabilities_of_the_readings_in_doubt_alone():
    as_read, other, prior = (
        np.full((25, 3), (1.0, 0.0, 0.0)),
        np.full((25, 3), (0.0, 0.0, 1.0)),
        np.full((25, 3), 1 / 3),
    )
    doubtful = Localisation(numbering=Numbering(0.6, 0.0, 0.3, 0.1), readings=[(0.3, Localisation())])
    mixed = mixed_readings(as_read, doubtful, prior, lambda _: other)
    np.testing.assert_allclose(mixed[0], (0.6 + 0.1 / 3, 0.1 / 3, 0.3 + 0.1 / 3))
    sure = Localisation(numbering=Numbering(0.9, 0.0, 0.1, 0.0))
    assert mixed_readings(as_read, sure, prior, lambda _: other) is as_read


def test_levels_that_lie_elsewhere_go_to_the_prior_though_no_neighbour_is_likely():
    """Neighbours below 5 % are not read; the shares of what is left stay in proportion."""
    localisation = Localisation(levels_mm=dict(LEVELS_MM), numbering=Numbering(0.40, 0.04, 0.04, 0.52))
    localisation.readings = other_readings(localisation)
    assert localisation.readings == []
    as_read, prior = np.full((25, 3), (1.0, 0.0, 0.0)), np.full((25, 3), (0.0, 0.0, 1.0))
    mixed = mixed_readings(as_read, localisation, prior, lambda _: pytest.fail("no other reading is graded"))
    np.testing.assert_allclose(mixed, np.full((25, 3), (0.40 / 0.92, 0.0, 0.52 / 0.92)))


def test_record_and_journal_hold_the_probabilities_and_the_levels_not_seen():
    outcome = Outcome(7, numbering=Numbering(0.55, 0.02, 0.4, 0.03).record(), not_seen=["l1_l2"])
    read = outcome_from(outcome_text(outcome))
    assert (read.numbering, read.not_seen) == (outcome.numbering, ["l1_l2"])
    (entry, without) = with_studies({}, [outcome, Outcome(8)])["studies"]
    assert entry["numbering"] == {"confidence": 0.55, "one_higher": 0.02, "one_lower": 0.4, "elsewhere": 0.03}
    assert entry["levels_not_seen"] == ["l1_l2"]
    assert not {"numbering", "levels_not_seen"} & without.keys()
