import numpy as np
import pytest

from probdeblend.posterior import Cutouts, Posterior


@pytest.fixture
def corners():
    """Two sources that overlap in scene 0, and one in scene 1."""
    high, low = np.full((3, 3), 0.9), np.full((3, 3), 0.6)
    faint = np.full((2, 2), 0.4)
    cutouts = Cutouts(
        corner=[(0, 0), (1, 1), (2, 0)],
        shape=(4, 5),
        mask=[high, low, faint],
        image=[np.ones((1, 3, 3)), np.full((1, 3, 3), 2.0), np.full((1, 2, 2), 5.0)],
    )
    flux = np.ones((1, 1, 3, 1))
    return Posterior.from_draws(
        flux, scene=[0, 0, 1], group=[0, 0, 1], label=[7, 4, 6], x=[1, 2, 0], y=[1, 2, 3], cutouts=cutouts
    )


def test_labels_of_the_most_probable_owners(corners):
    expected = [[7, 7, 7, 0, 0], [7, 7, 7, 4, 0], [7, 7, 7, 4, 0], [0, 4, 4, 4, 0]]
    np.testing.assert_array_equal(corners.label_image(), expected)
    assert not corners.label_image(1).any()


def test_segmentation_is_that_of_photutils(corners):
    segmentation = pytest.importorskip("photutils.segmentation")
    found = corners.segmentation()
    assert isinstance(found, segmentation.SegmentationImage)
    assert found.labels.tolist() == [4, 7]
    np.testing.assert_array_equal(found.data, corners.label_image())


def test_deblended_images_add_up(corners):
    model = corners.model_image()
    assert model.shape == (1, 4, 5)
    assert model[0, 0, 0] == 1
    assert model[0, 1, 1] == 3
    assert model[0, 3, 3] == 2
    assert model.sum() == 27
    assert corners.model_image(1).sum() == 20


def test_cutouts_of_a_source(posterior, wcs):
    mask, image = posterior.mask(5), posterior.image(5)
    number = posterior.index(5)
    np.testing.assert_array_equal(mask.data, posterior.cutouts.mask[number])
    np.testing.assert_array_equal(mask.std, posterior.cutouts.mask_std[number])
    np.testing.assert_array_equal(image.data, posterior.cutouts.image[number])
    assert image.std is None
    assert mask.corner == tuple(posterior.cutouts.corner[number])
    y, x = mask.corner
    assert np.zeros((40, 50))[mask.slices].shape == mask.data.shape
    assert mask.wcs.pixel_to_world(3, 2).separation(wcs.pixel_to_world(x + 3, y + 2)).arcsec < 1e-6


def test_without_pixels(posterior):
    bare = Posterior(posterior.dataset)
    np.testing.assert_array_equal(bare.flux, posterior.flux)
    for call in (bare.mask, bare.image, bare.label_image, bare.model_image):
        with pytest.raises(AttributeError, match="this posterior of method 'network' has no masks or images"):
            call(0)


def test_masks_alone(corners):
    cutouts = Cutouts(corners.cutouts.corner, corners.cutouts.shape, mask=corners.cutouts.mask)
    masks = Posterior(corners.dataset, cutouts)
    np.testing.assert_array_equal(masks.label_image(), corners.label_image())
    with pytest.raises(AttributeError, match="this posterior has no image"):
        masks.image(7)
