"""Refinement for users: what is refined, what is not and why, and what refined answers hold."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import probdeblend
from probdeblend.networks import StudentTHead
from probdeblend.posterior import Flag, Posterior
from probdeblend.refinement import BlendModel, JointGuide, Refined, Refiner, default_guide
from probdeblend.refinement import refiner as room
from probdeblend.refinement.latents import FLUXES
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior

HST = Instrument.candels_f160w()


@pytest.fixture(scope="module")
def model():
    return BlendModel(Prior.default(), HST)


@pytest.fixture(scope="module")
def blends(model):
    return model.simulate(3, seed=5)


class Network:
    """A deblender whose posterior is 0.2 wide in ln flux, around the truth."""

    instrument = HST
    network = object()

    def __init__(self, observed, unknown):
        self.truth = unknown[:, FLUXES].numpy()
        self.flags = np.zeros((len(unknown), 2), dtype=int)
        self.mask = np.full((len(unknown), 2, 128, 128), 0.25, dtype=np.float32)

    def check_pixel_scale(self, pixel_scale):
        if pixel_scale != HST.pixel_scale:
            raise ValueError("pixel_scale must be 0.06")

    def __call__(self, image, *, sky_rms, draws, passes, seed, calibrate):
        rng = np.random.default_rng(seed)
        flux = np.exp(self.truth + 0.2 * rng.normal(size=(2, draws // 2, *self.truth.shape)))
        noise = np.asarray(sky_rms, dtype=float)
        scale = np.median(noise, axis=(1, 2)) if noise.ndim == 3 else np.broadcast_to(noise, len(self.truth))
        return Posterior.from_draws(
            (flux * scale[:, None])[..., None],
            flux_kind="total",
            method="network",
            sky_rms=scale,
            flags=self.flags,
            mask=self.mask,
            x=np.full(self.truth.shape, 1.0),
            y=np.full(self.truth.shape, 1.0),
            flux_prior="of the training",
        )


class Guide:
    """A guide that knows the truth to a hundredth."""

    def __init__(self, network, unknown):
        self.encoder = network.network
        self.head = StudentTHead(4, unknown.shape[1])
        self.unknown = unknown

    def eval(self):
        return self

    def encode(self, image):
        return None, self.unknown

    def numbers(self, features, start):
        numbers = torch.zeros(len(start), self.head.count)
        numbers[:, : start.shape[1]] = start
        return numbers


def exact(model, unknown, draws, *, width=5e-4, k_hat=0.3):
    """What refinement finds: draws around the truth."""
    rng = np.random.default_rng(2)
    drawn = unknown.double().numpy() + width * rng.normal(size=(draws, *unknown.shape))
    blends = len(unknown)
    return Refined(
        unknown=drawn,
        order=np.zeros((draws, blends), dtype=int),
        heaviest=np.ones((draws, blends)),
        log_weight=np.full((draws, blends), -np.log(draws)),
        k_hat=np.full(blends, k_hat),
        effective=np.full(blends, float(draws)),
        chi_square=np.ones((blends, 2)),
        log_evidence=np.zeros(blends),
        log_evidence_error=np.full(blends, 0.1),
    )


@pytest.fixture
def refined(blends, model, monkeypatch):
    return with_found(blends, model, monkeypatch)


@pytest.fixture(scope="module")
def posterior(blends, model):
    with pytest.MonkeyPatch.context() as patch:
        return with_found(blends, model, patch)[1]()


def with_found(blends, model, monkeypatch):
    """A network, and a refiner whose search has been replaced, with a way to spoil what it finds."""
    observed, unknown = blends
    network = Network(observed, unknown)
    found = {"value": exact(model, unknown, 400)}
    monkeypatch.setattr(room, "refine", lambda *_, **__: found["value"])
    refiner = Refiner(network, Guide(network, unknown))

    def ask(change=None, *, image=None, sky_rms=None):
        if change is not None:
            found["value"] = change(found["value"])
        pixels = observed.image * observed.sky_rms[:, None, None] if image is None else image
        rms = observed.sky_rms.numpy() if sky_rms is None else sky_rms
        return refiner(pixels, sky_rms=rms, draws=200, passes=2, seed=1)

    return network, ask


def test_blends_of_the_model_are_refined(blends, posterior):
    observed, unknown = blends
    dataset = posterior.dataset
    assert dataset["refined"].values.all()
    assert not posterior.flags.values.any()
    assert dataset.attrs["method"] == "refined"
    assert "flux_prior" not in dataset.attrs
    rms = observed.sky_rms.double().numpy()[:, None]
    log_flux = np.log(posterior.draws("blend", "galaxy", "band")[:, :, 0] / rms[..., None])
    np.testing.assert_allclose(log_flux.std(-1), 5e-4, rtol=0.4)
    np.testing.assert_allclose(log_flux.mean(-1), unknown[:, FLUXES], atol=1e-3)
    middle = (128 - 1) / 2
    np.testing.assert_allclose(dataset["x"].values - middle, unknown[:, [1, 8]], atol=1e-3)
    np.testing.assert_allclose(dataset["refined_flux_err"] / dataset["refined_flux"], 5e-4, rtol=0.4)
    assert np.isfinite(dataset["log_evidence"]).all()
    # The network's masks have given way to the draws': certain in the middle of the central galaxy and in the corner.
    assert (posterior.mask.values[:, :, 0, 0] == 0).all()
    assert posterior.mask.values.max() == 1


def test_images_hold_the_fluxes(blends, posterior):
    """In-stamp sums are the fluxes times the share of the light that a stamp holds, to 2 %."""
    _, unknown = blends
    model = BlendModel(Prior.default(), HST)
    with torch.no_grad():
        latents, _, growth = model.split(unknown)
        inside = model.light(latents, growth).sum((-2, -1)) / latents[..., 0].exp()
    flux = posterior.draws("blend", "galaxy", "band").mean(-1)[..., 0]
    held = posterior.images.values.sum((-2, -1)) / flux
    np.testing.assert_allclose(held, inside, rtol=0.02)
    assert (posterior.images.values >= 0).all()
    assert (posterior.images_std.values >= 0).all()
    share = posterior.light_fraction
    np.testing.assert_allclose(share.sum("galaxy", min_count=2).stack(pixel=("y", "x")).max(), 1, rtol=1e-5)
    assert np.isnan(share.values[0, 0, 0, 0])
    assert posterior.dataset["sersic_index"].dims == ("chain", "draw", "blend", "galaxy")
    assert (posterior.dataset["axis_ratio"].values <= 1).all()


def far(found, by=3.0):
    unknown = found.unknown.copy()
    unknown[:, :, FLUXES[0]] += by
    return replace(found, unknown=unknown)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (lambda found: replace(found, k_hat=np.full(3, 0.9)), Flag.POOR_WEIGHTS),
        (partial(far, by=0.9), Flag.DISAGREEMENT | Flag.MISFIT),
    ],
)
def test_what_cannot_be_trusted_is_not_refined(refined, change, flag):
    """The network's masks stay, its fluxes go half of the way to the other answer and are as much wider."""
    network, ask = refined
    posterior = ask(change)
    assert not posterior.dataset["refined"].values.any()
    wanted = int(flag | Flag.NOT_REFINED)
    assert (posterior.flags.values & wanted == wanted).all()
    kept = network(None, sky_rms=posterior.dataset["sky_rms"].values, draws=200, passes=2, seed=1, calibrate=True)
    np.testing.assert_array_equal(posterior.mask, kept.mask)
    asked, answered = (np.log(each.draws("blend", "galaxy", "band")[:, :, 0]) for each in (kept, posterior))
    half = (np.log(posterior.dataset["refined_flux"].values) - asked.mean(-1)) / 2
    moved = (answered - asked) / half[..., None]
    np.testing.assert_allclose(moved[:, 0], moved[:, 1], rtol=0.05, atol=0.05)
    # 200 normal draws a blend: the standard error of a mean is 0.07, that of a standard deviation 0.05.
    np.testing.assert_allclose(moved.mean(-1), 1, atol=0.35)
    np.testing.assert_allclose(moved.std(-1), 1, atol=0.25)


def test_an_answer_that_is_too_far_changes_nothing(refined):
    network, ask = refined
    posterior = ask(far)
    assert not posterior.dataset["refined"].values.any()
    kept = network(None, sky_rms=posterior.dataset["sky_rms"].values, draws=200, passes=2, seed=1, calibrate=True)
    np.testing.assert_allclose(posterior.flux, kept.flux)
    # Shapes and images are the guide's, with the network's fluxes.
    held = posterior.images.values.sum((-2, -1)) / posterior.draws("blend", "galaxy", "band").mean(-1)[..., 0]
    assert (held < 1.1).all()
    assert np.median(held) > 0.8


def test_odd_stamps_uneven_noise_and_interpolated_pixels_are_not_refined(blends, refined):
    observed, _ = blends
    network, ask = refined
    network.flags[1] = int(Flag.UNFAMILIAR)
    image = (observed.image * observed.sky_rms[:, None, None]).numpy().copy()
    image[2, 80] = np.nan
    posterior = ask(image=image)
    assert posterior.dataset["refined"].values.tolist() == [True, False, False]
    assert posterior.flags.values[1, 0] == Flag.UNFAMILIAR | Flag.NOT_REFINED
    assert posterior.flags.values[2, 0] == Flag.BAD_PIXELS | Flag.NOT_REFINED
    uneven = observed.sky_rms.double().numpy()[:, None, None] * np.ones((3, 128, 128))
    uneven[2, :40] *= 1.3
    posterior = ask(sky_rms=uneven)
    assert posterior.flags.values[2, 0] & int(Flag.UNEVEN_NOISE)
    assert posterior.dataset["refined"].values[0]


def test_a_blend_does_not_depend_on_the_batch(blends, refined, monkeypatch):
    """Draws of the guide, which unrefined blends have."""
    observed, unknown = blends
    network, ask = refined
    whole = ask(lambda found: replace(found, k_hat=np.full(3, np.inf)))
    few = Network(observed.select(slice(1, 2)), unknown[1:2])
    few.network = network.network
    one = exact(BlendModel(Prior.default(), HST), unknown[1:2], 400)
    monkeypatch.setattr(room, "refine", lambda *_, **__: replace(one, k_hat=np.full(1, np.inf)))
    refiner = Refiner(few, Guide(network, unknown[1:2]))
    pixels = observed.image[1:2] * observed.sky_rms[1:2, None, None]
    alone = refiner(pixels, sky_rms=observed.sky_rms[1:2].numpy(), draws=200, passes=2, seed=1)
    assert not alone.dataset["refined"].values.any()
    first = refiner._guided(torch.zeros(1, 128, 128), 5, seed=3)[1]
    other = Refiner(network, Guide(network, unknown))._guided(torch.zeros(3, 128, 128), 5, seed=3)[1]
    assert not np.array_equal(other[:, 0] - unknown[0].numpy(), other[:, 1] - unknown[1].numpy())
    np.testing.assert_allclose((other[:, 0] - unknown[0].numpy()), (first[:, 0] - unknown[1].numpy()), atol=1e-5)
    assert len(whole) == 3


def test_refuses(blends, refined):
    observed, unknown = blends
    network, ask = refined
    with pytest.raises(ValueError, match=r"image must be sky-subtracted, got corners above \d+\.\d times the noise"):
        ask(image=observed.image * observed.sky_rms[:, None, None] + 1.0)
    stranger = Guide(network, unknown)
    stranger.encoder = object()
    with pytest.raises(ValueError, match="guide must be trained on the deblender's own network, got one on another"):
        Refiner(network, stranger)
    with pytest.raises(ValueError, match="zero_point must be finite, got nan: the prior is one of magnitudes"):
        Refiner(network, Guide(network, unknown), instrument=HST.replace(zero_point=float("nan")))
    with pytest.raises(ValueError, match="pixel_scale"):
        Refiner(network, Guide(network, unknown), instrument=HST.replace(pixel_scale=0.1))
    blurred = torch.nn.functional.avg_pool2d(HST.psf[None], 3, 1, 1)[0]
    with pytest.warns(UserWarning, match=r"the PSF is 1\.\d\d times as wide as in training: the starting point"):
        Refiner(network, Guide(network, unknown), instrument=HST.replace(psf=blurred / blurred.sum()))
    with pytest.raises(ValueError, match=r"image must hold at least one stamp, got shape \(0, 1, 128, 128\)"):
        ask(image=observed.image[:0], sky_rms=1.0)
    with pytest.raises(ValueError, match="draws must be at least 2, got 1"):
        Refiner(network, Guide(network, unknown))(observed.image, sky_rms=1.0, draws=1)


@pytest.mark.slow
def test_the_whole_way(blends):
    """The guide and weights that ship on blends of the model: most are refined, and none is far off."""
    observed, unknown = blends
    deblender = probdeblend.load()
    refiner = Refiner(deblender, default_guide(deblender))
    assert isinstance(refiner.guide, JointGuide)
    posterior = refiner(observed.image * observed.sky_rms[:, None, None], sky_rms=observed.sky_rms.numpy(), draws=320)
    refined = posterior.dataset["refined"].values
    assert refined.mean() >= 0.5
    truth = (unknown[:, FLUXES].exp() * observed.sky_rms[:, None]).double().numpy()
    error = (posterior.dataset["refined_flux"].values - truth) / posterior.dataset["refined_flux_err"].values
    assert np.abs(error[refined]).max() < 4.5
    again = Posterior.concatenate([posterior.select([0, 1]), posterior.select([2])])
    np.testing.assert_array_equal(again.dataset["refined"], refined)
