"""The loss of the scene network: proper scores of all that it answers, so that the best answer is a calibrated one."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..scene import MASK_THRESHOLD
from .joint import student_t
from .scenes import SceneNetwork, groups_by_size
from .trunk import FOLD

__all__ = ["SceneLoss", "with_false_peaks"]

MASK_PIXELS = 400.0  # about as many pixels of a source are undecided
SHAPE_FREEDOM = 5.0
LEAST_LOG_SHARE = -15.0
WEIGHTS = {"flux": 1.0, "mask": 1.0, "share": 1.0, "heat": 1.0, "shape": 0.05, "kind": 0.1, "existence": 0.3}


class SceneLoss(nn.Module):
    """Mean over sources of the negative log-density of fluxes, and cross-entropies of masks, shares and the rest.

    Parameters
    ----------
    network
        The network to train.

    Attributes
    ----------
    parts : dict
        The terms of the loss by name, before they are weighted, at the latest call.
    """

    def __init__(self, network: SceneNetwork) -> None:
        super().__init__()
        self.network = network
        self.parts: dict[str, float] = {}

    def forward(self, *batch: Tensor) -> Tensor:
        """Return the loss of a batch of scenes; all light is in units of the sky noise.

        Parameters
        ----------
        *batch
            Twelve tensors, in the order in which a stream of scenes makes them:

            - ``image``, ``good``, ``psf``, ``noise``: as for `SceneNetwork.encode`.
            - ``x``, ``y``: positions of the listed sources ``(scene, source)`` in pixels. Those beyond the ones with
              ``light`` do not exist; the first of them moves to the highest false peak of the heat map.
            - ``light``: true light of each source ``(scene, source, band, y, x)``.
            - ``rest``: light of no listed source ``(scene, band, y, x)``.
            - ``log_flux``: ln of true fluxes ``(scene, source, band, kind)``; NaN where the total flux is unknown.
            - ``shape``: true x, y and the rest of `SHAPES` ``(scene, source, 6)``; NaN where unknown.
            - ``kind``: true class ``(scene, source)``; -1 where unknown.
            - ``heat``: 1 where a center is, 0 where none is, -1 where it does not count, and the centers' offsets
              ``(scene, 3, y, x)``, in folded pixels.

        Returns
        -------
        Tensor
            Weighted sum of the terms.
        """
        image, good, psf, noise, x, y, light, rest, log_flux, shape, kind, heat = batch
        maps = self.network.encode(image, good, psf, noise)
        terms, real = {"heat": _heat_entropy(maps.heat, heat)}, light.shape[1]
        if x.shape[1]:
            if x.shape[1] > real:
                x, y = with_false_peaks(x, y, maps.heat.detach(), heat, real)
            shares, features = self.network.read(maps, x, y)
            if real:
                terms["share"] = _share_entropy(shares.log_share, light, rest, good, real)
                terms["mask"] = _mask_entropy(shares.mask[:, :real], light, good)
            terms |= self._sources(features, x, y, log_flux, shape, kind, real)
        self.parts = {name: float(value.detach()) for name, value in terms.items()}
        return sum(WEIGHTS[name] * value for name, value in terms.items())

    def _sources(
        self, features: object, x: Tensor, y: Tensor, log_flux: Tensor, shape: Tensor, kind: Tensor, real: int
    ) -> dict[str, Tensor]:
        sums = {name: x.new_zeros(()) for name in ("flux", "shape", "kind", "existence")}
        counted = 0
        for index in groups_by_size(features.overlap.detach().cpu()):
            answer = self.network.answer(features, index)
            scene = torch.tensor([number for number, _ in index])[:, None].to(x.device)
            member = torch.tensor([members for _, members in index]).to(x.device)
            exists, logit = member < real, answer.existence
            entropy = functional.binary_cross_entropy_with_logits(logit, exists.to(logit), reduction="sum")
            sums["existence"] = sums["existence"] + entropy
            if not real:
                continue
            true = member.clamp(max=real - 1)
            flux, whole = log_flux[scene, true].float(), exists.all(1)
            density = answer.flux.log_prob_auto(flux[..., 0])
            aperture = answer.flux.log_prob_aperture(flux.nan_to_num()) * flux[..., 1].isfinite().all(-1) * exists
            sums["flux"] = sums["flux"] - torch.where(whole, density + aperture.sum(-1), 0.0).sum() / flux.shape[2]
            counted += int(whole.sum()) * member.shape[1]
            offset = torch.stack([x[scene, member], y[scene, member]], -1)
            target = shape[scene, true] - functional.pad(offset, (0, shape.shape[-1] - 2))
            error = ((target.nan_to_num() - answer.shape) / answer.shape_width).square()
            score = answer.shape_width.log() - student_t(error, 1, torch.full_like(error, SHAPE_FREEDOM))
            sums["shape"] = sums["shape"] + (score * target.isfinite() * exists[..., None]).sum()
            true_kind = kind[scene, true].flatten()
            known = exists.flatten() & (true_kind >= 0)
            entropy = functional.cross_entropy(answer.kind.flatten(0, 1), true_kind.clamp(min=0), reduction="none")
            sums["kind"] = sums["kind"] + (entropy * known).sum()
        listed = x.numel()
        return {name: value / max(counted if name == "flux" else listed, 1) for name, value in sums.items()}


def with_false_peaks(x: Tensor, y: Tensor, heat: Tensor, target: Tensor, real: int) -> tuple[Tensor, Tensor]:
    """Move the first place without a source to the highest peak of the heat map away from all centers, if there is any.

    These are the false detections that the network makes, such as knots, and that its existence has to tell.
    """
    logit = heat[:, :1]
    peak = logit == functional.max_pool2d(logit, 3, stride=1, padding=1)
    far = functional.max_pool2d(target[:, :1].abs(), 5, stride=1, padding=2) == 0
    height, cell = torch.where(peak & far, logit, -torch.inf).flatten(1).max(1)
    moved = []
    for values, offset, place in ((x, heat[:, 1], cell % heat.shape[-1]), (y, heat[:, 2], cell // heat.shape[-1])):
        center = FOLD * place + (FOLD - 1) / 2 + offset.flatten(1).gather(1, cell[:, None])[:, 0].clamp(-1.5, 1.5)
        first = torch.where(height.isfinite(), center, values[:, real])
        moved.append(torch.cat([values[:, :real], first[:, None], values[:, real + 1 :]], 1))
    return moved[0], moved[1]


def _heat_entropy(logit: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the heat map and error of the centers, per source."""
    found, counts = target[:, 0], (target[:, 0] >= 0).to(logit)
    entropy = functional.binary_cross_entropy_with_logits(logit[:, 0], found.clamp(min=0), reduction="none")
    wrong = (logit[:, 1:] - target[:, 1:]).abs().sum(1) * (found > 0)
    return ((entropy * counts).sum() + 0.3 * wrong.sum()) / ((found > 0).sum() + len(logit))


def _share_entropy(log_share: Tensor, light: Tensor, rest: Tensor, good: Tensor, real: int) -> Tensor:
    """Cross-entropy of the shares of the light, weighted by asinh of the light; spurious sources have no share."""
    total = (light.sum(1) + rest).clamp(min=1e-4)
    log_share = log_share.clamp(min=LEAST_LOG_SHARE)
    weight = good * total.asinh()
    entropy = -(light / total[:, None] * log_share[:, :real]).sum(1) - rest / total * log_share[:, -1]
    return (weight * entropy).sum() / weight.sum().clamp(min=1.0)


def _mask_entropy(logit: Tensor, light: Tensor, good: Tensor) -> Tensor:
    """Cross-entropy of masks, per source and `MASK_PIXELS`."""
    mask = (light.square().sum(2) > MASK_THRESHOLD**2).to(logit)
    entropy = functional.binary_cross_entropy_with_logits(logit, mask, reduction="none") * good.amax(1)[:, None]
    return entropy.sum() / (MASK_PIXELS * logit.shape[0] * logit.shape[1])
