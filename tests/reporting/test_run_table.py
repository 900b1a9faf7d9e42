"""The table at the end of a run."""

from made_up_runs import record

from reporting.run_table import table


def test_the_mean_is_over_the_tasks_that_were_evaluated():
    last = {
        "dtd": record(2, 40.0, blocks_per_image=[4, 6]),
        "svhn": record(2, 90.0),
        "gtsrb": record(3, 99.0) | {"val_accuracy": None},
    }
    rows = [line.split() for line in table(last).splitlines() if line]
    # 6 of 10 images fine-tune 1 of 12 blocks: 5 %.
    assert rows[1:] == [
        ["dtd", "2", "40.00", "40.00", "5.0"],
        ["svhn", "2", "90.00", "90.00", "-"],
        ["gtsrb", "3", "99.00", "-", "-"],
        ["mean", "65.00"],
    ]
