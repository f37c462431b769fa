"""The joint distribution of the fluxes of a group: density, draws and symmetry."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2, f, kstest, t

from probdeblend.networks.joint import FluxNumbers, GroupFlux

SHAPES = dict.fromkeys(("mean", "width", "common", "coupling", "aperture", "aperture_width"), "gsb")
SHAPES |= {"aperture_common": "gsb", "aperture_slope": "gsb", "exchange": "gssb", "band_exchange": "gssb"}
SHAPES |= {"total_shift": "gb", "total_width": "gb", "total_common": "gb", "freedom": "g", "aperture_freedom": ""}


def numbers(groups, sources, bands, *, freedom=5.0, scale=0.1):
    size = {"g": groups, "s": sources, "b": bands}
    values = {name: scale * torch.randn([size[axis] for axis in axes]).double() for name, axes in SHAPES.items()}
    values["mean"] = values["mean"] * 10 + 5
    for name in ("width", "total_width", "aperture_width"):
        values[name] = 0.05 + values[name].abs()
    values["freedom"], values["aperture_freedom"] = torch.full((groups,), freedom).double(), torch.tensor(4.0).double()
    return FluxNumbers(**values)


def test_the_density_of_two_sources_integrates_to_one():
    """Over ln of both auto fluxes."""
    flux = GroupFlux(numbers(1, 2, 1, freedom=20.0))
    axis = torch.linspace(-3, 3, 901).double()
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)[..., None]
    value = (grid + flux.numbers.mean[0])[:, :, None]
    mass = float(flux.log_prob_auto(value).exp().sum()) * float(axis[1] - axis[0]) ** 2
    assert mass == pytest.approx(1, abs=2e-3)


def test_the_aperture_correction_integrates_to_one():
    flux = GroupFlux(numbers(1, 1, 1))
    total = torch.linspace(-20, 20, 80_001).double()
    value = torch.stack([torch.zeros_like(total), total], -1)[:, None, None, None] + flux.numbers.mean[0, 0, 0]
    mass = float(flux.log_prob_aperture(value).exp().sum()) * float(total[1] - total[0])
    assert mass == pytest.approx(1, abs=1e-3)


def test_the_density_of_a_group_of_one_is_a_student_t():
    """Of ln of its flux, which is that of the total: the textbook's density."""
    flux = GroupFlux(numbers(4, 1, 1))
    n, value = flux.numbers, 5 + torch.randn(4, 1, 1).double()
    center, scale = n.mean[:, 0, 0] + n.total_shift[:, 0], torch.hypot(n.total_width, n.total_common)[:, 0]
    expected = t(5.0, center.numpy(), scale.numpy()).logpdf(value[:, 0, 0].numpy())
    np.testing.assert_allclose(flux.log_prob_auto(value), expected, rtol=1e-8)


@pytest.mark.parametrize(("sources", "bands"), [(1, 1), (2, 1), (3, 3), (6, 2)])
def test_draws_follow_the_density(sources, bands, false_alarm):
    """Twice the drop of the log-density below its peak is a chi-square with as many degrees of freedom as numbers."""
    n = numbers(1, sources, bands, freedom=1e6)._replace(aperture_freedom=torch.tensor(1e6).double())
    flux = GroupFlux(n)
    peak = flux.log_prob(flux.transform(torch.zeros(1, flux.normals).double()))
    drop = 2 * (peak - flux.log_prob(flux.sample((4000,))))[:, 0]
    assert kstest(drop.numpy(), chi2(2 * sources * bands).cdf).pvalue > false_alarm


@pytest.mark.parametrize(("sources", "bands"), [(1, 1), (2, 1), (3, 3)])
def test_heavy_tails_are_those_stated(sources, bands, false_alarm):
    """The same drop follows Snedecor's F where the degrees of freedom are few: for the group, and for each aperture."""
    flux = GroupFlux(numbers(1, sources, bands, freedom=3.0))
    still, value = flux.transform(torch.zeros(1, flux.normals).double()), flux.sample((4000,))
    group = flux.log_prob_auto(still[..., 0]) - flux.log_prob_auto(value[..., 0])
    aperture = flux.log_prob_aperture(still) - flux.log_prob_aperture(value)
    for drop, size, freedom in ((group[:, 0], sources * bands, 3), (aperture[:, 0, -1], bands, 4)):
        squared = freedom * torch.expm1(2 * drop / (freedom + size))
        assert kstest((squared / size).numpy(), f(size, freedom).cdf).pvalue > false_alarm


def test_a_wrong_width_is_seen():
    """The same statistic rejects draws of a distribution that is a tenth wider."""
    n = numbers(1, 2, 1, freedom=1e6)._replace(aperture_freedom=torch.tensor(1e6).double())
    wide = n._replace(width=1.1 * n.width, total_width=1.1 * n.total_width, aperture_width=1.1 * n.aperture_width)
    narrow, value = GroupFlux(n), GroupFlux(wide).sample((4000,))
    own = narrow.sample((4000,))
    assert narrow.log_prob(value).mean() < narrow.log_prob(own).mean() - 0.1


def test_the_division_may_be_uncertain_and_the_total_known():
    """Exchange makes the fluxes anticorrelate; ln of the total keeps the width that it is given."""
    n = numbers(1, 2, 1, freedom=1e6)
    zero = {name: torch.zeros_like(getattr(n, name)) for name in ("common", "exchange", "coupling", "total_common")}
    n = n._replace(**zero, width=0 * n.width + 1e-3, total_width=0 * n.total_width + 0.01)
    n = n._replace(mean=torch.full_like(n.mean, 5.0), band_exchange=torch.full_like(n.band_exchange, 0.3))
    auto = GroupFlux(n).sample((4000,))[:, 0, :, 0, 0]
    assert np.corrcoef(auto.numpy().T)[0, 1] < -0.9
    assert float(auto.logsumexp(1).std()) == pytest.approx(0.01, rel=0.1)
    assert float((auto[:, 0] - auto[:, 1]).std()) == pytest.approx(2 * 0.3, rel=0.1)


def test_any_order_of_the_sources_has_the_same_density():
    n, order = numbers(3, 4, 2), torch.tensor([2, 0, 3, 1])
    turned = {}
    for name, axes in SHAPES.items():
        value = getattr(n, name)
        for axis, letter in enumerate(axes):
            value = value.index_select(axis, order) if letter == "s" else value
        turned[name] = value
    flux = GroupFlux(n)
    value = flux.sample()
    torch.testing.assert_close(GroupFlux(FluxNumbers(**turned)).log_prob(value[:, order]), flux.log_prob(value))


def test_gradients_of_draws_reach_every_number():
    n = FluxNumbers(*(value.requires_grad_() for value in numbers(2, 3, 2)))
    GroupFlux(n).rsample((5,)).square().sum().backward()
    missing = [name for name, value in n._asdict().items() if value.grad is None or not value.grad.abs().sum() > 0]
    assert missing == []


def test_mixed_precision_leaves_densities_alone():
    """Where bands share their exchange, a covariance rounded to eight bits would not be positive definite."""
    n = FluxNumbers(*(value.float() for value in numbers(8, 6, 3)))
    n = n._replace(width=0.01 * n.width, exchange=5 * n.exchange, band_exchange=0.01 * n.band_exchange)
    flux = GroupFlux(n)
    value = flux.sample()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(GroupFlux(n).log_prob(value), flux.log_prob(value))
