"""The fast forms compute what the plain form computes: same mathematics, other order of work."""

import json
import os
from dataclasses import replace

import pytest
import torch
from networks import CPU, batch, tiny_method

from benchmarks import run, scale, throughput
from benchmarks.measuring import in_own_process
from benchmarks.plain_form import plain_optimizers, plain_predict, plain_train_step
from engine.step import Trainer
from methods.baselines import PlainNetwork
from methods.cost import macs_per_image
from methods.optimizers import Rates
from models.resnet26 import resnet26
from runtime.devices import Compute, choose_compute

RATES = Rates(network=0.1, policy=0.01, weight_decay=5e-4)


def check_training(steps):
    """The same batches through the plain form (NCHW, unfused) and through the Trainer."""
    plain, fast = tiny_method().double(), tiny_method().double()
    optimizers = plain_optimizers(plain, RATES)
    trainer = Trainer(fast, RATES, CPU, batch_size=8)
    for seed in range(steps):
        images, labels, noise = batch(seed)
        loss = plain_train_step(images.double(), labels, noise, plain, optimizers)
        images = images.double().contiguous(memory_format=torch.channels_last)
        assert trainer.step(images, labels, noise).loss.item() / 8 == pytest.approx(loss)
    torch.testing.assert_close(fast.state_dict(), plain.state_dict())


def test_training_agrees_with_the_plain_form_over_several_steps():
    check_training(4)


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # PyTorch on Python 3.13.0 alone
def test_compiled_training_agrees_with_the_plain_form(monkeypatch):
    """Captured and differentiated by torch.compile; run without its code generator, for speed."""
    compiled = []

    def capture(self, function):
        compiled.append(torch.compile(function, backend="aot_eager", dynamic=False))
        return compiled[-1]

    monkeypatch.setattr(Compute, "compile", capture)
    check_training(2)
    assert len(compiled) == 1


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # PyTorch on Python 3.13.0 alone
def test_ten_tasks_in_one_process_are_all_compiled():
    """PyTorch stops after eight variants of one function; then the ninth would be an eager one."""
    graphs = []

    def counting(graph, examples):
        graphs[-1] += 1
        return graph.forward

    compute = replace(CPU, compiled=True, backend=counting)
    losses = set()
    for classes in range(5, 15):
        graphs.append(0)
        trainer = Trainer(tiny_method(classes=classes), RATES, compute, batch_size=8)
        losses.add(trainer.step(*batch()).loss.item())
    assert set(graphs) == {graphs[0]}
    assert graphs[0] > 0
    assert len(losses) == 10


def test_a_last_batch_of_another_size_is_not_compiled():
    trainer = Trainer(tiny_method(), RATES, CPU, batch_size=8)

    def never(*arguments):
        raise AssertionError("compiled for an odd batch")

    trainer.compiled_forward = never
    trainer.step(*batch(count=3))
    with pytest.raises(AssertionError):
        trainer.step(*batch(count=8))


def test_compiling_is_off_unless_asked_for():
    def function():
        pass

    assert CPU.compile(function) is function
    assert choose_compute("cpu", "fp32", compiled=True).compile(function) is not function


@torch.no_grad()
def test_fast_evaluation_agrees_with_the_plain_form():
    method = tiny_method().double().eval()
    images, _, noise = batch()
    images = images.double()
    ours = method.evaluator()(images.contiguous(memory_format=torch.channels_last), noise)[0]
    torch.testing.assert_close(ours, plain_predict(images, noise, method))


def test_scores_and_logits_are_float32_in_bf16_too():
    """In bf16 themselves they would tie, and a tie decides by position."""
    method = tiny_method()
    images, _, noise = batch()
    with Compute(torch.device("cpu"), "bf16").autocast():
        assert method(images, noise)[0].dtype == torch.float32
        assert method.policy_net(images).dtype == torch.float32
        assert method.net.stem(images).dtype == torch.bfloat16


def test_compute_per_image_by_hand():
    """A 3x3 convolution costs 9 * in * out * height * width of its output."""
    costs = macs_per_image(PlainNetwork(resnet26(10, width=4)).eval().evaluator(), 16, 16)
    stem = 9 * 3 * 4 * 16 * 16
    stages = 0
    for channels, side in ((8, 8), (16, 4), (32, 2)):
        stages += 9 * side * side * (channels // 2 * channels + 7 * channels * channels)
    assert costs == {"network": stem + stages + 32 * 10, "policy_network": 0}


def test_the_routed_network_costs_one_branch_whatever_is_decided():
    method, plain = tiny_method().eval(), tiny_method("finetune").eval()
    ours = macs_per_image(method.evaluator(), 16, 16)
    assert ours["network"] == macs_per_image(plain.evaluator(), 16, 16)["network"]
    assert ours["policy_network"] > 0


def test_the_paper_networks_forward_pass_is_085_gmac():
    costs = macs_per_image(PlainNetwork(resnet26(10)).eval(), 64, 64)
    assert costs["network"] == pytest.approx(0.853e9, rel=1e-3)


QUICK = {
    "throughput": "--device cpu --width 4 --batch_size 4 --crop 16 --resize 24 --repeats 2 "
                  "--num_images 8",
    "epoch": "--images 20 --resize 16 --crop 16 --width 4",
    "scale": "--images 2000 --epochs_of 8",
    "wall_clock": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """What each part of the benchmark measures on tiny networks, as it writes it."""
    folder = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patched:
        for part in (throughput, scale):
            patched.setattr(part, "in_own_process", lambda function, *rest: function(*rest))
        for part, flags in QUICK.items():
            run.main([part, *flags.split(), "--json", str(folder / part)])
    return {part: json.loads((folder / part).read_text()) for part in QUICK}


def test_each_part_of_the_benchmark_measures_what_its_table_shows(figures):
    speed, cost = figures["throughput"], figures["scale"]
    for part in ("data, one core", "training step", "evaluation"):
        assert min(speed[part].values()) > 0
    assert min(speed["peak MiB"].values()) > 50
    assert speed["MACs of an image"]["policy_network"] > 0
    assert figures["epoch"]["ratio"] > 1  # the whole process, with its start, over its loop
    assert (cost["images"], list(cost["epochs"])) == (2000, ["8"])
    assert min(cost["read"]["seconds"], cost["epochs"]["8"]["seconds"]) > 0


def test_peak_memory_is_that_of_a_process_of_its_own():
    assert in_own_process(os.getppid) == os.getpid()


def test_a_wrong_part_is_told_in_one_line(capsys):
    with pytest.raises(SystemExit):
        run.main(["speed"])
    assert capsys.readouterr().err.count("\n") == 1
