"""Fit groups of galaxies with AstroPhot, pysersic and scarlet2, beside the network with and without refinement.

Groups have one to three galaxies of S/N 5 and more, so close to each other that one cut-out holds them. All methods get
the same positions, which err by 0.3 pixels along each axis. The fitters get the same cut-out of 81 pixels on a side,
the PSF, and the noise of each pixel. That is larger than the rms of pixels by the square root of the sum of the noise's
correlations, as in weight maps of drizzled images (Casertano et al. 2000, doi:10.1086/316851), so that the errors of
light in many pixels are right. They start from the moments of the light around each position, where that is above the
noise. None fits the sky, of which the images of the generative model have 0.05 sky rms left.

- AstroPhot (Stone et al. 2023, doi:10.1093/mnras/stad2477) fits Sérsic profiles by Levenberg-Marquardt, with its own
  settings, and gives the inverse of the Hessian. It averages profiles over pixels, and therefore gets the PSF without
  the pixel. Fluxes are those of whole profiles, also beyond the cut-out.
- pysersic (Pasha & Miller 2023, doi:10.21105/joss.05703) has Bayesian Sérsic profiles; its renderer and its default
  priors are taken here, but for that of fluxes, whose width depends on the unit: it is as wide as the first guess. The
  posterior is approximated by Laplace's method, which pysersic calls its fastest. The mode is found by least squares in
  double precision, for the optimizer of pysersic takes thousands of steps, and is compiled anew for each image. A rim
  around the cut-out is rendered as well: without it, fluxes of profiles of index 2.5 and 4 were 4 and 5 % too small.
- scarlet2 (successor of scarlet, Melchior et al. 2018, doi:10.1016/j.ascom.2018.07.001) fits positive pixels, as in
  `benchmarks.peers._scarlet2`, and gives no errors here. Its boxes end where galaxies do not: of a bright, isolated
  exponential galaxy it lost 6 %, where AstroPhot lost 0.7 % and pysersic 1 %.
"""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import count as counted
from itertools import product
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from scipy.optimize import least_squares

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._scenes import LEAST_SNR, Arrays, column, compare, formatted, measure, positions, summary, truth
from benchmarks.peers import _scarlet2
from benchmarks.refinement import GALAXIES, STAR
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.weights import load
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.refinement.refiner import Refiner
from probdeblend.scene import Scene, correlation_sum, seed_of

__all__ = ["FITTERS", "Cut", "Fit", "Start", "fitted", "groups", "main", "without_pixel"]

NUMBERS = (1, 2, 3)  # galaxies in a group
TRIED = 4  # scenes that are drawn together, of which groups are taken
JITTER = 0.3  # pixels
SIDE = 81  # pixels of a cut-out, on a side
MARGIN = 20  # pixels of a cut-out around sources, at least
RIM = 40  # pixels around cut-outs that pysersic renders too: it has light that leaves an image return at the other side
APERTURE = 8.0  # pixels, radius in which sources have their first guess
SEEN = 2.0  # times the noise, of pixels that count in moments
FEWEST = 6  # of such pixels, for a shape
RADII, RATIOS = (1.0, 15.0), (0.3, 0.8)  # pixels; limits of first guesses
INDEX = 1.0  # Sérsic index of first guesses
DRAWS = 1000
LEAST = 1e-3  # of the first guess of the flux, to which draws are raised
NO_ERROR = 1e-3  # of the flux, spread of draws where no error is given


class Start(NamedTuple):
    """First guess of each source: arrays ``(source,)``.

    Parameters
    ----------
    flux
        Light in an aperture, each pixel going to the nearest source; positive.
    radius
        Half-light radius along the major axis, in pixels.
    ratio
        Ratio of the axes.
    angle
        From +x to +y, in radians.
    """

    flux: NDArray
    radius: NDArray
    ratio: NDArray
    angle: NDArray


class Fit(NamedTuple):
    """Total fluxes ``(source,)`` of a group, their covariance if there is one, and CPU seconds of compilation."""

    flux: NDArray
    covariance: NDArray | None = None
    compilation: float = 0.0


class Cut(NamedTuple):
    """The pixels around a group, as every fitter gets them.

    Parameters
    ----------
    image, noise
        Pixels and the standard deviation of their noise ``(y, x)``.
    psf
        Effective PSF, with an odd number of pixels on a side and unit sum.
    place
        Positions x, y ``(source, 2)`` in the cut-out.
    """

    image: NDArray
    noise: NDArray
    psf: NDArray
    place: NDArray

    @classmethod
    def around(cls, scene: Scene, number: int, place: NDArray) -> Cut:
        """Cut one of the scenes around positions x, y ``(source, 2)``."""
        image = scene.image[number, 0].double().numpy()
        middle = (place.min(0) + place.max(0)) / 2
        low = np.clip(np.round(middle).astype(int) - SIDE // 2, 0, np.array(image.shape[::-1]) - SIDE)
        part = image[low[1] : low[1] + SIDE, low[0] : low[0] + SIDE]
        rms, photon, correlated = (
            float(values[number, 0]) for values in (scene.sky_rms, scene.photon, correlation_sum(scene.noise_kernel))
        )
        noise = np.sqrt(correlated * (rms**2 + photon * rms * part.clip(0)))
        return cls(part, noise, scene.psf[number, 0].double().numpy(), place - low)

    def start(self) -> Start:
        """Return a first guess of each source."""
        y, x = np.indices(self.image.shape)
        offset = np.stack([x, y]) - self.place[:, :, None, None]
        distance = np.hypot(*offset.swapaxes(0, 1))
        own = (distance <= APERTURE) & (distance.argmin(0) == np.arange(len(distance))[:, None, None])
        flux = np.maximum((self.image * own).sum((1, 2)), self.noise.min() * APERTURE)
        psf = _second_moments(self.psf, np.indices(self.psf.shape)[::-1] - len(self.psf) // 2)[0, 0]
        shapes = [self._shape(inside, place, psf) for inside, place in zip(own, offset, strict=True)]
        return Start(flux, *np.array(shapes).T)

    def _shape(self, own: NDArray, offset: NDArray, psf: float) -> tuple[float, float, float]:
        seen = own & (self.image > SEEN * self.noise)
        if seen.sum() < FEWEST:
            return RADII[0], RATIOS[1], 0.0
        size, axes = np.linalg.eigh(_second_moments(self.image * seen, offset))
        size = np.maximum(size - psf, RADII[0] ** 2 / 4)
        radius, ratio = np.sqrt(size[1]), np.sqrt(size[0] / size[1])
        return np.clip(radius, *RADII), np.clip(ratio, *RATIOS), np.arctan2(axes[1, 1], axes[0, 1])


def _second_moments(image: NDArray, offset: NDArray) -> NDArray:
    """Return the matrix of second moments within the aperture, about the origin of the offsets ``(2, y, x)``."""
    image = np.where(np.hypot(*offset) <= APERTURE, image, 0.0)
    return np.einsum("yx,iyx,jyx->ij", image, offset, offset) / image.sum()


def without_pixel(psf: NDArray) -> NDArray[np.float64]:
    """Return a PSF ``(y, x)`` without the pixel, for codes that average profiles over pixels themselves."""
    frequency = fft.fftfreq(len(psf))
    pixel = np.sinc(frequency)[:, None] * np.sinc(frequency)
    return fft.fftshift(fft.ifft2(fft.fft2(fft.ifftshift(psf)) / pixel).real)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep AstroPhot from writing a log beside the user's files, and from printing."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [logging.NullHandler()]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def astrophot(cut: Cut) -> Fit:
    """Fit Sérsic profiles with AstroPhot."""
    with _unlogged():
        import astrophot as ap
        from astrophot.utils.conversions.functions import sersic_flux_to_Ie_np, sersic_Ie_to_flux_torch

        target = ap.TargetImage(data=cut.image, psf=without_pixel(cut.psf), variance=cut.noise**2)
        first, models = cut.start(), []
        brightness = sersic_flux_to_Ie_np(first.flux, INDEX, first.radius, first.ratio)
        for number, place in enumerate(cut.place):
            shape = {"q": first.ratio[number], "PA": (first.angle[number] + np.pi / 2) % np.pi, "n": INDEX}
            light = {"Re": first.radius[number], "Ie": brightness[number]}
            own = {"name": f"source_{number}", "model_type": "sersic galaxy model", "target": target}
            models.append(ap.Model(**own, psf_convolve=True, center=place, **shape, **light))
        group = ap.Model(name="group", model_type="group model", models=models, target=target)
        group.initialize()
        result = ap.fit.LM(group, verbose=0).fit(update_uncertainty=False)
        if result.message.startswith("fail"):
            raise RuntimeError(f"AstroPhot did not converge: {result.message}")
        covariance = result.covariance_matrix

    def fluxes(values: torch.Tensor) -> torch.Tensor:
        ratio, _, index, radius, brightness = values.reshape(len(models), -1)[:, 2:].T
        return sersic_Ie_to_flux_torch(brightness, index, radius, ratio)

    found = group.get_values().detach()
    slope = torch.autograd.functional.jacobian(fluxes, found)
    return Fit(fluxes(found).numpy(), (slope @ covariance @ slope.T).detach().numpy())


@cache
def _pysersic_renderer(number: int, side: int, psf: bytes) -> Callable[[NDArray], NDArray]:
    """Return a function of parameters ``(source, 7)`` that renders so many sources with pysersic, compiled."""
    import jax
    from pysersic.rendering import HybridRenderer, base_profile_params

    pixels = np.frombuffer(psf)
    pixels = pixels.reshape(2 * (round(len(pixels) ** 0.5),))
    renderer = HybridRenderer((side, side), jax.numpy.asarray(pixels))

    def render(values: jax.Array) -> jax.Array:
        columns = enumerate(base_profile_params["sersic"])
        named = {f"{name}_{source}": values[source, k] for k, name in columns for source in range(number)}
        return renderer.render_for_model(named, ["sersic"] * number, "")

    compiled = jax.jit(render)
    compiled(np.tile([side / 2, side / 2, 1.0, 3.0, 1.0, 0.5, 0.0], (number, 1))).block_until_ready()
    return lambda values: np.asarray(compiled(values))


def pysersic(cut: Cut) -> Fit:
    """Fit Sérsic profiles with the renderer and the priors of pysersic, and Laplace's approximation."""
    import jax

    first, began = cut.start(), time.process_time()
    number, side = len(cut.place), len(cut.image)
    with jax.enable_x64(True):
        render, inner = _pysersic_renderer(number, side + 2 * RIM, cut.psf.tobytes()), slice(RIM, RIM + side)
        compilation = time.process_time() - began
        # x, y, flux, radius: normal, the last above 0.5; index, ellipticity: uniform between bounds; angle: any
        middle = np.column_stack([*cut.place.T, first.flux, first.radius])
        width = np.column_stack([np.ones((number, 2)), first.flux, 2 * np.sqrt(first.radius)])
        other = [np.full(number, INDEX), 1 - first.ratio, first.angle - np.pi / 2]
        shift = np.array([RIM, RIM] + [0] * 5)
        low, high = ([-np.inf] * 3 + [0.5, 0.65, 0.0, -np.inf], [np.inf] * 4 + [8.0, 0.9, np.inf])

        def residuals(values: NDArray) -> NDArray:
            values = values.reshape(number, -1)
            image = (render(values + shift)[inner, inner] - cut.image) / cut.noise
            return np.concatenate([image.ravel(), ((values[:, :4] - middle) / width).ravel()])

        found = least_squares(
            residuals,
            np.column_stack([middle, *other]).ravel(),
            bounds=(np.tile(low, number), np.tile(high, number)),
            x_scale="jac",
        )
    if not found.success:
        raise RuntimeError(f"pysersic did not converge: {found.message}")
    covariance = np.linalg.inv(found.jac.T @ found.jac)
    fluxes = np.arange(number) * 7 + 2
    return Fit(found.x[fluxes], covariance[np.ix_(fluxes, fluxes)], compilation)


def scarlet2(cut: Cut) -> Fit:
    """Fit positive pixels with scarlet2."""
    found = _scarlet2.fit(cut.image[None], cut.noise[None], cut.psf[None], cut.place)
    return Fit(found.flux[:, 0], compilation=found.compilation)


FITTERS: dict[str, Callable[[Cut], Fit]] = {"AstroPhot": astrophot, "pysersic": pysersic, "scarlet2": scarlet2}


@benchmark("peers.fitters")
@sized_option("--count", 1, 7, help="Groups of each kind of galaxies and number of sources.")
@click.option("--fitter", "chosen", type=click.Choice([*FITTERS]), multiple=True, help="[default: all installed ones]")
@weights_option
def main(run: Run, count: int, chosen: tuple[str, ...], weights: Path | None) -> None:
    """Fit groups of one, two and three galaxies: scatter, pulls and CPU seconds, beside the network.

    Galaxies are single Sérsic profiles, as two of the fitters model them, or have bulges, arms and knots. Fluxes are
    total ones. Columns: accuracy and coverage as in the other benchmarks; `pull`, the 68th percentile of errors in ln
    flux over the half-width of the 68 % interval, 1 if errors are right; CPU seconds per group, and those of
    `compilation`, which come on top; and the number of sources that `failed`: their fit ended without an answer, or, of
    refinement, it was not trusted, and the network's answer stays.
    """
    missing = [name for name in FITTERS if importlib.util.find_spec(name.lower()) is None]
    if needed := sorted({*missing} & {*chosen}):
        names = " ".join(needed).lower()
        raise click.UsageError(f"not installed: pip install {names}, best in an environment of their own")
    peers = [name for name in chosen or FITTERS if name not in missing]
    deblender, rows = load(weights), []
    methods = {name: partial(_deblended, of) for name, of in (("network", deblender), ("refined", Refiner(deblender)))}
    methods |= {name: partial(fitted, FITTERS[name]) for name in peers}
    with run.unfinished(deblender=deblender, count=count, fitters=peers) as kept:
        for (kind, galaxies), number in product(enumerate(GALAXIES), NUMBERS):
            draw = partial(groups, galaxies, number)
            found = compare(kept, f"{kind}-{number}", count, draw, methods, seed=run.seed, chunk=1)
            rows += [{"galaxies": galaxies, "number": number, "method": m} | _row(a) for m, a in found.items()]
        table = formatted(rows)
        table.meta["not installed"] = ", ".join(missing) or "none"
        run.write(table)


def groups(galaxies: str, number: int, count: int, seed: int) -> Scene:
    """Draw scenes of one group each, of one kind of `benchmarks.refinement.GALAXIES`, without stars."""
    parts: list[Scene] = []
    for tried in counted():
        scene = GALAXIES[galaxies](number, TRIED, seed_of(seed, tried))[0]
        known, own = truth(scene), scene.scene.numpy() == np.arange(TRIED)[:, None]
        bright = ((known["snr"] >= LEAST_SNR) & (known["type"] != STAR) | ~own).all(1)
        near = [max(np.ptp(scene.x.numpy()[one]), np.ptp(scene.y.numpy()[one])) <= SIDE - 1 - 2 * MARGIN for one in own]
        parts.append(scene.select(torch.from_numpy(np.flatnonzero(bright & near))))
        if sum(map(len, parts)) >= count:
            return Scene.join(parts).select(slice(count))
    raise AssertionError


def _row(found: Arrays) -> dict[str, float]:
    with np.errstate(divide="ignore", invalid="ignore"):
        pull = np.abs(np.log(found["estimate"] / found["flux"])) / found["width"]
    pull = pull[np.isfinite(pull)]
    return summary(found) | {
        "pull": float(np.quantile(pull, 0.68)) if len(pull) else np.nan,
        "seconds": float(found["scene_seconds"].mean()),
        "compilation": float(found["scene_compilation"].mean()),
        "failed": int(found["failed"].sum()),
    }


def _places(scene: Scene) -> NDArray[np.float64]:
    """Return positions x, y ``(source, 2)`` that err."""
    rng = np.random.default_rng(seed_of(len(scene.x), int(1000 * scene.x.sum())))
    return np.stack([scene.x.numpy(), scene.y.numpy()], 1) + JITTER * rng.normal(size=(len(scene.x), 2))


def _deblended(deblender: Deblends, scene: Scene) -> Arrays:
    place, began = torch.from_numpy(_places(scene)).float(), time.process_time()
    posterior = deblender.scenes(scene, positions=(scene.scene, *place.T))
    seconds = np.full(len(scene), (time.process_time() - began) / len(scene))
    found = measure(scene, posterior, row=np.arange(len(scene.x)))
    kept = isinstance(deblender, Refiner) & (column(posterior, "flags").astype(int) & int(Flag.NOT_REFINED) > 0)
    timed = {"scene_seconds": seconds, "scene_compilation": np.zeros(len(scene))}
    return found | timed | {"failed": kept | ~np.isfinite(found["estimate"])}


def fitted(fit: Callable[[Cut], Fit], scene: Scene) -> Arrays:
    """Fit each scene as a group, and measure fluxes as if their errors were normal; what has none has no coverage.

    A fit that raises an error or ends with numbers that are not finite has failed: its fluxes are NaN.
    """
    place, rng = _places(scene), np.random.default_rng(0)
    draws, quoted = np.full((DRAWS, len(place), 1), np.nan), np.zeros(len(scene), dtype=bool)
    seconds, compilation = np.zeros((2, len(scene)))
    for number in range(len(scene)):
        own = np.flatnonzero(scene.scene.numpy() == number)
        cut, began = Cut.around(scene, number, place[own]), time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = fit(cut)
        except (ArithmeticError, RuntimeError, ValueError):
            found = Fit(np.full(len(own), np.nan))
        seconds[number] = time.process_time() - began - found.compilation
        compilation[number] = found.compilation
        quoted[number] = found.covariance is not None
        spread = found.covariance if quoted[number] else np.diag((NO_ERROR * found.flux) ** 2)
        if np.isfinite(found.flux).all() and np.isfinite(spread).all():
            drawn = rng.multivariate_normal(found.flux, spread, DRAWS, method="eigh")
            draws[:, own, 0] = np.maximum(drawn, LEAST * cut.start().flux)
    scenes, x, y = (values.numpy() for values in positions(scene))
    posterior = Posterior.from_draws(draws[None], scene=scenes, group=scenes, x=x, y=y, method="fitter")
    measured = measure(scene, posterior, row=np.arange(len(place)))
    for name in ("rank", "width", "score", "group_joint", "group_total"):
        measured[name] = np.where(quoted[scenes] if name[:5] != "group" else quoted, measured[name], np.nan)
    timed = {"scene_seconds": seconds, "scene_compilation": compilation}
    return measured | timed | {"failed": ~np.isfinite(measured["estimate"])}


if __name__ == "__main__":
    main()
