"""The report of runs on own pictures: classes, answers, any backbone, apart from the Decathlon."""

import numpy as np
import pytest
from conftest import edit_json, refusal
from made_up_runs import read_study, write_own_run, write_run
from matplotlib.colors import to_hex
from PIL import Image
from test_report import VAL, Page, tables, told

import report
import train_folder
from image_cache.packed import DataFolders
from reporting import figures
from reporting.answers import confident_mistakes, confusion, read_answers
from reporting.extremes import find_extremes
from reporting.plots import FINE_TUNED, KEPT, drawable
from reporting.runs import Variant
from reporting.study import read_studies

SPOTTUNE = Variant("spottune")
CLASSES = ["crow", "owl", "wren"]
# Class, answer, probability and decisions: 3 of 5 are right.
ANSWERS = [
    ("crow", "crow", 0.9, "00"),
    ("crow", "owl", 0.6, "01"),
    ("crow", "wren", 0.8, "11"),
    ("owl", "owl", 0.7, "00"),
    ("owl", "owl", 0.5, "00"),
]


@pytest.fixture
def birds(tmp_path):
    """SpotTune on birds, val of which has no wren."""
    return write_own_run(tmp_path / "runs", "birds", CLASSES, ANSWERS, "spottune")


@pytest.fixture
def pictures(tmp_path, birds):
    """Where the folder with the val pictures of birds lies; each has a colour of its own."""
    for number, (name, *_) in enumerate(ANSWERS):
        path = tmp_path / f"photos/birds/val/{name}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (40 * number, 9, 9)).save(path)
    return tmp_path / "photos"


# What stands on the page.


def test_classes_have_recalls_and_tasks_are_named_after_their_folders(birds):
    found = tables(told(birds.parent))
    assert found[VAL]["SpotTune"] == {
        "method": "SpotTune",
        "seeds": "1",
        "mean of 1 task": "60.00",
        "birds": "60.00",
    }
    # Of crows 1 of 3, of owls 2 of 2: (33.33 + 100) / 2.
    assert found["Balanced accuracy on val, %"]["SpotTune"]["birds"] == "66.67"
    recalls = found["Recall of each class of birds on val, %"]
    assert {name: row["SpotTune"] for name, row in recalls.items()} == {
        "crow": "33.3",
        "owl": "100.0",
        "wren": "–",
    }
    assert found["Settings of tasks"]["birds"]["fit"] == "crop"


def test_a_recall_is_the_mean_over_seeds_of_which_some_find_nothing(birds):
    none_right = [("crow", "owl", 0.5, "00"), ("wren", "wren", 0.5, "00")]
    write_own_run(birds.parent / "b", "birds", CLASSES, none_right, "spottune", seed=1)
    recalls = tables(told(birds.parent))["Recall of each class of birds on val, %"]
    assert [row["SpotTune"] for row in recalls.values()] == ["16.7", "100.0", "100.0"]


def test_two_classes_have_an_area_under_the_roc_curve(tmp_path):
    write_own_run(tmp_path, "moles", ["benign", "malign"], [("benign", "benign", 0.9, "")])
    found = tables(told(tmp_path))
    caption = "Area under the ROC curve on val, from 0 to 1"
    assert found[caption]["Standard fine-tuning"]["moles"] == "0.750"


def test_own_pictures_have_no_points_and_no_published_rows(birds):
    text = told(birds.parent)
    for word in ("published", "Published", "points", "imagenet12", "E_max"):
        assert word not in text


def test_the_decathlon_and_own_pictures_stand_on_one_page_in_tables_of_their_own(birds):
    write_run(birds.parent, "dtd", "finetune", 50.0)
    # A folder may have the name of a task of the Decathlon.
    write_own_run(birds.parent / "b", "dtd", CLASSES, ANSWERS, "spottune")
    text = told(birds.parent)
    of_decathlon, own = text.split("## Accuracy on val of own pictures")
    assert "no mean, sum or score is over both" in text
    assert tables(of_decathlon)[VAL].keys() == {"Standard fine-tuning"}
    assert tables(own)[VAL]["SpotTune"].keys() == {
        "method", "seeds", "mean of 2 tasks", "birds", "dtd"
    }  # fmt: skip
    assert "## Published figures of the Decathlon" in of_decathlon
    page = Page(told(birds.parent, "html"))
    assert page.open == []
    assert len(page.anchors) == len(set(page.anchors))


def test_rows_name_the_backbone_where_there_are_several(birds):
    deeper = [(*answer[:3], answer[3] + "1") for answer in ANSWERS]
    weights = {"backbone": "timm:test_vit", "source_sha256": "8" * 64}
    write_own_run(birds.parent / "b", "birds", CLASSES, deeper, "spottune", **weights)
    found = tables(told(birds.parent))
    assert list(found[VAL]) == ["SpotTune of resnet18", "SpotTune of timm:test_vit"]
    blocks = found["Fine-tuned blocks per val image"]  # 3 of 5 pictures, and one more for each
    assert [row["birds"] for row in blocks.values()] == ["0.6 of 2", "1.6 of 3"]


def test_seeds_may_have_other_pictures_set_aside_but_methods_of_one_seed_not(birds):
    other = {"data_sha256": "8" * 64}
    write_own_run(birds.parent / "b", "birds", CLASSES, ANSWERS, "spottune", seed=1, **other)
    assert len(read_study([birds.parent]).runs) == 2
    write_own_run(birds.parent / "c", "birds", CLASSES, ANSWERS, "feature", **other)
    assert "data_sha256" in refusal(read_studies, [birds.parent])


# Answers.


def test_a_confusion_counts_classes_by_answers_over_all_seeds(birds):
    write_own_run(birds.parent / "b", "birds", CLASSES, ANSWERS[:2], "spottune", seed=1)
    study = read_study([birds.parent])
    counts = confusion(study.of(SPOTTUNE, "birds"))
    assert counts.tolist() == [[2, 2, 1], [0, 2, 0], [0, 0, 0]]
    (picture,) = figures.confusion_pictures(study)
    axes = picture.figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == CLASSES
    assert [label.get_text() for label in axes.get_xticklabels()] == CLASSES
    shown = {tuple(int(place) for place in text.get_position()): text.get_text()
             for text in axes.texts}  # fmt: skip
    assert shown == {(0, 0): "2", (1, 0): "2", (2, 0): "1", (1, 1): "2"}  # zeros are left empty
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("answer", "class")


@pytest.mark.parametrize(("number", "pictures"), [(40, 1), (41, 0)])
def test_a_confusion_is_drawn_for_at_most_forty_classes(number, pictures, tmp_path):
    classes = [f"kind{place:02}" for place in range(number)]
    write_own_run(tmp_path, "birds", classes, [(name, name, 0.5, "") for name in classes])
    assert len(list(figures.confusion_pictures(read_study([tmp_path])))) == pictures
    captions = tables(told(tmp_path))
    assert f"Recall of each class of birds on val, %: the 20 lowest of {number}" in captions


def test_the_most_confident_mistakes_come_first(birds):
    (wrong,) = confident_mistakes(read_study([birds.parent]), SPOTTUNE).values()
    assert [answer.file for answer in wrong] == ["val/crow/2.png", "val/crow/1.png"]


def test_without_pictures_mistakes_are_listed_and_with_them_drawn(birds, pictures, tmp_path):
    report.main([str(birds.parent), "--out", str(tmp_path / "listed")])
    text = (tmp_path / "listed/report.md").read_text()
    listed = tables(text)["SpotTune: the most confident mistakes on val"]["birds"]
    assert listed["picture"] == "val/crow/1.png"  # the last of them
    assert "They are drawn with --pictures DIR" in text
    where = ["--pictures", str(pictures)]
    report.main([str(birds.parent), "--out", str(tmp_path / "drawn"), *where])
    text = (tmp_path / "drawn/report.md").read_text()
    assert "SpotTune: the most confident mistakes on val" not in tables(text)
    names = {path.stem for path in (tmp_path / "drawn/figures").iterdir()}
    assert {"mistakes_spottune", "own_extremes_spottune", "confusion_0_birds_spottune"} <= names
    (pictures / "birds/val/crow/2.png").unlink()
    report.main([str(birds.parent), "--out", str(tmp_path / "lacking"), *where])
    assert "2.png: listed, but there is no such file" in (
        (tmp_path / "lacking/report.md").read_text().replace("\\", "")
    )


def test_a_mistake_shows_the_picture_its_class_answer_and_probability(birds):
    study = read_study([birds.parent])
    mistakes = confident_mistakes(study, SPOTTUNE)
    pixels = {"birds": {a.file: np.full((4, 4, 3), 7, np.uint8) for a in mistakes["birds"]}}
    figure = figures.mistakes_picture(study, SPOTTUNE, mistakes, pixels).figure
    first, second = (axes for axes in figure.axes if axes.images)
    assert first.get_xlabel() == "crow\nwrong: wren\n80.0 %\n2.png"
    assert second.get_xlabel() == "crow\nwrong: owl\n60.0 %\n1.png"


def test_extremes_of_own_pictures_come_from_their_answers(birds, pictures):
    study = read_study([birds.parent])
    none = DataFolders(*3 * [pictures / "none"])
    found, missing = find_extremes(study, SPOTTUNE, none, pictures)
    fewest, most = found["birds"]
    assert missing == []
    assert [(each.decisions, each.category, each.answer) for each in most] == [
        ("11", "crow", "wren"),
        ("01", "crow", "owl"),
    ]
    assert [int(each.pixels[0, 0, 0]) for each in (*fewest, *most)] == [0, 120, 80, 40]
    figure = figures.extremes_picture(study, SPOTTUNE, found).figure
    figure.draw_without_rendering()
    meshes = [axes.collections[0] for axes in figure.axes if axes.collections]
    assert [to_hex(colour) for colour in meshes[-1].get_facecolors()] == [KEPT, FINE_TUNED]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("val/crow/0.png", "../secret.png"),
        ("val/crow/0.png", "/etc/secret.png"),
        (",wren,", ",eagle,"),
        (",0.9,", ",1.9,"),
        (",0.9,", ",much,"),
        (",11\n", ",111\n"),
        (",11\n", ",12\n"),
        ("file,class", "file,kind"),
    ],
)
def test_damaged_answers_are_refused_in_one_line(old, new, birds):
    path = birds / "val_answers.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    (run,) = read_study([birds.parent]).runs
    assert "val_answers.csv: damaged" in refusal(read_answers, run)


@pytest.mark.parametrize("changes", [{"classes": ["crow"] * 2}, {"backbone": "$(x)"}, {"task": 3}])
def test_damaged_arguments_are_refused_in_one_line(changes, birds):
    edit_json(birds / "arguments.json", lambda content: content.update(changes))
    assert "arguments.json: damaged" in refusal(read_studies, [birds.parent])


# Names.


def test_names_of_folders_and_classes_may_be_any(tmp_path):
    task, classes = "a $b$ <i> | 猫", ["x^2 $", "été", "🐦"]
    answers = [(name, "été", 0.5, "01") for name in classes]
    write_own_run(tmp_path / "runs", task, classes, answers, "spottune")
    report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])  # a warning is an error
    page = Page((tmp_path / "out/report.html").read_text())
    assert page.open == []
    assert "i" not in page.tags
    assert task in "".join(page.words)
    for path in (tmp_path / "out/figures").iterdir():
        assert path.stem.isascii()
        assert " " not in path.name


def test_letters_that_the_font_lacks_are_drawn_as_question_marks():
    assert drawable("été 猫 $x$", 20) == "été ? $x$"


# The whole road.


def test_from_a_folder_of_pictures_to_the_page(tmp_path):
    draws = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("left", "right"):
            for number in range(3):
                path = tmp_path / f"hands/{split}/{name}/{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draws.integers(0, 255, (32, 36, 3), dtype=np.uint8)).save(path)
    how = ["--backbone", "resnet18", "--weights", "none", "--resize", "32", "--crop", "32"]
    how += ["--policy_size", "16", "--width", "16", "--batch_size", "3", "--nb_epochs", "1"]
    how += ["--device", "cpu", "--precision", "fp32"]
    train_folder.main([str(tmp_path / "hands"), "--ckpdir", str(tmp_path / "cv"), *how])
    out = ["--out", str(tmp_path / "out"), "--pictures", str(tmp_path)]
    report.main([str(tmp_path / "cv"), *out])
    found = tables((tmp_path / "out/report.md").read_text())
    assert "hands" in found[VAL]["SpotTune"]
    assert found["Recall of each class of hands on val, %"].keys() == {"left", "right"}
    assert "Fine-tuned blocks per val image, of 8" in found
