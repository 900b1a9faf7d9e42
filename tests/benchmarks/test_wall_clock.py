"""The arithmetic behind the expected wall-clock times, against figures worked out by hand."""

import pytest

from benchmarks.wall_clock import (
    Rates,
    all_reduce_seconds,
    longest_first,
    lower_bound,
    main,
    random_orders,
    source_seconds,
    target_seconds,
    wall_clock,
)
from decathlon import SOURCE, TARGETS, TASK_BY_NAME

TWO_CORES = Rates(73, 139, 311, start=0, launch=0, bandwidth=1e9, network=1e9)  # see the README


@pytest.mark.parametrize(
    ("seconds", "gpus", "expected"),
    [
        ([1, 1, 1, 3], 2, 4),  # 1 1 3 | 1: the long one comes last
        ([3, 1, 1, 1], 2, 3),  # 3 | 1 1 1
        ([3, 3, 2, 2, 2], 2, 7),  # 3 2 2 | 3 2, where 3 3 | 2 2 2 would take 6
        ([5, 4, 3, 3, 3], 3, 7),  # 5 | 4 3 | 3 3
        ([2, 2, 2], 8, 2),
    ],
)
def test_a_task_starts_on_the_gpu_that_is_free_first(seconds, gpus, expected):
    assert wall_clock(seconds, gpus) == expected


def test_longest_first_does_not_depend_on_the_order_it_is_told():
    assert longest_first([1, 1, 1, 3], 2) == 3
    assert longest_first([3, 1, 1, 1], 2) == 3


@pytest.mark.parametrize(("gpus", "bound"), [(1, 12), (2, 6), (3, 5), (8, 5)])
def test_no_packing_beats_an_even_share_or_the_longest_task(gpus, bound):
    assert lower_bound([5, 4, 3], gpus) == bound


def test_longest_first_is_at_most_a_third_above_the_bound_and_random_orders_are_above_it():
    """Graham's bound, 4/3 of the best packing; on the nine targets it does better."""
    seconds = [target_seconds(task, TWO_CORES, 110) for task in TARGETS]
    for gpus in (2, 3, 4):
        orders = random_orders(seconds, gpus)
        packed, bound = longest_first(seconds, gpus), lower_bound(seconds, gpus)
        assert bound <= packed <= 4 / 3 * bound
        assert packed < sum(orders) / len(orders)
        assert min(orders) >= bound


def test_the_rates_measured_on_two_cores_give_the_hours_that_the_readme_tells():
    hours = sum(target_seconds(task, TWO_CORES, 110) for task in TARGETS) / 3600
    assert hours == pytest.approx(140, abs=1)


@pytest.mark.parametrize(
    ("task", "seconds"),
    [  # images / 73 x pixels / 64^2 + val images / 311 x pixels / 72^2
        ("aircraft", 6_667 / 73 + 3_333 / 311),
        ("svhn", 73_257 / 73 * 81 / 64 + 26_040 / 311),
        ("daimlerpedcls", 29_400 / 73 * 81 / 32 + 5_880 / 311 * 2),
    ],
)
def test_an_epoch_takes_its_images_times_their_pixels(task, seconds):
    assert target_seconds(TASK_BY_NAME[task], TWO_CORES, 1) == pytest.approx(seconds)


def test_a_ring_sends_every_gradient_almost_twice():
    assert all_reduce_seconds(1_000_000, 1, 1e9) == 0
    assert all_reduce_seconds(1_000_000, 2, 1e9) == pytest.approx(0.004)
    assert all_reduce_seconds(1_000_000, 8, 1e9) == pytest.approx(0.007)


def test_the_source_gains_from_gpus_until_a_step_is_launched_slower_than_it_is_computed():
    """128 images at 1,280 a second take 0.1 s; 0.03 s to launch one are reached at 4 GPUs."""
    rates = Rates(1, 1280, 1e12, start=0, launch=0.03, bandwidth=1e18, network=1e18)
    steps = (SOURCE.num_train + SOURCE.num_val) / 128
    for gpus, step in ((1, 0.1), (2, 0.05), (4, 0.03), (8, 0.03)):
        seconds = source_seconds(rates, 1, 128 / gpus, gpus, epochs=2)
        assert seconds == pytest.approx(2 * steps * step)


def test_the_source_is_evaluated_by_one_gpu_however_many_train():
    rates = Rates(1, 1e12, 100, start=0, launch=0, bandwidth=1e18, network=1e18)
    for gpus in (1, 8, 32):
        seconds = source_seconds(rates, 1, 128, gpus, epochs=3)
        assert seconds == pytest.approx(3 * SOURCE.num_val / 100)


def test_the_slower_network_counts_as_soon_as_there_are_two_machines():
    rates = Rates(1, 1e12, 1e12, start=0, launch=0, bandwidth=8e9, network=1e9)
    steps = (SOURCE.num_train + SOURCE.num_val) / 128
    for gpus, bandwidth in ((8, 8e9), (16, 1e9)):
        expected = steps / gpus * 2 * (gpus - 1) / gpus * 4e6 / bandwidth
        assert source_seconds(rates, 10**6, 128, gpus, 1) == pytest.approx(expected, rel=1e-3)


def test_the_table_says_that_its_rates_are_assumed_and_where_scaling_stops(capsys):
    main([])
    said = capsys.readouterr().out
    assert said.startswith("Rates: ASSUMED: no GPU has been measured.\n")
    assert "The targets stop scaling at 4 GPUs: svhn alone takes" in said
    assert "the source is quickest on 4 GPUs" in said
    main(["--rates_are", "measured on two cores"])
    assert capsys.readouterr().out.startswith("Rates: measured on two cores.\n")
