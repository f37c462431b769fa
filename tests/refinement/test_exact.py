"""A blend of known shapes, of which only the fluxes are free, has an exact posterior: it is linear and Gaussian.

Every head, trained by either loss, refinement, and the sampler that judges refinement have to find it.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy.stats import norm, t

from probdeblend.networks.heads import MixtureHead, NormalHead, StudentTHead
from probdeblend.refinement import BlendModel, Observed, refine, sample_reference
from probdeblend.refinement.latents import FLUXES as FLUX
from probdeblend.refinement.likelihood import expected_periodogram, whitened
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior

# Heads: two round Gaussians on 16 x 16 pixels of unit noise, 0.7 of their FWHM apart, a unit flux at three sigma.
FWHM, SEPARATION, SIGNAL = 4.0, 0.7, 3.0
PAIRS, STEPS, BATCH, RATE, TOLD = 20_000, 400, 512, 0.02, 4000


def _profiles():
    axis = torch.arange(16) - 7.5
    places = SEPARATION * FWHM * torch.tensor([-0.5, 0.5])
    distance = (axis[:, None, None] - places).square() + axis[:, None].square()
    profiles = torch.exp(-4 * math.log(2) * distance / FWHM**2).flatten(0, 1)
    return profiles / profiles.norm(dim=0)


PROFILES = _profiles()
OVERLAP = PROFILES.T @ PROFILES
FLUXES = dist.MultivariateNormal(torch.tensor([0.5, -0.3]), torch.tensor([[1.0, 0.2], [0.2, 0.5]]))
COVARIANCE = torch.linalg.inv(FLUXES.precision_matrix + SIGNAL**2 * OVERLAP)
SPREAD = COVARIANCE.diagonal().sqrt()
# What matched filters say of an image is sufficient: flux times this, and noise with the covariance of the overlap.
RESPONSE = SIGNAL * OVERLAP
EVIDENCE = dist.MultivariateNormal(RESPONSE @ FLUXES.loc, OVERLAP + RESPONSE @ FLUXES.covariance_matrix @ RESPONSE)


def simulate(count):
    """What matched filters say of images of blends, and the fluxes."""
    flux = FLUXES.sample((count,))
    image = SIGNAL * flux @ PROFILES.T + torch.randn(count, len(PROFILES))
    return image @ PROFILES, flux


def exact_mean(data):
    return (SIGNAL * data + FLUXES.precision_matrix @ FLUXES.loc) @ COVARIANCE


def forward_kl(head, data, flux):
    return -head(data).log_prob(flux).mean()


def elbo(head, data, flux):
    """The loss knows the model and the data, but not the fluxes."""

    def model():
        with pyro.plate("blend", len(data)):
            drawn = pyro.sample("flux", FLUXES)
            pyro.sample("data", dist.MultivariateNormal(drawn @ RESPONSE, OVERLAP), obs=data)

    def guide():
        posterior = head(data)
        # A mixture's draws have no gradient; the evidence takes the noise out of the score's, all of it at the optimum.
        infer = {} if posterior.has_rsample else {"baseline": {"baseline_value": EVIDENCE.log_prob(data)}}
        with pyro.plate("blend", len(data)):
            pyro.sample("flux", posterior, infer=infer)

    return Trace_ELBO().differentiable_loss(model, guide) / len(data)


def trained(head, loss, *, steps=STEPS, rate=RATE):
    """A linear map from data to the numbers of a head, after training."""
    torch.manual_seed(0)
    network, (data, flux) = head(2), simulate(PAIRS)
    if isinstance(network, StudentTHead):
        # Training reaches the normal distribution, the far end of its family, but slowly: it starts near it.
        torch.nn.init.constant_(network.out.bias[-1], 60.0)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(PAIRS, (BATCH,))
        optimizer.zero_grad()
        loss(network, data[rows], flux[rows]).backward()
        optimizer.step()
        schedule.step()
    return network


def errors(network):
    """Of fresh data: root mean square error of the mean, mean absolute error of the covariance, over the exact ones."""
    data, _ = simulate(300)
    with torch.no_grad():
        draws = network(data).sample((TOLD,))
    mean = draws.mean(0)
    offset = (draws - mean) / SPREAD
    covariance = torch.einsum("nbi,nbj->bij", offset, offset) / TOLD
    off = (covariance - COVARIANCE / SPREAD[:, None] / SPREAD).abs().mean(0)
    return float(((mean - exact_mean(data)) / SPREAD).square().mean().sqrt()), float(off.max())


# Five times the scatter between trainings above their mean, in units of the exact spread: of the error of the mean
# (measured: 0.02 for the first two heads, 0.04 and 0.09 for the mixture; 0.016 are the standard error of so many
# draws), and of that of the covariance's worst element (0.02 to 0.03, 0.04 and 0.08; 0.018).
LIMITS = {NormalHead: (0.04, 0.05), StudentTHead: (0.04, 0.05), MixtureHead: (0.14, 0.13)}
QUICK = {"steps": 200, "rate": 0.03}  # where gradients have little noise
SLOW = [(StudentTHead, elbo), (MixtureHead, elbo)]


@pytest.mark.parametrize(
    ("head", "loss"),
    [
        pytest.param(head, loss, marks=[pytest.mark.slow] if (head, loss) in SLOW else [])
        for head in LIMITS
        for loss in (forward_kl, elbo)
    ],
)
def test_heads_find_the_exact_posterior(head, loss):
    short = QUICK if (head, loss) == (NormalHead, elbo) else {}
    of_mean, of_covariance = errors(trained(head, loss, **short))
    assert of_mean < LIMITS[head][0]
    assert of_covariance < LIMITS[head][1]


class Uncorrelated(NormalHead):
    """A normal head that takes the two fluxes as independent."""

    def location_and_scale(self, numbers):
        location, factor = super().location_and_scale(numbers)
        return location, torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("loss", [forward_kl, elbo])
def test_heads_without_correlation_do_not(loss):
    """Their means are right all the same; forward KL leaves variances right too, the ELBO makes them too small."""
    of_mean, of_covariance = errors(trained(Uncorrelated, loss, **QUICK))
    assert of_mean < LIMITS[NormalHead][0]
    correlation = float(COVARIANCE[0, 1] / SPREAD.prod())
    assert of_covariance == pytest.approx(-correlation, abs=LIMITS[NormalHead][1])
    assert of_covariance > LIMITS[NormalHead][1]


# Refinement: a pair 1.1 FWHM of the PSF apart, its fluxes over the sky noise normal, all else known.
MEAN, SPREADS = torch.tensor([400.0, 300.0]), torch.tensor([60.0, 50.0])
KNOWN = torch.tensor([6.0, -1.5, -0.8, -1.6, -1.0, 0.3, 0.1, 5.7, 1.6, 0.9, -1.9, 0.2, -0.2, 0.2, 0.0, 0.0])
OTHERS = [number for number in range(len(KNOWN)) if number not in FLUX]
NARROW = 1e-3


class KnownShapes(BlendModel):
    """A model in which shapes, places, sky and PSF are known as well as a thousandth."""

    def log_prior(self, unknown, observed):
        log_flux = unknown[..., FLUX]
        # Normal in the flux itself: the density of its logarithm has a factor of the flux more.
        density = dist.Normal(MEAN, SPREADS).log_prob(log_flux.exp()) + log_flux
        return density.sum(-1) + dist.Normal(KNOWN[OTHERS], NARROW).log_prob(unknown[..., OTHERS]).sum(-1)

    def draw_unknown(self, count, *, sky_rms, seed=0):
        generator = torch.Generator().manual_seed(seed)
        unknown = KNOWN + NARROW * torch.randn(count, len(KNOWN), generator=generator)
        unknown[:, FLUX] = torch.log(MEAN + SPREADS * torch.randn(count, 2, generator=generator))
        return unknown


@pytest.fixture(scope="module")
def model():
    return KnownShapes(Prior.default(), Instrument.candels_f160w(exposure=math.inf), size=32)


@pytest.fixture(scope="module")
def observed(model):
    sky_rms, exposure = torch.ones(2), torch.full((2,), math.inf)
    latents, sky_level, growth = model.split(model.draw_unknown(2, sky_rms=sky_rms, seed=4))
    dark = Observed(torch.empty(0), sky_rms, exposure)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return dark._replace(image=model.noisy(model.light(latents, growth).sum(1), sky_level, dark).sample())


@pytest.fixture(scope="module")
def refined(model, observed):
    return refine(model, observed, KNOWN.expand(2, -1), draws=1000, attempts=1, seed=1)


def exact_posterior(model, observed, spreads=SPREADS):
    """Means and covariance of the fluxes: least squares on whitened images of unit flux, and the prior."""
    latents, _, growth = model.split(KNOWN[None])
    latents = latents.index_fill(-1, torch.tensor(0), 0.0)
    power = expected_periodogram(model.instrument.noise_kernel, model.size)
    profiles = whitened(model.light(latents, growth)[0], power).flatten(1).double()
    data = whitened(observed.image, power).flatten(1).double()
    covariance = torch.linalg.inv(torch.diag(spreads.double() ** -2) + profiles @ profiles.T)
    return ((data @ profiles.T + MEAN / spreads.double() ** 2) @ covariance).numpy(), covariance.numpy()


def off(flux, posterior):
    """What draws ``(draw, flux)`` add to the means and the three elements of the covariance, less the exact ones."""
    mean, covariance = posterior
    offset = flux - mean
    rows, columns = np.tril_indices(2)
    return np.concatenate([offset, offset[:, rows] * offset[:, columns] - covariance[rows, columns]], -1)


def of_refined(refined, means, covariance):
    """Deviations from the exact moments in standard errors, which are those of weighted draws ``(blend, moment)``."""
    weight = np.exp(refined.log_weight)[..., None]
    scores = []
    for blend, mean in enumerate(means):
        parts = off(np.exp(refined.unknown[:, blend, FLUX]), (mean, covariance))
        average = (weight[:, blend] * parts).sum(0)
        scores.append(average / np.sqrt((weight[:, blend] ** 2 * (parts - average) ** 2).sum(0)))
    return np.stack(scores)


@pytest.mark.slow
def test_refinement_finds_the_exact_posterior(model, observed, refined, false_alarm):
    assert refined.usable.all()
    assert refined.effective.min() > 200
    scores = of_refined(refined, *exact_posterior(model, observed))
    limit = norm.isf(false_alarm / 2 / scores.size)
    assert np.abs(scores).max() < limit
    # The test sees whether the prior was used.
    assert np.abs(of_refined(refined, *exact_posterior(model, observed, 100 * SPREADS))).max() > limit


@pytest.mark.slow
def test_the_sampler_finds_the_exact_posterior(model, observed, refined, false_alarm):
    reference = sample_reference(model, observed, refined, draws=100, seed=2, progress=False)
    flux = np.exp(reference.unknown[..., FLUX]).reshape(-1, 2)

    def score(means, covariance):
        # Batches of 10 draws are independent of each other.
        batches = off(flux, (means[0], covariance)).reshape(20, 10, 5).mean(1)
        return np.abs(batches.mean(0) / batches.std(0, ddof=1)).max() * len(batches) ** 0.5

    limit = t.isf(false_alarm / 2 / 5, 19)
    assert score(*exact_posterior(model, observed)) < limit
    assert score(*exact_posterior(model, observed, 100 * SPREADS)) > limit
