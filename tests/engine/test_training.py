"""The schedule, the step, and the record of an epoch."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import CPU, SETTINGS, memory_hungry, tiny_method

from decathlon import TASK_BY_NAME
from engine.evaluation import InPieces, predict, summarise
from engine.fit import not_finite
from engine.settings import Settings
from engine.step import (
    EpochSums,
    Trainer,
    lr_multiplier,
    noise_for,
    num_steps,
    rate_multiplier,
    temperature_in,
    train_epoch,
)
from image_cache.batches import TaskData
from image_cache.packed import DataFolders
from imdbfolder_coco import load_images, view_of
from methods.optimizers import Rates
from runtime.devices import Compute
from runtime.distributed import ALONE
from runtime.errors import SpotTuneError

MEAN_STD = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
RATES, STILL = Rates(0.1, 0.01, 5e-4), Rates(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("milestones", "epoch", "multiplier"),
    [
        *[((40,), epoch, 1.0) for epoch in (0, 39)],
        *[((40,), epoch, 0.1) for epoch in (40, 60, 80, 109)],
        *[((40, 60, 80), epoch, 10.0**-drops) for epoch, drops in ((39, 0), (40, 1), (59, 1))],
        *[((40, 60, 80), epoch, 10.0**-drops) for epoch, drops in ((60, 2), (80, 3), (109, 3))],
    ],
)
def test_learning_rates_drop_tenfold_at_each_milestone(milestones, epoch, multiplier):
    assert lr_multiplier(epoch, milestones) == pytest.approx(multiplier)


@pytest.mark.parametrize(
    ("changes", "of_steps"),
    [  # two steps in each of four epochs
        ({"milestones": [2]}, [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]),
        ({"warmup": 1.0, "milestones": [2]}, [1 / 2, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]),
        ({"warmup": 1.5, "milestones": []}, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        # Half of 1 + cos of 0, 1/8, ... of a half turn; after a warm-up of 0, 1/6, ...
        (
            {"schedule": "cosine"},
            [1.0, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381],
        ),
        (
            {"schedule": "cosine", "warmup": 1.0},
            [1 / 2, 1.0, 1.0, 0.9330, 0.75, 0.5, 0.25, 0.0670],
        ),
    ],
)
def test_rates_rise_in_a_warm_up_and_fall_by_steps_or_along_a_cosine(changes, of_steps):
    settings = Settings.from_plain({**SETTINGS, "epochs": 4, **changes})
    found = [rate_multiplier(settings, epoch, step, 2) for epoch in range(4) for step in range(2)]
    assert found == pytest.approx(of_steps, abs=1e-4)


@pytest.mark.parametrize(("epochs", "of_epochs"), [(1, [5]), (2, [5, 1]), (5, [5, 4, 3, 2, 1])])
def test_the_temperature_goes_to_the_final_one_by_equal_steps(epochs, of_epochs):
    plain = {**SETTINGS, "epochs": epochs, "temperature": 5.0, "final_temperature": 1.0}
    settings = Settings.from_plain(plain)
    assert [temperature_in(settings, epoch) for epoch in range(epochs)] == pytest.approx(of_epochs)


@pytest.fixture
def data(decathlon_root, tmp_path):
    """The 12 images of svhn's train, of 3 classes."""
    folders = DataFolders(decathlon_root, decathlon_root / "annotations", tmp_path)
    images = load_images(TASK_BY_NAME["svhn"], ["train"], folders, 16)
    view = view_of(TASK_BY_NAME["svhn"], images, 16, 16, training=True)
    return TaskData(images, view, MEAN_STD, CPU.device)


@pytest.fixture
def method():
    return tiny_method()


def epoch(method, data, seed=(0, "svhn", 0), compute=CPU, rates=RATES):
    """A whole epoch in batches of 5, 5 and 2, without anything between its steps."""
    trainer = Trainer(method, rates, compute, batch_size=5)
    sums = EpochSums.zero(method.num_blocks, CPU.device)
    for _ in train_epoch(trainer, data, seed, "svhn", sums):
        pass
    return sums.averages(len(data.images))


def predictions(method, data, size=5, policy="argmax", seed=0, compute=CPU):
    return predict(method, data, size, policy, (seed, "svhn"), compute, "svhn")


def test_an_epoch_is_a_function_of_its_seed(method, data):
    twin, other = copy.deepcopy(method), copy.deepcopy(method)
    torch.manual_seed(11)
    result = epoch(method, data)
    torch.manual_seed(12)
    assert epoch(twin, data) == result
    assert epoch(other, data, seed=(0, "svhn", 1)) != result
    for ours, theirs in zip(method.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_averages_are_taken_over_images_and_not_over_batches(method, data):
    """By hand, with weights that do not move: uneven batches, and losses from far to near."""
    twin = copy.deepcopy(method).train()
    result = epoch(method, data, rates=STILL)
    noise = noise_for(twin, 12, 0, "svhn", 0)
    losses, correct = [], 0
    for part in data.training_batches(5, (0, "svhn", 0), "", 0, ALONE):
        scores, _ = twin(part.images_N3HW, noise[part.positions])
        losses += F.cross_entropy(scores, part.labels_N, reduction="none").tolist()
        correct += (scores.argmax(1) == part.labels_N).sum().item()
    assert [len(losses), result["train_accuracy"]] == [12, pytest.approx(100 * correct / 12)]
    assert result["train_loss"] == pytest.approx(sum(losses) / 12, rel=1e-5)
    uneven, whole = (predictions(method, data, size) for size in (5, 12))
    assert summarise(uneven, data.images).loss == pytest.approx(whole.losses.mean(), rel=1e-4)


@pytest.mark.parametrize(("images", "steps"), [(1, 1), (5, 1), (6, 2), (10, 2), (11, 3)])
def test_a_last_batch_that_is_smaller_is_a_step_too(images, steps):
    assert num_steps(images, batch_size=5) == steps


def test_the_share_of_fine_tuned_decisions_is_counted_per_block(method, data):
    head = method.policy_net.resnet.head.linear
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([[50.0, 0.0], [0.0, 50.0]]).repeat(6, 1).flatten())
    assert epoch(method, data, rates=STILL)["train_fine_tuned_share"] == [0.0, 1.0] * 6
    tested = summarise(predictions(method, data), data.images)
    assert tested.fine_tuned_share == [0.0, 1.0] * 6
    assert tested.blocks_per_image == [0] * 6 + [12] + [0] * 6


def test_predictions_do_not_depend_on_the_batch_size(method, data):
    for policy in ("argmax", "sample"):
        small, large = (predictions(method, data, size, policy) for size in (1, 12))
        assert np.array_equal(small.decisions, large.decisions)
        np.testing.assert_allclose(small.losses, large.losses, rtol=1e-4)


def test_sampled_test_decisions_are_seeded_and_differ_from_the_likelier_ones(method, data):
    def decisions(policy, seed):
        return predictions(method, data, policy=policy, seed=seed).decisions

    assert np.array_equal(decisions("sample", 0), decisions("sample", 0))
    assert not np.array_equal(decisions("sample", 0), decisions("sample", 1))
    assert np.array_equal(decisions("argmax", 0), decisions("argmax", 1))


def test_evaluation_changes_nothing(method, data):
    before = copy.deepcopy(method.state_dict())
    predictions(method, data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


def test_bf16_trains_and_predicts_close_to_fp32(method, data):
    twin, bf16 = copy.deepcopy(method), Compute(torch.device("cpu"), "bf16")
    exact, rounded = epoch(method, data), epoch(twin, data, compute=bf16)
    assert rounded["train_loss"] == pytest.approx(exact["train_loss"], rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in twin.parameters())
    exact, rounded = (predictions(method, data, compute=compute) for compute in (CPU, bf16))
    assert rounded.losses.mean() == pytest.approx(exact.losses.mean(), rel=0.05)


def test_large_weights_whose_sum_overflows_are_finite():
    assert not_finite({"weight": torch.full((10,), 3e38), "steps": 2}) == []


# Memory.


@pytest.mark.filterwarnings(
    "ignore:.*use of fork"
)  # beside pytest's threads, which the child lacks
def test_out_of_memory_in_training_is_one_line_with_a_hint_and_no_smaller_batch(with_little_memory):
    method, *whole = memory_hungry()
    trainer = Trainer(method, STILL, CPU, 100)
    trainer.step(*(each[:1] for each in whole))  # loads the libraries
    line = "out of memory on cpu in a training step of 100 images of 64 x 64 pixels.*--batch_size"

    def too_large():
        with pytest.raises(SpotTuneError, match=line):
            trainer.step(*whole)

    with_little_memory(too_large)


@pytest.mark.filterwarnings("ignore:.*use of fork")
@torch.no_grad()
def test_out_of_memory_in_evaluation_is_said_and_gives_the_same_answers(with_little_memory, capfd):
    method, images, _, noise = memory_hungry()
    evaluator = method.eval().evaluator()
    expected = torch.cat([scores for scores, *_ in InPieces(evaluator, CPU)(images, noise)])
    assert capfd.readouterr().out == ""

    def in_pieces():
        parts = list(InPieces(evaluator, CPU)(images, noise))
        torch.testing.assert_close(torch.cat([scores for scores, *_ in parts]), expected)
        assert [i for *_, part in parts for i in range(100)[part]] == list(range(100))

    said = with_little_memory(in_pieces)
    assert "out of memory in predicting 100 images at once; continuing with 50" in said
