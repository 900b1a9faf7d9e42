"""The arithmetic behind the expected wall-clock times, against figures worked out by hand."""

import pytest

from benchmarks import wall_clock
from decathlon import SOURCE, TASK_BY_NAME

STEPS = 120 * (SOURCE.num_train + SOURCE.num_val) / 128  # of the source's training


@pytest.mark.parametrize(
    ("seconds", "gpus", "expected"),
    [
        ([1, 1, 1, 3], 2, 4),  # 1 1 3 | 1: the long one comes last
        ([3, 1, 1, 1], 2, 3),  # 3 | 1 1 1
        ([3, 3, 2, 2, 2], 2, 7),  # 3 2 2 | 3 2, where 3 3 | 2 2 2 would take 6
        ([2, 2, 2], 8, 2),
    ],
)
def test_a_task_starts_on_the_gpu_that_is_free_first(seconds, gpus, expected):
    assert wall_clock.wall_clock(seconds, gpus) == expected


@pytest.mark.parametrize(
    ("task", "seconds"),
    [  # images / 73 x pixels / 64^2 + val images / 311 x pixels / 72^2
        ("aircraft", 6_667 / 73 + 3_333 / 311),
        ("svhn", 73_257 / 73 * 81 / 64 + 26_040 / 311),
        ("daimlerpedcls", 29_400 / 73 * 81 / 32 + 5_880 / 311 * 2),
    ],
)
def test_a_target_takes_its_images_times_their_pixels(task, seconds):
    found = wall_clock.target_seconds(TASK_BY_NAME[task], 73, 311)
    assert found == pytest.approx(110 * seconds + 30)


def test_the_rates_measured_on_two_cores_give_the_hours_that_the_docs_tell():
    rows = wall_clock.measure(73, 311, "measured")["by GPUs"]
    hours = {gpus: round(row["longest first"] / 3600, 2) for gpus, row in rows.items()}
    assert hours == {1: 140.75, 2: 70.5, 4: 41.37, 8: 41.37, 32: 41.37}
    assert all(row["lower bound"] <= row["longest first"] for row in rows.values())


@pytest.mark.parametrize(
    ("rate", "parameters", "gpus", "step"),
    [  # seconds; 128 images at 8,000 a second take 16 ms
        (8000, 0, 1, 0.016),
        (8000, 0, 8, 0.004),  # a host launches no step more quickly
        (8000, 10**9, 8, 0.004 + 2 * 7 / 8 * 4 / 200),  # a ring sends every gradient almost twice
        (8000, 10**9, 32, 0.004 + 2 * 31 / 32 * 4 / 25),  # over the slower network
    ],
)
def test_the_source_takes_its_steps_and_the_evaluations_of_one_gpu(rate, parameters, gpus, step):
    expected = STEPS * step + 120 * SOURCE.num_val / 100 + 30
    assert wall_clock.source_seconds(rate, 100, parameters, gpus) == pytest.approx(expected)


def test_the_table_says_that_its_rates_are_assumed_and_where_scaling_stops():
    said = wall_clock.table(wall_clock.measure(5000, None, wall_clock.ASSUMED))
    assert said.startswith("Rates: ASSUMED: no GPU has been measured.\n")
    assert "The targets stop scaling at 4 GPUs: svhn alone takes" in said
    assert "The source is quickest on 4." in said
