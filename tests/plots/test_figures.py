"""Every figure looks as it did when somebody looked at it.

After a change, `python tests/plots/test_figures.py` draws them anew: look again.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from astropy.table import Table
from matplotlib.testing.compare import compare_images
from matplotlib.testing.decorators import remove_ticks_and_titles

from probdeblend.metrics import reliability
from probdeblend.plots import (
    plot_coverage,
    plot_errors,
    plot_field,
    plot_group,
    plot_image,
    plot_ranks,
    plot_reliability,
    plot_rgb,
    plot_source,
    plot_stamps,
)
from probdeblend.posterior import Cutouts, Flag, Posterior

HERE = Path(__file__).parent / "figures"
TOLERANCE = 8  # root mean square of differences, of 255: fonts and lines differ between versions of matplotlib
SHAPE = (40, 60)
PLACES = ((16, 16), (24, 16), (17, 25), (46, 26))


def scene():
    """Four round sources in three bands, three of which are a group, with noise; and their posterior."""
    rng = np.random.default_rng(5)
    colors = np.array([[1.0, 1.0, 1.0], [0.6, 1.0, 1.5], [1.5, 1.0, 0.5], [0.8, 1.0, 1.2]])
    covariance = np.diag([9.0, 4.0, 2.0, 1.0])
    covariance[0, 1] = covariance[1, 0] = -4
    flux = rng.multivariate_normal([80, 40, 20, 10], covariance, (2, 400))[..., None] * colors
    y, x = np.indices(SHAPE)
    light = [
        color[:, None, None] * bright * np.exp(-np.hypot(x - at[0], y - at[1]) / 2)
        for at, bright, color in zip(PLACES, (5, 3, 2, 1), colors, strict=True)
    ]
    corners = [(at[1] - 8, at[0] - 8) for at in PLACES]
    parts = [own[:, b : b + 17, a : a + 17] for own, (b, a) in zip(light, corners, strict=True)]
    cutouts = Cutouts(corners, SHAPE, mask=[1 / (1 + np.exp(2 - 8 * part[1])) for part in parts], image=parts)
    posterior = Posterior.from_draws(
        flux,
        scene=np.zeros(4),
        group=[0, 0, 0, 1],
        x=[at[0] for at in PLACES],
        y=[at[1] for at in PLACES],
        bands=("g", "r", "i"),
        unit="nJy",
        columns={"flags": [0, 0, Flag.DOUBTFUL, 0]},
        cutouts=cutouts,
    )
    return sum(light) + rng.normal(0, 0.1, (3, *SHAPE)), posterior


def coverage():
    levels = np.array([0.5, 0.68, 0.9, 0.95])
    rows = []
    for quantity in ("flux", "total"):
        for state, factor in (("before", 0.8), ("after", 1.0)):
            row = {"quantity": quantity, "state": state}
            for level in levels:
                name = f"coverage_{level * 100:.0f}"
                row |= {
                    name: level * factor,
                    f"{name}_low": level * factor - 0.03,
                    f"{name}_high": level * factor + 0.04,
                }
            rows.append(row)
    return Table(rows)


def errors(scale=1.0):
    rng = np.random.default_rng(6)
    truth = np.exp(rng.uniform(0, 6, 60))
    width = 0.3 / truth**0.25
    return plot_errors(truth * np.exp(width * scale * rng.normal(size=60) + width * rng.normal(size=(200, 60))), truth)


def ranks():
    rng = np.random.default_rng(7)
    return plot_ranks({"exact": rng.uniform(size=300), "too narrow": rng.beta(0.6, 0.6, 300)})


def calibrated_masks():
    rng = np.random.default_rng(8)
    probability = rng.uniform(size=3000)
    return plot_reliability({"exact": reliability(probability, rng.uniform(size=3000) < probability)})


def stamps(image):
    outlines = np.stack([image > 1, image > 3])[None].repeat(3, 0)
    return plot_stamps(
        [image] * 3, ["a", "b", "c"], outlines=outlines, colors=["#009E73", "#D55E00", "#009E73"], columns=3
    )


def figures():
    """Name of every figure, and what draws it."""
    image, posterior = scene()
    return {
        "image": lambda: plot_image(image[1]),
        "rgb": lambda: plot_rgb(image),
        "stamps": lambda: stamps(image[1])[0],
        "source": lambda: plot_source(posterior, 1, image, band=1)[0],
        "group": lambda: plot_group(posterior, 2, image, band=1)[0],
        "field": lambda: plot_field(posterior, image, band=1)[0],
        "coverage": lambda: plot_coverage(coverage())[0],
        "ranks": ranks,
        "reliability": calibrated_masks,
        "errors": errors,
    }


def draw(axes, path):
    figure = axes.figure
    figure = getattr(figure, "figure", figure)
    remove_ticks_and_titles(figure)
    figure.savefig(path, dpi=40, metadata={"Software": None})


@pytest.mark.skipif(mpl.__version_info__ < (3, 11), reason="matplotlib 3.11 draws margins in another way")
@pytest.mark.parametrize("name", figures())
def test_figure_looks_the_same(name, tmp_path):
    draw(figures()[name](), tmp_path / "now.png")
    assert compare_images(HERE / f"{name}.png", tmp_path / "now.png", tol=TOLERANCE) is None


def test_a_different_figure_is_told(tmp_path):
    draw(errors(scale=5.0), tmp_path / "now.png")
    assert "RMS" in compare_images(HERE / "errors.png", tmp_path / "now.png", tol=TOLERANCE)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"with three bands, got shape \(2, 4, 4\)"):
        plot_rgb(np.ones((2, 4, 4)))
    with pytest.raises(ValueError, match=r"one flux for each source of the draws \(5, 3\), got \(2,\)"):
        plot_errors(np.ones((5, 3)), np.ones(2))


def test_sources_that_were_not_measured_have_no_error():
    axes = plot_errors(np.column_stack([np.full(9, np.nan), np.linspace(1, 3, 9)]), [2.0, 2.0])
    shown = [np.isfinite(line.get_ydata()).sum() for line in axes.lines[1:]]
    assert sum(shown) == 1


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for figure_name, make in figures().items():
        draw(make(), HERE / f"{figure_name}.png")
