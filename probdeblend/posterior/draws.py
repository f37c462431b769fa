"""The posterior: one `xarray.Dataset` with the dimensions ``(chain, draw, blend, galaxy, band)``.

The first two dimensions are those of ArviZ. Covariances are moments of the draws; tables use quantiles.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import xarray as xr
from astropy.table import QTable
from astropy.wcs import WCS
from numpy.typing import ArrayLike
from scipy.special import entr

from .._files import check_header, header, whole_file
from .catalog import tabulate
from .reweight import reweight

__all__ = ["Posterior", "variance_parts"]

FLUX_KINDS = ("total", "auto", "isophotal")
FLUX_DIMS = ("chain", "draw", "blend", "galaxy", "band")
MASKS = ("mask", "mask_std", "mask_information")
OPTIONAL_DIMS = (
    dict.fromkeys(MASKS, ("blend", "galaxy", "y", "x"))
    | dict.fromkeys(("x", "y", "flags"), ("blend", "galaxy"))
    | dict.fromkeys(("variance_within", "variance_between"), ("blend", "galaxy", "band"))
    | dict.fromkeys(("sky_rms", "anomaly"), ("blend",))
)


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws of the fluxes of blended galaxies, with their mask probabilities, positions and flags.

    Parameters
    ----------
    dataset
        The variable ``flux (chain, draw, blend, galaxy, band)`` and, where known, ``mask``, ``mask_std`` and
        ``mask_information (blend, galaxy, y, x)``; ``x``, ``y`` and ``flags (blend, galaxy)``;
        ``flux_variance_within`` and ``flux_variance_between (blend, galaxy, band)``; ``sky_rms (blend,)``, the noise
        of a sky pixel in image units; ``anomaly (blend,)``. The attributes ``flux_kind``, ``method``, ``flux_unit``
        and, where known, ``zero_point`` and ``pixel_scale``.
    """

    dataset: xr.Dataset

    @classmethod
    def from_draws(cls, flux: ArrayLike, *, flux_kind: str, method: str, **named: object) -> Self:
        """Build a posterior from arrays of draws.

        Parameters
        ----------
        flux
            Draws ``(chain, draw, blend, galaxy, band)`` in image units; NaN for a galaxy that was not detected.
        flux_kind
            Definition of the flux: "total", "auto" (Kron) or "isophotal".
        method
            Source of the draws, such as "network" or "sep".
        **named
            Arrays, or None: ``mask`` (probability), ``mask_std`` (its scatter over the dropout passes) and
            ``mask_information`` (mutual information of pixel and pass, in bits) ``(blend, galaxy, y, x)``; ``x``,
            ``y`` (pixels) and ``flags (blend, galaxy)``; ``variance_within`` and ``variance_between`` the passes
            ``(blend, galaxy, band)``; ``sky_rms`` and ``anomaly (blend,)``. Any other name becomes an attribute, unless
            it is None: ``flux_unit``, ``zero_point`` (AB magnitude of unit flux), ``pixel_scale`` (arcsec) and others.

        Returns
        -------
        Posterior
            The labeled draws.

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
        attributes: dict[str, object] = dict(header("posterior"))
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
            If the file is not a posterior, is damaged, or has another version.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            dataset = xr.load_dataset(path, engine="h5netcdf")
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"{path}: not a posterior written by probdeblend, or damaged") from error
        check_header(dataset.attrs, "posterior", path)
        return cls(dataset)

    @classmethod
    def concatenate(cls, posteriors: Sequence[Self]) -> Self:
        """Concatenate posteriors along their blends, which are renumbered.

        Parameters
        ----------
        posteriors
            Posteriors with the same attributes and axes except for their blends.

        Returns
        -------
        Posterior
            Posterior of all blends.

        Raises
        ------
        ValueError
            If there are none, or if they differ in attributes, variables, draws, galaxies or bands.
        """
        if not posteriors:
            raise ValueError("posteriors must hold at least one posterior, got none")
        datasets = [posterior.dataset for posterior in posteriors]
        for other in datasets[1:]:
            try:
                xr.testing.assert_identical(datasets[0].isel(blend=slice(0)), other.isel(blend=slice(0)))
            except AssertionError as error:
                raise ValueError(f"posteriors must be alike except for their blends, got: {error}") from None
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
        """Draws of the total flux ``(chain, draw, blend, band)`` of each blend; NaN where one of its fluxes is NaN."""
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
        """Probability ``(blend, galaxy, y, x)`` that the galaxy's own light exceeds 3 sky rms in a pixel."""
        return self._pixels("mask")

    @property
    def mask_std(self) -> xr.DataArray:
        """Standard deviation ``(blend, galaxy, y, x)`` of the mask probability over the dropout passes."""
        return self._pixels("mask_std")

    @property
    def mask_entropy(self) -> xr.DataArray:
        """Entropy ``(blend, galaxy, y, x)`` of the mask probability in bits: 1 where it is one half."""
        nat = xr.apply_ufunc(lambda mask: entr(mask) + entr(1 - mask), self.mask)
        return (nat / math.log(2)).rename("mask_entropy")

    @property
    def mask_information(self) -> xr.DataArray:
        """Mutual information ``(blend, galaxy, y, x)`` between pixel and dropout pass, in bits.

        It is the part of the entropy due to disagreement of the passes: the entropy of the mean probability minus the
        mean entropy of the passes (Houlsby et al. 2011, arXiv:1112.5745). A calibrator keeps its share of the entropy.
        """
        return self._pixels("mask_information")

    @property
    def images(self) -> xr.DataArray:
        """Noiseless image ``(blend, galaxy, y, x)`` of each galaxy alone, in image units: the mean of its draws."""
        return self._pixels("image")

    @property
    def images_std(self) -> xr.DataArray:
        """Standard deviation ``(blend, galaxy, y, x)`` of each galaxy's image over the draws."""
        return self._pixels("image_std")

    @property
    def light_fraction(self) -> xr.DataArray:
        """Fraction ``(blend, galaxy, y, x)`` of the light due to each galaxy; NaN below the sky noise."""
        total = self.images.sum("galaxy")
        share = (self.images / total).where(total > self.dataset["sky_rms"])
        return share.transpose(*self.images.dims).rename("light_fraction")

    @property
    def flags(self) -> xr.DataArray:
        """Sum of `Flag` bits ``(blend, galaxy)``; zero if none were given."""
        none = xr.zeros_like(self.flux.isel(chain=0, draw=0, band=0, drop=True), dtype=np.int64)
        return self.dataset.get("flags", none).rename("flags")

    @property
    def anomaly(self) -> xr.DataArray:
        """Anomaly score of each blend ``(blend,)``; above 1 it raises a flag, NaN where it was not measured.

        The largest of several measures, each in units of its limit: the distance of the stamp from the training set as
        the network sees it, the distance of the central galaxy from the middle of the stamp and, where requested, the
        probability that there are not two galaxies, the residuals of refinement, and the difference between refinement
        and network.
        """
        none = xr.full_like(self.flux.isel(chain=0, draw=0, band=0, galaxy=0, drop=True), np.nan, dtype=float)
        return self.dataset.get("anomaly", none).rename("anomaly")

    def with_anomaly(self, anomaly: ArrayLike, **variables: tuple) -> Self:
        """Raise the anomaly score to at least `anomaly (blend,)`, and assign other variables of the dataset."""
        anomaly = np.fmax(self.anomaly.values, np.asarray(anomaly, dtype=np.float64))
        return type(self)(self.dataset.assign(variables | {"anomaly": (("blend",), anomaly)}))

    def draws(self, *dims: str) -> np.ndarray:
        """Return the draws of the fluxes as one array, with the draws of all chains along its last axis.

        Parameters
        ----------
        *dims
            "blend", "galaxy" and "band", in the order of the other axes.

        Returns
        -------
        numpy.ndarray
            Fluxes in image units.
        """
        flux = self.flux.transpose(*dims, "chain", "draw").values
        return flux.reshape(*flux.shape[:3], flux.shape[3] * flux.shape[4]).astype(float)

    def select(self, blends: int | slice | ArrayLike) -> Self:
        """Select blends; they keep their numbers.

        Parameters
        ----------
        blends
            An index, a slice, a list of indices, or a boolean array with one entry per blend.

        Returns
        -------
        Posterior
            The selected blends.

        Raises
        ------
        IndexError
            If an index is out of range, or a boolean array has another length.
        """
        index = np.arange(len(self))[blends if isinstance(blends, slice) else np.asarray(blends)]
        return type(self)(self.dataset.isel(blend=np.atleast_1d(index)))

    def without_pixels(self) -> Self:
        """Return the posterior without masks and images, which take most of the memory.

        Returns
        -------
        Posterior
            Draws, positions and flags alone.
        """
        return type(self)(self.dataset.drop_dims(("y", "x"), errors="ignore"))

    reweight = reweight

    def summary(self, *, wcs: WCS | None = None) -> QTable:
        """Tabulate the galaxies, one row each (and one per band if there are several).

        Parameters
        ----------
        wcs
            World coordinates of the image in which x and y are positions: adds the columns ra and dec.

        Returns
        -------
        astropy.table.QTable
            Columns id, blend, galaxy, x, y, (ra, dec,) flux, flux_err, flux_16, flux_50, flux_84, flux_kind, mag,
            mag_err, correlation, variance_within, variance_between, method, anomaly, flags; each has a description.
            Magnitudes are masked without a zero point and where the flux, or for mag_err its lower quantile, is not
            positive; variances where there were no dropout passes.
        """
        return tabulate(self, wcs)

    def to_arviz(self) -> object:
        """Convert to ArviZ: `arviz.InferenceData` in its versions 0.x, `xarray.DataTree` in 1.x.

        Returns
        -------
        object
            The group ``posterior`` holds the draws of the fluxes and of the total flux.
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
        """Write a netCDF file.

        Parameters
        ----------
        path
            The file.
        overwrite
            Replace an existing file.

        Raises
        ------
        FileExistsError
            If the file exists and `overwrite` is not set.
        """
        encoding = {name: {"zlib": True} for name in (*MASKS, "image", "image_std") if name in self.dataset}
        with whole_file(path, overwrite=overwrite) as temporary:
            self.dataset.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)

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


def variance_parts(flux: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Split the variance of draws ``(chain, draw, ...)`` into that within chains and that between them ``(...)``.

    The latter is the variance of the means of the chains, minus what the finite number of draws contributes to it.
    """
    flux = np.asarray(flux, dtype=float)
    chains, each = flux.shape[:2]
    within = flux.var(1, ddof=min(1, each - 1)).mean(0)
    between = flux.mean(1).var(0) - within / each * (1 - 1 / chains)
    return within, np.maximum(between, 0)
