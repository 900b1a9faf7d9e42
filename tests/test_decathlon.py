"""The ten tasks' facts and the score S, against published figures and hand-made sums."""

import pytest

from decathlon import (
    COLUMNS,
    PUBLISHED,
    SOURCE,
    TARGETS,
    TASK_BY_NAME,
    TASKS,
    decathlon_score,
    task_points,
)

FINE_TUNING = next(row for row in PUBLISHED if row.method == "Fine-tuning")


def test_tasks_are_numbered_1_to_10_in_alphabetical_order():
    names = [task.name for task in TASKS]
    assert names == sorted(names)
    assert [task.number for task in TASKS] == list(range(1, 11))


def test_imagenet_is_the_source_and_the_other_nine_are_targets():
    assert SOURCE.name == "imagenet12"
    assert len(TARGETS) == 9
    assert SOURCE not in TARGETS


@pytest.mark.parametrize(
    ("an_id", "name"),
    [
        (10_000_001, "aircraft"),  # a category
        (61_381_167, "imagenet12"),  # the last image of val: its index passes 1,000,000
        (100_000_102, "vgg-flowers"),  # two digits of task number
        (9_999_999, None),
        (110_000_000, None),
        (-1, None),
    ],
)
def test_an_id_belongs_to_the_task_whose_number_it_carries(an_id, name):
    assert [task.name for task in TASKS if task.owns(an_id)] == ([name] if name else [])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_no_official_image_id_runs_into_the_next_task(task):
    num_images = task.num_train + task.num_val + task.num_test
    assert task.owns(task.number * 10_000_000 + 2 * 100_000 + num_images)


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.method)
def test_published_accuracies_give_the_published_score(row):
    counted = row.accuracies | row.assumed
    assert counted.keys() == TASK_BY_NAME.keys()
    assert row.accuracies.keys().isdisjoint(row.assumed)
    assert decathlon_score(counted) == pytest.approx(row.score, abs=3)


def test_what_was_not_reported_is_not_shown_as_published():
    starred = {row.method: set(row.assumed) for row in PUBLISHED if "*" in row.shown_score}
    assert starred == {
        "Fine-tuning (startune)": {"imagenet12", "svhn"},
        "SpotTune (startune)": {"imagenet12"},
    }
    assert {row.method for row in PUBLISHED if row.mean is None} == starred.keys()


def test_spottunes_lead_over_fine_tuning_with_its_own_recipe_is_as_the_notes_say():
    rows = {row.method: row.accuracies for row in PUBLISHED}
    tuned, spottune = rows["Fine-tuning (startune)"], rows["SpotTune (startune)"]
    leads = [spottune[task] - tuned[task] for task in tuned]
    assert (len(leads), min(leads), max(leads)) == (8, pytest.approx(0.07), pytest.approx(5.4))
    assert sum(leads) / len(leads) == pytest.approx(1.1, abs=0.05)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_fine_tuning_gets_250_points_in_every_task(task):
    # E_max was computed from unrounded errors; the published ones are rounded to 0.01 %.
    points = task_points(FINE_TUNING.accuracies[task.name], task.max_error)
    assert points == pytest.approx(250, abs=1)


@pytest.mark.parametrize(
    ("accuracy", "max_error", "points"),
    [
        (100, 40, 1000),  # no error
        (90, 40, 562.5),  # a quarter of E_max: 1000 * (3/4)^2
        (80, 40, 250),  # half of E_max
        (60, 40, 0),  # all of it
        (20, 40, 0),  # twice E_max: nothing, not 1000 * (-1)^2
    ],
)
def test_points_grow_with_the_square_of_what_is_left_of_the_largest_error(
    accuracy, max_error, points
):
    assert task_points(accuracy, max_error) == pytest.approx(points)


def test_the_score_adds_up_the_tasks_that_are_given():
    # svhn: E = 3.45 is half of 6.90, hence 250; dtd without error: 1000.
    assert decathlon_score({"svhn": 96.55, "dtd": 100.0}) == pytest.approx(1250)


def test_columns_name_each_task_once():
    assert sorted(COLUMNS) == [task.name for task in TASKS]


@pytest.mark.parametrize(
    ("decay", "names"),
    [
        (5e-4, {"aircraft", "daimlerpedcls", "omniglot", "ucf101"}),
        (1e-4, {"vgg-flowers", "imagenet12"}),
        (0.0, {"cifar100", "dtd", "gtsrb", "svhn"}),
    ],
)
def test_weight_decays_are_those_of_the_released_code(decay, names):
    assert {task.name for task in TASKS if task.weight_decay == decay} == names
