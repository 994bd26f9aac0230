"""Pictures for the report: the localised levels drawn on the sagittal T2 and on one axial slice a level."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lumbar.chains.contract import Picture
from lumbar.errors import LumbarError
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T2, level_title
from lumbar.stages.points import AxialLevel, Localisation, SagittalPoint
from lumbar.study import Study

Image = NDArray[np.uint8]

# One colour a level, RGB, told apart by colour-blind readers too (Okabe and Ito).
COLOURS = {
    "l1_l2": (86, 180, 233),
    "l2_l3": (0, 190, 140),
    "l3_l4": (240, 228, 66),
    "l4_l5": (240, 160, 20),
    "l5_s1": (224, 130, 190),
}
_SAGITTAL_PX = 400  # height of the sagittal picture
_AXIAL_PX = 188  # both sides of an axial picture
_AXIAL_MM = 90.0  # what it shows: the canal and the muscles beside it
_GREYS = 48  # shades kept: PNG packs them in half the bytes, and no eye misses the others
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_TEXT_SCALE = 0.42
_LABEL_PX = 84  # room that a level's label needs


def draw(study: Study, localisation: Localisation) -> list[Picture]:
    """The sagittal T2 slice with its canal points first, then one axial slice for each level found."""
    pictures = []
    sagittal = _draw_sagittal(study, localisation)
    if sagittal is not None:
        pictures.append(sagittal)
    for level in LEVELS:
        axial = localisation.axial(level)
        if axial is not None:
            pictures.append(_draw_axial(study, axial))
    return pictures


def _draw_sagittal(study: Study, localisation: Localisation) -> Picture | None:
    stacks = study.series.get(SAGITTAL_T2, [])
    if not stacks:
        return None
    points = [p for p in localisation.sagittal_points if p.description == SAGITTAL_T2 and p.side is None]
    best = max({p.stack for p in points}, key=lambda k: sum(p.confidence for p in points if p.stack == k), default=0)
    points = [p for p in points if p.stack == best]
    stack = stacks[best]
    n_slices = len(stack.volume)
    index = int(np.median([p.slice_index for p in points])) if points else n_slices // 2
    down_mm, across_mm = stack.spacing_mm
    image = study.normalised(stack, index)
    scale_y = _SAGITTAL_PX / image.shape[0]
    canvas, scale = _scaled(image, scale_y * across_mm / down_mm, scale_y)
    places = [_place(point.x_px, point.y_px, scale) for point in points]
    # Behind the spine there is room: the labels stand there in one column, a thin line leads to each.
    left = max((x for x, _ in places), default=0) + 40
    if points and left + _LABEL_PX > canvas.shape[1]:
        canvas = np.pad(canvas, ((0, 0), (0, left + _LABEL_PX - canvas.shape[1]), (0, 0)))
    for point, place in zip(points, places, strict=True):
        _mark_level(canvas, point, place, left)
    name = f"series {stack.series_id}, {_slice_name(stack.instance_numbers[index], stack.frame(index))}"
    return Picture(f"Sagittal T2, {name}" + ("" if points else ": no level found"), _png(canvas))


def _mark_level(canvas: Image, point: SagittalPoint, place: tuple[int, int], left: int) -> None:
    x, y = place
    colour = COLOURS[point.level]
    cv2.line(canvas, (x, y), (max(x, left - 5), y), colour, 1, cv2.LINE_AA)
    cv2.circle(canvas, place, 5, (0, 0, 0), -1, cv2.LINE_AA)
    cv2.circle(canvas, place, 3, colour, -1, cv2.LINE_AA)
    _write(canvas, f"{level_title(point.level)} {point.confidence:.0%}", (left, y + 4), colour)


def _draw_axial(study: Study, level: AxialLevel) -> Picture:
    stack = study.series[AXIAL_T2][level.stack]
    if not 0 <= level.slice_index < len(stack.volume):
        raise LumbarError(f"series {level.series_id}: slice {level.slice_index}, expected 0..{len(stack.volume) - 1}")
    down_mm, across_mm = stack.spacing_mm
    image = study.normalised(stack, level.slice_index)
    centre = (np.array(level.left_px) + np.array(level.right_px)) / 2.0
    half = np.array([_AXIAL_MM / 2.0 / across_mm, _AXIAL_MM / 2.0 / down_mm])
    matrix = np.array(
        [
            [_AXIAL_PX / (2 * half[0]), 0.0, _AXIAL_PX / 2 - centre[0] * _AXIAL_PX / (2 * half[0])],
            [0.0, _AXIAL_PX / (2 * half[1]), _AXIAL_PX / 2 - centre[1] * _AXIAL_PX / (2 * half[1])],
        ]
    )
    shown = cv2.warpAffine(image, matrix, (_AXIAL_PX, _AXIAL_PX), flags=cv2.INTER_LINEAR)
    canvas = _grey(np.asarray(shown, dtype=np.float32))
    colour = COLOURS[level.level]
    for point, letter, side in ((level.left_px, "L", 1), (level.right_px, "R", -1)):
        x, y = (matrix @ np.array([point[0], point[1], 1.0])).round().astype(int).tolist()
        cv2.drawMarker(canvas, (x, y), (0, 0, 0), cv2.MARKER_CROSS, 13, 3, cv2.LINE_AA)
        cv2.drawMarker(canvas, (x, y), colour, cv2.MARKER_CROSS, 11, 1, cv2.LINE_AA)
        _write(canvas, letter, (x + (9 if side > 0 else -19), y + 4), colour)
    name = _slice_name(level.instance_number, level.frame)
    title = f"{level_title(level.level)}: series {level.series_id}, {name}"
    return Picture(f"{title}, {abs(level.distance_mm):.1f} mm away", _png(canvas))


def _slice_name(number: int, frame: int | None) -> str:
    return f"slice {number}" if frame is None else f"slice {number} frame {frame}"


def _scaled(image: NDArray[np.float32], scale_x: float, scale_y: float) -> tuple[Image, NDArray[np.float64]]:
    """An image in 0..1 enlarged to square millimetres, and its scale (x, y)."""
    rows, columns = image.shape
    size = (max(1, round(columns * scale_x)), max(1, round(rows * scale_y)))
    is_smaller = size[0] < columns
    shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR)
    return _grey(np.asarray(shown, dtype=np.float32)), np.array([size[0] / columns, size[1] / rows])


def _grey(image: NDArray[np.float32]) -> Image:
    """Values in 0..1 as RGB, slightly brightened, in few shades."""
    shades = np.round(np.clip(image, 0.0, 1.0) ** 0.85 * (_GREYS - 1)) / (_GREYS - 1)
    return np.ascontiguousarray(np.repeat((shades * 255).astype(np.uint8)[..., None], 3, axis=2))


def _place(x_px: float, y_px: float, scale: NDArray[np.float64]) -> tuple[int, int]:
    """Pixel centres of the original as pixels of the picture."""
    return round((x_px + 0.5) * float(scale[0]) - 0.5), round((y_px + 0.5) * float(scale[1]) - 0.5)


def _write(canvas: Image, text: str, place: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Text on a darkened patch, so that it reads on fat as well as on air."""
    (width, height), _ = cv2.getTextSize(text, _FONT, _TEXT_SCALE, 1)
    x, y = place
    patch = canvas[max(0, y - height - 3) : max(0, y + 4), max(0, x - 3) : max(0, x + width + 3)]
    patch[:] = (patch * 0.3).astype(np.uint8)
    cv2.putText(canvas, text, place, _FONT, _TEXT_SCALE, colour, 1, cv2.LINE_AA)


def _png(canvas: Image) -> bytes:
    is_written, data = cv2.imencode(".png", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not is_written:
        raise LumbarError("picture: cannot be encoded as PNG")
    return data.tobytes()
