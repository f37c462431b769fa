"""A trained network as a deblender of the Blending ToolKit (Mendoza et al. 2025, doi:10.33232/001c.129699)."""

import numpy as np
import torch
from astropy.table import Table

from ..scene import Scene
from .deblender import Deblends
from .psfs import band_psfs

__all__ = ["ToolkitDeblender", "toolkit_scene"]


class ToolkitDeblender:
    """Deblend batches of the Blending ToolKit, as its own deblenders do.

    Call it with a batch, or give it to a `btk.deblend.DeblendGenerator`. Deblended images have their negative pixels
    set to zero, as the metrics of the ToolKit need them; segments are the pixels where a source's own light exceeds 3
    sky rms more probably than not, and may overlap.

    Parameters
    ----------
    max_n_sources
        Largest number of sources in an image.
    deblender
        What deblends: a network, as from `load`.
    bands
        Names of the survey's filters to use, by default all. The network that ships was trained on up to three.
    """

    def __init__(self, max_n_sources: int, deblender: Deblends, bands: tuple[str, ...] = ()) -> None:
        from btk.deblend import Deblender

        Deblender.register(type(self))  # btk is not imported before it is needed, so that it cannot be the base
        self.max_n_sources, self.deblender, self.bands, self._base = max_n_sources, deblender, bands, Deblender

    def __repr__(self) -> str:
        return type(self).__name__  # which a generator has as key

    def batch_call(self, blend_batch: object, njobs: int = 1, catalogs: list[Table] | None = None) -> object:
        """Deblend all images of a batch.

        Parameters
        ----------
        blend_batch
            The batch.
        njobs
            Number of processes.
        catalogs
            As for `deblend`.

        Returns
        -------
        btk.blend_batch.DeblendBatch
            What `deblend` returns of each image.
        """
        return self._base.batch_call(self, blend_batch, njobs, catalogs=catalogs)

    __call__ = batch_call

    def deblend(self, ii: int, blend_batch: object, catalogs: list[Table] | None = None) -> object:
        """Deblend one image of a batch.

        Parameters
        ----------
        ii
            Number of the image.
        blend_batch
            A `btk.blend_batch.BlendBatch`, drawn with the noise of sky and sources.
        catalogs
            A table for each image of the batch with x_peak and y_peak of the sources to measure; None detects them.

        Returns
        -------
        btk.blend_batch.DeblendExample
            The catalog has ra and dec in arcsec, x_peak and y_peak in pixels, and whatever `Posterior.catalog` has:
            fluxes in electrons, their errors, flags. The extra data are the ``posterior``, its ``draws`` of total
            fluxes, and each ``mask_probability`` ``(max_n_sources, y, x)``.

        Raises
        ------
        ValueError
            If there are more than `max_n_sources` sources, or the survey has no such band.
        """
        from btk.blend_batch import DeblendExample

        bands = list(self.bands or blend_batch.survey.available_filters)
        scene, wcs, size = toolkit_scene(blend_batch, ii, bands), blend_batch.wcs, blend_batch.image_size
        places = catalogs and torch.tensor([[0, row["x_peak"], row["y_peak"]] for row in catalogs[ii]]).reshape(-1, 3).T
        found = self.deblender.scenes(scene, positions=places)
        found = type(found)(found.dataset.assign_coords(band=bands), found.cutouts)
        count = max(self.max_n_sources, len(found))  # the ToolKit says what is wrong where there are too many
        chance, light = np.zeros((count, size, size)), np.zeros((count, len(bands), size, size))
        for number in range(len(found)):
            mask, image = (found.cutouts.cutout(kind, number) for kind in ("mask", "image"))
            chance[number, *mask.slices], light[number, :, *mask.slices] = mask.data, image.data
        catalog = Table({name: np.asarray(values) for name, values in found.catalog().items()})
        catalog.rename_columns(["x", "y"], ["x_peak", "y_peak"])
        catalog["ra"], catalog["dec"] = 3600 * np.array(wcs.pixel_to_world_values(catalog["x_peak"], catalog["y_peak"]))
        extra = {"posterior": found, "draws": found.flux, "mask_probability": chance}
        return DeblendExample(self.max_n_sources, catalog, len(bands), size, chance >= 0.5, light.clip(0), extra)


def toolkit_scene(batch: object, number: int, bands: list[str]) -> Scene:
    """Return one image of a batch with the PSFs, the noise and the zero points of its survey.

    Parameters
    ----------
    batch
        A `btk.blend_batch.BlendBatch`, as it is drawn: one that was loaded from a file has no PSFs that can be drawn.
    number
        Number of the image.
    bands
        Names of filters of the survey.

    Returns
    -------
    Scene
        The image, in electrons; it does not tell the sources.

    Raises
    ------
    ValueError
        If the survey has no such band.
    """
    survey, scale = batch.survey, batch.survey.pixel_scale.to_value("arcsec")
    filters, index = ([*map(find, bands)] for find in (survey.get_filter, survey.available_filters.index))
    zero = np.array([one.zeropoint.value + 2.5 * np.log10(one.full_exposure_time.to_value("s")) for one in filters])
    rms = 10 ** (0.2 * (zero - [one.sky_brightness.value for one in filters])) * scale
    waves = [np.nan if one.effective_wavelength is None else one.effective_wavelength.to_value("um") for one in filters]
    image, rms, waves = (torch.as_tensor(v).float()[None] for v in (batch.blend_images[number, index], rms, waves))
    psf = band_psfs([batch.psf[band] for band in index], index, scale, [])[None]
    return Scene(image, rms, psf, scale, torch.ones_like(rms), None, waves, tuple(zero.tolist()))
