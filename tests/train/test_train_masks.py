"""Tissue labels of synthetic cohorts, as networks with many or few segments are taught them."""

import numpy as np

from lumbar_phantom.masks import BODY, CLASSES, S1, SACRAL_LINE, SACRUM
from lumbar_train.data.masks import for_segments

LABELS = np.array([[0, BODY, SACRUM], [S1, SACRAL_LINE, -1]])


def test_a_network_with_a_segment_for_each_class_learns_all():
    np.testing.assert_array_equal(for_segments(LABELS, len(CLASSES)), LABELS)


def test_a_network_without_a_segment_for_s1_knows_it_as_sacrum():
    assert for_segments(LABELS, 5).tolist() == [[0, BODY, SACRUM], [SACRUM, SACRUM, -1]]


def test_what_a_network_has_no_segment_for_is_unknown_to_it():
    assert for_segments(LABELS, 3).tolist() == [[0, BODY, -1], [-1, -1, -1]]
