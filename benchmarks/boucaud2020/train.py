"""Train the networks of the paper as its public scripts do.

Adam at 1e-4 with batches of 32, halved after five epochs without a better validation loss, and stopped after twelve.
Images are flipped at random. Blend2Flux minimizes the percentage error of the fluxes; Blend2Mask2Flux first trains its
U-Net on the masks alone, and then both, masks and fluxes, end to end.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.boucaud2020.losses import JointError, MaskEntropy
from benchmarks.boucaud2020.pairs import Pairs
from probdeblend._files import whole_file
from probdeblend.networks import Blend2Flux, Blend2Mask2Flux

__all__ = ["estimate", "networks", "parameters", "train"]

LEARNING_RATE = 1e-4
BATCH = 32
VALIDATION_SHARE = 0.2
PATIENCE, STOP_PATIENCE, COOLDOWN, FACTOR, LEAST_GAIN = 5, 12, 2, 0.5, 1e-3


def networks(width: float) -> dict[str, nn.Module]:
    """Return both networks, the number of their filters scaled by a width; 1 is the published size."""
    blend2flux = Blend2Flux(first_filters=_scaled(512, width))
    filters = {"first_filters": _scaled(128, width), "hidden": _scaled(256, width)}
    blend2mask2flux = Blend2Mask2Flux(unet_filters=_scaled(32, width), **filters)
    return {"blend2flux": blend2flux, "blend2mask2flux": blend2mask2flux}


def _scaled(filters: int, width: float) -> int:
    return max(2, round(filters * width))


def parameters(network: nn.Module) -> float:
    """Return the number of parameters in millions."""
    return sum(value.numel() for value in network.parameters()) / 1e6


def train(network: nn.Module, pairs: Pairs, kept: Path, name: str, *, epochs: int, seed: int) -> dict[str, nn.Module]:
    """Train a network for some epochs at most per stage, and return what each stage ends with, by name."""
    found = {}
    if isinstance(network, Blend2Mask2Flux):
        _minimize(MaskEntropy(network.unet), pairs, kept / f"{name}-unet.pt", epochs=epochs, seed=seed)
        found["U-Net alone"] = copy.deepcopy(network.unet)
        loss = JointError(network)
    else:
        loss = JointError(network, flux_weight=1.0)
    _minimize(loss, pairs, kept / f"{name}.pt", epochs=epochs, seed=seed + 1)
    return found | {name: network}


def _minimize(loss: nn.Module, pairs: Pairs, checkpoint: Path, *, epochs: int, seed: int) -> None:
    """Minimize a loss; at the end its network holds the weights that validated best, which `checkpoint` keeps."""
    optimizer = torch.optim.Adam(loss.parameters(), LEARNING_RATE)
    plateau = {"factor": FACTOR, "patience": PATIENCE, "cooldown": COOLDOWN, "threshold": LEAST_GAIN}
    rates = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, threshold_mode="abs", **plateau)
    parts = {"loss": loss, "optimizer": optimizer, "rates": rates}
    state = {"epoch": 0, "best": np.inf, "since": 0, "weights": loss.state_dict()}
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=False)
        for key, part in parts.items():
            part.load_state_dict(stored[key])
        state = stored["state"]
    good = np.flatnonzero(np.isfinite(pairs.flux).all(1) & (pairs.flux > 0).all(1))
    stop = max(1, round((1 - VALIDATION_SHARE) * len(good)))
    for epoch in tqdm(range(state["epoch"], epochs), desc=checkpoint.stem, unit="epoch", leave=False):
        if state["since"] >= STOP_PATIENCE:
            break
        rng = np.random.default_rng((seed, epoch))
        torch.manual_seed(int(rng.integers(2**62)))
        loss.train()
        for rows in np.split(rng.permutation(good[:stop]), range(BATCH, stop, BATCH)):
            optimizer.zero_grad(set_to_none=True)
            loss(*_batch(pairs, np.sort(rows), rng)).backward()
            optimizer.step()
        score = _validated(loss, pairs, good[stop:] if stop < len(good) else good)
        rates.step(score)
        better = score < state["best"] - LEAST_GAIN
        weights = {key: value.clone() for key, value in loss.state_dict().items()} if better else state["weights"]
        since = 0 if better else state["since"] + 1
        state = {"epoch": epoch + 1, "best": min(score, state["best"]), "since": since, "weights": weights}
        with whole_file(checkpoint, overwrite=True) as temporary:
            torch.save({key: part.state_dict() for key, part in parts.items()} | {"state": state}, temporary)
    loss.load_state_dict(state["weights"])
    loss.eval()


def _validated(loss: nn.Module, pairs: Pairs, rows: np.ndarray) -> float:
    loss.eval()
    with torch.no_grad():
        parts = np.array_split(rows, max(1, len(rows) // BATCH))
        return float(np.average([float(loss(*_batch(pairs, part))) for part in parts], weights=[*map(len, parts)]))


def _batch(pairs: Pairs, rows: np.ndarray, rng: np.random.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, fluxes and masks of some pairs, flipped if a generator says how."""
    image = torch.from_numpy(pairs.image[rows].astype(np.float32))
    mask, flux = torch.from_numpy(pairs.mask[rows]), torch.from_numpy(pairs.flux[rows])
    for axis in (-2, -1):
        if rng is not None:
            flip = torch.from_numpy(rng.random(len(rows)) < 0.5)[:, None, None, None]
            image, mask = (torch.where(flip, values.flip(axis), values) for values in (image, mask))
    return image, flux, mask


def estimate(network: nn.Module, pairs: Pairs) -> tuple[np.ndarray, np.ndarray | None]:
    """Return fluxes over sky noise and masks, as probabilities ``(pair, 2, y, x)`` where there are some, of a set."""
    fluxes, masks = [], []
    with torch.no_grad():
        for rows in np.array_split(np.arange(len(pairs)), max(1, len(pairs) // BATCH)):
            answer = network(_batch(pairs, rows)[0])
            if isinstance(answer, Tensor):  # a U-Net alone
                masks.append(answer.sigmoid().half().numpy())
                continue
            fluxes.append(answer.log_flux.exp().double().numpy())
            if answer.mask is not None:
                masks.append(answer.mask.sigmoid().half().numpy())
    return (
        np.concatenate(fluxes) if fluxes else np.full(pairs.flux.shape, np.nan),
        np.concatenate(masks) if masks else None,
    )
