import numpy as np
import pytest
from matplotlib.colors import to_rgb

from probdeblend.plots import PALETTE, plot_field, plot_group, plot_source
from probdeblend.posterior import Cutouts, Posterior

LABELS = [11, 12, 13, 14]
SHAPE = (40, 60)


@pytest.fixture
def image(rng):
    return rng.normal(0, 0.1, SHAPE)


@pytest.fixture
def posterior(rng):
    """A group of three, of which two are correlated, and an isolated source, in one band."""
    covariance = np.diag([4.0, 1.0, 1.0, 1.0])
    covariance[0, 1] = covariance[1, 0] = -1.5
    flux = rng.multivariate_normal([80, 40, 20, 10], covariance, (2, 400))[..., None]
    disk = np.hypot(*(np.indices((13, 13)) - 6))
    return Posterior.from_draws(
        flux,
        0.9 * flux,
        scene=np.zeros(4),
        group=[0, 0, 0, 1],
        label=LABELS,
        x=[16, 24, 16, 46],
        y=[16, 16, 24, 26],
        unit="nJy",
        cutouts=Cutouts(
            corner=[(10, 10), (10, 18), (18, 10), (20, 40)],
            shape=SHAPE,
            mask=[1 / (1 + np.exp(disk - 4))] * 4,
            image=[5 * np.exp(-disk / 2)[None]] * 4,
        ),
    )


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_source(posterior, image):
    panels = plot_source(posterior, 12, image)
    assert [axes.get_title() for axes in panels[:4]] == ["source 12", "mask probability", "deblended", "rest"]
    assert float(panels[4].get_title().split(" ± ")[0]) == pytest.approx(40, abs=0.3)
    assert panels[4].get_xlabel() == "flux [nJy]"
    np.testing.assert_array_equal(panels[0].images[0].get_array(), image[10:23, 18:31])
    np.testing.assert_array_equal(panels[1].images[0].get_array(), posterior.mask(12).data)
    assert panels[0].images[0].get_extent() == [17.5, 30.5, 9.5, 22.5]
    assert panels[2].images[0].norm is panels[0].images[0].norm
    rest = panels[2].images[0].get_array() + panels[3].images[0].get_array()
    np.testing.assert_allclose(rest, image[10:23, 18:31], atol=1e-12)


def test_source_without_an_image_shows_the_sum_of_the_deblended_ones(posterior):
    panels = posterior.plot(11)
    np.testing.assert_allclose(panels[0].images[0].get_array(), posterior.model_image()[0, 10:23, 10:23])
    panels[0].figure.draw_without_rendering()


def test_source_of_masks_and_kron_fluxes_alone(posterior, image):
    masks = Cutouts(posterior.cutouts.corner, SHAPE, mask=posterior.cutouts.mask)
    flux = posterior.flux_auto.copy()
    flux[:, :, 0] = np.nan
    missed = Posterior(posterior.dataset.drop_vars("flux").assign(flux_auto=flux), masks)
    panels = plot_source(missed, 11, image)
    assert texts(panels[2]) == ["no image"]
    assert panels[4].get_title() == "not detected"
    assert panels[4].get_xlabel() == "Kron flux [nJy]"
    axes, corner = plot_group(missed, 11, image)
    assert not corner[1, 0].collections
    axes.figure.figure.draw_without_rendering()
    shown = np.asarray(plot_field(missed, image)[1].images[0].get_array())
    assert (shown[16, 24] < 0.9).any()


def test_image_must_be_that_of_the_scene(posterior, image):
    with pytest.raises(ValueError, match=r"image must have the shape of the scene, \(40, 60\), got \(40, 59\)"):
        plot_source(posterior, 11, image[:, 1:])


def test_errors_have_two_digits(posterior, image):
    for scale, title in [(1e-3, "0.08000 ± 0.0020"), (1, "80.00 ± 2.0"), (1e6, "8.000e+07 ± 2.0e+06")]:
        levels = np.repeat(scale * np.array([78.0, 80.0, 82.0]), [399, 2, 399]).reshape(2, 400, 1, 1)
        certain = Posterior(posterior.dataset.assign(flux=posterior.flux * 0 + levels), posterior.cutouts)
        assert plot_source(certain, 11, image)[4].get_title() == title


def test_group_shows_the_joint_distribution(posterior, image):
    axes, corner = plot_group(posterior, 12, image)
    assert corner.shape == (3, 3)
    assert texts(axes) == ["11", "12", "13"]
    assert [panel.get_xlabel() for panel in corner[2]] == ["flux of 11", "flux of 12", "flux of 13"]
    assert corner[2, 1].xaxis.label.get_color() == PALETTE[1]
    assert corner[1, 0].get_title().startswith("correlation -0.7")
    regions = corner[1, 0].collections[0].get_paths()
    (low, _), (high, _) = regions[1].get_extents().get_points()
    # The projection of the joint 68 % region of two normal fluxes is 1.51 standard deviations to either side.
    assert (high - low) / 2 == pytest.approx(1.51 * 2, rel=0.2)


def test_large_groups_show_the_most_correlated_sources(rng):
    flux = rng.normal(50, 1, (1, 400, 8, 1))
    flux[:, :, 5] += flux[:, :, 0] - 50
    cutouts = Cutouts(np.zeros((8, 2)), (9, 9), mask=[np.eye(9)] * 8, image=[np.eye(9)[None]] * 8)
    places = {"scene": np.zeros(8), "group": np.zeros(8), "x": np.arange(8), "y": np.arange(8)}
    axes, corner = plot_group(Posterior.from_draws(flux, cutouts=cutouts, **places), 6)
    assert corner.shape == (5, 5)
    assert {"flux of 1", "flux of 6"} < {panel.get_xlabel() for panel in corner[-1]}
    assert len(texts(axes)) == 8


def test_group_of_one(posterior, image):
    axes, corner = plot_group(posterior, 14, image)
    assert corner.shape == (1, 1)
    assert texts(axes) == ["14"]


def test_field_shows_each_source_in_a_color_of_its_own(posterior, image):
    panels = plot_field(posterior, image)
    np.testing.assert_array_equal(panels[0].images[0].get_array(), image)
    assert texts(panels[1]) == ["11", "12", "13", "14"]
    shown = np.asarray(panels[1].images[0].get_array())
    assert shown.shape == (*SHAPE, 3)
    np.testing.assert_allclose(shown[0, 0], 1)
    centers = [shown[y, x] for y, x in ((16, 16), (16, 24), (24, 16))]
    colors = np.array([to_rgb(color) for color in PALETTE])
    nearest = [int(np.abs(colors - center).sum(1).argmin()) for center in centers]
    assert len(set(nearest)) == 3
    panels[0].figure.draw_without_rendering()


def test_field_joins_groups_and_marks_flags(posterior, image):
    posterior = posterior.with_columns({"flags": [0, 4, 0, 8]})
    flagged, *lines = plot_field(posterior, image)[1].lines
    np.testing.assert_array_equal(flagged.get_xydata(), [[24, 16], [46, 26]])
    ends = {frozenset(map(tuple, line.get_xydata())) for line in lines}
    assert ends == {frozenset({(16, 16), (24, 16)}), frozenset({(16, 16), (16, 24)})}


def test_field_without_sources(posterior, image):
    panels = plot_field(posterior.select([]), image)
    assert (np.asarray(panels[1].images[0].get_array()) == 1).all()


class Section:
    """An image in a file, whose rows are read when they are needed."""

    def __init__(self, pixels):
        self.pixels, self.shape, self.most = pixels, pixels.shape, 0

    def __getitem__(self, part):
        self.most = max(self.most, self.pixels[part].size)
        return self.pixels[part]


def test_large_fields_are_binned(rng):
    """Means of squares of two pixels of the image and of the sources, read in strips; bad pixels do not count."""
    corner, light = (301, 1201), rng.uniform(1, 2, (1, 41, 50))
    cutouts = Cutouts([corner], (701, 2999), mask=[light[0] / 2], image=[light])
    posterior = Posterior.from_draws(
        np.ones((1, 2, 1, 1)), scene=[0], group=[0], x=[1225], y=[321], label=[1], cutouts=cutouts
    )
    image = rng.normal(0, 0.1, (701, 2999))
    image[:2, :2], image[0, 4] = np.nan, np.nan
    panels = plot_field(posterior, file := Section(image))
    shown = np.asarray(panels[0].images[0].get_array())
    assert shown.shape == (351, 1500)
    np.testing.assert_allclose(shown[1:-1, 1:-1], image[2:-1, 2:-1].reshape(349, 2, 1498, 2).mean((1, 3)))
    assert np.isnan(shown[0, 0])
    corners = np.nanmean(image[:2, 4:6]), image[:2, -1].mean(), image[-1, :2].mean(), image[-1, -1]
    np.testing.assert_allclose([shown[0, 2], shown[0, -1], shown[-1, 0], shown[-1, -1]], corners)
    assert file.most < image.size
    colored = (np.asarray(panels[1].images[0].get_array()) < 0.999).any(-1)
    expected = np.zeros((351, 1500), dtype=bool)
    expected[150:171, 600:626] = True
    np.testing.assert_array_equal(colored, expected)
    assert panels[1].images[0].get_extent() == [-0.5, 2999.5, -0.5, 701.5]
