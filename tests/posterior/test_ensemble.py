"""Members of an ensemble become chains."""

import numpy as np
import pytest

from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.ensemble import combine
from probdeblend.posterior.flags import Flag


def member(seed, *, shift=0.0, draws=50, **named):
    rng = np.random.default_rng(seed)
    flux = 100 * np.exp(shift + 0.1 * rng.normal(size=(2, draws, 5, 2, 1)))
    settings = {"flux_kind": "total", "method": "network", "network": str(seed), "flux_prior": "{}"} | named
    return Posterior.from_draws(
        flux,
        mask=np.full((5, 2, 4, 4), 0.5 + 0.2 * np.mean(shift)),
        mask_std=np.full((5, 2, 4, 4), 0.1),
        flags=np.full((5, 2), Flag.UNFAMILIAR if seed == 2 else 0),
        **settings,
    )


def test_members_are_chains():
    joined = combine([member(1), member(2, shift=0.5), member(3)])
    assert joined.flux.sizes["chain"] == 6
    assert len(joined) == 5
    np.testing.assert_array_equal(joined.flux.values[2:4], member(2, shift=0.5).flux)
    assert (joined.flags == Flag.UNFAMILIAR).all()
    assert joined.dataset.attrs["members"] == 3
    assert "network" not in joined.dataset.attrs
    np.testing.assert_allclose(joined.mask, 0.5 + 0.1 / 3)
    np.testing.assert_allclose(joined.mask_std, np.sqrt(0.1**2 + 0.1**2 * 2 / 9))


def test_members_that_contradict_each_other_are_doubted():
    """One that is ten standard deviations off in one blend, among three: their means scatter by 10 / sqrt(3) widths."""
    settings = {"draws": 5000, "doubt": np.full(5, 0.2)}
    members = [member(seed, shift=np.zeros((5, 1, 1)), **settings) for seed in (1, 3)]
    odd = member(4, shift=np.array([0, 1.0, 0, 0, 0])[:, None, None], **settings)
    odd.dataset["mask"] = members[0].dataset["mask"]
    doubt = combine([*members, odd]).doubt.values
    np.testing.assert_allclose(doubt[[0, 2, 3, 4]], 0.2)
    width = 0.1 * np.sqrt((2 + np.exp(2)) / 3)
    assert doubt[1] == pytest.approx((np.e - 1) / np.sqrt(3) / width, rel=0.05)


def entropy(p):
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


def of_passes(p, **named):
    """A posterior of the passes ``(chain, pixel)`` of a member."""
    flux = np.ones((len(p), 5, 1, 1, 1))
    masks = {"mask": p.mean(0), "mask_std": p.std(0), "mask_information": entropy(p.mean(0)) - entropy(p).mean(0)}
    masks = {name: value[None, None, None] for name, value in masks.items()} | named
    return Posterior.from_draws(flux, flux_kind="total", method="network", **masks)


@pytest.mark.parametrize("passes", [(4, 4, 4), (2, 8, 1)])
def test_masks_of_all_passes_are_a_mixture(passes, rng):
    p = rng.beta(0.5, 0.5, (sum(passes), 300))
    members = [of_passes(part) for part in np.split(p, np.cumsum(passes)[:-1])]
    exact = of_passes(p)
    # In one go, or one member after the other.
    for joined in (combine(members), combine([combine(members[:2]), members[2]])):
        for name in ("mask", "mask_std", "mask_information"):
            np.testing.assert_allclose(getattr(joined, name), getattr(exact, name), atol=1e-12)
        assert (joined.mask_information <= joined.mask_entropy).all()
    assert (exact.mask_information.values > members[0].mask_information.values).mean() > 0.5


def test_information_of_masks_is_known_or_left_out():
    known, unknown = (of_passes(np.full((2, 3), 0.3), **named) for named in ({}, {"mask_information": None}))
    for order in ([known, unknown], [unknown, known]):
        joined = combine(order)
        assert "mask_information" not in joined.dataset
        np.testing.assert_allclose(joined.mask, 0.3)
    assert (combine([known, known]).mask_information == 0).all()


def test_disagreement_is_variance_between():
    alike, apart = (combine([member(1), member(5, shift=shift)]) for shift in (0.0, 0.5))
    parts = [
        float((each.dataset["flux_variance_between"] / each.dataset["flux_variance_within"]).mean())
        for each in (alike, apart)
    ]
    assert parts[0] < 0.2
    assert parts[1] > 3
    total = apart.dataset["flux_variance_within"] + apart.dataset["flux_variance_between"]
    np.testing.assert_allclose(total, apart.flux.var(("chain", "draw")), rtol=0.05)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "posteriors must be at least two, got 1"),
        ([member(2, draws=40)], "posteriors must have the same number of draws, got 50 and 40"),
        ([member(2, flux_kind="auto")], "posteriors must have the same flux_kind, got 'total' and 'auto'"),
        ([member(2, calibrated="yes")], "posteriors must not be calibrated: ask for them with calibrate=False"),
        ([member(2).select([0, 1])], "posteriors must have the same number of blends, got 5 and 2"),
    ],
)
def test_refuses(others, message):
    with pytest.raises(ValueError, match=message):
        combine([member(1), *others])
