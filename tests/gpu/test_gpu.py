"""What only a GPU can show, skipped where there is none: `make gpu`.

`pytest tests/gpu --gpu_device cpu` runs the same tests on a CPU, to try the tests themselves.
"""

import copy
import os
import socket
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import SMALL, outcome
from networks import CPU, WIDTH, batch, memory_hungry, perturb_, tiny_method
from torch import nn

import main
from decathlon import SOURCE
from engine.checkpoints import checkpoint_file
from engine.evaluation import InPieces, predict
from engine.step import EpochSums, Trainer, train_epoch
from gumbel_softmax import POLICIES
from image_cache.batches import TaskData
from image_cache.orders import View, training_order
from image_cache.packed import INDEX, PackedImages
from methods.optimizers import Rates
from methods.registry import build_method
from models.resnet26 import ResNet
from runtime.devices import choose_compute
from runtime.distributed import Group
from runtime.errors import SpotTuneError
from runtime.signals import StopRequest

MEAN_STD = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
RATES, STILL = Rates(0.01, 0.01, 5e-4), Rates(0.0, 0.0, 0.0)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}

pytestmark = [
    # Inductor's advice, and PyTorch's on one Python version.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
    pytest.mark.filterwarnings("ignore:Guards may run slower"),
    pytest.mark.filterwarnings("ignore:.*use of fork"),  # with --gpu_device cpu alone
]


@pytest.fixture(scope="session")  # so that it skips before anything is made
def device(pytestconfig):
    """The name of the device, e.g. "cuda:0"."""
    name = pytestconfig.getoption("gpu_device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return "cuda:0" if name == "cuda" else name


@pytest.fixture
def compute(device):
    return choose_compute(device, "fp32")


# --- The same figures as on a CPU ----------------------------------------------------------------


def gradients(kind, compute):
    """Decisions, loss and gradients of one batch, on the CPU."""
    method = tiny_method(kind).to(compute.device, memory_format=torch.channels_last)
    images, labels, noise = (each.to(compute.device) for each in batch())
    trainer = Trainer(method, STILL, compute, len(labels))
    loss, penalty, _, decisions_NL = trainer.forward(images, labels, noise)
    (loss + penalty).backward()
    found = {"loss": loss.detach().cpu()}
    if decisions_NL is not None:
        found["decisions"] = decisions_NL.detach().cpu()
    named = method.named_parameters()
    return found | {name: p.grad.cpu() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("kind", ["spottune", "globalk", "finetune"])
def test_decisions_losses_and_gradients_are_those_of_the_cpu(kind, compute):
    torch.testing.assert_close(gradients(kind, compute), gradients(kind, CPU), **CLOSE)


def packed(count, height=24, width=20, before=0):
    """Random images of one size, after so many bytes of a file."""
    size = height * width * 3
    index = np.zeros(count, INDEX)
    index["offset"], index["image_id"] = before + size * np.arange(count), np.arange(count)
    index["label"], index["height"], index["width"] = np.arange(count) % 5, height, width
    pixels = np.zeros(before + count * size, np.uint8)  # memory is taken where it is written
    pixels[before:] = np.random.default_rng(0).integers(0, 256, count * size, np.uint8)
    return PackedImages([pixels], [index], np.arange(5))


def placed(images, view, device):
    """Data that the host cuts and sends, and data that lie on the device."""
    host, resident = (TaskData(images, view, MEAN_STD, device, share) for share in (0.0, 1.0))
    resident.put_on_device()
    return host, resident


def test_pixels_on_the_card_are_cut_to_the_bytes_that_the_host_cuts(compute):
    images = PackedImages.merged([packed(30), packed(20)])
    view = View(16, 16, random=True, flip=True)
    on_cpu = TaskData(images, view, MEAN_STD, CPU.device)
    order = training_order(images, view, 0)
    for data in placed(images, view, compute.device):
        for part in (slice(0, 50), slice(7, 8), slice(1, 50, 2)):
            windows = data.windows(order, part)
            assert windows.device == compute.device
            assert torch.equal(windows.cpu(), on_cpu.windows(order, part))


def test_windows_beyond_two_gigabytes_are_cut_at_their_places(compute):
    """Where 32 bits do not tell a place any more."""
    images, view = packed(9, before=2**31 - 2_000), View(16, 16, random=True)
    order = training_order(images, view, 0)
    on_cpu = TaskData(images, view, MEAN_STD, CPU.device).windows(order, slice(0, 9))
    for data in placed(images, view, compute.device):
        assert torch.equal(data.windows(order, slice(0, 9)).cpu(), on_cpu)


@pytest.mark.parametrize("policy", POLICIES)
def test_predictions_are_those_of_the_cpu(policy, compute):
    def predictions(compute):
        data = TaskData(packed(10), View(16, 16), MEAN_STD, compute.device)
        method = tiny_method().to(compute.device, memory_format=torch.channels_last)
        return predict(method, data, 4, policy, (0, "svhn"), compute, "val")

    ours, theirs = predictions(compute), predictions(CPU)
    assert np.array_equal(ours.decisions, theirs.decisions)
    assert np.array_equal(ours.labels, theirs.labels)
    np.testing.assert_allclose(ours.losses, theirs.losses, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_scores_and_logits_are_float32_and_close(dtype, compute):
    method = tiny_method().to(compute.device, memory_format=torch.channels_last)
    images, _, noise = (each.to(compute.device) for each in batch())
    exact, decisions_NL = method(images, noise)
    with torch.autocast(compute.device.type, dtype):
        assert method.net.stem(images).dtype == dtype
        assert method.policy_net(images).dtype == torch.float32
        rounded = method.net(images, decisions_NL)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()


# --- The same bits again -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train(device, decathlon_root, tmp_path_factory):
    """Trains svhn into a folder, two epochs of 3 steps, from a source trained on the device."""
    flags = [*SMALL, "--datadir", decathlon_root, "--train_split", "train", "--lr", "0.01"]
    flags += ["--nb_epochs", "2", "--source_epochs", "1", "--device", device]

    def run(ckpdir, *more):
        argv = [*flags, "--ckpdir", ckpdir, "--tasks", "svhn", *more]
        main.main([str(each) for each in argv])

    source = tmp_path_factory.mktemp("source")
    run(source, "--tasks", SOURCE.name, "--pretrained", "none")
    pretrained = checkpoint_file(source, SOURCE.name)
    return lambda ckpdir, *more: run(ckpdir, "--pretrained", pretrained, *more)


WAYS = {
    "fp32": (),
    "bf16": ("--precision", "bf16"),
    "compiled": ("--compile", "--method", "finetune"),  # with one branch it is compiled sooner
}


class Killed(BaseException):
    """Nothing is saved on its way out."""


@pytest.mark.parametrize("way", WAYS)
def test_a_run_repeats_its_bits_and_so_does_one_that_was_killed_and_resumed(
    way, train, tmp_path, monkeypatch
):
    straight, again, resumed = (tmp_path / name for name in ("straight", "again", "resumed"))
    train(straight, *WAYS[way])
    train(again, *WAYS[way])
    assert outcome(again) == outcome(straight)

    seen = []

    def killed_at_the_second_step(self, agree=int):
        seen.append(1)
        if len(seen) == 2:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(StopRequest, "raise_if_asked", killed_at_the_second_step)
        train(resumed, *WAYS[way], "--checkpoint_minutes", "1e-9")
    train(resumed, *WAYS[way])
    assert outcome(resumed) == outcome(straight)


def test_two_processes_on_one_card_end_with_the_bits_of_one_after_another(train, tmp_path):
    tasks = ("--tasks", "svhn", "dtd")
    train(tmp_path / "in turn", *tasks)
    train(tmp_path / "side by side", *tasks, "--jobs", "2")
    for task in ("svhn", "dtd"):
        assert outcome(tmp_path / "side by side", task) == outcome(tmp_path / "in turn", task)


# --- torch.compile -------------------------------------------------------------------------------


def small_method(classes):
    """SpotTune around three blocks: ten of them are compiled in a minute or two."""
    torch.manual_seed(0)
    method = build_method("spottune", ResNet(classes, WIDTH, (1, 1, 1)), WIDTH)
    perturb_(method)
    return method.train()


def test_ten_tasks_compiled_in_one_process_are_those_of_eager_steps(compute):
    """Four full batches, since CUDA graphs are warmed up, recorded and then replayed; a last one
    with fewer images. From the ninth task on PyTorch would give up without a reset."""
    # On a CPU it is captured and differentiated only: generating C++ ten times takes too long.
    backend = "inductor" if compute.device.type == "cuda" else "aot_eager"
    compiled = replace(compute, compiled=True, backend=backend)
    for classes in range(5, 15):
        method = small_method(classes)
        ways = {"eager": (copy.deepcopy(method), compute), "compiled": (method, compiled)}
        results = {}
        for name, (own, how) in ways.items():
            trainer = Trainer(own, RATES, how, batch_size=8)
            losses = []
            for seed, count in enumerate((8, 8, 8, 8, 3)):
                images, labels, noise = (each.to(how.device) for each in batch(seed, count))
                images = images.contiguous(memory_format=torch.channels_last)
                losses.append(trainer.step(images, labels, noise[:, :3].contiguous()).loss)
            results[name] = {"losses": torch.stack(losses), **own.state_dict()}
        assert len(set(results["eager"]["losses"].tolist())) == 5
        torch.testing.assert_close(
            results["compiled"], results["eager"], rtol=1e-5, atol=1e-5, msg=f"{classes} classes"
        )


# --- Memory and waiting --------------------------------------------------------------------------


@pytest.fixture
def with_little(device, request, capfd):
    """Runs a function with 64 MiB of the device's memory more than it has; what it printed."""
    if device == "cpu":
        return request.getfixturevalue("with_little_memory")

    def run(function):
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info(device)
        allowed = torch.cuda.memory_reserved(device) + 2**26
        torch.cuda.set_per_process_memory_fraction(allowed / total, device)
        try:
            function()
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return capfd.readouterr().out

    return run


def test_out_of_memory_in_training_is_one_line(with_little, compute):
    method, *whole = memory_hungry()
    trainer = Trainer(method, STILL, compute, 100)
    whole = [each.to(compute.device) for each in whole]
    trainer.step(*(each[:1] for each in whole))  # loads the libraries

    def too_large():
        with pytest.raises(SpotTuneError, match="out of memory on .* in a training step of 100"):
            trainer.step(*whole)

    with_little(too_large)


@torch.no_grad()
def test_out_of_memory_in_evaluation_gives_the_same_answers_in_pieces(with_little, compute):
    method, images, _, noise = memory_hungry()
    evaluator = method.eval().evaluator().to(compute.device)
    images, noise = images.to(compute.device), noise.to(compute.device)
    expected = torch.cat([scores for scores, *_ in InPieces(evaluator, compute)(images, noise)])

    def in_pieces():
        parts = list(InPieces(evaluator, compute)(images, noise))
        torch.testing.assert_close(torch.cat([scores for scores, *_ in parts]), expected, **CLOSE)

    assert "out of memory in predicting 100 images at once" in with_little(in_pieces)


@contextmanager
def no_waiting(device):
    """Inside, whatever makes the host wait for the GPU is an error."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["on the host", "on the card"])
@pytest.mark.parametrize("kind", ["spottune", "source"])
def test_the_host_waits_for_nothing_in_a_step_but_its_loss(kind, share, compute):
    """Reading the loss waits for an event, which does not count here."""
    data = TaskData(packed(16), View(16, 16, True, True), MEAN_STD, compute.device, share)
    method = tiny_method(kind)
    trainer = Trainer(method, RATES, compute, 4)
    sums = EpochSums.zero(method.num_blocks, compute.device)
    steps = train_epoch(trainer, data, (0,), "svhn", sums)
    next(steps)  # pixels and noise are copied, and libraries loaded
    with no_waiting(compute.device):
        next(steps)
        next(steps)
    assert sums.steps == 3


# --- One process of a group ----------------------------------------------------------------------


@pytest.fixture
def group_of_one(compute, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        monkeypatch.setitem(os.environ, name, value)
    dist.init_process_group(
        "nccl" if compute.device.type == "cuda" else "gloo", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def test_synchronised_batch_norm_of_one_process_is_batch_norm(compute, group_of_one):
    """A group with GPUs has it; PyTorch has none for CPUs, so there the twin stays as it is."""
    method = tiny_method("source").to(compute.device)
    twin = Group(0, 2).with_one_batch_norm(copy.deepcopy(method))
    is_converted = any(isinstance(module, nn.SyncBatchNorm) for module in twin.modules())
    assert is_converted == (compute.device.type == "cuda")
    images, _, noise = (each.to(compute.device) for each in batch())
    one = torch.ones(1, device=compute.device)
    dist.all_reduce(one)
    assert one.item() == 1
    for _ in range(2):
        ours, theirs = (each(images, noise)[0] for each in (twin, method))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(twin.state_dict(), method.state_dict(), rtol=1e-5, atol=1e-5)
