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

ROWS = {row.method: row for row in PUBLISHED}


def test_ten_tasks_are_numbered_in_alphabetical_order_and_imagenet_is_the_source():
    names = [task.name for task in TASKS]
    assert names == sorted(names) == sorted(COLUMNS)
    assert [task.number for task in TASKS] == list(range(1, 11))
    assert SOURCE.name == "imagenet12"
    assert set(TARGETS) == set(TASKS) - {SOURCE}


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


def test_classes_count_from_1_in_category_ids():
    ids = {task.name: task.first_category_id for task in TASKS}
    assert (ids["aircraft"], ids["vgg-flowers"]) == (10_000_001, 100_000_001)


def test_no_official_image_id_runs_into_the_next_task():
    for task in TASKS:
        num_images = task.num_train + task.num_val + task.num_test
        assert task.owns(task.number * 10_000_000 + 2 * 100_000 + num_images), task.name


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.method)
def test_published_accuracies_give_the_published_score(row):
    counted = row.accuracies | row.assumed
    assert counted.keys() == TASK_BY_NAME.keys()
    assert row.accuracies.keys().isdisjoint(row.assumed)
    assert decathlon_score(counted) == pytest.approx(row.score, abs=3)


def test_what_was_not_reported_is_not_shown_as_published():
    starred = {name: set(row.assumed) for name, row in ROWS.items() if "*" in row.shown_score}
    assert starred == {
        "Fine-tuning (startune)": {"imagenet12", "svhn"},
        "SpotTune (startune)": {"imagenet12"},
    }
    assert {name for name, row in ROWS.items() if row.mean is None} == starred.keys()


def test_spottunes_lead_over_fine_tuning_with_its_own_recipe_is_as_the_notes_say():
    tuned, spottune = (
        ROWS[f"{name} (startune)"].accuracies for name in ("Fine-tuning", "SpotTune")
    )
    leads = [spottune[task] - tuned[task] for task in tuned]
    assert (len(leads), min(leads), max(leads)) == (8, pytest.approx(0.07), pytest.approx(5.4))
    assert sum(leads) / len(leads) == pytest.approx(1.1, abs=0.05)


def test_fine_tuning_gets_250_points_in_every_task():
    # E_max was computed from unrounded errors; the published ones are rounded to 0.01 %.
    for name, accuracy in ROWS["Fine-tuning"].accuracies.items():
        assert task_points(accuracy, TASK_BY_NAME[name].max_error) == pytest.approx(250, abs=1)


@pytest.mark.parametrize(
    ("accuracy", "points"),
    [
        (100, 1000),  # no error
        (90, 562.5),  # a quarter of E_max: 1000 * (3/4)^2
        (80, 250),  # half of E_max
        (60, 0),  # all of it
        (20, 0),  # twice E_max: nothing, not 1000 * (-1)^2
    ],
)
def test_points_grow_with_the_square_of_what_is_left_of_the_largest_error(accuracy, points):
    assert task_points(accuracy, max_error=40) == pytest.approx(points)


def test_weight_decays_are_those_of_the_released_code():
    names = {task.weight_decay: set() for task in TASKS}
    for task in TASKS:
        names[task.weight_decay].add(task.name)
    assert names == {
        5e-4: {"aircraft", "daimlerpedcls", "omniglot", "ucf101"},
        1e-4: {"vgg-flowers", "imagenet12"},
        0.0: {"cifar100", "dtd", "gtsrb", "svhn"},
    }
