import numpy as np
import pytest

from probdeblend.plots import plot_image, plot_stamps


def test_image_survives_bad_pixels_and_flat_skies(rng):
    image = rng.normal(size=(10, 14))
    image[2, 3] = np.nan
    axes = plot_image(image)
    assert axes.get_xlim() == (-0.5, 13.5)
    assert axes.get_ylim() == (-0.5, 9.5)
    assert axes.get_xlabel() == "x [pixel]"
    axes.figure.draw_without_rendering()
    flat = np.zeros((10, 14))
    flat[5, 5] = 1
    plot_image(flat).figure.draw_without_rendering()
    plot_image(0 * flat).figure.draw_without_rendering()


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


def test_pages_of_stamps(rng):
    stamps = rng.normal(size=(3, 24, 24))
    outlines = np.zeros((3, 2, 24, 24))
    outlines[:, 0, 5:9, 5:9] = 1
    panels = plot_stamps(stamps, ["a", "b", "c"], outlines=outlines, colors=["r", "g", "b"], columns=2)
    assert [axes.get_title() for axes in panels] == ["a", "b", "c"]
    panels[0].figure.draw_without_rendering()
    with pytest.raises(ValueError, match="titles must be as many as stamps, and at least one, got 2 for 3"):
        plot_stamps(stamps, ["a", "b"])
