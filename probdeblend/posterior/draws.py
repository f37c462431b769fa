"""The posterior of sources: draws of their fluxes in every band, and what else is known of each.

An `xarray.Dataset` with the dimensions ``(chain, draw, source, band)`` holds the numbers, `Cutouts` hold the pixels.
The first two dimensions are those of ArviZ; a chain is a dropout pass. Covariances are moments of the draws; tables use
quantiles.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import xarray as xr
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

from .._files import header
from ..scene import SOURCE_TYPES
from .catalog import tabulate
from .cutouts import Cutouts, image, label_image, mask, model_image, segmentation
from .moments import color, covariance, draws, group_flux, magnitude, to_arviz
from .storage import open_posterior, save

__all__ = ["COLUMNS", "Posterior"]

FLUX_DIMS = ("chain", "draw", "source", "band")
MEASURED = ("half_light_radius", "axis_ratio", "angle", "sersic_index")
COLUMNS = {
    **dict.fromkeys(("existence", "star", "contested", "anomaly", "flags"), ("source",)),
    **dict.fromkeys((*MEASURED, *(f"{name}_err" for name in ("x", "y", *MEASURED))), ("source",)),
    "sky_rms": ("source", "band"),
    "kind_probability": ("source", "source_type"),
}
"""What may be known of each source beside its fluxes, with its axes."""


@dataclass(frozen=True, eq=False, repr=False)
class Posterior:
    """Draws of the fluxes of sources, with their masks, images, positions, shapes and flags.

    Build one with `from_draws`.

    Parameters
    ----------
    dataset
        The variables ``flux`` (total) and ``flux_auto`` (Kron) ``(chain, draw, source, band)``, at least one of them,
        and columns of the sources. The coordinates ``scene``, ``group``, ``label``, ``x``, ``y`` and, where known,
        ``ra``, ``dec`` and ``id (source,)``; ``zero_point (band,)``. The attributes ``method``, ``unit``,
        ``pixel_scale`` (arcsec), ``scenes`` (their number) and, where known, ``wcs`` (a FITS header).
    cutouts
        The pixels of each source, or None.
    """

    dataset: xr.Dataset
    cutouts: Cutouts | None = None

    @classmethod
    def from_draws(  # noqa: PLR0913
        cls,
        flux: ArrayLike | None = None,
        flux_auto: ArrayLike | None = None,
        *,
        scene: ArrayLike,
        group: ArrayLike,
        x: ArrayLike,
        y: ArrayLike,
        label: ArrayLike | None = None,
        bands: Sequence[str] = ("",),
        unit: str = "",
        zero_point: Sequence[float] = (),
        pixel_scale: float = float("nan"),
        method: str = "network",
        columns: Mapping[str, ArrayLike] | None = None,
        cutouts: Cutouts | None = None,
        wcs: WCS | None = None,
        scenes: int | None = None,
    ) -> Self:
        """Build a posterior from arrays of draws.

        Parameters
        ----------
        flux, flux_auto
            Draws ``(chain, draw, source, band)`` of the total and of the Kron flux in image units; at least one of
            them. NaN where a source was not measured.
        scene
            The scene of each source ``(source,)``.
        group
            The group of overlapping sources that each belongs to ``(source,)``; numbers are unique over all scenes.
        x, y
            Positions ``(source,)`` in pixels.
        label
            Positive numbers ``(source,)``, no two alike; 1, 2, and so on by default.
        bands
            Their names.
        unit
            Unit of the fluxes.
        zero_point
            AB magnitude of unit flux, for each band; empty if unknown.
        pixel_scale
            Size of a pixel in arcsec; NaN if unknown.
        method
            Source of the draws, such as "network" or "sep".
        columns
            Arrays by the names of `COLUMNS`: what else is known of the sources.
        cutouts
            Masks and images of the sources.
        wcs
            World coordinates of the image.
        scenes
            Number of scenes; by default up to the last one that has a source.

        Returns
        -------
        Posterior
            The labeled draws.

        Raises
        ------
        ValueError
            If no flux is given, shapes do not fit, labels are not positive and unique, or a column is unknown.
        """
        given = {"flux": flux, "flux_auto": flux_auto}
        fluxes = {name: np.asarray(values) for name, values in given.items() if values is not None}
        if not fluxes:
            raise ValueError("flux or flux_auto must be given, got neither")
        shape = next(iter(fluxes.values())).shape
        for name, values in fluxes.items():
            if values.ndim != len(FLUX_DIMS) or values.shape != shape or shape[3] != len(bands):
                axes = f"({', '.join(FLUX_DIMS)}) with {len(bands)} bands"
                raise ValueError(f"{name} must have the axes {axes}, got shape {values.shape}")
        coordinates = {"chain": np.arange(shape[0]), "draw": np.arange(shape[1]), "band": list(bands)}
        label = np.arange(1, shape[2] + 1) if label is None else np.asarray(label)
        for name, values in {"scene": scene, "group": group, "label": label, "x": x, "y": y}.items():
            array = np.asarray(values, dtype=np.float64 if name in "xy" else np.int64)
            coordinates[name] = ("source", _checked(name, array, shape[2:3]))
        if len(np.unique(label)) < len(label) or (label < 1).any():
            raise ValueError(f"label must be positive and no two alike, got {label.tolist()}")
        magnitudes = np.array(tuple(zero_point) or (np.nan,) * len(bands), dtype=np.float64)
        coordinates["zero_point"] = ("band", _checked("zero_point", magnitudes, shape[3:]))
        attributes = header("posterior") | {"method": method, "unit": unit, "pixel_scale": float(pixel_scale)}
        attributes["scenes"] = int(np.max(scene, initial=-1)) + 1 if scenes is None else int(scenes)
        if wcs is not None and wcs.has_celestial:
            with contextlib.suppress(AttributeError, TypeError, ValueError):  # coordinates on the Sun or on a planet
                sky = wcs.celestial.pixel_to_world(coordinates["x"][1], coordinates["y"][1]).icrs
                coordinates |= {"ra": ("source", sky.ra.deg), "dec": ("source", sky.dec.deg)}
            attributes["wcs"] = wcs.celestial.to_header_string(relax=True)
        variables = {name: (FLUX_DIMS, values, {"unit": unit}) for name, values in fluxes.items()}
        if cutouts is not None and len(cutouts) != shape[2]:
            raise ValueError(f"cutouts must be of {shape[2]} sources, got {len(cutouts)}")
        sizes = dict(zip(FLUX_DIMS, shape, strict=True))
        variables |= _columns({"flags": np.zeros(shape[2])} | dict(columns or {}), sizes)
        return cls(xr.Dataset(variables, coordinates, attributes), cutouts)

    @classmethod
    def concatenate(cls, posteriors: Sequence[Self]) -> Self:
        """Concatenate posteriors of different scenes; scenes and groups are renumbered, and labels where two are alike.

        Parameters
        ----------
        posteriors
            Posteriors with the same draws, bands, columns and attributes.

        Returns
        -------
        Posterior
            Posterior of all scenes. It has no world coordinate system, since they have none in common; ``ra`` and
            ``dec`` stay.

        Raises
        ------
        ValueError
            If there are none, or if they differ in more than their sources.
        """
        if not posteriors:
            raise ValueError("posteriors must hold at least one posterior, got none")
        parts, scenes, groups = [], 0, 0
        for posterior in posteriors:
            part = posterior.dataset
            group = np.unique(part["group"].values, return_inverse=True)[1]
            moved = {"scene": ("source", part["scene"].values + scenes), "group": ("source", group + groups)}
            scenes, groups = scenes + part.attrs["scenes"], groups + group.max(initial=-1) + 1
            parts.append(part.assign_coords(moved).assign_attrs(scenes=0, wcs=""))
            try:
                xr.testing.assert_identical(parts[0].isel(source=slice(0)), parts[-1].isel(source=slice(0)))
            except AssertionError as error:
                raise ValueError(f"posteriors must be alike except for their sources, got: {error}") from None
        joined = xr.concat(parts, "source", data_vars="minimal", coords="minimal", compat="override", join="exact")
        joined.attrs["scenes"] = scenes
        del joined.attrs["wcs"]
        if len(np.unique(joined["label"])) < joined.sizes["source"]:
            joined["label"] = ("source", np.arange(1, joined.sizes["source"] + 1))
        pixels = [posterior.cutouts for posterior in posteriors]
        return cls(joined, None if any(part is None for part in pixels) else Cutouts.join(pixels))

    def __len__(self) -> int:
        return self.dataset.sizes["source"]

    def __repr__(self) -> str:
        return f"<Posterior: {dict(self.dataset['flux' if 'flux' in self.dataset else 'flux_auto'].sizes)}>"

    @property
    def flux(self) -> xr.DataArray:
        """Draws of the total fluxes ``(chain, draw, source, band)`` in image units."""
        return draws(self)

    @property
    def flux_auto(self) -> xr.DataArray:
        """Draws of the Kron fluxes ``(chain, draw, source, band)`` that the sources would have, were they isolated."""
        return draws(self, "auto")

    @property
    def total_flux(self) -> xr.DataArray:
        """Draws of the total flux ``(chain, draw, group, band)`` of each group; NaN where one of its fluxes is NaN."""
        return group_flux(self)

    @property
    def magnitude(self) -> xr.DataArray:
        """Draws of the AB magnitude ``(chain, draw, source, band)`` of the total flux.

        NaN without a zero point, and where a flux is not positive.
        """
        return magnitude(self)

    @property
    def flags(self) -> NDArray[np.int64]:
        """Sum of `Flag` bits of each source ``(source,)``."""
        return self.dataset["flags"].values

    @property
    def wcs(self) -> WCS | None:
        """World coordinates of the image, or None."""
        text = self.dataset.attrs.get("wcs")
        return None if text is None else WCS(fits.Header.fromstring(text))

    draws = draws
    group_flux = group_flux
    covariance = covariance
    color = color
    mask = mask
    image = image
    model_image = model_image
    label_image = label_image
    segmentation = segmentation
    to_arviz = to_arviz
    save = save
    open = classmethod(open_posterior)

    def catalog(self) -> QTable:
        """Tabulate the sources, one row each.

        Columns of a band have its name as suffix where there are several bands.

        Returns
        -------
        astropy.table.QTable
            Columns label, (id, scene,) group, group_size, x, y, (ra, dec,) total and Kron fluxes with their quantiles,
            magnitudes, correlation with the neighbor that is most correlated, and what else is known; each has a
            description. Magnitudes are masked without a zero point and where the flux, or for mag_err its lower
            quantile, is not positive.
        """
        return tabulate(self)

    def _repr_html_(self) -> str:
        """Show the catalog in a notebook."""
        return self.catalog()._repr_html_()

    def index(self, label: int) -> int:
        """Return the index of a source.

        Parameters
        ----------
        label
            Its label.

        Returns
        -------
        int
            Its place among the sources.

        Raises
        ------
        KeyError
            If there is no such source.
        """
        found = np.flatnonzero(self.dataset["label"].values == label)
        if not len(found):
            raise KeyError(f"label must be that of one of {len(self)} sources, got {label}")
        return int(found[0])

    def select(self, sources: int | slice | ArrayLike) -> Self:
        """Select sources; they keep their labels, scenes and groups.

        Parameters
        ----------
        sources
            An index, a slice, a list of indices, or a boolean array with one entry per source.

        Returns
        -------
        Posterior
            The selected sources.

        Raises
        ------
        IndexError
            If an index is out of range, or a boolean array has another length.
        """
        if not isinstance(sources, slice):
            sources = np.asarray(sources) if np.size(sources) else slice(0)
        index = np.atleast_1d(np.arange(len(self))[sources])
        cutouts = None if self.cutouts is None else self.cutouts.select(index)
        return type(self)(self.dataset.isel(source=index), cutouts)

    def scene(self, number: int) -> Self:
        """Return the posterior of one scene.

        Parameters
        ----------
        number
            The scene.

        Returns
        -------
        Posterior
            Its sources, with their labels and groups; it is scene 0 there.

        Raises
        ------
        IndexError
            If there is no such scene.
        """
        if not 0 <= number < self.dataset.attrs["scenes"]:
            raise IndexError(f"number must be from 0 to below {self.dataset.attrs['scenes']}, got {number}")
        chosen = self.select(self.dataset["scene"].values == number)
        alone = chosen.dataset.assign_coords(scene=("source", np.zeros(len(chosen), dtype=np.int64)))
        return type(self)(alone.assign_attrs(scenes=1), chosen.cutouts)

    def with_columns(self, columns: Mapping[str, ArrayLike]) -> Self:
        """Return a copy with some columns added or replaced.

        Parameters
        ----------
        columns
            Arrays by the names of `COLUMNS`.

        Returns
        -------
        Posterior
            The copy.

        Raises
        ------
        ValueError
            If a name is unknown, or a shape does not fit.
        """
        return type(self)(self.dataset.assign(_columns(columns, self.dataset.sizes)), self.cutouts)

    def plot(self, label: int, image: ArrayLike | None = None) -> NDArray[np.object_]:
        """Show a source: the image, its mask, its light, what is left of the image, and its flux.

        Parameters
        ----------
        label
            The source.
        image
            Image of its scene ``(y, x)`` or ``(band, y, x)``; by default the sum of the deblended images.

        Returns
        -------
        NDArray
            The five `Axes`, as from `probdeblend.plots.plot_source`.
        """
        from ..plots.sources import plot_source

        return plot_source(self, label, image)


def _columns(columns: Mapping[str, ArrayLike], sizes: Mapping[str, int]) -> dict[str, tuple]:
    """Return columns as variables of a dataset of such sizes."""
    sizes, found = {**sizes, "source_type": len(SOURCE_TYPES)}, {}
    for name, values in columns.items():
        if name not in COLUMNS:
            raise ValueError(f"columns must be among {', '.join(COLUMNS)}, got {name}")
        array = np.asarray(values, dtype=np.int64 if name == "flags" else np.float64)
        found[name] = (COLUMNS[name], _checked(name, array, tuple(sizes[dim] for dim in COLUMNS[name])))
    return found | ({"source_type": ("source_type", list(SOURCE_TYPES))} if "kind_probability" in found else {})


def _checked(name: str, values: NDArray, shape: tuple[int, ...]) -> NDArray:
    if values.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {values.shape}")
    return values
