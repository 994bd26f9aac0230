import numpy as np

from lumbar.resample import add_warped, warp


def by_hand(image, matrix, size, outside):
    """Linear interpolation from its definition, on an image with a wide margin."""
    margin = 40
    padded = np.pad(image.astype(float), margin, constant_values=outside)
    y, x = np.mgrid[:size, :size]
    at = np.tensordot(matrix[:, :2], np.stack([x, y]), 1) + matrix[:, 2, None, None] + margin
    whole = np.floor(at).astype(int)
    (right, down), (column, row) = at - whole, whole
    upper = (1 - right) * padded[row, column] + right * padded[row, column + 1]
    lower = (1 - right) * padded[row + 1, column] + right * padded[row + 1, column + 1]
    return (1 - down) * upper + down * lower


def test_interpolation_is_exact_inside_at_the_edge_and_beyond():
    """Weights rounded to 1/32 pixel, as in OpenCV below 5, would be off by 0.01."""
    rng = np.random.default_rng(3)
    image = rng.uniform(0, 1, (30, 41)).astype(np.float32)
    for angle, scale, shift in ((0.0, 1.0, (0.3, -0.7)), (0.2, 1.3, (-6.2, 3.1)), (-2.5, 0.6, (33.0, 25.0))):
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        matrix = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])
        np.testing.assert_allclose(warp(image, matrix, 32, 0.5), by_hand(image, matrix, 32, 0.5), atol=1e-6)


def test_identity_returns_the_image_and_far_away_is_outside():
    image = np.arange(16, dtype=np.float32).reshape(4, 4)[:, ::-1]  # not contiguous
    identity = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    np.testing.assert_array_equal(warp(image, identity, 4), image)
    far = np.array([[1.0, 0, 1e12], [0, 1.0, 0]])
    assert (warp(image, far, 4, 7.0) == 7.0).all()


def test_images_warped_together_are_the_bits_of_each_alone():
    rng = np.random.default_rng(4)
    images = rng.uniform(0, 1, (3, 30, 30)).astype(np.float32)
    before = rng.uniform(0, 1, (3, 32, 32)).astype(np.float32)
    for angle, scale, shift in ((0.0, 1.0, (0.3, -0.7)), (0.2, 1.3, (-6.2, 3.1)), (-2.5, 0.6, (1e9, 0.0))):
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        matrix = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])
        out = before.copy()
        add_warped(images, matrix, out)
        np.testing.assert_array_equal(
            out, [a + warp(image, matrix, 32) for a, image in zip(before, images, strict=True)]
        )
