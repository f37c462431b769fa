"""The posterior itself: one `xarray.Dataset` with the dimensions ``(chain, draw, blend, galaxy, band)``.

The first two dimensions are ArviZ's. Covariances are plain moments of the draws; tables use quantiles.
"""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import xarray as xr
from astropy.table import QTable
from astropy.wcs import WCS
from numpy.typing import ArrayLike
from scipy.special import entr

from .reweight import reweight
from .tables import tabulate

__all__ = ["Posterior"]

FORMAT = "probdeblend posterior"
VERSION = 1
FLUX_KINDS = ("total", "auto", "isophotal")
FLUX_DIMS = ("chain", "draw", "blend", "galaxy", "band")
MASKS = ("mask", "mask_std", "mask_information")
OPTIONAL_DIMS = (
    dict.fromkeys(MASKS, ("blend", "galaxy", "y", "x"))
    | dict.fromkeys(("x", "y", "flags"), ("blend", "galaxy"))
    | dict.fromkeys(("variance_within", "variance_between"), ("blend", "galaxy", "band"))
    | dict.fromkeys(("sky_rms", "doubt"), ("blend",))
)


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws of the fluxes of blended galaxies, with their mask probabilities, positions and flags.

    Parameters
    ----------
    dataset
        The variable ``flux (chain, draw, blend, galaxy, band)`` and, where they are known, ``mask``, ``mask_std``
        and ``mask_information (blend, galaxy, y, x)``; ``x``, ``y`` and ``flags (blend, galaxy)``;
        ``flux_variance_within`` and ``flux_variance_between (blend, galaxy, band)``; ``sky_rms (blend,)``, the noise
        of a pixel of sky in image units; ``doubt (blend,)``. The attributes ``flux_kind``, ``method``, ``flux_unit``
        and, where they are known, ``zero_point`` and ``pixel_scale``.
    """

    dataset: xr.Dataset

    @classmethod
    def from_draws(cls, flux: ArrayLike, *, flux_kind: str, method: str, **named: object) -> Self:
        """Make a posterior from arrays of draws.

        Parameters
        ----------
        flux
            Draws ``(chain, draw, blend, galaxy, band)`` in image units; NaN for a galaxy that was not found.
        flux_kind
            Which flux it is: "total", "auto" or "isophotal".
        method
            What made the draws, such as "network" or "sep".
        **named
            Arrays, or None: ``mask`` (probability), ``mask_std`` (its spread over the dropout passes) and
            ``mask_information`` (between pixel and pass, bits) ``(blend, galaxy, y, x)``; ``x``, ``y`` (pixels) and
            ``flags (blend, galaxy)``; ``variance_within`` and ``variance_between`` the passes
            ``(blend, galaxy, band)``; ``sky_rms`` and ``doubt (blend,)``. Any other name becomes an attribute (None
            leaves it out):
            ``flux_unit``, ``zero_point`` (AB magnitude of unit flux), ``pixel_scale`` (arcsec) and what else is worth
            storing.

        Returns
        -------
        Posterior
            The draws with their names.

        Raises
        ------
        ValueError
            If a shape does not fit `flux`, or `flux_kind` is unknown.
        TypeError
            If an attribute is neither a string nor a number.
        """
        flux = np.asarray(flux)
        if flux.ndim != len(FLUX_DIMS):
            raise ValueError(f"flux must have the axes ({', '.join(FLUX_DIMS)}), got shape {flux.shape}")
        if flux_kind not in FLUX_KINDS:
            raise ValueError(f"flux_kind must be one of {', '.join(FLUX_KINDS)}, got {flux_kind!r}")
        sizes = dict(zip(FLUX_DIMS, flux.shape, strict=True))
        coordinates = {name: np.arange(size) for name, size in sizes.items()}
        variables = {"flux": (FLUX_DIMS, flux)}
        for name, dims in OPTIONAL_DIMS.items():
            if (value := named.pop(name, None)) is not None:
                stored = f"flux_{name}" if name.startswith("variance") else name
                variables[stored] = (dims, _checked(name, value, dims, sizes))
        attributes = {"format": FORMAT, "version": VERSION}
        for name, value in ({"flux_kind": flux_kind, "method": method, "flux_unit": ""} | named).items():
            if not isinstance(value, str | int | float | np.number | None):
                raise TypeError(f"{name} must be a string or a number, got {type(value).__name__}")
            if value is not None:
                attributes[name] = int(value) if isinstance(value, bool) else value
        dataset = xr.Dataset(variables, coordinates, attributes)
        dataset["flux"].attrs = {"flux_kind": flux_kind, "unit": attributes["flux_unit"]}
        return cls(dataset)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Read a posterior that `save` wrote.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        Posterior
            The posterior, in memory.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not a posterior, is damaged, or has another version of the format.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            dataset = xr.load_dataset(path, engine="h5netcdf")
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"{path}: not a posterior written by probdeblend, or damaged") from error
        if dataset.attrs.get("format") != FORMAT or "flux" not in dataset:
            raise ValueError(f"{path}: not a posterior written by probdeblend")
        if (version := dataset.attrs.get("version")) != VERSION:
            raise ValueError(f"{path}: a posterior of version {version}, this probdeblend reads version {VERSION}")
        return cls(dataset)

    @classmethod
    def concatenate(cls, posteriors: Sequence[Self]) -> Self:
        """Join posteriors along their blends, which are numbered anew.

        Parameters
        ----------
        posteriors
            Posteriors that differ in nothing but their blends, such as the chunks of a field.

        Returns
        -------
        Posterior
            All blends in one.

        Raises
        ------
        ValueError
            If there is none, or if they differ in attributes, variables, draws, galaxies or bands.
        """
        if not posteriors:
            raise ValueError("posteriors must hold at least one posterior, got none")
        datasets = [posterior.dataset for posterior in posteriors]
        first = datasets[0]
        for other in datasets[1:]:
            for name in sorted(first.attrs.keys() | other.attrs.keys()):
                pair = (first.attrs.get(name), other.attrs.get(name))
                if pair[0] != pair[1]:
                    raise ValueError(f"posteriors must have the same {name}, got {pair[0]!r} and {pair[1]!r}")
            if not first.isel(blend=slice(0)).identical(other.isel(blend=slice(0))):
                shapes = " and ".join(str(dict(dataset.sizes)) for dataset in (first, other))
                raise ValueError(f"posteriors must have the same variables and axes but for blend, got {shapes}")
        joined = xr.concat(datasets, "blend", data_vars="minimal", coords="minimal", compat="override", join="exact")
        return cls(joined.assign_coords(blend=np.arange(joined.sizes["blend"])))

    def __len__(self) -> int:
        return self.dataset.sizes["blend"]

    @property
    def flux(self) -> xr.DataArray:
        """Draws of the fluxes ``(chain, draw, blend, galaxy, band)`` in image units."""
        return self.dataset["flux"]

    @property
    def total_flux(self) -> xr.DataArray:
        """Draws of each blend's total flux ``(chain, draw, blend, band)``; NaN where a galaxy's flux is."""
        return self.flux.sum("galaxy", skipna=False, keep_attrs=True).rename("total_flux")

    @property
    def flux_covariance(self) -> xr.DataArray:
        """Covariance of the fluxes ``(blend, band, galaxy, galaxy_2)`` in image units squared."""
        draws = self.draws("blend", "band", "galaxy")
        deviations = draws - draws.mean(-1, keepdims=True)
        scatter = np.einsum("abgs,abhs->abgh", deviations, deviations)
        covariance = scatter / (draws.shape[-1] - 1) if draws.shape[-1] > 1 else np.full_like(scatter, np.nan)
        coordinates = {name: self.flux[name].values for name in ("blend", "band", "galaxy")}
        coordinates["galaxy_2"] = coordinates["galaxy"]
        unit = self.flux.attrs["unit"]
        attributes = self.flux.attrs | {"unit": f"({unit})**2" if unit else ""}
        return xr.DataArray(covariance, coordinates, coordinates.keys(), "flux_covariance", attributes)

    @property
    def mask(self) -> xr.DataArray:
        """Probability ``(blend, galaxy, y, x)`` that a galaxy's own light exceeds 3 sky rms in a pixel."""
        return self._pixels("mask")

    @property
    def mask_std(self) -> xr.DataArray:
        """Spread ``(blend, galaxy, y, x)`` of the network's mask probability over the dropout passes."""
        return self._pixels("mask_std")

    @property
    def mask_entropy(self) -> xr.DataArray:
        """Entropy ``(blend, galaxy, y, x)`` of the mask probability in bits: 1 where it is one half."""
        nat = xr.apply_ufunc(lambda mask: entr(mask) + entr(1 - mask), self.mask)
        return (nat / math.log(2)).rename("mask_entropy")

    @property
    def mask_information(self) -> xr.DataArray:
        """Part ``(blend, galaxy, y, x)`` of the entropy in bits by which the dropout passes disagree.

        It is the mutual information between pixel and pass: the entropy of the mean probability less the mean entropy
        of the passes (Houlsby et al. 2011, arXiv:1112.5745). The rest is what every pass says of itself. A calibrator
        knows the mean alone, and leaves the information its share of the entropy.
        """
        return self._pixels("mask_information")

    @property
    def images(self) -> xr.DataArray:
        """Each galaxy's own image ``(blend, galaxy, y, x)`` without noise, in image units: the mean of its draws."""
        return self._pixels("image")

    @property
    def images_std(self) -> xr.DataArray:
        """Spread ``(blend, galaxy, y, x)`` of each galaxy's own image over the draws."""
        return self._pixels("image_std")

    @property
    def light_fraction(self) -> xr.DataArray:
        """Share ``(blend, galaxy, y, x)`` of the light that is each galaxy's; NaN where all is below the sky noise."""
        total = self.images.sum("galaxy")
        share = (self.images / total).where(total > self.dataset["sky_rms"])
        return share.transpose(*self.images.dims).rename("light_fraction")

    @property
    def flags(self) -> xr.DataArray:
        """Sum of `Flag` bits ``(blend, galaxy)``; zero where none were given."""
        none = xr.zeros_like(self.flux.isel(chain=0, draw=0, band=0, drop=True), dtype=np.int64)
        return self.dataset.get("flags", none).rename("flags")

    @property
    def doubt(self) -> xr.DataArray:
        """How odd each blend is ``(blend,)``, the less to be trusted: flags begin at 1; NaN where nobody looked.

        The largest of what flags look at, each over its limit: how far the network's view of the stamp is from that
        of its training, how far from the middle the central galaxy is, and, where they were asked for, how improbable
        two galaxies are, how much light refinement left behind, how far it is from the network, and how far the
        members of an ensemble are apart.
        """
        none = xr.full_like(self.flux.isel(chain=0, draw=0, band=0, galaxy=0, drop=True), np.nan, dtype=float)
        return self.dataset.get("doubt", none).rename("doubt")

    def doubting(self, doubt: ArrayLike, **variables: tuple) -> Self:
        """Have at least so much doubt.

        Parameters
        ----------
        doubt
            ``(blend,)``.
        **variables
            Others to replace or add, as for `xarray.Dataset.assign`.

        Returns
        -------
        Posterior
            With the larger of both doubts.
        """
        doubt = np.fmax(self.doubt.values, np.asarray(doubt, dtype=np.float64))
        return type(self)(self.dataset.assign(variables | {"doubt": (("blend",), doubt)}))

    def draws(self, *dims: str) -> np.ndarray:
        """Return the draws of the fluxes as one array, with those of all chains along its last axis.

        Parameters
        ----------
        *dims
            The order of "blend", "galaxy" and "band".

        Returns
        -------
        numpy.ndarray
            Fluxes in image units.
        """
        flux = self.flux.transpose(*dims, "chain", "draw").values
        return flux.reshape(*flux.shape[:3], flux.shape[3] * flux.shape[4]).astype(float)

    def select(self, blends: int | slice | ArrayLike) -> Self:
        """Pick blends; they keep their numbers.

        Parameters
        ----------
        blends
            An index, a slice, a list of indices, or a boolean array with one entry a blend.

        Returns
        -------
        Posterior
            The picked blends.

        Raises
        ------
        IndexError
            If an index is out of range, or a boolean array has another length.
        """
        index = np.arange(len(self))[blends if isinstance(blends, slice) else np.asarray(blends)]
        return type(self)(self.dataset.isel(blend=np.atleast_1d(index)))

    def without_pixels(self) -> Self:
        """Leave out masks and images, which take most of the memory.

        Returns
        -------
        Posterior
            The same without them.
        """
        return type(self)(self.dataset.drop_dims(("y", "x"), errors="ignore"))

    def reweight(self, log_density: Callable[[np.ndarray], ArrayLike], **settings: object) -> Self:
        """Replace the prior of the training by the user's own.

        Parameters
        ----------
        log_density
            Called with all fluxes ``(chain, draw, blend, galaxy)`` in image units, returns ``(chain, draw, blend)``:
            the logarithm of a prior density in ln flux.
        **settings
            As for `~probdeblend.posterior.reweight.reweight`.

        Returns
        -------
        Posterior
            Draws under that prior, with ``effective_samples (blend,)``.

        Raises
        ------
        ValueError
            If a blend has too few effective draws, or it is not known under which prior the draws are.
        """
        return reweight(self, log_density, **settings)

    def summary(self, *, wcs: WCS | None = None) -> QTable:
        """Tabulate the galaxies, a row each (and for each band where there are several).

        Parameters
        ----------
        wcs
            The image's world coordinates, where x and y are positions in it: adds the columns ra and dec.

        Returns
        -------
        astropy.table.QTable
            Columns id, blend, galaxy, x, y, (ra, dec,) flux, flux_sd, flux_16, flux_50, flux_84, flux_kind,
            mag, mag_sd, correlation, variance_within, variance_between, method, flags: each says in its
            description what it holds. Magnitudes are masked without a zero point and where the flux, or for
            mag_sd its lower quantile, is not positive; variances where there were no dropout passes.
        """
        return tabulate(self, wcs)

    def to_arviz(self) -> object:
        """Convert to ArviZ, whose diagnostics and plots then apply.

        Returns
        -------
        arviz.InferenceData or xarray.DataTree
            The group ``posterior`` with flux and total_flux: the former with ArviZ 0.x, the latter with 1.x.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
            import arviz
        group = self.dataset[["flux"]].drop_vars(["x", "y"], errors="ignore")
        group["total_flux"] = self.total_flux
        if hasattr(arviz, "InferenceData"):
            return arviz.InferenceData(posterior=group)
        return xr.DataTree.from_dict({"posterior": group})

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a netCDF file, whole or not at all.

        Parameters
        ----------
        path
            The file.
        overwrite
            Whether a file that exists may be replaced.

        Raises
        ------
        FileExistsError
            If the file exists and `overwrite` is not set.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path}: exists already")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        encoding = {name: {"zlib": True} for name in (*MASKS, "image", "image_std") if name in self.dataset}
        try:
            self.dataset.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _pixels(self, name: str) -> xr.DataArray:
        if name not in self.dataset:
            raise AttributeError(f"this posterior of method {self.dataset.attrs['method']!r} has no {name}")
        return self.dataset[name].drop_vars(["x", "y"], errors="ignore")


def _checked(name: str, value: object, dims: tuple[str, ...], sizes: dict[str, int]) -> np.ndarray:
    array = np.asarray(value, dtype=np.int64 if name == "flags" else None)
    expected = tuple(sizes.get(dim, size) for dim, size in zip(dims, array.shape, strict=False))
    if array.ndim != len(dims) or array.shape != expected:
        known = {dim: sizes[dim] for dim in dims if dim in sizes}
        axes = ", ".join(dims)
        raise ValueError(f"{name} must have the axes ({axes}) with {known}, got shape {array.shape}")
    sizes.update(zip(dims, array.shape, strict=True))
    return array
