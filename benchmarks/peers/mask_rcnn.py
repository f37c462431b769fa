"""Train Mask R-CNN from scratch on simulated fields: stars and galaxies in crops of three bands, as by Lupton.

Mask R-CNN (He et al. 2017, arXiv:1703.06870) is torchvision's, with a ResNet-18 normalized in groups, as training from
scratch on few images at a time wants it (He et al. 2019, arXiv:1811.08883), and half of the usual channels. Crops are
enlarged twice and anchors begin at four pixels, as most sources of a ground-based survey are no larger.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor, nn

from benchmarks._command import FILE, Command
from benchmarks._scenes import LEAST_SNR
from benchmarks.peers._fields import SURVEYS, Field, field, overlaps, rgb
from benchmarks.peers._instances import LEAST_AREA, Instances
from probdeblend._files import whole_file
from probdeblend.scene import Scene, seed_of

if TYPE_CHECKING:
    from torchvision.models.detection import MaskRCNN

__all__ = ["batches", "best", "build", "by_mask_rcnn", "load_mask_rcnn", "main", "targets", "train", "turned"]

CROP, CROPS = 128, 4  # pixels on a side, and crops of a step
FIELDS, BLOCK = 4, 16  # fields of two crops on a side that are mixed, and for how many steps
ENLARGED = 2
ANCHORS = (4, 8, 16, 32, 64)  # pixels of the field, one size for each level of the pyramid
CHANNELS, HIDDEN = 128, 512  # of the pyramid and of the head for boxes
MEAN, SPREAD = 0.1, 0.2  # of pixels between 0 and 1
MOST = 600  # instances of a field
RATE, WARM_UP, CLIP = 3e-4, 200, 5.0  # of AdamW, steps, and norm of gradients
GALAXY, STAR = 1, 2  # labels, after torchvision's background
KEPT_EVERY = 100  # steps
MISSING = "torchvision is needed for Mask R-CNN: pip install torchvision, in the version that matches torch"
Crop = tuple[Tensor, Tensor, Tensor]


def build(side: int) -> MaskRCNN:
    """Return an untrained Mask R-CNN for images of a number of pixels on a side."""
    try:
        from torchvision.models import resnet18
        from torchvision.models.detection import MaskRCNN
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.backbone_utils import BackboneWithFPN
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    except ImportError as error:
        raise ValueError(MISSING) from error
    body = resnet18(weights=None, norm_layer=partial(nn.GroupNorm, 16))
    layers = {f"layer{level}": str(level) for level in range(1, 5)}
    backbone = BackboneWithFPN(body, layers, [64, 128, 256, 512], CHANNELS)
    sizes = tuple((ENLARGED * size,) for size in ANCHORS)
    return MaskRCNN(
        backbone,
        min_size=ENLARGED * side,
        max_size=ENLARGED * side,
        image_mean=[MEAN] * 3,
        image_std=[SPREAD] * 3,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        rpn_post_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=2000,
        rpn_post_nms_top_n_test=2000,
        box_roi_pool=_pooled(list(layers.values()), 7),
        box_head=TwoMLPHead(CHANNELS * 7**2, HIDDEN),
        box_predictor=FastRCNNPredictor(HIDDEN, 3),
        box_batch_size_per_image=64,
        box_detections_per_img=MOST,
        box_score_thresh=0.01,
        mask_roi_pool=_pooled(list(layers.values()), 14),
        mask_head=MaskRCNNHeads(CHANNELS, (CHANNELS,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(CHANNELS, CHANNELS, 3),
    )


def _pooled(levels: list[str], size: int) -> nn.Module:
    from torchvision.ops import MultiScaleRoIAlign

    return MultiScaleRoIAlign(levels, size, 2)


def targets(field: Field, side: int) -> list[Crop]:
    """Return crops of a field, square by square: images in three colors ``(3, y, x)``, masks and labels of sources.

    Sources are those with a signal-to-noise ratio of five, and five pixels of their mask in the crop.
    """
    masks, label = np.zeros((len(field.star), *field.truth.shape), dtype=bool), np.where(field.star, STAR, GALAXY)
    for number in np.flatnonzero(field.snr >= LEAST_SNR):
        cutout = field.truth.cutout("mask", number)
        masks[number][cutout.slices] = cutout.data
    pixels, found = _seen(field.scene), []
    for top in range(0, field.truth.shape[0] - side + 1, side):
        for left in range(0, field.truth.shape[1] - side + 1, side):
            square = slice(top, top + side), slice(left, left + side)
            seen = masks[:, *square].sum((1, 2)) >= LEAST_AREA
            own = torch.from_numpy(masks[seen][:, *square].copy())
            found.append((pixels[:, *square].clone(), own, torch.from_numpy(label[seen])))
    return found


def turned(crop: Crop, turn: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a crop in one of eight orientations, with all that torchvision wants to know of it."""
    image, masks, label = crop
    image, masks = (torch.rot90(pixels.flip(-1) if turn >= 4 else pixels, turn, (-2, -1)) for pixels in (image, masks))
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks, strict=True):
        (y, x) = torch.nonzero(mask, as_tuple=True)
        box[:] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return image.contiguous(), {"boxes": boxes, "labels": label, "masks": masks.to(torch.uint8)}


def batches(first: int, seed: int) -> Iterator[list[tuple[Tensor, dict[str, Tensor]]]]:
    """Yield the crops of each step from the first one on: fields of both surveys, each crop seen in four orientations.

    The fields of sixteen steps are mixed.
    """
    surveys = list(SURVEYS.values())
    for block in itertools.count(first // BLOCK):
        fields = (field(surveys[n % len(surveys)], 2 * CROP, seed=seed_of(seed, block, n)) for n in range(FIELDS))
        crops = [crop for drawn in fields for crop in targets(drawn, CROP)]
        rng = np.random.default_rng([seed, block])
        order = np.concatenate([rng.permutation(len(crops)) for _ in range(BLOCK * CROPS // len(crops))])
        turns = rng.integers(8, size=len(order))
        for start in range(CROPS * (first % BLOCK if block == first // BLOCK else 0), len(order), CROPS):
            some = slice(start, start + CROPS)
            yield [turned(crops[n], int(turn)) for n, turn in zip(order[some], turns[some], strict=True)]


def train(path: Path, steps: int, *, seed: int, limit: int | None = None) -> dict[str, float]:
    """Train to a number of steps, resuming what `path` holds, and return the loss and the CPU time per step.

    The state is kept every hundred steps and at the end; `limit` ends this run after some steps, as an interruption
    would. The learning rate falls to zero along half a cosine at the last step, so that a file that was made for
    another number of steps or seed is not resumed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, 0, 1))
        network = build(CROP).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    first, settings = 0, {"steps": steps, "seed": seed}
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if kept["settings"] != settings:
            raise ValueError(f"{path}: must have been trained with {settings} to be resumed, got {kept['settings']}")
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["step"]
    began, losses, last = time.process_time(), [], min(steps, first + (limit or steps))
    for step, batch in zip(range(first, last), batches(first, seed), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
        losses.append(_step(network, optimizer, batch, seed=seed_of(seed, step, 2)))
        if (step + 1) % KEPT_EVERY == 0 or step + 1 == last:
            kept = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            with whole_file(path, overwrite=True) as temporary:
                torch.save(kept | {"step": step + 1, "settings": settings}, temporary)
            click.echo(f"step {step + 1} of {steps}: loss {np.mean(losses[-KEPT_EVERY:]):.3f}")
    loss = float(np.mean(losses[-KEPT_EVERY:] or [np.nan]))
    return {"loss": loss, "cpu_seconds": (time.process_time() - began) / max(last - first, 1)}


def _step(
    network: MaskRCNN,
    optimizer: torch.optim.Optimizer,
    batch: list[tuple[Tensor, dict[str, Tensor]]],
    *,
    seed: int,
) -> float:
    """Take a step and return its loss; torchvision draws at random which proposals it learns from."""
    images, known = (list(part) for part in zip(*batch, strict=True))
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(seed)
        loss = sum(network(images, known).values())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    optimizer.step()
    return float(loss.detach())


def load_mask_rcnn(path: Path, side: int) -> MaskRCNN:
    """Return a Mask R-CNN that `train` has kept, for images of so many pixels on a side."""
    network = build(side).eval().requires_grad_(False)
    network.load_state_dict(torch.load(path, weights_only=True)["network"])
    return network


def by_mask_rcnn(network: MaskRCNN, scene: Scene) -> Instances:
    """Return what Mask R-CNN finds; of two instances that are alike but for their class, the better one is "any"."""
    with torch.no_grad():
        (answer,) = network([_seen(scene)])
    score, label = answer["scores"].double().numpy(), answer["labels"].numpy()
    mask, side = csr_array((answer["masks"][:, 0] >= 0.5).flatten(1).double().numpy()), scene.image.shape[-1]
    kinds = [np.where(label == own, score, np.nan) for own in (GALAXY, STAR)]
    pixel, area = np.arange(mask.shape[1]), np.maximum(mask.sum(1), 1)
    center = np.stack([(mask @ (pixel % side)) / area, (mask @ (pixel // side)) / area], -1)
    return Instances(mask, center, np.stack([best(overlaps(mask, mask), score), *kinds], -1))


def _seen(scene: Scene) -> Tensor:
    return torch.from_numpy(rgb(scene.image[0].numpy(), scene.sky_rms[0].numpy())).permute(2, 0, 1)


def best(overlap: NDArray, score: NDArray) -> NDArray[np.float64]:
    """Return scores, with NaN for instances that overlap a better one that is left by more than one half."""
    kept = score.copy()
    order = np.argsort(-score, kind="stable")
    for place, number in enumerate(order):
        better = order[:place][np.isfinite(kept[order[:place]])]
        kept[number] = np.nan if (overlap[number, better] > 0.5).any() else score[number]
    return kept


@click.command("python -m benchmarks.peers.mask_rcnn", cls=Command)
@click.option("--steps", type=click.IntRange(1), default=3000, show_default=True, help="Training steps of four crops.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same network.")
@click.option("--stop-after", "limit", type=click.IntRange(1), help="End this run after some steps; resume it later.")
@click.option(
    "--output",
    type=FILE,
    default=Path("results/peers.mask_rcnn.pt"),
    show_default=True,
    help="File to write, and to resume where it exists.",
)
def main(steps: int, seed: int, limit: int | None, output: Path) -> None:
    """Train Mask R-CNN from scratch, for `python -m benchmarks.peers.instances --mask-rcnn FILE`.

    One thread of `OMP_NUM_THREADS=1` takes the CPU time per step that is printed at the end.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    found = train(output, steps, seed=seed, limit=limit)
    click.echo(f"loss {found['loss']:.3f}, {found['cpu_seconds']:.2f} CPU seconds per step, written to {output}")


if __name__ == "__main__":
    main()
