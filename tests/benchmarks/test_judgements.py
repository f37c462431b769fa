"""How single benchmarks judge: colors, detections, catalogs, marches, labels, references and promises."""

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table
from scipy import special

from benchmarks import ablation, bands, detections, dropout, field, labels, march, pairs, references, validation
from benchmarks.boucaud2020.pairs import Pairs
from benchmarks.validation import PROMISES, check
from probdeblend.networks.published import LABELS
from probdeblend.posterior import Posterior


def answer(scene, x, y, flux, **columns):
    """A posterior with three draws of each flux in one band."""
    drawn = np.asarray(flux, dtype=float) * np.array([0.9, 1.0, 1.1])[:, None]
    group = np.arange(len(x))
    return Posterior.from_draws(None, drawn[None, ..., None], scene=scene, group=group, x=x, y=y, columns=columns)


def test_the_paper_gives_a_single_detection_to_the_central_galaxy_only_within_half_its_radius(truth):
    """Radius 5 pixels: 2 pixels away it is the central galaxy, 3 pixels away the companion; of three, two count."""
    scene = truth(4)
    found = answer([0, 1, 2, 2, 2], [2.0, 3.0, 24.0, 0.0, 9.0], np.zeros(5), [1, 1, 5, 4, 3])
    assert pairs.paper_rows(scene, found).tolist() == [0, -1, -1, 1, 3, 2, -1, -1]


def test_colors_of_bands_that_err_alike():
    rng = np.random.default_rng(0)
    error = rng.normal(0, 0.1, (2000, 2))
    rank = 0.5 * (1 + special.erf(-error / 0.1 / 2**0.5))
    found = {"error": error, "half": np.full((2000, 2), 0.1), "rank": rank, "snr": np.full(2000, 9.0)}
    row = bands.colors(found)
    assert row["scatter"] == pytest.approx(1.0857 * 0.1, rel=0.1)
    assert row["coverage_68"] == pytest.approx(0.68, abs=0.04)
    assert bands.colors(found | {"snr": np.r_[np.full(500, 9.0), np.full(1500, 1.0)]})["sources"] == 500


def test_one_band_of_three(truth):
    scene = truth(2)
    three = {name: getattr(scene, name).repeat(1, 3, 1, 1) for name in ("image", "psf", "light")}
    three |= dict.fromkeys(("exposure", "noise_kernel", "wavelength"))
    three |= {"sky_rms": torch.tensor([[1.0, 2.0, 3.0]]).repeat(2, 1), "flux": scene.flux * torch.tensor([1.0, 2, 3])}
    many = type(scene)(**vars(scene) | three | {"auto_flux": three["flux"], "zero_point": (1.0, 2.0, 3.0)})
    one = bands.one_band(many, 1)
    assert one.sky_rms.tolist() == [[2.0], [2.0]]
    torch.testing.assert_close(one.flux, 2 * scene.flux)
    assert one.zero_point == (2.0,)


def test_the_threshold_of_equal_purity():
    """Of six sources by falling probability the third and the last two are false; a faint one does not count."""
    found = {
        "found_existence": np.array([0.9, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4]),
        "found_real": np.array([1, 1, -1, 0, 1, 0, 0]),
    }
    assert detections.equal_purity(found, 1.0) == 0.8
    assert detections.equal_purity(found, 0.75) == 0.6
    assert detections.equal_purity(found, 0.5) == 0.4
    assert detections.equal_purity({name: v[::-1] for name, v in found.items()}, 0.75) == 0.6


class Fixed:
    """A deblender that always answers the same."""

    def __init__(self, posterior):
        self.posterior = posterior

    def scenes(self, scene, *, positions=None, seed=0):
        return self.posterior


def test_what_is_detected(truth):
    scene = truth(2)
    columns = {"existence": [0.9, 0.8, 0.3], "star": [0.1, 0.7, 0.5]}
    found = answer([0, 0, 1], [0.5, 60.0, 24.0], np.zeros(3), [10.0, 20.0, 30.0], **columns)
    arrays = detections.detected(Fixed(found), scene)
    np.testing.assert_array_equal(arrays["existence"], [0.9, np.nan, np.nan, 0.3])
    assert arrays["found_real"].tolist() == [1, 0, 1]
    np.testing.assert_allclose(arrays["found_brightness"], [10, 20, 30])
    faint = detections.detected(Fixed(found), truth(2, snr=1.0))
    assert faint["found_real"].tolist() == [-1, 0, -1]


def test_the_variance_between_passes_is_free_of_the_noise_of_draws():
    rng = np.random.default_rng(0)
    alike, unlike = rng.normal(0, 0.3, (2, 400, 20, 300))
    unlike = unlike + rng.normal(0, 0.1, (400, 1, 300))
    for drawn, expected in ((alike, 0.0), (unlike, 0.1)):
        within, between = dropout._parts(drawn)
        np.testing.assert_allclose(within.mean(), 0.3, rtol=0.02)
        assert (between**2).mean() == pytest.approx(expected**2, abs=3e-4)


def test_catalogs_are_compared():
    first = Table({"x": [1.0, 20.0, 40.0], "y": [1.0, 2.0, 3.0], "flux": [1.0, 2.0, 3.0], "flux_err": [0.1] * 3})
    second = first[::-1].copy()
    assert field.compare_catalogs(first, second) == {"same": 1.0, "worst": 0.0}
    second["flux"][0] += 0.05
    second["x"][1] += 5
    found = field.compare_catalogs(first, second)
    assert found["same"] == pytest.approx(2 / 3)
    assert found["worst"] == pytest.approx(0.5)
    assert field.compare_catalogs(first[:0], second[:0])["worst"] == 0


def catalog(rng, sources, flux, error):
    return Table(
        {name: sources[name] + 0.1 * rng.normal(size=len(sources)) for name in "xy"}
        | {"flux_auto": flux, "error_auto": error}
    )


@pytest.mark.parametrize("claim", [0.5, 1.0, 2.0])
def test_isolated_galaxies_agree_within_their_errors(rng, claim):
    """Two measurements with independent errors of 10 %, a part of which is claimed, on a grid of 900 galaxies."""
    x, y = (50.0 * axis.ravel() for axis in np.mgrid[:30, :30])
    true = rng.lognormal(3, 1, 900)
    sources = Table({"x": x, "y": y, "flux_auto": true, "isolated": np.arange(900) % 3 > 0})
    first, second = (
        catalog(
            rng, sources, np.where(sources["isolated"], true * (1 + 0.1 * rng.normal(size=900)), 0), 0.1 * claim * true
        )
        for _ in range(2)
    )
    found = field.agreement(sources, first, second[:600])
    assert found["isolated galaxies"] == 600
    for pair in ("network - truth", "SEP - truth", "network - SEP"):
        assert found[f"{pair}, median"] == pytest.approx(0, abs=0.3 / claim)
        assert found[f"{pair}, scatter"] == pytest.approx(1 / claim, rel=0.15)
    assert np.isnan(field.agreement(sources[:0], first, second)["SEP - truth, scatter"])


def test_a_field_knows_which_of_its_galaxies_are_isolated(tmp_path, monkeypatch):
    """Those far from all others, and from the edge."""
    monkeypatch.setattr(field, "DENSITY", 12 / 256**2)
    field.write_field(tmp_path / "field.fits", 256, seed=1)
    sources = Table.read(tmp_path / "field.fits", hdu="SOURCES")
    assert len(sources) > 3
    assert (sources["flux_auto"] > 0).all()
    x, y = np.array([sources["x"], sources["y"]], dtype=float)
    apart = np.hypot(x[:, None] - x, y[:, None] - y) + 1e9 * np.eye(len(x))
    edge = np.minimum(np.minimum(x, 255 - x), np.minimum(y, 255 - y))
    isolated = np.asarray(sources["isolated"], dtype=bool)
    assert 0 < isolated.sum() < len(isolated)
    assert (apart.min(1)[isolated] > 48).all()
    assert (edge[isolated] > 24).all()
    assert fits.getdata(tmp_path / "field.fits").shape == (256, 256)


@pytest.mark.parametrize(
    ("claim", "bias", "holds"), [(1.0, 0.0, True), (0.5, 0.0, False), (2.5, 0.0, False), (1.0, 0.06, False)]
)
def test_the_bar_of_the_march(truth, posterior, claim, bias, holds):
    """Errors of 0.1 in ln flux: right ones, too small and too large ones, and a bias of 0.6 standard deviations."""
    scene = truth(300)
    moved = type(scene)(**vars(scene) | {"flux": scene.flux * np.exp(bias)})
    z = march.scores(moved, Fixed(posterior(scene, claim=claim, tied=0.0)))
    table = march.tabulate({"network": [z]}, (3.0,))
    assert table["galaxy"].tolist() == list(march.QUANTITIES)
    assert (table["holds"] == holds).all()
    np.testing.assert_allclose(table["posterior_sd"][:2], 0.1 * claim, rtol=0.1)


def test_where_the_image_says_little_only_narrow_errors_are_wrong():
    wide = np.stack([np.full((20, 3), 0.4) + 1e-3 * np.arange(20)[:, None], np.full((20, 3), 1.0)])
    assert march.tabulate({"network": [wide]}, (3.0,))["holds"].all()
    narrow = np.stack([np.linspace(-3, 3, 20)[:, None] * np.ones(3), np.full((20, 3), 1.0)])
    assert not march.tabulate({"network": [narrow]}, (3.0,))["holds"].any()


def test_the_figure_of_the_march():
    z = np.stack([np.linspace(-1, 1, 20)[:, None] * np.ones(3), np.full((20, 3), 0.1)])
    figure = march.plot(march.tabulate({"network": [z, z], "sep": [z, z]}, (3.0, 8.0)))
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes[:3]] == list(march.QUANTITIES)


def test_labels_are_counted_by_truth_and_estimate(rng):
    mask = rng.random((5, 2, 32, 32)) < 0.4
    image = np.zeros((5, 1, 32, 32), dtype=np.float16)
    data = Pairs(image, mask, np.ones((5, 2), "f4"), np.zeros((5, 2), int), np.zeros(5), np.zeros(5))

    def background(pixels):
        logits = torch.zeros(len(pixels), len(LABELS), *pixels.shape[-2:])
        logits[:, 0] = 1
        return logits

    counts = labels.confusion(background, data, start=1)
    assert counts[:, 1:].sum() == 0
    assert counts.sum() == 4 * 32 * 32
    table = labels.labels_table(counts)
    assert table["iou"][0] == pytest.approx((~mask[1:].any(1)).mean())
    assert table["iou"][1:].tolist() == [0, 0, 0]
    assert table["pixels"].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("scale", "shift", "tied", "within"),
    [
        (1.0, 0.0, -0.8, True),
        (0.6, 0.0, -0.8, False),
        (1.5, 0.0, -0.8, False),
        (1.0, 0.5, -0.8, False),
        (1.0, 0.0, 0.0, False),
    ],
)
def test_references_are_compared(rng, scale, shift, tied, within):
    """Means, widths and correlations of two ln fluxes, of a reference with a correlation of -0.8."""

    def draw(count, tied):
        return rng.multivariate_normal([0, 0], [[1, tied], [tied, 1]], count)

    sampled = draw(4000, -0.8).reshape(2, 2000, 2)
    refined = shift + scale * draw(4000, tied)
    quality = {"k_hat": np.array(0.3), "usable": np.array(True), "r_hat": np.array(1.0)}
    assert references.compare(refined, sampled, **quality)["within"] == within
    assert not references.compare(sampled[0], sampled, **quality | {"usable": np.array(False)})["within"]


def test_promises_are_checked(tmp_path):
    table = Table({"method": ["network, total, true positions", "other"], "mape": [6.0, 30.0], "nmad_mag": [0.06, 0.1]})
    for name in ("coverage_68", "joint_68", "total_68"):
        table[name] = [0.68, np.nan]
    table["seconds"] = np.nan
    (tmp_path / "pairs").mkdir()
    table.write(tmp_path / "pairs" / "pairs.ecsv")
    rows = {(row["benchmark"], promise.column): row for row, promise in zip(check(tmp_path), PROMISES, strict=True)}
    assert rows["pairs", "mape"]["kept"] == "yes"
    assert rows["pairs", "nmad_mag"]["kept"] == "no"
    assert rows["pairs", "coverage_68"]["kept"] == "yes"
    assert rows["pairs", "seconds"]["kept"] == "not measured"
    assert rows["crowding", "coverage_68"]["kept"] == "not measured"
    (tmp_path / "detections").mkdir()
    for meta, kept in (({}, "not measured"), ({"existence_ece": 0.02}, "yes"), ({"existence_ece": 0.2}, "no")):
        Table({"feature": ["all"]}, meta=meta).write(tmp_path / "detections" / "detections.ecsv", overwrite=True)
        (row,) = [row for row in check(tmp_path) if row["benchmark"] == "detections"]
        assert row["kept"] == kept


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: f"{promise.benchmark}-{promise.column}")
def test_promises_have_a_range(promise):
    assert promise.low < promise.high
    assert np.isfinite([promise.low, promise.high]).any()
    assert (validation.Path(validation.__file__).parent / f"{promise.benchmark}.py").is_file()


@pytest.mark.parametrize(
    ("sources", "matched"),
    [
        ([], [-1, -1]),
        ([(62, 63, 10)], [0, -1]),
        ([(66.5, 63, 10)], [0, -1]),
        ([(67.5, 63, 10)], [-1, 0]),
        ([(79, 64, 10), (63, 62, 5)], [1, 0]),
        ([(64, 63, 10), (68, 63, 5)], [0, 1]),
        ([(20, 20, 100), (81, 63, 5), (62, 63, 10)], [2, 0]),
    ],
    ids=[
        "none",
        "one, near the central",
        "one, within half the radius",
        "one, farther than half the radius",
        "two",
        "two near one",
        "three",
    ],
)
def test_published_rule(sources, matched):
    found = tuple(np.array(sources, dtype=float).reshape(-1, 3).T)
    np.testing.assert_array_equal(pairs.published_match(found, [63.0, 80.0], [63.0, 63.0], radius=8.0), matched)


@torch.no_grad()
def test_what_is_left_out_of_a_network_has_no_part_in_its_answer():
    token, edge = torch.randn(1, 3, 96), torch.randn(1, 3, 3, 4)
    layers = ablation.without("attention").attention
    for layer in layers:
        assert torch.equal(layer(token, edge), token)
    assert not any(value.requires_grad for value in layers.parameters())
    hidden, each = torch.randn(1, 2, 96), torch.randn(1, 2, 1, 96)
    assert ablation.without()._pairs(hidden, each, edge[:, :2, :2]).any()
    assert not ablation.without("pair.2")._pairs(hidden, each, edge[:, :2, :2]).any()
