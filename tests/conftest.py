"""What all tests share: a generator, one false-alarm rate, the data folder, a guard of global state."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core, one thread per process
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
sys.path.append(str(Path(__file__).parent.parent))  # for benchmarks, behind the installed package


def pytest_collection_modifyitems(items):
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def rng():
    return np.random.default_rng(20200101)


@pytest.fixture(scope="session")
def false_alarm():
    """Probability with which a statistical test of this suite may fail though nothing is wrong."""
    return 1e-4


@pytest.fixture(scope="session")
def data_dir():
    """Folder with survey data, which is not part of the repository."""
    folder = os.environ.get("PROBDEBLEND_DATA")
    if not folder:
        pytest.skip("PROBDEBLEND_DATA does not name a folder with survey data")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"PROBDEBLEND_DATA must name a folder, got {folder!r}")
    return path


@pytest.fixture(autouse=True)
def _no_global_state():
    """A test leaves no Pyro parameter, open figure or changed default type behind."""
    yield
    if "pyro" in sys.modules:
        assert not dict(sys.modules["pyro"].get_param_store())
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        assert torch.get_default_dtype() == torch.float32
        assert torch.is_grad_enabled()
