"""A scene network that has learned nothing."""

import pytest
import torch

from probdeblend.networks.scenes import SceneNetwork


@pytest.fixture(autouse=True)
def _fixed_seed():
    """Random weights and inputs are the same in every run, and leave the generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(20200101)
        yield


@pytest.fixture
def network(_fixed_seed):
    """A scene network with all its parts at work, those that start at next to nothing too."""
    network = SceneNetwork()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "modulation" in name:
                parameter.normal_(std=0.1)
    return network.eval()
