"""The records of a run in their other forms: as a table, and as TensorBoard's events."""

import csv
import io
import sys

import pytest
from conftest import left, records

from engine.events import FILES, scalars
from engine.records import records_as_csv
from runtime.errors import SpotTuneError

HISTORY = [
    {"epoch": 1, "train_loss": 0.25, "val_accuracy": None, "val_class_recall": None},
    {
        "epoch": 2,
        "train_loss": 0.1,
        "val_accuracy": 50.0,
        "val_class_recall": [100.0, None],
        "val_seen_in_training": False,
        "val_policies": {"sample": {"val_loss": 1.5}},
    },
]


def test_the_table_has_a_row_an_epoch_and_a_column_for_all_that_any_epoch_recorded():
    first, second = csv.DictReader(io.StringIO(records_as_csv(HISTORY)))
    assert (first["epoch"], first["train_loss"], first["val_accuracy"]) == ("1", "0.25", "")
    assert (second["val_class_recall"], second["val_policies.sample.val_loss"]) == (
        "100.0 nan",
        "1.5",
    )


def test_an_event_is_a_number_of_a_record():
    assert list(scalars(HISTORY[0])) == [("train/loss", 0.25)]
    assert dict(scalars(HISTORY[1])) == {
        "train/loss": 0.1,
        "val/accuracy": 50.0,
        "val/class_recall/0": 100.0,
        "val/policies/sample/val_loss": 1.5,
    }


def test_the_table_a_run_leaves_holds_its_records(trained):
    with (trained.ckpdir / "svhn/records.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row, record in zip(rows, records(trained.ckpdir), strict=True):
        assert float(row["train_loss"]) == record["train_loss"]
        shares = [float(share) for share in row["val_fine_tuned_share"].split()]
        assert shares == record["val_fine_tuned_share"]


@pytest.fixture
def reader():
    return pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def losses(reader, folder):
    """Step and value of each event of the training loss."""
    (file,) = folder.glob(FILES)
    events = reader.EventAccumulator(str(file))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def test_a_continued_run_has_one_event_an_epoch(reader, trained, tmp_path):
    for epochs in (2, 3, 3):  # the last time there is nothing left to train
        trained.again(tmp_path, "--tasks", "svhn", "--nb_epochs", epochs, "--tensorboard")
        expected = [(record["epoch"], record["train_loss"]) for record in left(tmp_path).history]
        assert losses(reader, tmp_path / "svhn") == [
            (step, pytest.approx(loss)) for step, loss in expected
        ]
        assert len(expected) == epochs


def test_without_tensorboard_the_flag_is_refused_before_any_training(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SpotTuneError, match="pip install tensorboard"):
        trained.again(tmp_path, "--tasks", "svhn", "--tensorboard")
    assert not (tmp_path / "svhn").exists()
