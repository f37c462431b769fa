import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from probdeblend.posterior import FluxPrior, Posterior, effective_samples
from probdeblend.posterior.reweight import log_prior
from probdeblend.scene import LN_FLUX_UNIT
from probdeblend.simulation.conditions import Conditions
from probdeblend.simulation.prior import Prior

CHAINS, DRAWS, BLENDS = 4, 1000, 60
WIDTH = 0.8
LIKELIHOOD = np.array([[0.10, -0.06], [-0.06, 0.15]])
# One Gaussian at one depth, and all pairs accepted: ln(flux / sky_rms) of each galaxy is normal around 3.
TRAINED = FluxPrior(((1.0, 22.0, WIDTH * LN_FLUX_UNIT),), (2.0, 42.0), 40.0, (1.0, 1.0), 22.0 + 3 * LN_FLUX_UNIT)
# The user's: in ln flux, with the galaxies tied to each other.
MEAN, COVARIANCE = np.array([-2.3, -2.8]), np.array([[0.3, 0.1], [0.1, 0.2]])


def wanted(flux):
    return multivariate_normal(MEAN, COVARIANCE).logpdf(np.log(flux))


def exact(measured, mean, covariance):
    """Mean and covariance of the normal posterior of ln flux, given measurements ``(blend, galaxy)``."""
    precision = np.linalg.inv(LIKELIHOOD) + np.linalg.inv(covariance)
    posterior = np.linalg.inv(precision)
    return (measured @ np.linalg.inv(LIKELIHOOD) + mean @ np.linalg.inv(covariance)) @ posterior, posterior


@pytest.fixture(scope="module")
def measured():
    """Noisy ln flux of blends of the trained population, and their sky noise."""
    rng = np.random.default_rng(1)
    sky = np.exp(rng.uniform(-6, -5, BLENDS))
    truth = rng.normal(3, WIDTH, (BLENDS, 2)) + np.log(sky)[:, None]
    return truth + rng.multivariate_normal([0, 0], LIKELIHOOD, BLENDS), sky


@pytest.fixture(scope="module")
def posterior(measured):
    values, sky = measured
    mean, covariance = exact(values, 3 + np.log(sky)[:, None] * np.ones(2), WIDTH**2 * np.eye(2))
    noise = np.random.default_rng(2).multivariate_normal([0, 0], covariance, (CHAINS, DRAWS, BLENDS))
    return made(np.exp(mean + noise), sky)


def made(flux, sky, **named):
    return Posterior.from_draws(flux[..., None], flux_kind="total", method="network", sky_rms=sky, **named)


def log_draws(posterior):
    return np.log(posterior.draws("blend", "band", "galaxy")[:, 0])


def errors(posterior, measured, effective):
    """Errors of means and of standard deviations ``(blend, galaxy)``, in standard errors."""
    mean, covariance = exact(measured[0], MEAN, COVARIANCE)
    sd, number, draws = np.sqrt(np.diag(covariance)), effective[:, None], log_draws(posterior)
    return (draws.mean(-1) - mean) / (sd / np.sqrt(number)), (draws.std(-1) / sd - 1) * np.sqrt(2 * number)


def test_posterior_under_the_new_prior_is_exact(posterior, measured):
    answer = posterior.reweight(wanted, flux_prior=TRAINED, least=30)
    effective = answer.dataset["effective_samples"].values
    assert effective.shape == (BLENDS,)
    assert (effective >= 30).all()
    for error in errors(answer, measured, effective):
        # Weights are larger where draws are rare, so that Kish's number is only about the right one.
        assert np.sqrt((error**2).mean()) < 1.5
        assert np.abs(error.mean()) < 4 / np.sqrt(BLENDS)
    expected = exact(measured[0], MEAN, COVARIANCE)[1]
    draws = log_draws(answer)
    correlation = [np.corrcoef(draws[blend])[0, 1] for blend in range(BLENDS)]
    assert np.mean(correlation) == pytest.approx(expected[0, 1] / np.sqrt(expected[0, 0] * expected[1, 1]), abs=0.03)


@pytest.mark.parametrize("wrong", [None, lambda flux: wanted(flux) - np.log(flux).sum(-1)])
def test_without_weights_or_with_a_density_in_flux_it_is_not(posterior, measured, wrong):
    effective = effective_samples(posterior, wanted, flux_prior=TRAINED).values
    answer = posterior if wrong is None else posterior.reweight(wrong, flux_prior=TRAINED, least=30)
    error, _ = errors(answer, measured, effective)
    assert np.sqrt((error**2).mean()) > 3


@pytest.mark.slow
def test_a_flat_prior_leaves_the_likelihood_of_the_trained_population(false_alarm):
    """Posterior draws by rejection from the sampler of the training, without any density."""
    zero_point, rng, center, sd = 25.946, np.random.default_rng(5), np.array([8.2, 7.9]), 0.25
    magnitude = Prior.default().sample(120_000, seed=6)["magnitude"].numpy().astype(float)
    ratio = (zero_point - magnitude) / LN_FLUX_UNIT - rng.uniform(*np.log(Conditions().sky_rms), (len(magnitude), 1))
    ratio = ratio[rng.random(len(ratio)) < np.exp(-(((ratio - center) / sd) ** 2).sum(1) / 2)]
    draws = made(0.01 * np.exp(ratio)[None, :, None], [0.01])
    flux_prior = Prior.default().flux_prior(Conditions().sky_rms, zero_point)
    answer = draws.reweight(lambda flux: np.zeros(flux.shape[:-1]), flux_prior=flux_prior)
    number = float(answer.dataset["effective_samples"][0])
    assert number > 1000

    def error(posterior):
        return (log_draws(posterior)[0].mean(-1) - center - np.log(0.01)) / (sd / np.sqrt(number))

    limit = norm.isf(false_alarm / 4)
    assert (np.abs(error(answer)) < limit).all()
    assert (np.abs(error(draws)) > limit).any()
    assert log_draws(answer)[0].std(-1) == pytest.approx([sd, sd], abs=limit * sd / np.sqrt(2 * number))


def test_log_prior_is_the_density_of_each_draw(posterior):
    density = log_prior(posterior, TRAINED)
    assert density.dims == ("chain", "draw", "blend")
    ratio = np.log(posterior.flux.values[..., 0] / posterior.dataset["sky_rms"].values[:, None])
    np.testing.assert_allclose(density, norm.logpdf(ratio, 3, WIDTH).sum(-1), atol=1e-6)
    assert density.equals(log_prior(Posterior(posterior.dataset.transpose("band", "draw", ...)), TRAINED))


def test_the_same_prior_keeps_every_draw(posterior):
    noise = posterior.dataset["sky_rms"].values[:, None]
    answer = posterior.reweight(lambda flux: TRAINED.log_prob(np.log(flux / noise)) + 7, flux_prior=TRAINED)
    np.testing.assert_allclose(answer.dataset["effective_samples"], CHAINS * DRAWS)
    np.testing.assert_array_equal(np.sort(log_draws(answer)), np.sort(log_draws(posterior)))


def test_a_prior_far_away_is_refused(posterior):
    def far(flux):
        return multivariate_normal(MEAN + 8, COVARIANCE / 20).logpdf(np.log(flux))

    message = rf"have 100 effective draws .* got fewer in {BLENDS} of {BLENDS} blends, first in blend 0 with"
    with pytest.raises(ValueError, match=message):
        posterior.reweight(far, flux_prior=TRAINED)
    assert (effective_samples(posterior, far, flux_prior=TRAINED) < 100).all()


def test_blends_that_are_dense_enough_can_be_selected(posterior):
    few = Posterior(posterior.dataset.isel(draw=slice(100)))
    effective = effective_samples(few, wanted, flux_prior=TRAINED)
    enough = effective.values >= 100
    assert 0 < enough.sum() < BLENDS
    with pytest.raises(ValueError, match=rf"fewer in {(~enough).sum()} of {BLENDS} blends, first in blend"):
        few.reweight(wanted, flux_prior=TRAINED)
    answer = few.select(effective >= 100).reweight(wanted, flux_prior=TRAINED)
    np.testing.assert_array_equal(answer.dataset["blend"], np.flatnonzero(enough))
    np.testing.assert_array_equal(answer.dataset["effective_samples"], effective[enough])


def test_few_draws_need_a_quarter(posterior):
    few = Posterior(posterior.dataset.isel(draw=slice(10), blend=slice(3)))

    def excluding(flux):
        return np.broadcast_to(np.where(np.arange(10) < 2, 0.0, -np.inf)[:, None], flux.shape[:-1])

    with pytest.raises(ValueError, match="have 10 effective draws"):
        few.reweight(excluding, flux_prior=TRAINED)


def test_seeds_and_other_blends(posterior):
    answer = posterior.reweight(wanted, flux_prior=TRAINED, least=30, seed=3)
    assert answer.dataset.identical(posterior.reweight(wanted, flux_prior=TRAINED, least=30, seed=3).dataset)
    alone = posterior.select([7]).reweight(wanted, flux_prior=TRAINED, least=30, seed=3)
    assert alone.flux.identical(answer.select([7]).flux)
    np.testing.assert_allclose(alone.dataset["effective_samples"], answer.dataset["effective_samples"][[7]])
    other = posterior.reweight(wanted, flux_prior=TRAINED, least=30, seed=4)
    assert not np.array_equal(other.flux, answer.flux)


def test_excluded_draws_are_never_taken(posterior):
    limit = posterior.flux.values[..., 0, 0].mean((0, 1))

    def fainter(flux):
        return np.where(flux[..., 0] < limit, 0.0, -np.inf)

    answer = posterior.reweight(fainter, flux_prior=TRAINED, least=30)
    assert (answer.flux.values[..., 0, 0] < limit).all()


def test_draws_where_training_never_was_get_no_weight(posterior):
    flux = posterior.select([0]).flux.values[..., 0].copy()
    flux[:, :300], flux[:, 300:350], flux[:, 350:400] = -1, 0, 1e30
    drawn = made(flux, posterior.dataset["sky_rms"][:1])
    answer = drawn.reweight(lambda flux: np.log(flux[..., 0]), flux_prior=TRAINED)
    assert (answer.flux > 0).all()
    assert (answer.flux < 1e10).all()


def test_what_the_answer_keeps(posterior, tmp_path):
    shape = (BLENDS, 2)
    dataset = made(
        posterior.flux.values[..., 0].astype(np.float32),
        posterior.dataset["sky_rms"].values,
        x=np.full(shape, 3.0),
        flags=np.ones(shape),
        variance_within=np.ones((*shape, 1)),
        variance_between=np.ones((*shape, 1)),
        flux_unit="nJy",
        calibrated="yes",
    ).dataset
    answer = Posterior(dataset).reweight(wanted, flux_prior=TRAINED, least=30)
    assert set(answer.dataset.data_vars) == {"flux", "x", "flags", "sky_rms", "effective_samples"}
    assert answer.flux.dtype == np.float32
    assert answer.flux.attrs == {"flux_kind": "total", "unit": "nJy"}
    assert answer.dataset.attrs == dataset.attrs | {"reweighted": "yes"}
    answer.save(tmp_path / "answer.nc")
    assert Posterior.open(tmp_path / "answer.nc").dataset.equals(answer.dataset)
    assert len(answer.summary()) == 2 * BLENDS
    with pytest.raises(ValueError, match="got one that was reweighted already"):
        answer.reweight(wanted, flux_prior=TRAINED)


def test_galaxies_without_an_answer_stay_without(posterior):
    flux = posterior.select([0, 1, 2]).flux.values[..., 0].copy()
    flux[..., 1, 1] = np.nan
    lost = made(flux, posterior.dataset["sky_rms"].values[:3])
    assert np.isnan(log_prior(lost, TRAINED)[..., 1]).all()
    answer = lost.reweight(wanted, flux_prior=TRAINED, least=30)
    np.testing.assert_array_equal(np.isnan(answer.dataset["effective_samples"]), [False, True, False])
    assert np.isnan(answer.flux[:, :, 1]).all()
    whole = posterior.select([0, 1, 2]).reweight(wanted, flux_prior=TRAINED, least=30)
    assert answer.flux[:, :, [0, 2]].equals(whole.flux[:, :, [0, 2]])


def test_the_posterior_knows_its_prior(posterior):
    """What the weights say of their prior travels with the draws."""
    known = Posterior(posterior.dataset.assign_attrs(flux_prior=TRAINED.describe()))
    assert FluxPrior.parse(TRAINED.describe()) == TRAINED
    answer = known.reweight(wanted, least=30, seed=2)
    np.testing.assert_array_equal(answer.flux, posterior.reweight(wanted, flux_prior=TRAINED, least=30, seed=2).flux)


def test_no_blends(posterior):
    none = posterior.select(slice(0))
    answer = none.reweight(lambda flux: flux.sum(-1), flux_prior=TRAINED)
    assert len(answer) == 0
    assert answer.flux.sizes == none.flux.sizes


@pytest.mark.parametrize(
    ("density", "message"),
    [
        (np.log, r"must return the shape \(4, 1000, 1\), got \(4, 1000, 1, 2\)"),
        (lambda flux: flux[..., 0] * np.nan, "must return finite numbers or -inf, got NaN or inf"),
        (lambda flux: flux[..., 0] + np.inf, "must return finite numbers or -inf, got NaN or inf"),
        (lambda flux: flux[..., 0] - np.inf, "fewer in 1 of 1 blends, first in blend 0 with 0.0"),
    ],
)
def test_mistakes_of_a_density_are_named(posterior, density, message):
    with pytest.raises(ValueError, match=message):
        posterior.select([0]).reweight(density, flux_prior=TRAINED)


def test_mistakes_are_named(posterior):
    with pytest.raises(ValueError, match="least must be positive and at most the number of draws, 4000, got 5000"):
        posterior.reweight(wanted, flux_prior=TRAINED, least=5000)
    with pytest.raises(ValueError, match="least must be positive and at most the number of draws, 4000, got 0"):
        posterior.reweight(wanted, flux_prior=TRAINED, least=0)
    with pytest.raises(ValueError, match="posterior must have a flux_prior if none is given, got none"):
        effective_samples(posterior, wanted)
    with pytest.raises(ValueError, match=r"posterior must have sky_rms, .* give it to Posterior\.from_draws"):
        log_prior(Posterior(posterior.dataset.drop_vars("sky_rms")), TRAINED)
    bands = np.ones((1, 3, 2, 2, 2))
    with pytest.raises(ValueError, match="must be of 2 galaxies in 1 band, got 2 galaxies in 2 bands"):
        log_prior(Posterior.from_draws(bands, flux_kind="total", method="network"), TRAINED)
