"""Offline scoring, on hand-made labels and on the real test labels where they are at hand."""

import json

import pytest
from conftest import SHARED, refusal
from released_files import zip_of

import score
from challenge import scoring, submissions
from decathlon import ABOUT_PUBLISHED, PUBLISHED, TASK_BY_NAME, TASKS

# Image id -> category id. svhn is task 8 and dtd task 4; val is split 1. Listed out of order, so
# that scoring by position would show.
SVHN = {80_100_004: 80_000_002, 80_100_001: 80_000_001, 80_100_003: 80_000_002}
DTD = {40_100_002: 40_000_001, 40_100_001: 40_000_002}


def coco(labels):
    """An annotation file that holds these labels."""
    return {
        "images": [{"id": image, "file_name": f"data/{image}.jpg"} for image in labels],
        "annotations": [{"id": i, "image_id": i, "category_id": c} for i, c in labels.items()],
        "categories": [{"id": c} for c in sorted(set(labels.values()))],
    }


def as_answers(labels):
    return [{"image_id": i, "category_id": c} for i, c in sorted(labels.items())]


RIGHT = as_answers(SVHN | DTD)


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


def complaint(folder, content, *options, name="results.json"):
    """The error that these bytes or this text as answers must give."""
    results = folder.parent / name
    results.write_bytes(content if isinstance(content, bytes) else content.encode())
    return refusal(score.main, [str(results), "--annotations", str(folder), *options])


# Figures.


def test_answers_meet_labels_by_image_id_and_not_by_position(folder):
    figures = scored(folder, RIGHT)
    assert (figures["score"], figures["mean"]) == (pytest.approx(2000), 100)
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
    points = [figures["score"], figures["tasks"]["dtd"]["points"]]
    assert points == pytest.approx([191.69, 191.69], abs=0.01)
    assert figures["mean"] == pytest.approx((50 + 66.6667) / 2, abs=1e-4)


@pytest.mark.parametrize(
    ("answers", "correct", "problem"),
    [
        (RIGHT[:-1], 2, "missing: 80100004"),
        ([*RIGHT, RIGHT[-1]], 2, "doubled: 80100004"),
        ([*RIGHT, *as_answers({80_100_001: 80_000_002})], 2, "doubled: 80100001"),
        (as_answers(SVHN | DTD | {80_100_001: 40_000_001}), 2, "foreign: 80100001"),
        (as_answers(SVHN | DTD | {80_100_001: 80_000_009}), 2, "foreign: 80100001"),
        ([*RIGHT, *as_answers(dict.fromkeys(range(80_100_010, 80_100_014), 80_000_001))], 3,
         "unknown: 80100010, 80100011, 80100012, ..."),
    ],
)  # fmt: skip
def test_a_missing_doubled_or_foreign_answer_is_wrong(folder, answers, correct, problem):
    figures = scored(folder, answers)
    assert figures["tasks"]["svhn"][problem.partition(":")[0]] == (4 if correct == 3 else 1)
    assert figures["tasks"]["svhn"]["correct"] == correct
    assert figures["tasks"]["svhn"]["accuracy"] == pytest.approx(100 * correct / 3)
    assert figures["problems"] == [f"svhn, {problem}"]


def test_the_mean_is_of_the_answered_tasks_and_s_loses_the_others_points(folder, capsys):
    figures = scored(folder, as_answers(DTD))
    assert (figures["mean"], len(figures["tasks"])) == (100, 2)
    assert figures["score"] == pytest.approx(1000)
    shown = capsys.readouterr().out
    assert "+ mean over 1 of 10 tasks (those answered), S over 2 of 10" in shown
    assert "NOT ANSWERED: svhn. They count 0 points in S" in shown


def test_tasks_left_out_or_without_labels_are_not_scored_and_named(folder):
    (folder / "ucf101_val.json").write_text(json.dumps(coco(DTD) | {"annotations": []}))
    strange = as_answers({90_100_001: 90_000_001, 10_100_001: 10_000_001, 5: 1})
    figures = scored(folder, [*RIGHT, *strange], "--tasks", "dtd", "ucf101", "aircraft")
    assert list(figures["tasks"]) == ["dtd"]
    assert figures["problems"] == ["no task, unknown: 5"]  # answers to other tasks are not unknown
    assert figures["notes"][0].startswith("NOT SCORED: aircraft, ucf101. There is no")


@pytest.mark.parametrize(
    ("answers", "asks"),
    [({80_200_001: 80_000_001}, True), (SVHN | {80_200_001: 80_000_001}, False)],
    ids=["of another split", "one unknown"],
)
def test_where_no_task_is_answered_the_split_is_asked_about(folder, answers, asks):
    notes = scored(folder, as_answers(answers))["notes"]
    assert ("NO TASK IS ANSWERED: was --split val meant?" in notes) == asks


def test_the_table_shows_yours_above_the_published_rows_and_in_what_they_differ(folder, capsys):
    scored(folder, RIGHT)
    text = " ".join(capsys.readouterr().out.split())
    assert "UCF mean S yours (val) + - - - - 100.00 - - - 100.00 - 100.00 2000 Scratch" in text
    assert "Scratch 59.87 57.10" in text
    assert all(f" {row.method} " in text and f" {row.shown_score} " in text for row in PUBLISHED)
    assert "Not like for like with the published rows: yours are on val, not on test;" in text
    assert "svhn has 3 images, 2 classes (officially 26,040, 10)" in text


# Files.


@pytest.mark.parametrize("inside", ["", "annotations/"], ids=["at the top", "in a sub-folder"])
def test_labels_and_answers_may_come_in_zips(folder, tmp_path, inside):
    labels, results, out = tmp_path / "l.zip", tmp_path / "results.zip", tmp_path / "out.json"
    labels.write_bytes(zip_of({inside + path.name: path.read_text() for path in folder.iterdir()}))
    results.write_bytes(zip_of({f"{inside}results.json": json.dumps(RIGHT)}))
    score.main([str(results), "--annotations", str(labels), "--json", str(out)])
    assert json.loads(out.read_text())["score"] == pytest.approx(2000)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[3]",
        '[{"image_id": "80100001", "category_id": 80000001}]',
        '[{"image_id": true, "category_id": 80000001}]',
        # Longer than 64 bits: they can share a hash; a dict of 100,000 of them takes minutes.
        '[{"image_id": 1%s, "category_id": 1}]' % ("0" * 4000),
    ],
)
def test_answers_in_another_form_are_refused_in_one_line(folder, text):
    assert 'expected a list of {"image_id": whole number' in complaint(folder, text)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "[" * 100_000], ids=["binary", "deep"])
def test_answers_that_are_no_json_are_refused_in_one_line(folder, content):
    assert "not readable as JSON" in complaint(folder, content)


def test_labels_of_one_image_in_two_files_are_refused(folder):
    (folder / "svhn_val.json").write_text(json.dumps(coco(DTD)))
    assert f"{folder}: images that two tasks label" in complaint(folder, json.dumps(RIGHT))


def test_what_is_not_there_is_told_with_what_was_looked_for(folder, tmp_path):
    answers = json.dumps(RIGHT)
    message = complaint(folder, answers, "--split", "test")
    for part in ("aircraft_test.json", "is --split test meant?", "labels_test.zip"):
        assert part in message
    assert "no such folder or zip file" in complaint(tmp_path / "none", answers)
    nothing = [str(tmp_path / "none.json"), "--annotations", str(folder)]
    assert "no results.json found" in refusal(score.main, nothing)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (zip_of({"results.json": ""}).replace(b"PK\x01\x02", b"PK\x01\x03"), "not a readable zip"),
        (zip_of({"a/results.json": "", "b/results.json": ""}), "holds results.json 2 times"),
        (zip_of({"another.json": ""}), "no results.json found"),
        (zip_of({"results.json": " " * 5000}), "results.json: 5,000 bytes, more than any file"),
    ],
    ids=["damaged", "two", "none", "bloated"],
)
def test_a_zip_without_readable_answers_is_refused(folder, content, told, monkeypatch):
    monkeypatch.setattr(submissions, "MAX_BYTES", 4999)
    assert told in complaint(folder, content, name="results.zip")


def test_the_figures_never_replace_the_answers(folder, tmp_path):
    out = str(tmp_path / "results.json")
    assert "this file is to be scored" in complaint(folder, json.dumps(RIGHT), "--json", out)
    assert json.loads((tmp_path / "results.json").read_text()) == RIGHT


# The official test labels.


@pytest.fixture(scope="module")
def real_labels():
    path = SHARED / "official/labels_test.zip"
    if not path.is_file():
        pytest.skip("the official test labels (labels_test.zip) are not at hand")
    return submissions.read_labels(path, "test", TASK_BY_NAME)


def test_the_real_test_labels_have_the_official_counts(real_labels):
    counts = {name: (len(own.by_image), len(own.categories)) for name, own in real_labels.items()}
    assert counts == {task.name: (task.num_test, task.num_classes) for task in TASKS}
    for name, own in real_labels.items():
        assert all(map(TASK_BY_NAME[name].owns, [*own.by_image, *own.categories]))


def test_answers_to_the_real_test_images_give_the_score_worked_out_by_hand(real_labels):
    # dtd: 470 of 1,880 wrong, E = 25: 1000 * (1 - 25 / 88.94)^2 = 1000 * 0.71891^2 = 516.83.
    # svhn: 1,301 of 26,032 wrong, E = 4.99770: 1000 * (1 - 4.99770 / 6.90)^2 = 76.01.
    answers = {i: [c] for own in real_labels.values() for i, c in own.by_image.items()}
    for name, wrong in {"dtd": 470, "svhn": 1_301}.items():
        own = real_labels[name]
        for image in list(own.by_image)[:wrong]:
            answers[image] = [next(iter(own.categories - {own.by_image[image]}))]
    report = scoring.score(answers, real_labels, "test", list(TASK_BY_NAME))
    assert report.tasks["dtd"].accuracy == 75
    assert report.score == pytest.approx(8_000 + 516.83 + 76.01, abs=0.01)
    assert report.notes == list(ABOUT_PUBLISHED)  # like for like, nothing to warn of
