"""The training step, the epoch, and prediction: the method at a glance.

Guo et al., section 3; hyperparameters as in the released code. Sums, never averages, leave a step,
so that averages are taken over images and not over batches; they stay on the device until the
epoch's end, so that no step waits for the device.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutting import Cutter, cutter_for
from devices import Compute, to_device
from gumbel_softmax import added_at_test_time, gumbel_noise
from imdbfolder_coco import Batch, EpochOrder, View, evaluation_order, normalise, training_order
from methods import Rates
from packed import PackedImages
from progress import track
from randomness import generator


def lr_multiplier(epoch: int, milestones: Sequence[int]) -> float:
    """Ten times smaller after each milestone already reached; epochs count from 0."""
    return 0.1 ** sum(epoch >= milestone for milestone in milestones)


# Cross-entropy and penalty in nats, scores N x K, and decisions N x L where there are any.
Forward = tuple[Tensor, Tensor | float, Tensor, Tensor | None]


@dataclass(frozen=True)
class StepResult:
    """What one batch adds to an epoch's sums, as tensors on the device."""

    loss_sum: Tensor
    penalty_sum: Tensor
    correct: Tensor
    fine_tuned_L: Tensor  # images that took the fine-tuned copy of each block


def train_step(
    images: Tensor,
    labels: Tensor,
    noise_NL2: Tensor,
    forward: Callable[[Tensor, Tensor, Tensor], Forward],
    optimizers: Sequence[torch.optim.Optimizer],
) -> StepResult:
    """Update a method's networks on one batch; a single loss trains them all."""
    loss, penalty, scores_NK, decisions_NL = forward(images, labels, noise_NL2)

    for optimizer in optimizers:
        optimizer.zero_grad()
    (loss + penalty).backward()
    for optimizer in optimizers:
        optimizer.step()

    return StepResult(
        loss_sum=loss.detach() * len(labels),
        penalty_sum=torch.as_tensor(penalty, device=loss.device).detach() * len(labels),
        correct=(scores_NK.argmax(dim=1) == labels).sum(),
        fine_tuned_L=_fine_tuned_images(decisions_NL, images.device),
    )


class Trainer:
    """A method on its device with its optimisers; `step` is one update.

    With `compute.compiled`, full batches run through torch.compile with CUDA graphs. A last batch
    of another size runs as it is: compiling again for it would take longer than it saves.
    """

    def __init__(self, method: nn.Module, rates: Rates, compute: Compute, batch_size: int) -> None:
        self.method = method.to(compute.device, memory_format=torch.channels_last)
        self.optimizers = method.optimizers(rates)
        self.compute = compute
        self.batch_size = batch_size
        self.compiled_forward = compute.compile(self.forward)

    def forward(self, images: Tensor, labels: Tensor, noise_NL2: Tensor) -> Forward:
        """Cross-entropy, the method's penalty, scores N x K and decisions N x L of a batch."""
        with self.compute.autocast():
            scores_NK, decisions_NL = self.method(images, noise_NL2)
        loss = F.cross_entropy(scores_NK, labels)
        return loss, self.method.penalty(decisions_NL), scores_NK, decisions_NL

    def step(self, images: Tensor, labels: Tensor, noise_NL2: Tensor) -> StepResult:
        is_full = len(labels) == self.batch_size
        forward = self.compiled_forward if is_full else self.forward
        return train_step(images, labels, noise_NL2, forward, self.optimizers)


def _fine_tuned_images(decisions_NL: Tensor | None, device: torch.device) -> Tensor:
    if decisions_NL is None:
        return torch.zeros(0, device=device)
    return decisions_NL.detach().round().sum(dim=0)


@dataclass(frozen=True)
class EpochResult:
    """Averages over the images of an epoch."""

    loss: float  # cross-entropy, in nats
    penalty: float  # what the method adds to it
    accuracy: float  # percent
    fine_tuned_share: list[float]  # of images, per block; empty for a network without decisions


@dataclass(frozen=True)
class TaskData:
    """The images of one task's split, what the network sees of them, and their normalisation."""

    images: PackedImages
    view: View
    mean_std: tuple[Sequence[float], Sequence[float]]
    _cutters: dict[torch.device, Cutter] = field(default_factory=dict, repr=False, compare=False)

    def on_device(
        self, order: EpochOrder, batch_size: int, device: torch.device, label: str
    ) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Batches with their normalised images and labels on `device`."""
        mean, std = (
            torch.tensor(figures, device=device).view(3, 1, 1) for figures in self.mean_std
        )
        num_batches = -(-len(self.images) // batch_size)
        if device not in self._cutters:
            self._cutters[device] = cutter_for(self.images, device)
        cut = self._cutters[device]
        batches = order.batches(self.images.labels, cut, self.view, batch_size)
        for batch in track(batches, num_batches, label):
            images = normalise(batch.images_NHW3, mean, std)
            yield batch, images, to_device(batch.labels_N, device)


def train_epoch(
    trainer: Trainer, data: TaskData, seed: tuple[int | str, ...], label: str
) -> EpochResult:
    """One pass over the shuffled images; the same `seed`, (seed, task, epoch), the same pass."""
    method, device = trainer.method.train(), trainer.compute.device
    order = training_order(data.images, data.view, *seed)
    noise = noise_for(method, len(data.images), *seed).to(device)
    loss_sum, penalty_sum = torch.zeros(2, device=device).unbind()
    correct = torch.zeros((), device=device, dtype=torch.int64)
    fine_tuned_L = torch.zeros(method.num_blocks, device=device)
    for batch, images, labels in data.on_device(order, trainer.batch_size, device, label):
        step = trainer.step(images, labels, noise[batch.positions])
        loss_sum += step.loss_sum
        penalty_sum += step.penalty_sum
        correct += step.correct
        fine_tuned_L += step.fine_tuned_L
    count = len(data.images)
    return EpochResult(
        loss=loss_sum.item() / count,
        penalty=penalty_sum.item() / count,
        accuracy=100 * correct.item() / count,
        fine_tuned_share=(fine_tuned_L / count).tolist(),
    )


def noise_for(method: nn.Module, num_images: int, *seed: int | str) -> Tensor:
    """Gumbel noise of one pass, images x blocks x 2, on the CPU: the same on every device."""
    return gumbel_noise((num_images, method.num_blocks, 2), generator("gumbel", *seed))


@dataclass(frozen=True)
class Predictions:
    """Per image, in the order of the annotation file."""

    labels: np.ndarray  # N predicted classes
    losses: np.ndarray  # N cross-entropies; nan where the true label is not known
    decisions: np.ndarray  # N x L bool, True = fine-tuned copy


@torch.no_grad()
def predict(
    method: nn.Module,
    data: TaskData,
    batch_size: int,
    policy: str,
    seed: tuple[int | str, ...],
    compute: Compute,
    label: str,
) -> Predictions:
    """Classes of all images; `policy` as in gumbel_softmax.py, without meaning for a plain network.

    The released code always draws, unseeded, so that its predictions change from run to run.
    """
    evaluator = method.eval().evaluator()
    draw = generator("gumbel", "test", *seed)
    noise = added_at_test_time(policy, len(data.images), method.num_blocks, draw)
    labels, losses, decisions = [], [], []
    order = evaluation_order(data.images, data.view)
    for batch, images, true_labels in data.on_device(order, batch_size, compute.device, label):
        noise_NL2 = to_device(noise[batch.positions], compute.device)
        with compute.autocast():
            scores_NK, decisions_NL = evaluator(images, noise_NL2)
        labels.append(scores_NK.argmax(dim=1))
        losses.append(_losses(scores_NK, true_labels))
        if decisions_NL is not None:
            decisions.append(decisions_NL.bool())
    no_decisions = np.zeros((len(data.images), 0), dtype=bool)
    return Predictions(
        labels=torch.cat(labels).cpu().numpy(),
        losses=torch.cat(losses).cpu().numpy(),
        decisions=torch.cat(decisions).cpu().numpy() if decisions else no_decisions,
    )


def _losses(scores_NK: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per image; nan for the label -1 of a test image."""
    losses = F.cross_entropy(scores_NK, labels.clamp_min(0), reduction="none")
    return losses.masked_fill(labels < 0, torch.nan)


@dataclass(frozen=True)
class Tested:
    """What predictions for labelled images come to."""

    loss: float  # cross-entropy, in nats
    accuracy: float  # percent
    fine_tuned_share: list[float]  # of images, per block; empty for a network without decisions
    blocks_per_image: list[int]  # images that fine-tune 0, 1, ... L blocks
    distinct_policies: int  # different rows of decisions


def summarise(predictions: Predictions, images: PackedImages) -> Tested:
    """Loss, accuracy and decisions of predictions for labelled images."""
    decisions_NL = predictions.decisions
    num_blocks = decisions_NL.shape[1]
    counts = np.bincount(decisions_NL.sum(axis=1), minlength=num_blocks + 1)
    return Tested(
        loss=float(predictions.losses.mean(dtype=np.float64)),
        accuracy=100 * float((predictions.labels == images.labels).mean()),
        fine_tuned_share=decisions_NL.mean(axis=0).tolist(),
        blocks_per_image=counts.tolist() if num_blocks else [],
        distinct_policies=len(np.unique(decisions_NL, axis=0)) if num_blocks else 0,
    )
