"""Make a small made-up Decathlon in the official format, to try the whole road without a download.

    FOLDER/decathlon-1.0/annotations/<task>_{train,val,test_stripped}.json
    FOLDER/decathlon-1.0/annotations/<task>_test.json        with labels, so that score.py can score
    FOLDER/decathlon-1.0/data/<task>/{train,val}/<class, 4 digits>/<6 digits>.jpg
    FOLDER/decathlon-1.0/data/<task>/test/<6 digits>.jpg
    FOLDER/decathlon-1.0/MADE_UP                             these are no real images

What the images show is in sample_worlds.py. Ids are those that decathlon.py describes. As in the
official files, train and val stand sorted by class, and test does not. The same settings give the
same bytes.
"""

import argparse
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from decathlon import IDS_PER_TASK, SOURCE, TASK_BY_NAME, DecathlonTask
from runtime.errors import SpotTuneError, run_script
from sample_data.worlds import MOST_CLASSES, WORLDS, draw_image

IDS_PER_SPLIT = 100_000
SPLITS = ("train", "val", "test")
MARKER = "MADE_UP"
SCRIPTS = (Path(__file__), Path(__file__).with_name("worlds.py"))  # they decide every byte


@dataclass(frozen=True)
class Settings:
    """What decides every byte: written into the marker file, to tell one sample from another."""

    classes: int
    images_per_class: int
    side: int
    seed: int

    def num_classes(self, task: DecathlonTask) -> int:
        """Twice as many in the source; two where the task has two by nature."""
        if task is SOURCE:
            return 2 * self.classes
        return min(self.classes, task.num_classes)

    def num_per_class(self, task: DecathlonTask, split: str) -> int:
        """A task of fewer classes than asked for gets more of each, so as many images in all."""
        share = max(self.classes / self.num_classes(task), 1)
        return math.ceil(self.images_per_class * share / (1 if split == "train" else 3))


def split_kinds(task: DecathlonTask, split: str, settings: Settings) -> list[int]:
    """The kind of each image of a split: in order in train and val, shuffled in test."""
    num_each = settings.num_per_class(task, split)
    kinds = [kind for kind in range(settings.num_classes(task)) for _ in range(num_each)]
    if split == "test":
        np.random.default_rng([settings.seed, task.number]).shuffle(kinds)
    return kinds


def write_split(
    root: Path, task: DecathlonTask, split: str, settings: Settings
) -> list[dict[str, object]]:
    """Draw and save the images of one split; return their annotations' `images`, ids missing."""
    images = []
    for number, kind in enumerate(split_kinds(task, split, settings), start=1):
        seeds = [settings.seed, task.number, SPLITS.index(split), number]
        image = draw_image(WORLDS[task.name], kind, settings.side, np.random.default_rng(seeds))
        folder = f"data/{task.name}/{split}" + (f"/{kind + 1:04}" if split != "test" else "")
        (root / folder).mkdir(parents=True, exist_ok=True)
        name = f"{folder}/{number:06}.jpg"
        image.save(root / name, quality=92)
        images.append({"width": image.width, "height": image.height, "file_name": name})
    return images


def write_task(root: Path, task: DecathlonTask, settings: Settings) -> None:
    """Draw the images of a task and describe them in its four annotation files."""
    names = WORLDS[task.name].kinds or [f"kind {k}" for k in range(1, 1 + 2 * MOST_CLASSES)]
    first_category = task.number * IDS_PER_TASK + 1
    categories = [
        {"id": first_category + kind, "name": names[kind], "supercategory": task.name}
        for kind in range(settings.num_classes(task))
    ]
    index = 0  # runs on from train over val to test
    for split_number, split in enumerate(SPLITS):
        images = write_split(root, task, split, settings)
        first_id = task.number * IDS_PER_TASK + split_number * IDS_PER_SPLIT + index + 1
        images = [{"id": first_id + number, **image} for number, image in enumerate(images)]
        index += len(images)
        category_ids = [first_category + kind for kind in split_kinds(task, split, settings)]
        write_annotations(root, f"{task.name}_{split}", images, category_ids, categories)


def write_annotations(
    root: Path,
    name: str,
    images: list[dict[str, object]],
    category_ids: list[int],
    categories: list[dict[str, object]],
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
    folder = root / "annotations"
    (folder / f"{name}.json").write_text(json.dumps(labelled), encoding="utf-8")
    if name.endswith("_test"):
        stripped = {**common, "licenses": licence}  # official files differ in this too
        (folder / f"{name}_stripped.json").write_text(json.dumps(stripped), encoding="utf-8")


def marker_text(root: Path, settings: Settings) -> str:
    """What the marker file says: the settings, the scripts' version, the number of images."""
    scripts = b"".join(path.read_bytes() for path in SCRIPTS)
    record = {
        "what": "drawn by make_sample_data.py; none of these images is real",
        "settings": asdict(settings),
        "scripts_sha256": hashlib.sha256(scripts).hexdigest(),
        "images": count_images(root),
    }
    return json.dumps(record, indent=2) + "\n"


def count_images(root: Path) -> int:
    return sum(1 for _ in (root / "data").rglob("*.jpg"))


def check_made_up(root: Path) -> None:
    """Never touch a Decathlon with images that this script did not draw."""
    marker = root / MARKER
    if not marker.is_file():
        raise SpotTuneError(
            f"{root} exists and was not made by this script; made-up images are never mixed with "
            f"others. Name another folder, or move that one away."
        )
    drawn, found = json.loads(marker.read_text(encoding="utf-8"))["images"], count_images(root)
    if drawn != found:
        raise SpotTuneError(
            f"{root} was made with {drawn} images and now holds {found}. If nothing in it is "
            f"worth keeping, delete it and run this again."
        )


def make_sample(folder: Path, settings: Settings) -> bool:
    """Make FOLDER/decathlon-1.0; False if it is there already, made with the same settings.

    It is drawn in a hidden folder beside it and moved into place as a whole.
    """
    root = folder / "decathlon-1.0"
    if root.exists():
        check_made_up(root)
        if (root / MARKER).read_text(encoding="utf-8") == marker_text(root, settings):
            return False
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".made-up-decathlon-*"):  # of a run that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=".made-up-decathlon-", dir=folder) as workshop:
        fresh = Path(workshop) / "new"
        (fresh / "annotations").mkdir(parents=True)
        for name in WORLDS:
            write_task(fresh, TASK_BY_NAME[name], settings)
        (fresh / MARKER).write_text(marker_text(fresh, settings), encoding="utf-8")
        if root.exists():
            root.rename(Path(workshop) / "old")
        fresh.rename(root)
    return True


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw a small made-up Visual Decathlon in the official format.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER",
                        help="where decathlon-1.0 is made")  # fmt: skip
    parser.add_argument("--classes", type=int, default=5,
                        help=f"per target task, 2 to {MOST_CLASSES} (always 2 in daimlerpedcls); "
                             f"imagenet12, the source, gets twice as many")  # fmt: skip
    parser.add_argument("--images_per_class", type=int, default=24,
                        help="in train; val and test get a third of that each")  # fmt: skip
    parser.add_argument("--side", type=int, default=40,
                        help="shorter side of the images in pixels, a multiple of 8")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0,
                        help="fixes every image; another seed draws others")  # fmt: skip
    return parser.parse_args(argv)


def checked_settings(args: argparse.Namespace) -> Settings:
    if not 2 <= args.classes <= MOST_CLASSES:
        raise SpotTuneError(f"--classes {args.classes}: choose from 2 to {MOST_CLASSES}")
    if not 1 <= args.images_per_class <= 1000:
        raise SpotTuneError(f"--images_per_class {args.images_per_class}: choose from 1 to 1000")
    if args.side % 8 or not 16 <= args.side <= 256:
        raise SpotTuneError(
            f"--side {args.side}: choose a multiple of 8 from 16 to 256; the network halves it "
            f"three times"
        )
    if args.seed < 0:
        raise SpotTuneError(f"--seed {args.seed}: choose a number from 0")
    return Settings(args.classes, args.images_per_class, args.side, args.seed)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    root = args.folder / "decathlon-1.0"
    made = make_sample(args.folder, checked_settings(args))
    print(f"{root}: " + ("made" if made else "already there, nothing to do"))


if __name__ == "__main__":
    run_script(main)
