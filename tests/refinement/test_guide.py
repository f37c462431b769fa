"""The scene network as the guide of the generative model."""

import copy
import math

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from probdeblend.networks.scene_loss import SceneLoss
from probdeblend.refinement import SceneGuide

SITES = ("log_flux", "position", "shape", "sky_level", "log_psf_growth")


def conditioned(guide, listed, trace):
    truth = {name: trace.nodes[name]["value"] for name in SITES}
    found = pyro.poutine.trace(pyro.poutine.condition(guide, data=truth)).get_trace(listed)
    found.compute_log_prob()
    return found.nodes


@pytest.mark.parametrize("bands", [1, 2])
def test_network_loss_is_log_density_of_guide_at_truth(model, network, draw, bands):
    listed, trace = draw([3] * 4, bands=bands, log_flux=(6.0, 5.0, 4.5), seed=2)
    value = {name: trace.nodes[name]["value"] for name in SITES}
    light = model.light(
        listed,
        value["log_flux"][:, 0, ..., 1],
        value["position"],
        value["shape"],
        star=trace.nodes["star"]["value"],
        growth=value["log_psf_growth"][:, 0],
    )
    center = torch.stack([listed.x, listed.y], -1) + value["position"]
    loss = SceneLoss(network)
    with torch.no_grad():
        loss(
            *listed[:3],
            listed.noise,
            listed.x,
            listed.y,
            light,
            torch.zeros_like(listed.image),
            value["log_flux"][:, 0],
            torch.cat([center, value["shape"]], -1),
            torch.ones(listed.x.shape, dtype=torch.long),
            -torch.ones(4, 3, 16, 16),
        )
        nodes = conditioned(SceneGuide(network, model), listed, trace)
    sources = listed.x.numel()
    flux = -nodes["log_flux"]["log_prob_sum"] / (bands * sources)
    assert float(flux) == pytest.approx(loss.parts["flux"], rel=1e-4)
    # A source that the network takes for a star has no shape in the guide; the loss counts that of every galaxy.
    if not nodes["star"]["value"].any():
        shape = -(nodes["position"]["log_prob_sum"] + nodes["shape"]["log_prob_sum"]) / sources
        assert float(shape) == pytest.approx(loss.parts["shape"], rel=1e-4)


def test_elbo_is_finite_on_every_scene(model, network, draw):
    """Fluxes, positions and shapes of one, two and three sources, in one band and in two."""
    guide = SceneGuide(network, model)
    for bands in (1, 2):
        listed, _ = draw([1, 2, 3] * 3, bands=bands, seed=bands)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            guided = pyro.poutine.trace(guide).get_trace(listed)
            joint = pyro.poutine.trace(pyro.poutine.replay(model, trace=guided)).get_trace(listed)
            assert set(SITES) | {"star"} <= set(guided.nodes)
            total = torch.zeros(9)
            for trace, sign in ((joint, 1), (guided, -1)):
                trace.compute_log_prob()
                for node in trace.nodes.values():
                    if node["type"] == "sample" and "log_prob" in node and torch.is_tensor(node["log_prob"]):
                        total = total + sign * node["log_prob"].sum(-1) if node["log_prob"].ndim else total
            assert torch.isfinite(total).all()
            torch.manual_seed(0)
            assert float(Trace_ELBO()(model, guide)(listed)) == pytest.approx(-float(total.sum()), rel=1e-4)


def test_weights_go_on_by_the_elbo(model, network, draw):
    """Without a truth: the ELBO rises in a few steps, toward that of noise alone; nothing is in Pyro's store."""
    listed, _ = draw([1, 2, 3], log_flux=(6.0, 5.0, 4.5))
    store = dict(pyro.get_param_store().items())
    guide = SceneGuide(copy.deepcopy(network), model)
    loss = Trace_ELBO()(model, guide)
    optimizer = torch.optim.Adam(loss.parameters(), 3e-3)

    def average():
        torch.manual_seed(4)
        with torch.no_grad():
            return sum(float(loss(listed)) for _ in range(2)) / 2

    with torch.random.fork_rng():
        before = average()
        for _ in range(6):
            optimizer.zero_grad()
            loss(listed).backward()
            optimizer.step()
        after = average()
    noise = 0.5 * (1 + math.log(2 * math.pi)) * listed.image.numel()
    assert noise < after < noise + 0.85 * (before - noise)
    assert dict(pyro.get_param_store().items()) == store


def test_every_part_of_the_answer_has_a_gradient(model, network, draw):
    listed, _ = draw([2, 3])
    guide = SceneGuide(copy.deepcopy(network), model)
    Trace_ELBO()(model, guide)(listed).backward()
    for name in ("flux", "pair", "total", "answers", "trunk", "reader"):
        gradients = [p.grad for p in getattr(guide.network, name).parameters() if p.grad is not None]
        assert sum(float(g.abs().sum()) for g in gradients) > 0, name


def test_padding_does_not_count(model, network, draw):
    """A scene of one source has the same density alone and beside a scene of three."""
    both, trace = draw([1, 3], seed=5)
    guide = SceneGuide(network, model)
    with torch.no_grad():
        nodes = conditioned(guide, both, trace)
        alone = both._replace(**{name: getattr(both, name)[:1] for name in both._fields[:-1]})
        alone = alone._replace(x=alone.x[:, :1], y=alone.y[:, :1], there=alone.there[:, :1])
        truth = {name: trace.nodes[name]["value"][:1] for name in SITES}
        truth["log_flux"] = truth["log_flux"][:, :, :1]
        truth |= {name: truth[name][:, :1] for name in ("position", "shape")}
        found = pyro.poutine.trace(pyro.poutine.condition(guide, data=truth)).get_trace(alone)
        found.compute_log_prob()
    for name in SITES:
        one, other = nodes[name]["log_prob"][0].sum(), found.nodes[name]["log_prob"][0].sum()
        assert float(one) == pytest.approx(float(other), rel=1e-4), name


def test_guesses_are_within_the_prior(model, network, draw):
    listed, _ = draw([3], seed=6)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        unknowns, guesses = SceneGuide(network, model).guesses(listed, count=4)
        assert len(guesses) == 5
        assert torch.isfinite(unknowns.log_joint(guesses)).all()
        assert not torch.equal(guesses[1], guesses[2])
