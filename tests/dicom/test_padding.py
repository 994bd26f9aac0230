"""Declared padding: out of the intensity window, dark in every image, and doubted where it cannot be padding."""

import struct

import numpy as np
import pytest

from dicom_writer import EXPLICIT, element, image_elements, meta
from lumbar.dicom import read_series
from lumbar.geometry import make_grid
from lumbar.study import Study, robust_window
from series_writer import AXIAL, write

VALUE, LIMIT = 0x00280120, 0x00280121


def declared(tag, value):
    vr, form = ("SS", "<h") if value < 0 else ("US", "<H")
    return (tag, vr, struct.pack(form, value))


def scene(seed=0, low=20, high=2000):
    return np.random.default_rng(seed).integers(low, high, (40, 30)).astype(np.uint16)


def read(folder, images, extra=(), **how):
    for number, pixels in enumerate(images, start=1):
        write(folder, number, position=(0, 0, 4.0 * number), orientation=AXIAL, pixels=pixels, extra=extra, **how)
    series = read_series(folder)
    return Study(1, {"Axial T2": series.stacks}), series


def padded(image, value):
    """The image with its outer rows replaced, and where they are."""
    mask = np.zeros(image.shape, bool)
    mask[:9] = mask[-4:] = True
    return np.where(mask, np.array(value).astype(image.dtype), image), mask


def check(study, plain, mask):
    """The window is that of the pixels that are none, and padding is 0 in slices and in samples of them."""
    (stack,) = study.series["Axial T2"]
    low, high = study.window(stack.series_id)
    expected = np.percentile(plain[:, ~mask], (1, 99))
    assert (low, high) == pytest.approx(expected, rel=0.02, abs=1)
    for index in range(len(plain)):
        image = study.normalised(stack, index)
        assert np.all(image[mask] == 0)
        scaled = np.clip((plain[index] - low) / (high - low), 0, 1)
        assert np.allclose(image[~mask], (1 - scaled if stack.is_inverted else scaled)[~mask], atol=1e-5)
    grid = make_grid(stack, size=16, mm_per_px=0.5, centre_px=(15.0, 3.0))
    assert study.sampled(stack, 0, grid)[:10, 4:12].max() == 0


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("value", [65535, 0, 4000])
def test_padding_is_out_of_the_window_and_dark(tmp_path, photometric, value):
    images = [padded(scene(seed), value) for seed in range(4)]
    mask = images[0][1]
    study, series = read(
        tmp_path / "1", [image for image, _ in images], [declared(VALUE, value)], photometric=photometric
    )
    check(study, np.array([scene(seed) for seed in range(4)], dtype=np.float32), mask)
    assert series.problems == []


@pytest.mark.parametrize(("value", "limit"), [(60000, 65535), (65535, 60000)])
def test_a_range_of_padding_counts_from_either_end(tmp_path, value, limit):
    rng = np.random.default_rng(5)
    images = []
    for seed in range(4):
        image, mask = padded(scene(seed), 0)
        image[mask] = rng.integers(60000, 65536, np.count_nonzero(mask))
        images.append(image)
    study, _ = read(tmp_path / "1", images, [declared(VALUE, value), declared(LIMIT, limit)])
    check(study, np.array([scene(seed) for seed in range(4)], dtype=np.float32), mask)


@pytest.mark.parametrize(("slope", "intercept"), [("2.5", "-1000"), ("-0.37", "11.3"), ("0.001", "1e5")])
def test_padding_is_given_in_stored_values(tmp_path, slope, intercept):
    images = [padded(scene(seed), 40000) for seed in range(3)]
    rescale = [(0x00281052, "DS", intercept.encode()), (0x00281053, "DS", slope.encode())]
    study, _ = read(tmp_path / "1", [image for image, _ in images], [declared(VALUE, 40000), *rescale])
    (stack,) = study.series["Axial T2"]
    assert np.array_equal(stack.padding_mask(0), images[0][1])
    plain = np.array([scene(seed) for seed in range(3)], np.float32) * np.float32(slope) + np.float32(intercept)
    expected = np.percentile(plain[:, ~images[0][1]], (1, 99))
    assert study.window("1") == pytest.approx(expected, rel=0.05)


def test_signed_padding(tmp_path):
    images = [padded(scene(seed).astype(np.int16), -2000) for seed in range(3)]
    study, _ = read(tmp_path / "1", [image for image, _ in images], [declared(VALUE, -2000)], signed=1)
    check(study, np.array([scene(seed) for seed in range(3)], dtype=np.float32), images[0][1])


def test_padding_of_the_other_sign_and_beyond_the_stored_bits(tmp_path):
    """-2000 among unsigned pixels of 12 bits is stored as 0xF830, of which 0x830 is read."""
    images = [padded(scene(seed), 0xF830) for seed in range(3)]
    study, _ = read(tmp_path / "1", [image for image, _ in images], [declared(VALUE, -2000)], stored=12)
    check(study, np.array([scene(seed) for seed in range(3)], dtype=np.float32), images[0][1])


def test_some_slices_alone_declare_padding(tmp_path):
    image, _ = padded(scene(0), 65535)
    for number in range(1, 5):
        tags = [declared(VALUE, 65535)] if number == 2 else []
        pixels = image if number == 2 else scene(number)
        write(tmp_path / "1", number, position=(0, 0, 4.0 * number), orientation=AXIAL, pixels=pixels, extra=tags)
    (stack,) = read_series(tmp_path / "1").stacks
    assert [stack.padding_mask(index) is not None for index in range(4)] == [False, True, False, False]
    assert robust_window([stack])[1] < 2000


def test_nothing_is_kept_where_nothing_is_declared(tmp_path):
    (stack,) = read(tmp_path / "1", [scene()])[1].stacks
    assert stack.padding is None
    assert stack.padding_mask(0) is None


@pytest.mark.parametrize(
    ("pixels", "value", "reason"),
    [
        (np.full((40, 30), 7, np.uint16), 7, "100 % of the pixels"),
        (np.pad(scene(high=900)[:2, :20], ((19, 19), (5, 5))), 0, "% of the pixels"),
        (np.arange(1200, dtype=np.uint16).reshape(40, 30) // 4, 100, "no more frequent"),
    ],
)
def test_a_declaration_that_cannot_be_true_is_ignored_with_a_line(tmp_path, pixels, value, reason):
    study, series = read(tmp_path / "1", [pixels, pixels], [declared(VALUE, value)])
    plain, _ = read(tmp_path / "2", [pixels, pixels])
    assert study.window("1") == plain.window("2")
    assert np.array_equal(
        study.normalised(study.series["Axial T2"][0], 0), plain.normalised(plain.series["Axial T2"][0], 0)
    )
    (line,) = series.problems
    assert reason in line


def float_file(path, number, pixels, extra):
    """A slice whose pixels are floating-point numbers of 32 or 64 bits."""
    tag, vr = (0x7FE00008, "OF") if pixels.dtype == np.float32 else (0x7FE00009, "OD")
    place = [(0x00200032, "DS", f"0\\0\\{4 * number} ".encode()), (0x00200037, "DS", b"1\\0\\0\\0\\1\\0 ")]
    tags = [*place, (0x00280030, "DS", b"0.5\\0.5 "), *extra]
    body = image_elements(pixels.shape, allocated=8 * pixels.dtype.itemsize, extra=tags)
    path.mkdir(exist_ok=True)
    (path / f"{number}.dcm").write_bytes(meta(EXPLICIT) + body + element(tag, vr, pixels.tobytes()))


@pytest.mark.parametrize("form", ["f", "d"])
@pytest.mark.parametrize("value", [-1e6, 3e38])
@pytest.mark.parametrize("has_range", [False, True])
def test_padding_of_floating_point_pixels(tmp_path, form, value, has_range):
    images = [padded(scene(seed).astype(form), value) for seed in range(3)]
    tag, vr = (0x00280122, "FL") if form == "f" else (0x00280123, "FD")
    ends = [(tag, value), (tag + 2, 2 * value if value < 0 else value / 2)][: 1 + has_range]
    for number, (pixels, _) in enumerate(images, start=1):
        float_file(tmp_path / "1", number, pixels, [(tag, vr, struct.pack(f"<{form}", end)) for tag, end in ends])
    study = Study(1, {"Axial T2": read_series(tmp_path / "1").stacks})
    check(study, np.stack([image for image, _ in images]), images[0][1])


@pytest.mark.parametrize("form", ["f", "d"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38, "largest", "signalling"])
def test_floating_point_pixels_that_are_no_numbers_leave_numbers(tmp_path, form, odd):
    odd = np.finfo(form).max if odd == "largest" else odd
    for number in range(1, 4):
        pixels = scene(number).astype(form)
        if odd == "signalling":  # NaNs that warn where they are converted
            pixels[0, :3] = np.array(0x7FA00000 if form == "f" else 0x7FF4 << 48, f"u{pixels.itemsize}").view(form)
        else:
            pixels[0, :3] = odd
        float_file(tmp_path / "1", number, pixels, ())
    series = read_series(tmp_path / "1")
    (stack,) = series.stacks
    assert np.all(np.isfinite(stack.volume))
    low, high = Study(1, {"Axial T2": series.stacks}).window("1")
    assert 0 < low < high < 2100


@pytest.mark.parametrize(("value", "slope"), [(7, 1e-44), (0, 1e-44), (9, 5e8), (0, 1.0)])
@pytest.mark.parametrize("is_constant", [True, False])
def test_a_window_has_a_width_whatever_the_units(tmp_path, value, slope, is_constant):
    image = np.full((40, 30), value, np.uint16)
    image[0, :20] += 0 if is_constant else 1
    units = [(0x00281052, "DS", b"1e9 " if slope > 1 else b"0 "), (0x00281053, "DS", f"{slope:.9g} ".encode())]
    study, _ = read(tmp_path / "1", [image] * 3, units)
    low, high = study.window("1")
    assert high > low
    assert np.float32(1 / (high - low)) < np.inf
    image = study.normalised(study.series["Axial T2"][0], 0)
    assert np.all(np.isfinite(image))
