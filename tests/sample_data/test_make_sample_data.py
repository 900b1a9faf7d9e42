"""The made-up Decathlon holds to the official format, and never mixes with anything else."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from decathlon import TASK_BY_NAME, TASKS
from runtime.errors import SpotTuneError
from sample_data import make
from sample_data.worlds import MOST_CLASSES, WORLDS, draw_image

SMALL = ("--classes", "3", "--images_per_class", "4", "--side", "16")
ALL_TASKS = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
COUNTS = {"train": 4, "val": 2, "test": 2}  # of each class; a third of 4, rounded up


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    make.main([str(folder), *SMALL])
    return folder / "decathlon-1.0"


def annotations(root: Path, task_name: str, split: str) -> dict:
    return json.loads((root / "annotations" / f"{task_name}_{split}.json").read_text())


def every_byte(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@ALL_TASKS
def test_image_ids_carry_task_and_split_and_run_on_over_the_splits(sample, task):
    expected_index = 0
    for split_number, split in enumerate(("train", "val", "test")):
        content = annotations(sample, task.name, split)
        for image, annotation in zip(content["images"], content["annotations"], strict=True):
            expected_index += 1
            expected = task.number * 10_000_000 + split_number * 100_000 + expected_index
            assert image["id"] == annotation["id"] == annotation["image_id"] == expected


@ALL_TASKS
def test_file_names_number_each_split_from_one_and_train_and_val_name_the_class(sample, task):
    for split in ("train", "val", "test"):
        content = annotations(sample, task.name, split)
        for number, (image, annotation) in enumerate(
            zip(content["images"], content["annotations"], strict=True), start=1
        ):
            label = annotation["category_id"] - task.number * 10_000_000
            folder = f"{split}/{label:04}" if split != "test" else "test"
            assert image["file_name"] == f"data/{task.name}/{folder}/{number:06}.jpg"


@ALL_TASKS
def test_every_class_is_in_every_split_and_only_test_is_unsorted(sample, task):
    num_classes = {"daimlerpedcls": 2, "imagenet12": 6}.get(task.name, 3)
    expected = [task.number * 10_000_000 + label for label in range(1, num_classes + 1)]
    for split, per_class in COUNTS.items():
        content = annotations(sample, task.name, split)
        labels = [annotation["category_id"] for annotation in content["annotations"]]
        assert [category["id"] for category in content["categories"]] == expected
        assert set(labels) == set(expected)
        assert (labels == sorted(labels)) == (split != "test")
        if task.name != "daimlerpedcls":
            assert len(labels) == per_class * num_classes


def test_the_task_of_two_classes_gets_as_many_images_as_the_others(sample):
    assert len(annotations(sample, "daimlerpedcls", "train")["images"]) == 3 * 4


@ALL_TASKS
def test_the_stripped_test_file_has_the_same_images_and_no_labels(sample, task):
    stripped = annotations(sample, task.name, "test_stripped")
    labelled = annotations(sample, task.name, "test")
    assert set(stripped) == {"info", "images", "categories", "licenses"}
    assert stripped["images"] == labelled["images"]
    assert isinstance(stripped["licenses"], dict)  # as in the official files
    assert isinstance(labelled["licenses"], list)


@ALL_TASKS
def test_pycocotools_reads_all_four_files(sample, task):
    for split in ("train", "val", "test", "test_stripped"):
        coco = COCO(sample / "annotations" / f"{task.name}_{split}.json")
        assert all((sample / image["file_name"]).is_file() for image in coco.dataset["images"])
        assert set(coco.getImgIds()) == {image["id"] for image in coco.dataset["images"]}
        assert bool(coco.anns) == (split != "test_stripped")


@ALL_TASKS
def test_images_have_the_size_and_the_channels_of_their_task(sample, task):
    sizes = set()
    for split in ("train", "val", "test"):
        for entry in annotations(sample, task.name, split)["images"]:
            with Image.open(sample / entry["file_name"]) as image:
                image.load()
                assert image.format == "JPEG"
                assert image.size == (entry["width"], entry["height"])
                assert image.mode == ("L" if task.name in ("omniglot", "daimlerpedcls") else "RGB")
            assert min(image.size) == 16
            sizes.add(image.size)
    if task.name == "daimlerpedcls":
        assert sizes == {(16, 32)}
    elif task.name in ("gtsrb", "omniglot", "svhn"):
        assert sizes == {(16, 16)}
    else:
        assert len(sizes) > 1  # what is cropped at random is not all square


def test_there_are_no_files_but_images_annotations_and_the_marker(sample):
    num_images = sum(
        len(annotations(sample, task.name, split)["images"]) for task in TASKS for split in COUNTS
    )
    assert len(every_byte(sample)) == num_images + 4 * len(TASKS) + 1
    assert (sample / "MADE_UP").is_file()
    assert [path.name for path in sample.parent.iterdir()] == ["decathlon-1.0"]


def test_no_two_images_are_the_same(sample):
    images = [content for name, content in every_byte(sample).items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(sample, tmp_path):
    make.main([str(tmp_path / "again"), *SMALL])
    make.main([str(tmp_path / "other"), *SMALL, "--seed", "1"])
    assert every_byte(tmp_path / "again" / "decathlon-1.0") == every_byte(sample)
    other = every_byte(tmp_path / "other" / "decathlon-1.0")
    name = "data/svhn/val/0002/000003.jpg"
    assert other[name] != every_byte(sample)[name]


@pytest.fixture
def only_svhn(monkeypatch):
    monkeypatch.setattr(make, "WORLDS", {"svhn": WORLDS["svhn"]})


def test_a_second_run_with_the_same_settings_touches_nothing(only_svhn, tmp_path, capsys):
    make.main([str(tmp_path), *SMALL])
    before = (tmp_path / "decathlon-1.0").stat().st_ino
    make.main([str(tmp_path), *SMALL])
    assert (tmp_path / "decathlon-1.0").stat().st_ino == before
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["make.py", "worlds.py"])
def test_a_change_in_either_script_replaces_the_sample(only_svhn, tmp_path, monkeypatch, name):
    scripts = {path.name: path for path in make.SCRIPTS}
    make.main([str(tmp_path / "out"), *SMALL])
    before = (tmp_path / "out" / "decathlon-1.0" / "MADE_UP").read_text()
    changed = tmp_path / name
    changed.write_text(scripts[name].read_text() + "# changed\n")
    monkeypatch.setattr(make, "SCRIPTS", (scripts | {name: changed}).values())
    make.main([str(tmp_path / "out"), *SMALL])
    assert (tmp_path / "out" / "decathlon-1.0" / "MADE_UP").read_text() != before


def test_other_settings_replace_the_whole_sample(only_svhn, tmp_path):
    make.main([str(tmp_path), *SMALL])
    make.main([str(tmp_path), *SMALL, "--classes", "2"])
    make.main([str(tmp_path / "direct"), *SMALL, "--classes", "2"])
    replaced = every_byte(tmp_path / "decathlon-1.0")
    assert replaced == every_byte(tmp_path / "direct" / "decathlon-1.0")


def test_a_decathlon_made_elsewhere_is_left_alone(only_svhn, tmp_path):
    real = tmp_path / "decathlon-1.0" / "data" / "svhn" / "test" / "000001.jpg"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"a real image")
    with pytest.raises(SpotTuneError, match="was not made by this script"):
        make.main([str(tmp_path), *SMALL])
    assert every_byte(tmp_path) == {str(real.relative_to(tmp_path)): b"a real image"}


def test_a_sample_that_others_have_added_images_to_is_left_alone(only_svhn, tmp_path):
    make.main([str(tmp_path), *SMALL])
    (tmp_path / "decathlon-1.0" / "data" / "real.jpg").write_bytes(b"a real image")
    before = every_byte(tmp_path)
    with pytest.raises(SpotTuneError, match="was made with 24 images and now holds 25"):
        make.main([str(tmp_path), *SMALL, "--seed", "1"])
    assert every_byte(tmp_path) == before


def test_a_run_that_breaks_off_leaves_what_was_there_before(only_svhn, tmp_path, monkeypatch):
    make.main([str(tmp_path), *SMALL])
    before = every_byte(tmp_path)

    def break_off(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "write_annotations", break_off)
    with pytest.raises(KeyboardInterrupt):
        make.main([str(tmp_path), *SMALL, "--seed", "1"])
    assert every_byte(tmp_path) == before


def test_what_a_killed_run_left_behind_is_swept_up(only_svhn, tmp_path):
    (tmp_path / ".made-up-decathlon-killed" / "new").mkdir(parents=True)
    make.main([str(tmp_path), *SMALL])
    assert [path.name for path in tmp_path.iterdir()] == ["decathlon-1.0"]


@pytest.mark.parametrize(
    "wrong",
    [("--classes", "1"), ("--classes", "99"), ("--images_per_class", "0"), ("--side", "41"),
     ("--side", "8"), ("--seed", "-1")],
)  # fmt: skip
def test_settings_out_of_range_are_named_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(SpotTuneError, match=f"{wrong[0]} {wrong[1]}"):
        make.main([str(tmp_path / "out"), *wrong])
    assert not (tmp_path / "out").exists()


@ALL_TASKS
def test_each_task_can_draw_as_many_classes_as_the_script_offers(task):
    settings = make.Settings(MOST_CLASSES, 1, 16, 0)
    kinds = make.split_kinds(task, "train", settings)
    drawn = [
        draw_image(WORLDS[task.name], kind, 16, np.random.default_rng(0))
        for kind in sorted(set(kinds))
    ]
    assert len({image.tobytes() for image in drawn}) == len(drawn) == settings.num_classes(task)


def test_all_ten_tasks_are_drawn():
    assert set(WORLDS) == set(TASK_BY_NAME)
