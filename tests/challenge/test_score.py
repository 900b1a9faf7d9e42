"""Offline scoring, on hand-made labels and on the real test labels where they are at hand."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import score
from challenge import submissions
from decathlon import PUBLISHED, TASK_BY_NAME, TASKS
from runtime.errors import SpotTuneError

REPOSITORY = Path(__file__).parents[2]
REAL_LABELS = REPOSITORY.parent / "shared/official/labels_test.zip"

# Image id -> category id. svhn is task 8 and dtd task 4; val is split 1. Listed out of order, so
# that scoring by position would show.
SVHN = {80_100_004: 80_000_002, 80_100_001: 80_000_001, 80_100_003: 80_000_002}
DTD = {40_100_002: 40_000_001, 40_100_001: 40_000_002}


def coco(labels, categories=None):
    """An annotation file that holds these labels."""
    return {
        "images": [{"id": image} for image in labels],
        "annotations": [{"image_id": i, "category_id": c} for i, c in labels.items()],
        "categories": [{"id": c} for c in sorted(categories or set(labels.values()))],
    }


def as_answers(labels):
    return [{"image_id": i, "category_id": c} for i, c in sorted(labels.items())]


@pytest.fixture
def folder(tmp_path):
    """Labels of svhn and dtd for val."""
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    (annotations / "svhn_val.json").write_text(json.dumps(coco(SVHN)))
    (annotations / "dtd_val.json").write_text(json.dumps(coco(DTD)))
    return annotations


def scored(folder, answers, *options):
    """What --json says of these answers."""
    results, out = folder.parent / "results.json", folder.parent / "scores.json"
    results.write_text(json.dumps(answers))
    score.main([str(results), "--annotations", str(folder), "--json", str(out), *options])
    return json.loads(out.read_text())


def complaint(folder, text, *options):
    """The error that these bytes or this text as results.json, or as a labels file, must give."""
    results = folder.parent / "results.json"
    results.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpotTuneError) as error:
        score.main([str(results), "--annotations", str(folder), *options])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    return str(error.value)


def test_answers_meet_labels_by_image_id_and_not_by_position(folder):
    figures = scored(folder, as_answers(SVHN | DTD))
    assert figures["score"] == pytest.approx(2000)
    assert figures["mean"] == 100
    assert figures["tasks"]["svhn"] == {
        "images": 3, "correct": 3, "accuracy": 100, "points": pytest.approx(1000),
        "missing": 0, "doubled": 0, "foreign": 0, "unknown": 0,
    }  # fmt: skip
    assert figures["problems"] == []


def test_points_and_mean_follow_from_the_accuracies(folder):
    # dtd: 1 of 2 right, E = 50 of E_max 88.94: 1000 * (1 - 50 / 88.94)^2 = 191.69.
    # svhn: 2 of 3 right, E = 33.3 is beyond its E_max of 6.90: nothing.
    wrong = {40_100_001: 40_000_001, 80_100_001: 80_000_002}
    figures = scored(folder, as_answers(SVHN | DTD | wrong))
    assert figures["score"] == pytest.approx(191.69, abs=0.01)
    assert figures["mean"] == pytest.approx((50 + 66.6667) / 2, abs=1e-4)


def test_an_image_without_an_answer_is_wrong_and_named(folder):
    figures = scored(folder, as_answers(SVHN | {40_100_001: 40_000_002}))
    assert figures["tasks"]["dtd"]["missing"] == 1
    assert figures["tasks"]["dtd"]["accuracy"] == 50
    assert figures["problems"] == ["dtd, missing: 40100002"]


@pytest.mark.parametrize("second", [80_000_001, 80_000_002], ids=["the same", "another"])
def test_an_image_answered_twice_is_wrong_and_named_even_if_both_are_right(folder, second):
    twice = [{"image_id": 80_100_001, "category_id": second}]
    figures = scored(folder, as_answers(SVHN | DTD) + twice)
    assert figures["tasks"]["svhn"]["doubled"] == 1
    assert figures["tasks"]["svhn"]["correct"] == 2
    assert figures["problems"] == ["svhn, doubled: 80100001 (2 times)"]


@pytest.mark.parametrize(
    ("category", "whose"),
    [(40_000_001, "dtd"), (80_000_009, "svhn"), (7, "no task")],
    ids=["of another task", "not in the file", "of no task"],
)
def test_a_category_that_the_task_lacks_is_wrong_and_named(folder, category, whose):
    figures = scored(folder, as_answers(SVHN | DTD | {80_100_001: category}))
    assert figures["tasks"]["svhn"]["foreign"] == 1
    assert figures["tasks"]["svhn"]["correct"] == 2
    assert figures["problems"] == [f"svhn, foreign: 80100001 (given {category} of {whose})"]


def test_unknown_images_change_no_figure_but_are_named(folder):
    figures = scored(folder, as_answers(SVHN | DTD | {80_100_099: 80_000_001, 5: 1}))
    assert figures["score"] == pytest.approx(2000)
    assert figures["tasks"]["svhn"]["unknown"] == 1
    assert figures["problems"] == ["svhn, unknown: 80100099"]
    assert "Answered image ids that carry the number of no task, 1: [5]" in figures["notes"]


def test_only_the_first_three_images_of_a_problem_are_named(folder):
    unknown = {80_100_010 + index: 80_000_001 for index in range(4)}
    figures = scored(folder, as_answers(SVHN | DTD | unknown))
    assert figures["tasks"]["svhn"]["unknown"] == 4
    assert figures["problems"] == ["svhn, unknown: 80100010, 80100011, 80100012, ..."]


def test_tasks_without_labels_are_not_scored_and_said_so(folder, capsys):
    (folder / "ucf101_val.json").write_text(json.dumps({"images": [{"id": 90_100_001}]}))
    answers = as_answers(SVHN | DTD | {90_100_001: 90_000_001, 10_100_001: 10_000_001})
    figures = scored(folder, answers)
    assert figures["tasks_scored"] == 2
    assert list(figures["tasks"]) == ["dtd", "svhn"]
    assert figures["problems"] == []  # answers to them are not unknown
    note = next(note for note in figures["notes"] if note.startswith("NOT SCORED"))
    assert "aircraft" in note
    assert "ucf101" in note
    assert "2 images answered" in note
    assert "* mean and S over 2 of 10 tasks" in capsys.readouterr().out


@pytest.mark.parametrize(("digit", "hint"), [(2, "was --split test meant?"), (0, "not scored")])
def test_answers_to_another_split_get_a_hint(folder, digit, hint):
    other = {80_000_000 + digit * 100_000 + index: 80_000_001 for index in range(20)}
    notes = scored(folder, as_answers(other))["notes"]
    assert hint in next(note for note in notes if note.startswith("WRONG SPLIT?"))


@pytest.mark.parametrize(
    "answers",
    [SVHN | DTD | {80_200_001: 80_000_001}, {80_100_099: 80_000_001}],
    ids=["few are unknown", "they are of this split"],
)
def test_other_unknown_images_get_no_hint_of_another_split(folder, answers):
    notes = scored(folder, as_answers(answers))["notes"]
    assert not any(note.startswith("WRONG SPLIT?") for note in notes)


def test_a_comparison_on_val_or_with_other_counts_is_called_unlike(folder):
    notes = scored(folder, as_answers(SVHN | DTD))["notes"]
    unlike = next(note for note in notes if note.startswith("Not like for like"))
    assert "yours are on val" in unlike
    assert "svhn has 3 images, 2 classes (officially 26,040, 10)" in unlike


def test_the_printed_table_shows_yours_above_the_published_rows(folder, capsys):
    scored(folder, as_answers(SVHN | DTD))
    lines = capsys.readouterr().out.splitlines()
    head = next(number for number, line in enumerate(lines) if "ImNt" in line)
    shown = [" ".join(line.split()) for line in lines[head + 1 :]]
    assert shown[0] == "yours (val) * - - - - 100.00 - - - 100.00 - 100.00 2000"
    assert shown[1].startswith("Scratch 59.87 57.10")
    assert shown[1].endswith("43.27 70.32 1625")
    assert len(PUBLISHED) == sum(line.startswith(row.method) for row in PUBLISHED for line in shown)


@pytest.mark.parametrize("inside", ["", "annotations/"], ids=["at the top", "in a sub-folder"])
def test_labels_and_answers_may_come_in_zips(folder, tmp_path, inside):
    labels, results, out = tmp_path / "l.zip", tmp_path / "results.zip", tmp_path / "out.json"
    with zipfile.ZipFile(labels, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, inside + path.name)
    with zipfile.ZipFile(results, "w") as archive:
        archive.writestr(inside + "results.json", json.dumps(as_answers(SVHN | DTD)))
    score.main([str(results), "--annotations", str(labels), "--json", str(out)])
    assert json.loads(out.read_text())["score"] == pytest.approx(2000)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not readable as JSON"),
        ('[{"image_id": 1', "not readable as JSON"),
        (b"\xff\xfe\x00", "not readable as JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "expected a list of"),
        ("{}", "expected a list of"),
        ("[3]", 'no whole number "image_id" in 3'),
        ('[{"image_id": 80100001}]', 'no whole number "category_id"'),
        ('[{"image_id": "80100001", "category_id": 80000001}]', 'no whole number "image_id"'),
        ('[{"image_id": 80100001.0, "category_id": 80000001}]', 'no whole number "image_id"'),
        ('[{"image_id": true, "category_id": 80000001}]', 'no whole number "image_id"'),
        ('[{"image_id": 80100001, "category_id": NaN}]', 'no whole number "category_id"'),
        ('[{"image_id": 80100001, "category_id": %s}]' % ("[" * 900 + "]" * 900), "category_id"),
    ],
)
def test_answers_in_another_form_are_refused_in_one_line(folder, text, told):
    assert told in complaint(folder, text)


@pytest.mark.parametrize(("key", "number"), [("image_id", 10**4000), ("category_id", -(2**64))])
def test_ids_of_more_than_64_bits_are_refused(folder, key, number):
    """Longer ones can be made to share a hash; a dict of 100,000 of them would take minutes."""
    answers = as_answers(SVHN)
    answers[0][key] = number
    assert f'no whole number "{key}"' in complaint(folder, json.dumps(answers))
    labels = coco(SVHN)
    labels["annotations"][0][key] = number
    (folder / "svhn_val.json").write_text(json.dumps(labels))
    assert f'no whole number "{key}"' in complaint(folder, json.dumps(as_answers(SVHN)))


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], 'a list "images"'),
        (coco(SVHN) | {"annotations": None}, 'a list "annotations"'),
        (coco(SVHN) | {"categories": []}, "none of the file's categories"),
        (coco(SVHN) | {"annotations": coco(SVHN)["annotations"] * 2}, "second label"),
        (coco(SVHN) | {"annotations": coco(SVHN)["annotations"][1:]}, "have none: [80100004]"),
        (coco({"a": 80_000_001}), 'no whole number "id"'),
        (coco(DTD), "two tasks label: [40100002, 40100001]"),
    ],
    ids=["list", "null", "no categories", "doubled", "unlabelled image", "string", "other task's"],
)
def test_labels_in_another_form_are_refused_in_one_line(folder, document, told):
    (folder / "svhn_val.json").write_text(json.dumps(document))
    message = complaint(folder, json.dumps(as_answers(SVHN)))
    assert told in message
    assert str(folder) in message


def test_a_folder_without_labels_tells_what_was_looked_for(folder):
    message = complaint(folder, json.dumps(as_answers(SVHN)), "--split", "test")
    assert "aircraft_test.json" in message
    assert "is --split test meant?" in message
    assert "labels_test.zip" in message


def test_missing_files_and_folders_are_told(folder, tmp_path):
    with pytest.raises(SpotTuneError, match="no results.json found"):
        score.main([str(tmp_path / "none.json"), "--annotations", str(folder)])
    (tmp_path / "results.json").write_text(json.dumps(as_answers(SVHN)))
    with pytest.raises(SpotTuneError, match="no such folder or zip file"):
        score.main([str(tmp_path / "results.json"), "--annotations", str(tmp_path / "none")])


def test_a_broken_or_bloated_zip_is_refused(folder, tmp_path, monkeypatch):
    results = tmp_path / "results.zip"
    results.write_text("no zip")
    with pytest.raises(SpotTuneError, match="not a readable zip"):
        score.main([str(results), "--annotations", str(folder)])
    with zipfile.ZipFile(results, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results.json", json.dumps(as_answers(SVHN)))
    results.write_bytes(results.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x03"))
    with pytest.raises(SpotTuneError, match="not a readable zip"):
        score.main([str(results), "--annotations", str(folder)])
    with zipfile.ZipFile(results, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results.json", " " * 5000)
    monkeypatch.setattr(submissions, "MAX_BYTES", 4999)
    with pytest.raises(SpotTuneError, match="results.json: 5,000 bytes"):
        score.main([str(results), "--annotations", str(folder)])


def test_a_zip_whose_headers_differ_is_refused_in_one_short_line(folder, tmp_path):
    results = tmp_path / "results.zip"
    with zipfile.ZipFile(results, "w") as archive:
        archive.writestr("results.json", "\x1b[2J\n" * 1000)
    data = bytearray(results.read_bytes())
    data[26:28] = (5000).to_bytes(2, "little")  # the length of the name, before the file itself
    results.write_bytes(data)
    with pytest.raises(SpotTuneError, match="not a readable zip") as error:
        score.main([str(results), "--annotations", str(folder)])
    assert str(error.value).isprintable()
    assert len(str(error.value)) < len(str(results)) + 200


def test_two_files_of_one_name_in_a_zip_are_refused(folder, tmp_path):
    results = tmp_path / "results.zip"
    with zipfile.ZipFile(results, "w") as archive:
        archive.writestr("a/results.json", "[]")
        archive.writestr("b/results.json", "[]")
    with pytest.raises(SpotTuneError, match="holds results.json 2 times"):
        score.main([str(results), "--annotations", str(folder)])


def test_the_figures_never_replace_the_answers(folder, tmp_path):
    results = tmp_path / "results.json"
    results.write_text(json.dumps(as_answers(SVHN)))
    before = results.read_bytes()
    with pytest.raises(SpotTuneError, match="is the file to be scored"):
        score.main([str(results), "--annotations", str(folder), "--json", str(results)])
    with pytest.raises(SpotTuneError, match="in a folder that exists"):
        score.main([str(results), "--json", str(tmp_path / "none" / "out.json")])
    assert results.read_bytes() == before


def test_the_command_ends_in_one_line_and_status_1_on_a_mistake(folder, tmp_path):
    (tmp_path / "results.json").write_text("[" * 100_000)
    command = [
        sys.executable,
        str(REPOSITORY / "score.py"),
        "results.json",
        "--annotations",
        str(folder),
    ]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == "error: results.json: nested too deeply; is this the right file?\n"


@pytest.fixture(scope="module")
def real_labels():
    if not REAL_LABELS.is_file():
        pytest.skip("the official test labels (labels_test.zip) are not at hand")
    return submissions.read_labels(REAL_LABELS, "test")


def test_the_real_test_labels_have_the_official_counts(real_labels):
    counts = {name: (len(own.by_image), len(own.categories)) for name, own in real_labels.items()}
    assert counts == {task.name: (task.num_test, task.num_classes) for task in TASKS}
    for name, own in real_labels.items():
        assert all(map(TASK_BY_NAME[name].owns, own.by_image))
        assert all(map(TASK_BY_NAME[name].owns, own.categories))


def test_answering_every_real_test_image_right_scores_10000(real_labels):
    answers = {i: [c] for own in real_labels.values() for i, c in own.by_image.items()}
    report = score.score(answers, real_labels, "test")
    assert report.accuracies == {task.name: 100 for task in TASKS}
    assert report.score == pytest.approx(10_000)
    assert report.notes == score.ABOUT_PUBLISHED  # like for like, nothing to warn of


def test_known_numbers_of_wrong_answers_give_the_score_worked_out_by_hand(real_labels):
    # dtd: 470 of 1,880 wrong, E = 25: 1000 * (1 - 25 / 88.94)^2 = 1000 * 0.71891^2 = 516.83.
    # svhn: 1,301 of 26,032 wrong, E = 4.99770: 1000 * (1 - 4.99770 / 6.90)^2 = 76.01.
    answers = {i: [c] for own in real_labels.values() for i, c in own.by_image.items()}
    for name, wrong in {"dtd": 470, "svhn": 1_301}.items():
        own = real_labels[name]
        for image in list(own.by_image)[:wrong]:
            answers[image] = [next(iter(own.categories - {own.by_image[image]}))]
    report = score.score(answers, real_labels, "test")
    assert report.accuracies["dtd"] == 75
    assert report.score == pytest.approx(8_000 + 516.83 + 76.01, abs=0.01)
