"""Pictures for the reports: sagittal T2 with canal points, T1 left and right with foraminal points, axial slices.

``views`` gives bare slices with their points beside them, for a page that draws the points itself and stays sharp at
any size. ``draw`` gives PNG files with the points drawn in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low

import cv2
import numpy as np
from numpy.typing import NDArray

from lumbar.chains.contract import LEVEL_COLOURS, Mark, Picture, SliceView
from lumbar.dicom import Stack
from lumbar.errors import LumbarError
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2, level_title
from lumbar.stages.points import AxialLevel, Localisation, SagittalPoint
from lumbar.study import Study

Image = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # first row, end row, first column, end column

COLOURS = LEVEL_COLOURS
_SAGITTAL = (  # kind, title, description, side
    ("canal", "Sagittal T2", SAGITTAL_T2, None),
    ("left foramen", "Sagittal T1 left", SAGITTAL_T1, "left"),
    ("right foramen", "Sagittal T1 right", SAGITTAL_T1, "right"),
)
_AROUND_MM = (65.0, 42.0)  # shown of a sagittal slice around its points: to the front and back, above and below
_AXIAL_MM = 90.0  # shown of an axial slice: the canal and the muscles beside it
_MOST_PX = 600  # height of a sagittal picture
_MOST_PX_MM = 2.6  # more pixels a millimetre than this show nothing more of a sagittal slice
_AXIAL_PX = 300
_JPEG_QUALITY = 82
_PNG_COMPRESSION = 7  # of 9, which takes four to eight times as long for a tenth less
_GREYS = 48  # shades of a PNG: it packs them in half the bytes, and no eye misses the others
_EDGE_COLOUR = (227, 216, 207)  # BGR
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_TEXT_SCALE = 0.46
_FILE_NAMES = {"canal": "sagittal_t2", "left foramen": "sagittal_t1_left", "right foramen": "sagittal_t1_right"}
_AXES = (("R", "L"), ("A", "P"), ("F", "H"))  # of patient space: what lies towards lower and towards higher values


# ---- slices with their points beside them -------------------------------------------------------------------------


def views(study: Study, localisation: Localisation) -> list[Picture]:
    """Bare slices as JPEG with the points on them.

    For canal, left and right foramina: one main slice with all points of its kind, and each other slice that a point
    lies on. Then the axial slice nearest to each level.
    """
    return [_picture(title, image, view, as_jpeg=True) for title, image, view in _slices(study, localisation)]


def draw(study: Study, localisation: Localisation, text_size: float = 1.0) -> list[Picture]:
    """The main slice of each kind and the axial slice of each level, as PNG with the points drawn in.

    Args:
        study: its stacks.
        localisation: the points.
        text_size: of the labels on sagittal slices, for a page that shows these pictures smaller than they are.
    """
    return [
        _picture(title, _with_marks(image, view, 1.0 if view.level else text_size), view, as_jpeg=False)
        for title, image, view in _slices(study, localisation)
        if view.is_main
    ]


def _slices(study: Study, localisation: Localisation) -> list[tuple[str, Image, SliceView]]:
    slices = []
    for kind, title, description, side in _SAGITTAL:
        slices += _sagittal(study, kind, title, description, side, localisation)
    for level in LEVELS:
        axial = localisation.axial(level)
        if axial is not None:
            slices.append(_axial(study, axial))
    return slices


def _on_stack(localisation: Localisation, number: int, description: str, side: str | None) -> dict[str, SagittalPoint]:
    """The most confident point of each level on one stack."""
    best: dict[str, SagittalPoint] = {}
    for point in sorted(localisation.sagittal_points, key=lambda point: point.confidence):
        if (point.description, point.side, point.stack) == (description, side, number):
            best[point.level] = point
    return best


def _sagittal(
    study: Study, kind: str, title: str, description: str, side: str | None, localisation: Localisation
) -> list[tuple[str, Image, SliceView]]:
    """The main slice, with all points of its stack, then each other slice on which the best point of a level lies.

    Without any point the canal's kind shows the middle slice, the foramina's nothing.
    """
    stacks = study.series[description]
    chosen = [point for level in LEVELS if (point := localisation.best(description, level, side)) is not None]
    if not chosen:
        if kind != "canal" or not stacks:
            return []
        middle = len(stacks[0].volume) // 2
        return [_sagittal_slice(study, kind, f"{title}: no level found", stacks[0], middle, [], True)]
    numbers = [point.stack for point in chosen]
    on_stack = {number: _on_stack(localisation, number, description, side) for number in sorted(set(numbers))}
    main_stack = max(on_stack, key=numbers.count)
    main = median_low(point.slice_index for point in on_stack[main_stack].values())
    others = sorted({(point.stack, point.slice_index) for point in chosen} - {(main_stack, main)})
    return [
        _sagittal_slice(
            study,
            kind,
            title,
            stacks[number],
            index,
            list(on_stack[number].values()),
            (number, index) == (main_stack, main),
        )
        for number, index in [(main_stack, main), *others]
    ]


def _sagittal_slice(
    study: Study, kind: str, title: str, stack: Stack, index: int, points: Sequence[SagittalPoint], is_main: bool
) -> tuple[str, Image, SliceView]:
    """One slice, cut to the spine around all points of its stack; other slices than the main show only their own."""
    box = _spine_box(stack, points)
    height_mm = (box[1] - box[0]) * stack.spacing_mm[0]
    image, scale, mm_px = _cut(study, stack, index, box, min(_MOST_PX / height_mm, _MOST_PX_MM))
    view = SliceView(
        kind=kind,
        series_id=stack.series_id,
        instance_number=int(stack.instance_numbers[index]),
        frame=stack.frame(index),
        size_px=(image.shape[1], image.shape[0]),
        origin_px=(box[2], box[0]),
        scale=scale,
        mm_px=mm_px,
        edges=_edges(stack),
        is_main=is_main,
    )
    marks = [
        Mark(
            point.level,
            point.side,
            *view.place(point.x_px, point.y_px),
            None if point.slice_index == index else int(point.instance_number),
            point.confidence,
            point.probability,
        )
        for point in points
        if is_main or point.slice_index == index
    ]
    return f"{title}, {_slice_name(stack, index)}", image, _marked(view, marks)


def _axial(study: Study, level: AxialLevel) -> tuple[str, Image, SliceView]:
    stack = study.series[AXIAL_T2][level.stack]
    if not 0 <= level.slice_index < len(stack.volume):
        raise LumbarError(f"series {level.series_id}: slice {level.slice_index}, expected 0..{len(stack.volume) - 1}")
    middle_x, middle_y = (np.array(level.left_px) + np.array(level.right_px)) / 2.0
    half_mm = _AXIAL_MM / 2.0
    box = _box(stack, (middle_y, middle_y), (middle_x, middle_x), (half_mm, half_mm))
    image, scale, mm_px = _cut(study, stack, level.slice_index, box, _AXIAL_PX / _AXIAL_MM)
    view = SliceView(
        kind="axial",
        series_id=level.series_id,
        instance_number=int(level.instance_number),
        frame=level.frame,
        size_px=(image.shape[1], image.shape[0]),
        origin_px=(box[2], box[0]),
        scale=scale,
        mm_px=mm_px,
        edges=_edges(stack),
        level=level.level,
        distance_mm=abs(level.distance_mm),
    )
    marks = [
        Mark(level.level, side, *view.place(*point), None, level.confidence, level.probability)
        for side, point in (("left", level.left_px), ("right", level.right_px))
    ]
    away = f"{abs(level.distance_mm):.1f} mm from the canal point of the level"
    title = f"{level_title(level.level)}: axial T2, {_slice_name(stack, level.slice_index)}, {away}"
    return title, image, _marked(view, marks)


def _marked(view: SliceView, marks: Sequence[Mark]) -> SliceView:
    width, height = view.size_px
    inside = tuple(mark for mark in marks if 0 <= mark.x <= width and 0 <= mark.y <= height)
    return replace(view, marks=inside)


def _slice_name(stack: Stack, index: int) -> str:
    frame = stack.frame(index)
    number = stack.instance_numbers[index]
    return f"series {stack.series_id}, slice {number}" + ("" if frame is None else f" frame {frame}")


def _edges(stack: Stack) -> tuple[str, str]:
    """Letters of the patient's sides beyond the left and the right edge of the image."""
    axis = int(np.argmax(np.abs(stack.column_mm)))
    lower, higher = _AXES[axis]
    return (lower, higher) if stack.column_mm[axis] > 0 else (higher, lower)


# ---- cutting a slice ----------------------------------------------------------------------------------------------


def _spine_box(stack: Stack, points: Sequence[SagittalPoint]) -> Box:
    """The part of a sagittal slice around the points; the whole slice where there are none."""
    if not points:
        return 0, stack.volume.shape[1], 0, stack.volume.shape[2]
    xs, ys = [point.x_px for point in points], [point.y_px for point in points]
    return _box(stack, (min(ys), max(ys)), (min(xs), max(xs)), (_AROUND_MM[1], _AROUND_MM[0]))


def _box(stack: Stack, rows: tuple[float, float], columns: tuple[float, float], margin_mm: tuple[float, float]) -> Box:
    """Whole pixels from the first to the last row and column and a margin (rows, columns) around, inside the image."""
    _, n_rows, n_columns = stack.volume.shape
    down_px, across_px = margin_mm[0] / stack.spacing_mm[0], margin_mm[1] / stack.spacing_mm[1]
    first_row = int(np.clip(rows[0] - down_px, 0, n_rows - 1))
    first_column = int(np.clip(columns[0] - across_px, 0, n_columns - 1))
    end_row = int(np.clip(np.ceil(rows[1] + down_px) + 1, first_row + 1, n_rows))
    end_column = int(np.clip(np.ceil(columns[1] + across_px) + 1, first_column + 1, n_columns))
    return first_row, end_row, first_column, end_column


def _cut(study: Study, stack: Stack, index: int, box: Box, px_mm: float) -> tuple[Image, tuple[float, float], float]:
    """Grey values (rows, columns) of a box in square millimetres, the scale (x, y), and millimetres a pixel."""
    part = np.ascontiguousarray(study.normalised(stack, index)[box[0] : box[1], box[2] : box[3]])
    down_mm, across_mm = stack.spacing_mm
    rows, columns = part.shape
    size = (max(1, round(columns * across_mm * px_mm)), max(1, round(rows * down_mm * px_mm)))
    way = cv2.INTER_AREA if size[0] < columns else cv2.INTER_CUBIC
    shown = np.asarray(cv2.resize(part, size, interpolation=way), dtype=np.float32)
    grey = (np.clip(shown, 0.0, 1.0) ** 0.85 * 255).round().astype(np.uint8)  # slightly brightened
    return grey, (size[0] / columns, size[1] / rows), columns * across_mm / size[0]


# ---- files --------------------------------------------------------------------------------------------------------


def _picture(title: str, image: Image, view: SliceView, as_jpeg: bool) -> Picture:
    """A picture as a file: grey JPEG with its view, or coloured PNG, which needs none."""
    kind, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]) if as_jpeg else (".png", [])
    is_written, data = cv2.imencode(kind, image, options or [cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION])
    if not is_written:
        raise LumbarError(f"picture: cannot be encoded as {kind[1:].upper()}")
    name = f"axial_{view.level}" if view.level else _FILE_NAMES[view.kind]
    return Picture(title, data.tobytes(), view if as_jpeg else None, name)


def _with_marks(image: Image, view: SliceView, text_size: float = 1.0) -> Image:
    """The picture in colour (BGR, as OpenCV writes it) with crosses, labels and the patient's sides at its edges."""
    shades = np.round(image / 255.0 * (_GREYS - 1)) / (_GREYS - 1)
    canvas = np.ascontiguousarray(np.repeat((shades * 255).astype(np.uint8)[..., None], 3, axis=2))
    for mark in view.marks:
        place = round(mark.x - 0.5), round(mark.y - 0.5)
        colour = COLOURS[mark.level][::-1]
        cv2.drawMarker(canvas, place, (0, 0, 0), cv2.MARKER_CROSS, 15, 4, cv2.LINE_AA)
        cv2.drawMarker(canvas, place, colour, cv2.MARKER_CROSS, 13, 2, cv2.LINE_AA)
        text = level_title(mark.level) if view.level is None else str(mark.side)[0].upper()
        text += "" if mark.other_slice is None else f" slice {mark.other_slice}"
        is_left = view.level is not None and mark.x < view.size_px[0] / 2
        x = place[0] + (-24 if is_left else 12)
        if x + _text_size(text, text_size)[0] + 3 > view.size_px[0]:  # it would be cut: to the left of the cross
            x = max(3, place[0] - 12 - _text_size(text, text_size)[0])
        _write(canvas, text, (x, place[1] + round(5 * text_size)), colour, text_size)
    middle, right = view.size_px[1] // 2, view.size_px[0] - round(16 * text_size)
    for letter, x in zip(view.edges, (5, right), strict=True):
        _write(canvas, letter, (x, middle), _EDGE_COLOUR, text_size)
    if view.level is not None:
        _write(canvas, level_title(view.level), (5, 16), COLOURS[view.level][::-1])
    return canvas


def _text_size(text: str, size: float) -> tuple[int, int]:
    """Width and height of a text in pixels."""
    (width, height), _ = cv2.getTextSize(text, _FONT, _TEXT_SCALE * size, 1)
    return width, height


def _write(canvas: Image, text: str, place: tuple[int, int], colour: tuple[int, ...], size: float = 1.0) -> None:
    """Text on a darkened patch, so that it reads on fat as well as on air."""
    width, height = _text_size(text, size)
    x, y = place
    patch = canvas[max(0, y - height - 3) : max(0, y + 4), max(0, x - 3) : max(0, x + width + 3)]
    patch[:] = (patch * 0.3).astype(np.uint8)
    cv2.putText(canvas, text, place, _FONT, _TEXT_SCALE * size, colour, 1, cv2.LINE_AA)
