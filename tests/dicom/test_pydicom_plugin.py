import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder, iter_pixels, pixel_array
from pydicom.pixels.decoders.base import _PIXEL_DATA_DECODERS, DecodeRunner

from codec_frames import mutations
from lumbar.dicom import pydicom_plugin
from lumbar.errors import DicomError
from pydicom_datasets import (
    BASELINE,
    ENCODERS,
    EXTENDED,
    LOSSLESS,
    LOSSLESS_SV1,
    LS,
    LS_NEAR,
    RLE,
    bundled_files,
    dataset_of,
    decode,
    decode_by_another,
    images_of,
    load,
    quiet,
)

KERNEL = Path(pydicom_plugin.__file__).resolve().parents[1]
FILES = bundled_files()
UNDECODED = {"JPEG-lossy.dcm"}  # by any of pydicom's own plugins
UNREADABLE_BY_PATH = {"SC_rgb_jpeg.dcm"}  # pydicom finds the pixel data of a path only where the VR is explicit


@pytest.fixture(autouse=True)
def registered():
    """The plugin is there during a test only."""
    pydicom_plugin.register()
    yield
    pydicom_plugin.unregister()


def plugins():
    """Every plugin of every decoder of pydicom, in order."""
    decoders = [decoder for decoder, _ in _PIXEL_DATA_DECODERS.values()]
    return [(decoder.UID, list(decoder._available.items()), dict(decoder._unavailable)) for decoder in decoders]


def forbid_others(monkeypatch):
    """Let pydicom's own plugins raise."""

    def refuse(*_):
        raise AssertionError("another plugin was asked")

    for syntax in pydicom_plugin.DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        others = {name: function if name == "lumbar" else refuse for name, function in decoder._available.items()}
        monkeypatch.setattr(decoder, "_available", others)


def assert_same(ours, theirs):
    """The same values, type, shape and description."""
    assert ours[0].dtype == theirs[0].dtype
    assert np.array_equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]


def test_pydicom_has_bundled_files_of_most_syntaxes():
    syntaxes = {load(path).file_meta.TransferSyntaxUID for path in FILES.values()}
    assert syntaxes == {RLE, BASELINE, EXTENDED, LOSSLESS_SV1, LS, LS_NEAR}
    assert len(FILES) >= 30


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("raw", [False, True])
def test_every_bundled_file_has_the_values_of_the_plugins_of_pydicom(name, raw):
    dataset = load(FILES[name])
    theirs = decode_by_another(dataset, raw=raw)
    assert (theirs is None) == (name in UNDECODED)
    ours = decode(dataset, "lumbar", raw=raw)
    if theirs is not None:
        assert_same(ours, theirs[:2])


@pytest.mark.parametrize("name", FILES)
def test_plain_pixel_array_takes_the_kernels(name, monkeypatch):
    expected = decode(load(FILES[name]), "lumbar")[0]
    forbid_others(monkeypatch)
    with quiet():
        assert np.array_equal(load(FILES[name]).pixel_array, expected)
        source = load(FILES[name]) if name in UNREADABLE_BY_PATH else FILES[name]
        frames = np.stack(list(iter_pixels(source)))
        assert np.array_equal(pixel_array(source), expected)
        assert np.array_equal(pixel_array(source, index=len(frames) - 1), frames[-1])
    assert np.array_equal(frames.reshape(expected.shape), expected)


def test_decompress_takes_the_kernels(monkeypatch):
    images = images_of(12, 1, 3)
    dataset = dataset_of(images, LOSSLESS_SV1, 12)
    forbid_others(monkeypatch)
    dataset.decompress()
    assert dataset.PixelData == np.stack(images).tobytes()


def varieties():
    """Syntax, bits, sign, samples: all that each process has."""
    for syntax, bits, signed, samples in itertools.product(ENCODERS, (8, 12, 16), (0, 1), (1, 3)):
        is_possible = {BASELINE: bits == 8, EXTENDED: bits < 16 and (bits, samples) != (12, 3)}.get(syntax, True)
        if is_possible:
            yield syntax, bits, signed, samples


@pytest.mark.parametrize(("syntax", "bits", "signed", "samples"), list(varieties()))
def test_depths_signs_colours_and_frames_are_those_of_pydicom(syntax, bits, signed, samples):
    for n, photometric in itertools.product((1, 3), ["MONOCHROME2"] if samples == 1 else ["RGB", "YBR_FULL"]):
        images = images_of(bits, samples, n)
        dataset = dataset_of(images, syntax, bits, signed=signed, photometric=photometric)
        assert_same(decode(dataset, "lumbar", raw=True), decode_by_another(dataset, raw=True)[:2])
        if bits == 8 and not signed:
            assert_same(decode(dataset, "lumbar"), decode_by_another(dataset)[:2])
        if not signed and syntax in (RLE, LOSSLESS, LOSSLESS_SV1, LS):
            stacked = images[0] if n == 1 else np.stack(images)
            assert np.array_equal(decode(dataset, "lumbar", raw=True)[0], stacked)


@pytest.mark.parametrize("syntax", [LS, LS_NEAR])
def test_eight_bits_of_jpeg_ls_in_sixteen(syntax):
    dataset = dataset_of(images_of(8, 1, 2), syntax, 8, allocated=16)
    assert_same(decode(dataset, "lumbar"), decode_by_another(dataset)[:2])


@pytest.mark.parametrize("correct", [True, False])
def test_unused_bits_are_left_to_pydicom(correct):
    dataset = dataset_of(images_of(16, 1, 1), RLE, 16)
    dataset.BitsStored, dataset.HighBit = 12, 11
    ours = decode(dataset, "lumbar", correct_unused_bits=correct)
    assert_same(ours, decode_by_another(dataset, correct_unused_bits=correct)[:2])
    assert (ours[0].max() > 4095) != correct


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("syntax", [RLE, LOSSLESS, LOSSLESS_SV1, LS])
def test_planar_configuration_says_nothing_about_compressed_samples(syntax, n):
    images = images_of(8, 3, n)
    dataset = dataset_of(images, syntax, 8, planar=1)
    pixels, properties = decode(dataset, "lumbar")
    assert np.array_equal(pixels, images[0] if n == 1 else np.stack(images))
    assert properties["planar_configuration"] == 0


def test_what_the_kernels_decline_is_decoded_by_the_next_plugin():
    image = images_of(12, 3, 1)[0]
    colour = dataset_of([image], EXTENDED, 12, frames=[bytes(imagecodecs.jpeg_encode(image, 90, bitspersample=12))])
    with pytest.raises(RuntimeError, match="found 3 components of 12 bits, expected one"):
        decode(colour, "lumbar", raw=True)
    assert_same(decode(colour, "", raw=True), decode(colour, "pylibjpeg", raw=True))


def test_segments_in_reversed_order_are_left_to_pydicom():
    dataset = dataset_of(images_of(16, 1, 1), RLE, 16)
    ours = decode(dataset, "", rle_segment_order="<")
    assert_same(ours, decode(dataset, "pydicom", rle_segment_order="<"))
    assert np.array_equal(ours[0].byteswap(), images_of(16, 1, 1)[0])


def test_a_frame_that_fails_in_all_plugins_names_the_reason_of_each():
    dataset = dataset_of(images_of(16, 1, 1), RLE, 16, frames=[bytes(64)])
    with (
        pytest.raises(
            RuntimeError, match=r"lumbar: frame in RLE Lossless .*found 0 RLE segments, expected 2"
        ) as caught,
        quiet(),
    ):
        _ = dataset.pixel_array
    assert "\n  pydicom: " in str(caught.value)


def runner_of(dataset):
    """A runner with the options of a data set, as pydicom gives to plugins."""
    runner = DecodeRunner(dataset.file_meta.TransferSyntaxUID)
    runner.set_source(dataset)
    return runner


@pytest.mark.parametrize(("syntax", "bits", "samples"), [(s, 12 if s == EXTENDED else 8, 1) for s in ENCODERS])
def test_damaged_frames_are_decoded_or_refused_and_change_no_option(syntax, bits, samples):
    dataset = dataset_of(images_of(bits, samples, 1), syntax, bits)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    damaged = [frame[:n] for n in (0, 1, 2, 3, 12, 64, len(frame) // 2, len(frame) - 20)]
    refusals = []
    for data in [*damaged, *mutations(frame, 60)]:
        runner = runner_of(dataset)
        before = dict(runner.options)
        try:
            decoded = pydicom_plugin.decode_frame(bytes(data), runner)
        except DicomError as error:
            refusals.append(str(error))
            assert runner.options == before
        else:
            assert len(decoded) == runner.frame_length()
    assert len(refusals) >= 5
    assert all("found" in refusal and "expected" in refusal and "\n" not in refusal for refusal in refusals)


@pytest.mark.parametrize("syntax", ENCODERS)
def test_a_few_bytes_that_claim_a_huge_frame_are_refused_before_any_memory_is_taken(syntax):
    runner = runner_of(dataset_of(images_of(8, 1, 1), syntax, 8))
    runner.set_options(rows=65535, columns=65535)
    with pytest.raises(DicomError, match="expected at most"):
        pydicom_plugin.decode_frame(bytes(100), runner)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits_allocated": 1}, "found compressed pixels of 1 bit, expected 8, 16 or 32"),
        ({"samples_per_pixel": 2}, "found SamplesPerPixel 2, expected 1 or 3"),
        ({"rows": 0}, "found Rows 0"),
        ({"bits_allocated": 24}, "found BitsAllocated 24"),
        ({"transfer_syntax_uid": pydicom.uid.JPEG2000}, "found no decoder"),
        ({"transfer_syntax_uid": pydicom.uid.JPEGBaseline8Bit}, "expected ffd8"),
    ],
)
def test_options_that_no_kernel_takes_are_refused(options, message):
    dataset = dataset_of(images_of(8, 1, 1), RLE, 8)
    runner = runner_of(dataset)
    runner.set_options(**options)
    with pytest.raises(DicomError, match=message):
        pydicom_plugin.decode_frame(next(generate_frames(dataset.PixelData, number_of_frames=1)), runner)


def test_unregister_restores_what_was_there_also_after_two_calls_of_register():
    pydicom_plugin.unregister()
    before = plugins()
    pydicom_plugin.unregister()
    assert plugins() == before
    pydicom_plugin.register()
    once = plugins()
    pydicom_plugin.register()
    assert plugins() == once != before
    for syntax in pydicom_plugin.DECODER_DEPENDENCIES:
        assert next(iter(get_decoder(syntax)._available)) == "lumbar"
        assert "lumbar" in get_decoder(syntax).available_plugins
    pydicom_plugin.unregister()
    assert plugins() == before


def test_a_plugin_that_was_added_in_between_stays():
    decoder = get_decoder(RLE)
    decoder.add_plugin("extra", ("pydicom.pixels.decoders.rle", "_decode_frame"))
    try:
        pydicom_plugin.unregister()
        assert "extra" in decoder.available_plugins
    finally:
        decoder.remove_plugin("extra")


def test_another_plugin_of_the_same_name_is_left_alone():
    pydicom_plugin.unregister()
    decoder = get_decoder(LS)
    decoder._available["lumbar"] = decoder._available["gdcm"]
    before = plugins()
    try:
        with pytest.raises(DicomError, match="found another plugin 'lumbar' for JPEG-LS Lossless"):
            pydicom_plugin.register()
        pydicom_plugin.unregister()
        assert plugins() == before
    finally:
        decoder.remove_plugin("lumbar")


def test_without_opencv_the_lossy_syntaxes_are_listed_as_unavailable(monkeypatch):
    pydicom_plugin.unregister()
    before = plugins()
    find = pydicom_plugin.importlib.util.find_spec
    monkeypatch.setattr(pydicom_plugin.importlib.util, "find_spec", lambda name: None if name == "cv2" else find(name))
    pydicom_plugin.register()
    pydicom_plugin.register()
    assert "lumbar - requires numba and cv2" in get_decoder(EXTENDED).missing_dependencies
    assert "lumbar" in get_decoder(RLE).available_plugins
    pydicom_plugin.unregister()
    assert plugins() == before


def test_an_older_pydicom_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(pydicom, "__version__", "2.4.4")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pydicom.pixels.decoders.base", None)
        for call in (pydicom_plugin.register, pydicom_plugin.unregister):
            with pytest.raises(DicomError, match=r"^pydicom: found version 2.4.4, expected 3.0 or later$"):
                call()


def test_three_pieces_of_the_package_are_enough(tmp_path):
    (tmp_path / "lumbar").mkdir()
    for name in ("__init__.py", "errors.py"):
        shutil.copy(KERNEL / name, tmp_path / "lumbar")
    shutil.copytree(KERNEL / "dicom", tmp_path / "lumbar" / "dicom", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'pandas', 'libjpeg', 'pylibjpeg', 'gdcm']))\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import pydicom\n"
        "from lumbar.dicom.pydicom_plugin import register\n"
        "register()\n"
        "print(*(pydicom.dcmread(path).pixel_array.sum() for path in sys.argv[2:]))\n"
    )
    paths = [FILES[name] for name in ("MR_small_RLE.dcm", "JPEGLSNearLossless_08.dcm")]
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, *paths],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},  # compiling would take a minute
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.split() == [str(pydicom.dcmread(path).pixel_array.sum()) for path in paths]
