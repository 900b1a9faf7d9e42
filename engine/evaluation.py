"""Prediction: classes, losses and decisions for all images of a split, and their averages."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gumbel_softmax import added_at_test_time
from image_cache.batches import TaskData
from image_cache.packed import PackedImages
from runtime.devices import Compute, to_device
from runtime.errors import SpotTuneError, is_out_of_memory
from runtime.progress import say
from runtime.randomness import generator


@dataclass(frozen=True)
class Predictions:
    """Per image, in the order of the annotation file."""

    labels: np.ndarray  # N predicted classes
    losses: np.ndarray  # N cross-entropies; nan where the true label is not known
    decisions: np.ndarray  # N x L bool, True = fine-tuned copy
    # Only where details were asked for:
    runners_up: np.ndarray | None = None  # N classes
    probabilities: np.ndarray | None = None  # N x 2: of the predicted class, of the runner-up

    @property
    def decision_rows(self) -> list[str]:
        """N texts: "1" for each fine-tuned block, "0" for each kept one."""
        return ["".join("01"[chosen] for chosen in row) for row in self.decisions.tolist()]


@torch.no_grad()
def predict(
    method: nn.Module,
    data: TaskData,
    batch_size: int,
    policy: str,
    seed: tuple[int | str, ...],
    compute: Compute,
    label: str,
    after_batch: Callable[[], None] = lambda: None,
    details: bool = False,
) -> Predictions:
    """Classes of all images; `policy` as in gumbel_softmax.py, ignored for a plain network.

    The released code always draws, unseeded, so that its predictions change from run to run.
    `after_batch` may raise to leave. `details`: with probabilities and runners-up.
    """
    evaluator = InPieces(method.eval().evaluator(), compute)
    draw = generator("gumbel", "test", *seed)
    noise = added_at_test_time(policy, len(data.images), method.num_blocks, draw)
    labels, losses, decisions, likeliest = [], [], [], []
    for batch in data.evaluation_batches(batch_size, label):
        noise_NL2 = to_device(noise[batch.positions], compute.device)
        for scores_NK, decisions_NL, part in evaluator(batch.images_N3HW, noise_NL2):
            labels.append(scores_NK.argmax(dim=1))
            losses.append(_losses(scores_NK, batch.labels_N[part]))
            if decisions_NL is not None:
                decisions.append(decisions_NL.bool())
            if details:
                likeliest.append(scores_NK.softmax(dim=1).topk(2))
        after_batch()
    no_decisions = np.zeros((len(data.images), 0), dtype=bool)
    return Predictions(
        labels=torch.cat(labels).cpu().numpy(),
        losses=torch.cat(losses).cpu().numpy(),
        decisions=torch.cat(decisions).cpu().numpy() if decisions else no_decisions,
        runners_up=_joined(part.indices[:, 1] for part in likeliest),
        probabilities=_joined(part.values for part in likeliest),
    )


def _joined(parts: Iterable[Tensor]) -> np.ndarray | None:
    parts = list(parts)
    return torch.cat(parts).cpu().numpy() if parts else None


class InPieces:
    """Predicts batches; if memory does not suffice, in halves, with a message.

    An image's answer does not depend on its batch.
    """

    def __init__(self, evaluator: nn.Module, compute: Compute) -> None:
        self.evaluator, self.compute = evaluator, compute
        self.largest = None  # images at once, once that is known

    def __call__(self, images: Tensor, noise_NL2: Tensor) -> Iterator[tuple]:
        """Scores, decisions, and the slice of the batch that they belong to."""
        start = 0
        while start < len(images):
            part = slice(start, start + (self.largest or len(images)))
            try:
                with self.compute.autocast():
                    scores_NK, decisions_NL = self.evaluator(images[part], noise_NL2[part])
            except (RuntimeError, MemoryError) as error:
                self._halve(len(images[part]), error)
                continue
            yield scores_NK, decisions_NL, part
            start += len(scores_NK)

    def _halve(self, size: int, error: Exception) -> None:
        if not is_out_of_memory(error):
            raise error
        if size == 1:
            raise SpotTuneError(
                f"out of memory on {self.compute.device} in predicting a single image. Give a "
                f"smaller --resize, or a device with more memory"
            ) from error
        self.largest = size // 2
        say(f"out of memory in predicting {size} images at once; continuing with {self.largest}")


def _losses(scores_NK: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per image; nan for the label -1 of a test image."""
    losses = F.cross_entropy(scores_NK, labels.clamp_min(0), reduction="none")
    return losses.masked_fill(labels < 0, torch.nan)


@dataclass(frozen=True)
class Tested:
    """Averages and counts of predictions for labelled images."""

    loss: float  # cross-entropy, in nats
    accuracy: float  # percent
    fine_tuned_share: list[float]  # of images, per block; empty for a network without decisions
    blocks_per_image: list[int]  # images that fine-tune 0, 1, ... L blocks
    distinct_policies: int  # different rows of decisions
    of_classes: dict = field(default_factory=dict)  # see class_figures; only of own pictures


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


def class_figures(predictions: Predictions, labels: np.ndarray, num_classes: int) -> dict:
    """Mean recall in percent, each class's recall, and for two classes the AUC.

    The recall of a class without images is None. AUC: the share of pairs of images of both classes
    in which the one of the second class gets the larger probability of it; a tie counts half.
    """
    right = predictions.labels == labels
    recalls = [
        100 * float(right[labels == label].mean()) if (labels == label).any() else None
        for label in range(num_classes)
    ]
    known = [recall for recall in recalls if recall is not None]
    figures = {"balanced_accuracy": sum(known) / len(known), "class_recall": recalls}
    if num_classes == 2 and len(known) == 2:
        of_second = np.where(
            predictions.labels == 1,
            predictions.probabilities[:, 0], predictions.probabilities[:, 1],
        )  # fmt: skip
        negatives = np.sort(of_second[labels == 0])
        below, up_to = (
            np.searchsorted(negatives, of_second[labels == 1], side) for side in ("left", "right")
        )
        figures["auc"] = float((below + up_to).mean() / 2 / len(negatives))
    return figures
