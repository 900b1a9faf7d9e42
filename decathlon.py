"""The ten tasks of the Visual Decathlon: their facts as rows, the score S, and published results.

Rebuffi et al., *Learning multiple visual domains with residual adapters* (NIPS 2017), define the
challenge; weight decays and crops are those of SpotTune's released code. A task's category and
image ids carry its number, its place in alphabetical order:

    category id = number * 10^7 + class (from 1)
    image id    = number * 10^7 + split * 10^5 + running index over train, val and test (0, 1, 2)

Counts are those of the official files. Class counts and labels used in training always come from
the annotation files themselves, since folders in this format may hold fewer classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from statistics import fmean

IDS_PER_TASK = 10_000_000
MOST_POINTS = 1000  # that a task can bring


class TrainCrop(Enum):
    """How a training image is cropped; test images are cropped at their centre, or not at all."""

    RANDOM = "random crop (--crop), test on the centre crop (--resize)"
    CENTRE = "centre crop (--resize) in training and test"
    WHOLE = "the whole image, uncropped, in training and test"


@dataclass(frozen=True)
class DecathlonTask:
    """One Visual Decathlon domain and everything that is particular to it."""

    name: str
    number: int  # place in alphabetical order, 1 to 10
    num_classes: int
    num_train: int
    num_val: int
    num_test: int
    max_error: float  # E_max in percent: twice the error of full fine-tuning; worth 0 points
    weight_decay: float  # of the network; the policy network has its own
    train_crop: TrainCrop = TrainCrop.RANDOM
    train_flip: bool = False  # horizontal; residual adapters flip their source, SpotTune never

    @property
    def first_category_id(self) -> int:
        return self.number * IDS_PER_TASK + 1

    def owns(self, category_or_image_id: int) -> bool:
        """Whether a category or image id carries this task's number."""
        return category_or_image_id // IDS_PER_TASK == self.number


CENTRE, WHOLE = TrainCrop.CENTRE, TrainCrop.WHOLE

#                name       no. classes    train     val    test  E_max    decay
TASKS = (
    DecathlonTask("aircraft", 1, 100, 3_334, 3_333, 3_333, 79.32, 5e-4),
    DecathlonTask("cifar100", 2, 100, 40_000, 10_000, 10_000, 35.76, 0.0),
    DecathlonTask("daimlerpedcls", 3, 2, 23_520, 5_880, 19_600, 14.36, 5e-4, WHOLE),
    DecathlonTask("dtd", 4, 47, 1_880, 1_880, 1_880, 88.94, 0.0),
    DecathlonTask("gtsrb", 5, 43, 31_367, 7_842, 12_630, 4.94, 0.0, CENTRE),
    DecathlonTask("imagenet12", 6, 1000, 1_232_167, 49_000, 48_238, 80.26, 1e-4, train_flip=True),
    DecathlonTask("omniglot", 7, 1623, 17_853, 6_492, 8_115, 24.62, 5e-4, CENTRE),
    DecathlonTask("svhn", 8, 10, 47_217, 26_040, 26_032, 6.90, 0.0, CENTRE),
    DecathlonTask("ucf101", 9, 101, 7_585, 1_952, 3_783, 97.60, 5e-4),
    DecathlonTask("vgg-flowers", 10, 102, 1_020, 1_020, 6_149, 37.18, 1e-4),
)
TASK_BY_NAME = {task.name: task for task in TASKS}
SOURCE = TASK_BY_NAME["imagenet12"]
TARGETS = tuple(task for task in TASKS if task is not SOURCE)


def task_points(accuracy: float, max_error: float) -> float:
    """Points of one task, 0 to 1000, from its accuracy and E_max in percent.

    Fine-tuning, whose error is half of E_max by definition, gets 250.
    """
    return MOST_POINTS * max(0.0, 1 - (100 - accuracy) / max_error) ** 2


def decathlon_score(accuracies: Mapping[str, float]) -> float:
    """S, the sum of the points over the tasks in `accuracies` (task name -> percent)."""
    return sum(
        task_points(accuracy, TASK_BY_NAME[name].max_error) for name, accuracy in accuracies.items()
    )


COLUMNS = ("imagenet12", "aircraft", "cifar100", "daimlerpedcls", "dtd") + (
    "gtsrb",
    "vgg-flowers",
    "omniglot",
    "svhn",
    "ucf101",
)


@dataclass(frozen=True)
class PublishedRow:
    """Published test accuracies in percent, by task name, and S."""

    method: str
    accuracies: Mapping[str, float]  # of the tasks that were reported
    score: int
    assumed: Mapping[str, float]  # what S counts for the tasks that were not reported
    shown_score: str  # with a star where S was computed by us

    @property
    def mean(self) -> float | None:
        """Of all ten tasks; None where one was not reported."""
        return None if self.assumed else fmean(self.accuracies.values())


def _row(method: str, figures: str, score: int, shown: str = "", **assumed: float) -> PublishedRow:
    """`figures` in the order of COLUMNS, "-" for a task that was not reported."""
    reported = zip(COLUMNS, figures.split(), strict=True)
    accuracies = {task: float(figure) for task, figure in reported if figure != "-"}
    return PublishedRow(method, accuracies, score, assumed, shown or str(score))


PUBLISHED = (
    _row("Scratch", "59.87 57.10 75.73 91.20 37.77 96.55 56.30 88.74 96.63 43.27", 1625),
    _row("Feature extractor", "59.67 23.31 63.11 80.33 45.37 68.16 73.69 58.79 43.54 26.80", 544),
    _row("Fine-tuning", "59.87 60.34 82.12 92.82 55.53 97.53 81.41 87.69 96.55 51.20", 2500),
    _row(
        "Fine-tuning (startune)",
        "- 66.0 79.0 96.8 52.1 99.2 85.5 89.2 - 51.6",
        3443,
        "3443*",
        imagenet12=60.32,
        svhn=96.41,
    ),
    _row("Piggyback", "57.69 65.29 79.87 96.99 57.45 97.27 79.09 87.63 97.24 47.48", 2838),
    _row("DAN", "57.74 64.12 80.07 91.30 56.54 98.46 86.05 89.67 96.77 49.38", 2851),
    _row("Parallel adapters", "60.32 64.21 81.91 94.73 58.83 99.38 84.68 89.21 96.54 50.94", 3412),
    _row("SpotTune (paper)", "60.32 63.91 80.48 96.49 57.13 99.52 85.22 88.84 96.72 52.34", 3612),
    _row(
        "SpotTune (startune)",
        "- 66.22 79.87 97.32 57.50 99.27 86.82 89.38 96.41 51.97",
        3665,
        "3661-3665*",
        imagenet12=60.32,
    ),
    _row("NetTailor", "61.42 75.07 81.84 94.68 61.28 99.52 86.53 90.09 96.44 49.54", 3744),
    _row("URL + adapters", "61.97 77.17 82.31 97.58 60.69 98.75 87.28 90.40 97.14 51.89", 4005),
)
ABOUT_PUBLISHED = (
    "Published figures are test accuracies of networks trained on the official data at 72 px.",
    "SpotTune (paper): ImageNet, the mean and S are confirmed; the other figures are recalled.",
    "The startune rows are of a reproduction, github.com/bkj/startune. Its fine-tuning was trained "
    "with SpotTune's own recipe, and SpotTune leads it by 0.07 to 5.4 points on its eight tasks, "
    "1.1 on average: the published Fine-tuning row is of a weaker recipe.",
    "* S was computed by us, with 60.32 for ImageNet, which startune did not report: it is the "
    "paper's figure. For startune's fine-tuning, svhn is that of its SpotTune. SpotTune "
    "(startune): 3661 from its unrounded errors, 3665 from the figures shown.",
)
