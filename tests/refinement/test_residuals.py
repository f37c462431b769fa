"""Light that a fit leaves behind."""

import numpy as np
import torch
from scipy import stats

from probdeblend.refinement import BlendModel, misfit
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior


def test_what_a_right_model_leaves_behind(false_alarm):
    """P-values are uniform at the truth, where nothing has been fitted, and tiny with a knot of 3 % of the light."""
    model = BlendModel(Prior.default(), Instrument.candels_f160w(), size=48)
    observed, unknown = model.simulate(60, seed=11)
    nothing = np.zeros((60, 16, 16))
    values = misfit(model, observed, unknown.double().numpy(), nothing)
    assert stats.kstest(values, "uniform").pvalue > false_alarm
    bright = np.flatnonzero(unknown[:, 0].numpy() > np.quantile(unknown[:, 0], 0.7))
    knot = model.split(unknown)[0][:, :1].clone()
    knot[..., 0] += np.log(0.03)
    knot[..., 1] += 3.0
    knot[..., 3] = np.log(0.06)
    with torch.no_grad():
        light = model.light(knot, unknown[:, -1])[:, 0]
    spoiled = observed._replace(image=observed.image + light).select(bright)
    found = misfit(model, spoiled, unknown[bright].double().numpy(), nothing[bright])
    assert np.median(found) < 1e-3
    assert np.median(values[bright]) > 0.1
