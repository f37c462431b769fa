"""Answers do not depend on what surrounds a call, and a call leaves that as it was."""

import os
import random
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from astropy.io import fits
from tiny_weights import noise_of

from probdeblend.deblending import load
from probdeblend.photometry.images import read_image
from probdeblend.refinement import Refiner
from probdeblend.simulation import Simulator

SIMULATOR = Simulator(shape=(32, 32), number=1)
IMAGE = """
import sys
import numpy as np
from tiny_weights import PSF, QUICK, light_of, noise_of
import probdeblend
PLACES = np.array([[30.2, 40.1], [38.4, 44.0], [70.7, 20.3]])
IMAGE = light_of((96, 96), *PLACES.T, [1500, 700, 900]) + noise_of((96, 96))
GIVEN = {"psf": PSF, "sky_rms": 1.0, **QUICK}
"""


def run_script(path, text, *options, **variables):
    """Run a script that begins as `IMAGE` in a process of its own."""
    path.write_text(IMAGE + text)
    surroundings = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
    command = [sys.executable, *options, str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=surroundings, cwd=path.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


class Settings:
    """Torch as some users have it."""

    def __init__(self, precision):
        self.precision = precision

    def __enter__(self):
        torch.set_default_dtype(self.precision)
        torch.set_default_device("meta")  # stands for a GPU

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def simulated(seed):
    (scene,) = SIMULATOR.batches(1, seed=seed, batch_size=1)
    return scene.image


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads()  # noqa: NPY002


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_simulations_do_not_depend_on_settings_of_torch(precision):
    expected, before = simulated(0), states()
    with Settings(precision), torch.autocast("cpu", dtype=torch.bfloat16), np.errstate(all="raise"):
        found = simulated(0)
        assert torch.get_default_dtype() == precision
    assert torch.equal(found, expected)
    assert states() == before


def test_simulations_of_several_threads_are_the_serial_ones():
    expected = [simulated(seed) for seed in range(2)]
    before = states()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda number: simulated(number % 2), range(6)))
    assert all(torch.equal(image, expected[number % 2]) for number, image in enumerate(found))
    assert states() == before


def test_files_that_several_threads_read_leave_the_filters_of_warnings(tmp_path):
    fits.PrimaryHDU(noise_of((40, 40))).writeto(tmp_path / "image.fits")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda _: read_image(tmp_path / "image.fits").data, range(32)))
    assert warnings.filters == before
    assert all((image == images[0]).all() for image in images)


@pytest.mark.slow
def test_refinement_does_not_depend_on_settings_and_threads():
    (scene,) = Simulator(shape=(64, 64), number=1).batches(2, seed=2, batch_size=4)
    refiner, given = Refiner(load(), draws=100), {"positions": (scene.scene, scene.x, scene.y)}
    expected = refiner.scenes(scene, **given)
    assert not (expected.flags & 512).all()  # some are refined
    with Settings(torch.float64):
        found = [refiner.scenes(scene, **given)]
    with ThreadPoolExecutor(3) as pool:
        found += pool.map(lambda _: refiner.scenes(scene, **given), range(3))
    for other in found:
        np.testing.assert_array_equal(other.flux, expected.flux)


@pytest.mark.slow
def test_nothing_warns_or_needs_a_home_and_settings_stay(tmp_path):
    """With warnings and floating-point errors as exceptions, a home that cannot be written, and a style of plots."""
    text = """
import os, warnings
import matplotlib as mpl
import matplotlib.pyplot as plt
from probdeblend.refinement import Refiner
kept = dict(os.environ)
mpl.rcParams |= {"text.usetex": True, "image.origin": "upper", "figure.dpi": 20, "axes.grid": True}
np.seterr(all="raise")
mine, rest, filters = plt.figure(), dict(mpl.rcParams), list(warnings.filters)
deblender = probdeblend.load()
posterior = deblender(IMAGE, **GIVEN)
field = deblender(np.pad(IMAGE, 70, mode="reflect") + 20, psf=PSF, **QUICK)
for found in (posterior, field):
    with mpl.rc_context({"text.usetex": False}):
        found.catalog(), found._repr_html_(), found.segmentation(), found.model_image(), found.plot(1)
posterior.save("posterior.nc")
scene = probdeblend.simulate(1, size=64, number=2)
Refiner(deblender, draws=100).scenes(scene)
assert [own for own in filters if own not in warnings.filters] == []
assert dict(mpl.rcParams) == rest and mpl.get_backend().lower() == "agg"
assert plt.get_fignums() == [mine.number]
assert np.geterr() == dict.fromkeys(("divide", "over", "under", "invalid"), "raise")
assert dict(os.environ) == kept
print(len(posterior), len(field) > 2)
"""
    assert run_script(tmp_path / "script.py", text, "-W", "error", HOME=f"{os.devnull}/none", MPLBACKEND="agg") == [
        "3",
        "True",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_give_the_same(tmp_path, method):
    """Also those that are forked once torch has used its threads."""
    text = f"""
import multiprocessing, torch
from concurrent.futures import ProcessPoolExecutor
def deblended(deblender, seed=0):
    return deblender(IMAGE, **GIVEN, seed=seed)
if __name__ == "__main__":
    torch.set_num_threads(2)
    deblender = probdeblend.load()
    serial = [deblended(deblender, seed) for seed in range(2)]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context({method!r})) as pool:
        found = list(pool.map(deblended, [deblender] * 2, range(2), timeout=100))
    for one, other in zip(serial, found):
        np.testing.assert_allclose(np.log(other.flux), np.log(one.flux), atol=1e-3)  # sums in another order
        assert other.mask(1).data.shape == one.mask(1).data.shape
    print(torch.get_num_threads())
"""
    assert run_script(tmp_path / "script.py", text, OMP_NUM_THREADS="2") == ["2"]


@pytest.mark.slow
def test_memory_of_many_scenes_is_bounded_by_their_sources(tmp_path):
    """Two sources in each stamp of 64 pixels; what torch and the weights take is paid for in the first call."""
    text = """
import os, resource
from tiny_weights import listed, scene_of
deblender, stamp = probdeblend.load(), IMAGE[10:74, 10:74].astype(np.float32)
def peak_of(number):
    scene = scene_of(np.repeat(stamp[None], number, 0))
    posterior = deblender.scenes(scene, positions=listed(*[PLACES[:2] - 10] * number))
    return posterior, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(_, before), (posterior, after) = peak_of(200), peak_of(600)
posterior.save("posterior.nc")
kept = sum(values.nbytes for values in posterior.dataset.variables.values())
kept += sum(pixels.nbytes for known in posterior.cutouts.known.values() for pixels in known)
sizes = kept, os.path.getsize("posterior.nc"), (after - before) * 1024
print(*(round(size / (2 * given) / 1000) for size, given in zip(sizes, (600, 600, 400))))
"""
    kept, stored, peak = map(int, run_script(tmp_path / "script.py", text))
    assert max(kept, stored) < 40
    assert peak < 200
