"""A network so small that tests need not train it, with what a weights file holds."""

import torch

from probdeblend.deblending.deblender import Deblender, Description
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior


def tiny_deblender(seed=0):
    settings = {"unet_filters": 8, "depth": 3, "first_filters": 4, "patch": 4, "hidden": 8}
    prior = Prior.default().describe()
    description = Description("Blend2Mask2Flux", "StudentTHead", settings, (100.0, 1e6), 2.0, prior, None, {})
    torch.manual_seed(seed)
    return Deblender(description.build(), Instrument.candels_f160w(), description, features=torch.randn(500, 8))
