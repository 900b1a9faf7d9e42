"""The schedule, the step, and the record of an epoch."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from decathlon import TASK_BY_NAME
from engine.evaluation import predict, summarise
from engine.step import EpochSums, Trainer, lr_multiplier, noise_for
from engine.step import train_epoch as train_epoch_from
from image_cache.batches import TaskData
from image_cache.packed import DataFolders
from imdbfolder_coco import load_images, view_of
from methods.baselines import PlainNetwork
from methods.optimizers import Rates
from methods.registry import build_method
from models.resnet26 import resnet26
from runtime.devices import Compute
from runtime.distributed import ALONE

CPU = Compute(torch.device("cpu"), "fp32")
MEAN_STD = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    ("epoch", "multiplier"),
    [(0, 1.0), (39, 1.0), (40, 0.1), (59, 0.1), (60, 0.1), (80, 0.1), (109, 0.1)],
)
def test_by_default_learning_rates_drop_once_as_the_released_code_does(epoch, multiplier):
    assert lr_multiplier(epoch, milestones=(40,)) == pytest.approx(multiplier)


@pytest.mark.parametrize(
    ("epoch", "multiplier"),
    [(39, 1.0), (40, 0.1), (59, 0.1), (60, 0.01), (80, 0.001), (109, 0.001)],
)
def test_learning_rates_drop_tenfold_at_each_milestone(epoch, multiplier):
    assert lr_multiplier(epoch, milestones=(40, 60, 80)) == pytest.approx(multiplier)


@pytest.fixture
def data(decathlon_root, tmp_path):
    folders = DataFolders(decathlon_root, decathlon_root / "annotations", tmp_path)
    images = load_images(TASK_BY_NAME["svhn"], ["train"], folders, 16)
    view = view_of(TASK_BY_NAME["svhn"], images, 16, 16, training=True)
    return TaskData(images, view, MEAN_STD, CPU.device)


@pytest.fixture
def method():
    torch.manual_seed(0)
    method = build_method("spottune", resnet26(2, width=4), 4)
    for pair in method.net.pairs:
        for parameter in pair.fine_tuned.parameters():
            parameter.data.mul_(1.5)
    return method


def train_epoch(trainer, data, seed, label):
    """A whole epoch, without anything between its steps."""
    sums = EpochSums.zero(trainer.method.num_blocks, CPU.device)
    for _ in train_epoch_from(trainer, data, seed, label, sums):
        pass
    return sums.averages(len(data.images))


def epoch(method, data, seed=(0, "svhn", 0), compute=CPU, batch_size=5):
    trainer = Trainer(method, Rates(0.1, 0.01, 5e-4), compute, batch_size)
    return train_epoch(trainer, data, seed, "svhn")


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
    """12 images in batches of 5, 5 and 2, learning rate 0: sums by hand."""
    frozen = Trainer(method, Rates(0.0, 0.0, 0.0), CPU, batch_size=5)
    twin = copy.deepcopy(method).train()
    result = train_epoch(frozen, data, (0, "svhn", 0), "svhn")
    noise = noise_for(twin, 12, 0, "svhn", 0)
    losses, correct = [], 0
    for batch in data.training_batches(5, (0, "svhn", 0), "", 0, ALONE):
        scores, _ = twin(batch.images_N3HW, noise[batch.positions])
        losses += F.cross_entropy(scores, batch.labels_N, reduction="none").tolist()
        correct += (scores.argmax(1) == batch.labels_N).sum().item()
    assert [len(losses), result["train_accuracy"]] == [12, pytest.approx(100 * correct / 12)]
    assert result["train_loss"] == pytest.approx(sum(losses) / 12, rel=1e-5)
    net = PlainNetwork(resnet26(2, width=4))
    net.eval()
    uneven, even = (predict(net, data, size, "argmax", (0,), CPU, "svhn") for size in (5, 12))
    np.testing.assert_allclose(uneven.losses, even.losses, rtol=1e-5)
    assert summarise(uneven, data.images).loss == pytest.approx(even.losses.mean(), rel=1e-6)


def test_the_share_of_fine_tuned_decisions_is_counted_per_block(method, data):
    head = method.policy_net.resnet.head.linear
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([[50.0, 0.0], [0.0, 50.0]]).repeat(6, 1).flatten())
    frozen = Trainer(method, Rates(0.0, 0.0, 0.0), CPU, batch_size=5)
    result = train_epoch(frozen, data, (0, "svhn", 0), "svhn")
    assert result["train_fine_tuned_share"] == [0.0, 1.0] * 6
    predictions = predict(method, data, 5, "argmax", (0,), CPU, "svhn")
    assert summarise(predictions, data.images).fine_tuned_share == [0.0, 1.0] * 6


def test_predictions_do_not_depend_on_the_batch_size(method, data):
    for policy in ("argmax", "sample"):
        small, large = (predict(method, data, n, policy, (0, "x"), CPU, "svhn") for n in (1, 12))
        assert np.array_equal(small.decisions, large.decisions)
        np.testing.assert_allclose(small.losses, large.losses, rtol=1e-4)


def test_sampled_test_decisions_are_seeded_and_differ_from_the_likelier_ones(method, data):
    def decisions(policy, seed):
        return predict(method, data, 5, policy, (seed, "svhn"), CPU, "svhn").decisions

    assert np.array_equal(decisions("sample", 0), decisions("sample", 0))
    assert not np.array_equal(decisions("sample", 0), decisions("sample", 1))
    assert np.array_equal(decisions("argmax", 0), decisions("argmax", 1))


def test_evaluation_changes_nothing(method, data):
    before = copy.deepcopy(method.state_dict())
    predict(method, data, 5, "argmax", (0,), CPU, "svhn")
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


def test_training_moves_all_but_the_kept_convolutions(method, data):
    before = copy.deepcopy(method.state_dict())
    epoch(method, data)
    still = {n for n, t in method.state_dict().items() if torch.equal(t, before[n])}
    assert still == {f"net.pairs.{i}.kept.conv{j}.weight" for i in range(12) for j in (1, 2)}


def test_bf16_trains_close_to_fp32(method, data):
    twin = copy.deepcopy(method)
    exact = epoch(method, data)
    rounded = epoch(twin, data, compute=Compute(torch.device("cpu"), "bf16"))
    assert rounded["train_loss"] == pytest.approx(exact["train_loss"], rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in twin.parameters())
