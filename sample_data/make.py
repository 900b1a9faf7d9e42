"""Make a small made-up Decathlon in the official format, to try everything without a download.

    python -m sample_data.make FOLDER

    FOLDER/decathlon-1.0/annotations/<task>_{train,val,test_stripped}.json
    FOLDER/decathlon-1.0/annotations/<task>_test.json        with labels, so that score.py can score
    FOLDER/decathlon-1.0/data/<task>/{train,val}/<class, 4 digits>/<6 digits>.jpg
    FOLDER/decathlon-1.0/data/<task>/test/<6 digits>.jpg
    FOLDER/decathlon-1.0/MADE_UP                             these are no real images; the settings

What the images show is in worlds.py. As in the official files, train and val are sorted by class,
and test is not. The same settings give the same bytes.
"""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from decathlon import IDS_PER_TASK, SOURCE, TASKS, DecathlonTask
from runtime.cli import Parser, folder_name, non_negative_int, positive_int
from runtime.errors import SpotTuneError, run_script
from sample_data.worlds import draw_image

IDS_PER_SPLIT = 100_000
SPLITS = ("train", "val", "test")
MARKER = "MADE_UP"


@dataclass(frozen=True)
class Settings:
    """What decides every byte."""

    classes: int  # of a target task
    images_per_class: int  # in train; a third of that in val and test
    side: int  # the shorter one, in pixels
    seed: int

    def kinds(self, task: DecathlonTask, split: str) -> list[int]:
        """The kind (class) of each image of a split: in order in train and val, shuffled in test.

        Twice as many kinds in the source, and no more than the task has; a task with fewer kinds
        than asked for gets more images of each.
        """
        count = 2 * self.classes if task is SOURCE else min(self.classes, task.num_classes)
        share = max(self.classes / count, 1) / (1 if split == "train" else 3)
        per_kind = math.ceil(self.images_per_class * share)
        kinds = [kind for kind in range(count) for _ in range(per_kind)]
        if split == "test":
            np.random.default_rng([self.seed, task.number]).shuffle(kinds)
        return kinds


def write_task(root: Path, task: DecathlonTask, settings: Settings) -> None:
    """Draw the images of a task and describe them in its four annotation files."""
    index = 0  # runs on from train over val to test
    for split_number, split in enumerate(SPLITS):
        kinds = settings.kinds(task, split)
        images = []
        for number, kind in enumerate(kinds, start=1):
            index += 1
            seeds = [settings.seed, task.number, split_number, number]
            image = draw_image(task, kind, settings.side, np.random.default_rng(seeds))
            folder = f"data/{task.name}/{split}" + (f"/{kind + 1:04}" if split != "test" else "")
            name = f"{folder}/{number:06}.jpg"
            (root / folder).mkdir(parents=True, exist_ok=True)
            image.save(root / name, quality=92)
            image_id = task.number * IDS_PER_TASK + split_number * IDS_PER_SPLIT + index
            size = {"width": image.width, "height": image.height}
            images.append({"id": image_id, **size, "file_name": name})
        categories = [
            {
                "id": task.first_category_id + kind,
                "name": f"kind {kind + 1}",
                "supercategory": task.name,
            }
            for kind in sorted(set(kinds))
        ]
        category_ids = [task.first_category_id + kind for kind in kinds]
        write_annotations(
            root / "annotations", f"{task.name}_{split}", images, category_ids, categories
        )


def write_annotations(
    folder: Path,
    name: str,
    images: Sequence[dict],
    category_ids: Sequence[int],
    categories: Sequence[dict],
) -> None:
    """Write one split's annotation file; a test split gets one without labels besides."""
    info = {"year": 2024, "version": 1, "description": "Made-up images, Decathlon format",
            "contributor": "", "url": "", "date_created": ""}  # fmt: skip
    licence = {"id": 1, "name": "made-up", "url": ""}
    unlabelled = {"segmentation": [], "area": 0, "bbox": [], "iscrowd": 0}
    annotations = [
        {"id": image["id"], "image_id": image["id"], "category_id": category_id, **unlabelled}
        for image, category_id in zip(images, category_ids, strict=True)
    ]
    common = {"info": info, "images": images, "categories": categories}
    labelled = {**common, "annotations": annotations, "licenses": [licence]}
    (folder / f"{name}.json").write_text(json.dumps(labelled), encoding="utf-8")
    if name.endswith("_test"):
        stripped = {**common, "licenses": licence}  # official files differ in this too
        (folder / f"{name}_stripped.json").write_text(json.dumps(stripped), encoding="utf-8")


def make_sample(folder: Path, settings: Settings) -> bool:
    """Make FOLDER/decathlon-1.0; False if it is there already, made with the same settings.

    It is drawn in a hidden folder beside it and moved into place as a whole. Raises SpotTuneError
    where anything else is there: a Decathlon is never replaced or mixed with.
    """
    root, description = folder / "decathlon-1.0", json.dumps(asdict(settings)) + "\n"
    if root.exists():
        marker = root / MARKER
        found = marker.read_text(encoding="utf-8") if marker.is_file() else "real images, perhaps"
        if found == description:
            return False
        raise SpotTuneError(
            f"{root} is there already: {' '.join(found.split())}. Name another folder, or delete "
            f"that one if nothing in it is worth keeping"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".made-up-decathlon-", dir=folder) as workshop:
        fresh = Path(workshop) / "decathlon-1.0"
        (fresh / "annotations").mkdir(parents=True)
        for task in TASKS:
            write_task(fresh, task, settings)
        (fresh / MARKER).write_text(description, encoding="utf-8")
        fresh.rename(root)
    return True


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("Draw a small made-up Visual Decathlon in the official format.")
    add = parser.add_argument
    # fmt: off
    add("folder", type=folder_name, metavar="FOLDER", help="where decathlon-1.0 is made")
    add("--classes", type=int, default=5, choices=range(2, 11), metavar="N",
        help="per target task, 2 to 10 (always 2 in daimlerpedcls); imagenet12, the source, gets "
             "twice as many")
    add("--images_per_class", type=positive_int, default=24, metavar="N",
        help="in train; val and test get a third of that each")
    add("--side", type=int, default=40, choices=range(16, 257, 8), metavar="PIXELS",
        help="shorter side of the images, a multiple of 8 from 16 to 256")
    add("--seed", type=non_negative_int, default=0, help="fixes every image")
    # fmt: on
    args = parser.parse_args(argv)
    settings = Settings(args.classes, args.images_per_class, args.side, args.seed)
    made = make_sample(args.folder, settings)
    print(f"{args.folder / 'decathlon-1.0'}: {'made' if made else 'already there, nothing to do'}")


if __name__ == "__main__":
    run_script(main)
