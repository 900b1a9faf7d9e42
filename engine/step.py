"""The training step and the epoch: the method at a glance.

Guo et al., section 3; hyperparameters as in the released code. Sums, never averages, leave a step,
so that averages are taken over images and not over batches; they stay on the device until the
epoch's end. Only the loss is read back in each step, while the device works on its gradient.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from engine.settings import Settings
from gumbel_softmax import gumbel_noise
from image_cache.batches import TaskData
from methods.optimizers import Rates
from runtime.devices import Compute, reading
from runtime.distributed import ALONE, Group
from runtime.errors import SpotTuneError, is_out_of_memory
from runtime.randomness import generator

SHOWN_IMAGES = 8  # of a batch whose loss is not finite
SAID_OF_ONE_VALUE = "more than 1 value per channel"  # by PyTorch's BatchNorm
REMEDY = "Try a smaller --lr, or --precision fp32"


def lr_multiplier(epoch: int, milestones: Sequence[int]) -> float:
    """Ten times smaller after each milestone already reached; epochs count from 0."""
    return 0.1 ** sum(epoch >= milestone for milestone in milestones)


def rate_multiplier(settings: Settings, epoch: int, step: int, steps: int) -> float:
    """Of both learning rates, in step `step` of the `steps` of an epoch; both count from 0.

    A warm-up is linear, and its last step has the full rate.
    """
    done, length = epoch + step / steps, settings.epochs - settings.warmup
    if done < settings.warmup:
        return (done + 1 / steps) / settings.warmup
    if settings.schedule == "step":
        return lr_multiplier(epoch, settings.milestones)
    return (1 + math.cos(math.pi * (done - settings.warmup) / length)) / 2


def temperature_in(settings: Settings, epoch: int) -> float:
    """Of Gumbel-softmax: from the first temperature to the final one by equal steps."""
    share = epoch / max(1, settings.epochs - 1)
    return (1 - share) * settings.temperature + share * settings.final_temperature


class NotFiniteError(ArithmeticError):
    """A loss of nan or infinity."""


# Cross-entropy and penalty in nats, scores N x K, and decisions N x L, if any.
Forward = tuple[Tensor, Tensor | float, Tensor, Tensor | None]


@dataclass
class Sums:
    """Over the images of a batch or of an epoch, as tensors on the device."""

    loss: Tensor  # cross-entropy, in nats
    penalty: Tensor  # what the method adds to it
    correct: Tensor  # images
    fine_tuned_L: Tensor  # images that took the fine-tuned copy of each block


def train_step(
    images: Tensor,
    labels: Tensor,
    noise_NL2: Tensor,
    forward: Callable[[Tensor, Tensor, Tensor], Forward],
    optimizers: Sequence[torch.optim.Optimizer],
    group: Group = ALONE,
    scale: float = 1.0,
    grad_clip: float = 0.0,
) -> Sums:
    """Update a method's networks on one batch; a single loss trains them all.

    `scale` makes the mean over the processes of `group`, whose parts of a batch may differ in
    size, a mean over its images. `grad_clip`: the largest norm of all gradients together; 0: any.
    Raises NotFiniteError before any update if a loss is not finite.
    """
    for optimizer in optimizers:  # CUDA graphs use the memory of the last gradients again
        optimizer.zero_grad()
    loss, penalty, scores_NK, decisions_NL = forward(images, labels, noise_NL2)
    whole_loss = scale * (loss + penalty)
    read_loss = reading(whole_loss)
    whole_loss.backward()
    if group.agree(not math.isfinite(read_loss())):
        own = read_loss()  # may be finite, where another process has the images that are at fault
        raise NotFiniteError("nan or infinite" if math.isfinite(own) else own)
    if grad_clip:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        clip_grad_norm_([each for group in groups for each in group["params"]], grad_clip)
    for optimizer in optimizers:
        optimizer.step()

    return Sums(
        loss=loss.detach() * len(labels),
        penalty=_on_device_of(loss, penalty).detach() * len(labels),
        correct=(scores_NK.argmax(dim=1) == labels).sum(),
        fine_tuned_L=_fine_tuned_images(decisions_NL, images.device),
    )


class Trainer:
    """A method on its device with its optimisers; `step` is one update.

    With `compute.compiled`, full batches run through torch.compile with CUDA graphs. A last batch
    of another size runs as it is: compiling again for it would take longer than it saves.
    """

    def __init__(
        self,
        method: nn.Module,
        rates: Rates,
        compute: Compute,
        batch_size: int,
        cross_entropy: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        grad_clip: float = 0.0,
    ) -> None:
        method = method.to(compute.device)
        if all(parameter.dim() < 5 for parameter in method.parameters()):  # a layout of 4-D tensors
            method = method.to(memory_format=torch.channels_last)
        self.method = compute.group.with_one_batch_norm(method)
        self.network = compute.group.joined(self.method)
        self.optimizers = method.optimizers(rates)
        self.compute = compute
        self.batch_size = batch_size
        self.cross_entropy, self.grad_clip = cross_entropy, grad_clip
        self.compiled_forward = compute.compile(self.forward)

    def forward(self, images: Tensor, labels: Tensor, noise_NL2: Tensor) -> Forward:
        """Cross-entropy, the method's penalty, scores N x K and decisions N x L of a batch."""
        with self.compute.autocast():
            scores_NK, decisions_NL = self.network(images, noise_NL2)
        loss = self.cross_entropy(scores_NK, labels)
        return loss, self.method.penalty(decisions_NL), scores_NK, decisions_NL

    def step(
        self, images: Tensor, labels: Tensor, noise_NL2: Tensor, whole: int | None = None
    ) -> Sums:
        """One update; `whole` counts the batch's images if other processes have some of them.

        Raises SpotTuneError if memory does not suffice.
        """
        group, whole = self.compute.group, whole or len(labels)
        is_full = whole == self.batch_size
        scale = len(labels) * group.size / whole
        forward = self.compiled_forward if is_full else self.forward
        try:
            return train_step(
                images, labels, noise_NL2, forward, self.optimizers, group, scale, self.grad_clip
            )
        except ValueError as error:
            if SAID_OF_ONE_VALUE not in str(error):
                raise
            raise SpotTuneError(
                f"a batch of {len(labels)} leaves BatchNorm a single value per channel, so it "
                f"cannot train. Give another --batch_size, by which the number of images leaves no "
                f"remainder of one, or a larger --crop"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise SpotTuneError(
                f"out of memory on {self.compute.device} in a training step of {len(labels)} "
                f"images of {images.shape[2]} x {images.shape[3]} pixels. Give a smaller "
                f"--batch_size (which changes the result), or a device with more memory"
            ) from error


def _on_device_of(loss: Tensor, penalty: Tensor | float) -> Tensor:
    """A number is filled in there: to copy it from the host would wait for the whole step."""
    return penalty if isinstance(penalty, Tensor) else torch.full_like(loss, penalty)


def _fine_tuned_images(decisions_NL: Tensor | None, device: torch.device) -> Tensor:
    if decisions_NL is None:
        return torch.zeros(0, device=device)
    return decisions_NL.detach().round().sum(dim=0)


@dataclass
class EpochSums(Sums):
    """The running sums of an epoch; with weights and momenta, its full state.

    A checkpoint inside an epoch holds them.
    """

    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def zero(cls, num_blocks: int, device: torch.device) -> "EpochSums":
        loss, penalty = torch.zeros(2, device=device).unbind()
        correct = torch.zeros((), device=device, dtype=torch.int64)
        return cls(loss, penalty, correct, torch.zeros(num_blocks, device=device))

    def add(self, batch: Sums) -> None:
        self.loss += batch.loss
        self.penalty += batch.penalty
        self.correct += batch.correct
        self.fine_tuned_L += batch.fine_tuned_L
        self.steps += 1

    def averages(self, num_images: int) -> dict[str, float | list[float]]:
        """The training part of an epoch's record: nats, percent, and shares from 0 to 1.

        The shares, one a block, are empty for a network without decisions.
        """
        return {
            "train_loss": self.loss.item() / num_images,
            "train_penalty": self.penalty.item() / num_images,
            "train_accuracy": 100 * self.correct.item() / num_images,
            "train_fine_tuned_share": (self.fine_tuned_L / num_images).tolist(),
        }

    def state_dict(self) -> dict[str, Tensor | int | float]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, object], num_steps: int) -> None:
        """Take the place of an epoch left after 1 to `num_steps` steps.

        Raises ValueError for anything else.
        """
        for name, own in vars(self).items():
            found = state.get(name)
            if type(found) is not type(own):
                raise ValueError(f"{name} of the unfinished epoch is missing, or of another type")
            if isinstance(own, Tensor) and (own.shape, own.dtype) != (found.shape, found.dtype):
                raise ValueError(f"{name} of the unfinished epoch has another shape")
        if not 1 <= state["steps"] <= num_steps:
            raise ValueError(f"{state['steps']} steps of an epoch of {num_steps}")
        for name, own in vars(self).items():
            found = state[name]
            setattr(self, name, found.to(own.device) if isinstance(own, Tensor) else found)


def num_steps(num_images: int, batch_size: int) -> int:
    """Steps of an epoch: the last batch may be smaller."""
    return -(-num_images // batch_size)


def train_epoch(
    trainer: Trainer,
    data: TaskData,
    seed: tuple[int | str, ...],
    label: str,
    sums: EpochSums,
    before_step: Callable[[int], None] = lambda step: None,
) -> Iterator[None]:
    """One pass over the shuffled images; the same `seed` (seed, task, epoch) gives the same pass.

    It begins where `sums` ends, adds to it, and yields after each step: then the caller may save
    or leave. `before_step` is told the number of each step, from 0. Raises SpotTuneError, naming
    the images, if a loss is not finite.
    """
    method, device = trainer.method.train(), trainer.compute.device
    noise = noise_for(method, len(data.images), *seed).to(device)
    before, start = sums.seconds, time.perf_counter()
    group = trainer.compute.group
    for batch in data.training_batches(trainer.batch_size, seed, label, sums.steps, group):
        before_step(sums.steps)
        try:
            step = trainer.step(
                batch.images_N3HW, batch.labels_N, noise[batch.positions], len(batch.image_ids)
            )
        except NotFiniteError as error:
            shown = ", ".join(map(str, batch.image_ids[:SHOWN_IMAGES]))
            more = len(batch.image_ids) - SHOWN_IMAGES
            raise SpotTuneError(
                f"{label}, step {sums.steps + 1}: the loss became {error}, so the networks were "
                f"not updated. Images: {shown}{f' and {more} more' if more > 0 else ''}. {REMEDY}"
            ) from error
        group.add_up(vars(step).values())
        sums.add(step)
        sums.seconds = before + time.perf_counter() - start
        yield


def noise_for(method: nn.Module, num_images: int, *seed: int | str) -> Tensor:
    """Gumbel noise of one pass, images x blocks x 2, on the CPU: the same on every device."""
    return gumbel_noise((num_images, method.num_blocks, 2), generator("gumbel", *seed))
