"""Fixed sets of the published pairs: 128 x 128 pixels, the central galaxy in the middle, both skies kept.

The paper adds up two cut-outs of real galaxies, so that a pair has the noise of two skies; the truth is the AUTO flux
of each cut-out, and a mask is where a galaxy alone stands out of one sky. Here galaxies are simulated, and the second
sky is drawn. Everything is in units of the noise of one sky.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks._command import kept_arrays
from benchmarks._populations import published_pairs
from benchmarks._scenes import CHUNK
from probdeblend.photometry.noise import correlated_noise
from probdeblend.scene import Scene, seed_of
from probdeblend.simulation.light import Sources

__all__ = ["Pairs", "draw", "make_pairs"]

SIZE = 128  # pixels


@dataclass(frozen=True, eq=False)
class Pairs:
    """A set of pairs, galaxy 0 the central one.

    Images ``(pair, 1, y, x)`` and AUTO fluxes ``(pair, 2)`` over the noise of one sky, masks ``(pair, 2, y, x)``, the
    type of each galaxy ``(pair, 2)``, and ``(pair,)`` the magnitude of a flux of one and the separation in pixels.
    """

    image: NDArray[np.float16]
    mask: NDArray[np.bool_]
    flux: NDArray[np.float32]
    kind: NDArray[np.int64]
    zero_point: NDArray[np.float64]
    separation: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.image)


def draw(count: int, seed: int, *, sources: Sources | None = None, skies: int = 2) -> tuple[Scene, NDArray[np.bool_]]:
    """Draw pairs with two skies or one, and their masks ``(pair, 2, y, x)``: above three times the noise of one."""
    scene = published_pairs(count, seed=seed, size=SIZE, sources=sources)
    mask = scene.mask.unflatten(0, (count, 2)).numpy()
    if skies == 1:
        return scene, mask
    generator = torch.Generator().manual_seed(seed_of(seed, 2))
    sky = correlated_noise(tuple(scene.image.shape), scene.noise_kernel[0, 0], generator=generator)
    image = scene.image + scene.sky_rms[..., None, None] * sky
    return replace(scene, image=image, sky_rms=scene.sky_rms * 2**0.5), mask


def make_pairs(kept: Path, name: str, count: int, *, seed: int, **settings: object) -> Pairs:
    """Make a set in a folder, chunk by chunk; pixels stay on disk. Settings are those of `draw`."""
    pixels = {"image": (np.float16, 1), "mask": (np.bool_, 2)}
    maps = {}
    for key, (kind, channels) in pixels.items():
        path, shape = kept / f"{name}-{key}.npy", (count, channels, SIZE, SIZE)
        if path.exists():
            maps[key] = np.lib.format.open_memmap(path, "r+")
        else:
            maps[key] = np.lib.format.open_memmap(path, "w+", kind, shape)
    parts = []
    for first in tqdm(range(0, count, CHUNK), desc=name, unit="chunk", leave=False):

        def make(first: int = first) -> dict[str, NDArray]:
            scene, mask = draw(min(CHUNK, count - first), seed_of(seed, first // CHUNK + 1), **settings)
            sky = scene.sky_rms / settings.get("skies", 2) ** 0.5
            maps["image"][first : first + CHUNK] = (scene.image / sky[..., None, None]).half().numpy()
            maps["mask"][first : first + CHUNK] = mask
            return _numbers(scene, sky)

        parts.append(kept_arrays(kept / f"{name}-{first:06d}.npz", make))
    return Pairs(**maps, **{key: np.concatenate([part[key] for part in parts]) for key in parts[0]})


def _numbers(scene: Scene, sky: torch.Tensor) -> dict[str, NDArray]:
    flux = (scene.auto_flux / sky[scene.scene])[:, 0].unflatten(0, (len(scene), 2))
    x, y = (value.unflatten(0, (len(scene), 2)).double() for value in (scene.x, scene.y))
    zero_point = scene.zero_point[0] - 2.5 * np.log10(sky.double().numpy())
    return {
        "flux": flux.float().numpy(),
        "kind": scene.source_type.numpy().reshape(-1, 2),
        "zero_point": zero_point[:, 0],
        "separation": torch.hypot(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]).numpy(),
    }
