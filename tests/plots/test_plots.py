import numpy as np
import pytest
from astropy.table import QTable
from matplotlib.figure import Figure

from probdeblend.plots import (
    GALAXY_COLORS,
    plot_blend,
    plot_blends,
    plot_field,
    plot_fluxes,
    plot_image,
    plot_pulls,
    plot_stamps,
)
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag


@pytest.fixture
def images(rng):
    return rng.normal(size=(3, 1, 24, 24)).astype(np.float32)


@pytest.fixture
def posterior(rng):
    draws = rng.multivariate_normal([80, 40], [[4, -1.5], [-1.5, 1]], size=(2, 300, 3))[..., None]
    mask = np.zeros((3, 2, 24, 24), dtype=np.float32)
    mask[:, 0, 8:14, 8:14] = mask[:, 1, 12:18, 12:18] = 0.9
    return Posterior.from_draws(
        draws,
        flux_kind="total",
        method="network",
        mask=mask,
        flags=np.array([[0, 0], [4, 64], [0, 0]]),
        flux_unit="electron / s",
        pixel_scale=0.06,
    )


def texts(axes):
    return " ".join([axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in axes.texts)])


def drawn(figure):
    """Draw with the canvas that needs no display; warnings are errors here."""
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).std() > 0 if hasattr(figure.canvas, "buffer_rgba") else True


def test_image_survives_bad_pixels_and_flat_skies(rng):
    image = rng.normal(size=(10, 14))
    image[2, 3] = np.nan
    axes = plot_image(image)
    assert axes.get_xlim() == (-0.5, 13.5)
    assert axes.get_ylim() == (-0.5, 9.5)
    assert axes.get_xlabel() == "x [pixel]"
    assert drawn(axes.figure)
    flat = np.zeros((10, 14))
    flat[5, 5] = 1
    assert drawn(plot_image(flat, pixel_scale=0.06).figure)
    assert drawn(plot_image(0 * flat).figure)


def test_image_refuses_what_is_none():
    with pytest.raises(ValueError, match=r"image must have the axes \(y, x\), got shape \(1, 4, 4\)"):
        plot_image(np.ones((1, 4, 4)))
    with pytest.raises(ValueError, match="image must have a finite pixel, got none"):
        plot_image(np.full((4, 4), np.nan))


def test_stretch_spans_the_noise_and_the_galaxy(rng):
    image = rng.normal(5, 0.1, (60, 60))
    image[30, 30:34] = 105
    norm = plot_image(image).images[0].norm
    assert norm.vmin == pytest.approx(4.8, abs=0.02)
    assert norm.vmax == pytest.approx(105)
    assert norm.linear_width == pytest.approx(0.2, rel=0.1)


def test_fluxes_show_the_joint_distribution(posterior):
    axes = plot_fluxes(posterior, blend=1, truth=[80, 40])
    assert axes.get_xlabel() == "central flux [electron / s]"
    assert axes.get_ylabel() == "companion flux [electron / s]"
    assert axes.xaxis.label.get_color() == GALAXY_COLORS[0]
    assert "correlation -0.7" in texts(axes)
    assert [line.get_label() for line in axes.lines][-1] == "truth"
    assert len(axes.child_axes) == 2
    regions = axes.collections[0].get_paths()
    (low, _), (high, _) = regions[1].get_extents().get_points()
    # The projection of the joint 68 % region of two normal fluxes is 1.51 standard deviations to either side.
    assert (high - low) / 2 == pytest.approx(1.51 * 2, rel=0.2)
    assert drawn(axes.figure)


def test_fluxes_of_a_galaxy_that_was_not_found(posterior):
    flux = posterior.flux.values.copy()
    flux[:, :, 0, 1] = np.nan
    missed = Posterior.from_draws(flux, flux_kind="auto", method="sep")
    axes = plot_fluxes(missed)
    assert "companion\nnot detected" in texts(axes)
    assert drawn(axes.figure)
    assert drawn(plot_blend(missed, np.eye(24))[0].figure)


def test_fluxes_without_spread(posterior):
    certain = Posterior.from_draws(np.ones((1, 9, 1, 2, 1)), flux_kind="total", method="network")
    assert drawn(plot_fluxes(certain).figure)
    single = Posterior.from_draws(np.ones((1, 9, 1, 1, 1)), flux_kind="total", method="network")
    with pytest.raises(ValueError, match="posterior must be of pairs, got 1 galaxies"):
        plot_fluxes(single)


def test_blend(posterior, images):
    axes = plot_blend(posterior, images[1], blend=1, truth=[80, 40])
    assert axes.shape == (4,)
    assert axes[0].get_title() == "blend 1"
    assert "off center\ntruncated" in texts(axes[0])
    assert axes[1].get_title().startswith("central: 80.")
    assert axes[2].get_title().startswith("companion: ")
    np.testing.assert_array_equal(axes[2].images[0].get_array(), posterior.mask[1, 1])
    assert drawn(axes[0].figure)


def test_blend_without_masks(posterior, images):
    bare = Posterior.from_draws(posterior.flux.values, flux_kind="auto", method="sep")
    axes = plot_blend(bare, images[0, 0])
    assert "no mask from sep" in texts(axes[1])
    assert drawn(axes[0].figure)


def test_blends(posterior, images, tmp_path):
    grid = plot_blends(posterior, images[:, 0], most=2)
    assert grid.shape == (2, 4)
    figure = grid[0, 0].figure
    titles = [axes.get_title() for axes in figure.axes]
    assert [title for title in titles if title.startswith("blend")] == ["blend 0", "blend 1"]
    assert figure.get_suptitle() == "the first 2 of 3 blends"
    figure.savefig(tmp_path / "blends.png", dpi=40)
    assert (tmp_path / "blends.png").read_bytes().startswith(b"\x89PNG")
    assert plot_blends(posterior, images)[0, 0].figure.get_suptitle() == ""
    with pytest.raises(ValueError, match="images must hold a stamp for each of 3 blends, got 2"):
        plot_blends(posterior, images[:2])


def test_errors_have_two_digits(posterior, images):
    for scale, title in [
        (1e-3, "central: 0.0800 ± 0.0020"),
        (1, "central: 80.0 ± 2.0"),
        (1e6, "central: 8e+07 ± 2e+06"),
    ]:
        levels = scale * np.array([78.0, 80.0, 82.0])
        flux = np.repeat(levels, [500, 1, 500])[None, :, None, None, None] * np.ones((1, 1, 1, 2, 1))
        axes = plot_blend(Posterior.from_draws(flux, flux_kind="total", method="network"), images[0])
        assert axes[1].get_title() == title


def test_field(rng):
    catalog = QTable(
        {
            "id": [1, 2, 3, 4],
            "blend": [0, 0, 1, 2],
            "galaxy": [0, 1, 0, 0],
            "x": [10.0, 14.0, 30.0, np.nan],
            "y": [10.0, 12.0, 20.0, np.nan],
            "flags": [0, 0, int(Flag.ISOLATED), 0],
        }
    )
    axes = plot_field(rng.normal(size=(40, 50)), catalog)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["isolated source (1)", "central galaxy of a pair (2)", "its companion (1)"]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
    assert drawn(axes.figure)
    assert plot_field(rng.normal(size=(40, 50)), catalog[:0]).get_legend() is None


def test_pages_of_stamps(images):
    outlines = np.zeros((3, 2, 24, 24))
    outlines[:, 0, 5:9, 5:9] = 1
    panels = plot_stamps(images[:, 0], ["a", "b", "c"], outlines=outlines, colors=["r", "g", "b"], columns=2)
    assert [axes.get_title() for axes in panels] == ["a", "b", "c"]
    assert drawn(panels[0].figure)
    with pytest.raises(ValueError, match="titles must be as many as stamps, and at least one, got 2 for 3"):
        plot_stamps(images[:, 0], ["a", "b"])


def test_histograms_of_pulls_have_unit_area(rng):
    nan = np.nan
    axes = plot_pulls({"network": rng.normal(size=500), "sep": [nan, 3.0, 99.0], "none": [nan]})
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["unit normal", "network (500 galaxies)", "sep (2 galaxies)"]
    for patch, inside in zip(axes.patches, (500, 2), strict=True):
        x, y = patch.get_xy().T
        assert abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2 == pytest.approx(1), inside
    assert plot_pulls({"network": [0.1]}, axes=axes) is axes
