"""Tiny networks, and the settings of a run, that several test modules share."""

import copy

import torch

from engine.settings import Settings
from gumbel_softmax import gumbel_noise
from methods.baselines import PlainNetwork
from methods.registry import NO_OPTIONS, build_method
from models.resnet26 import ResNet, resnet26
from models.spottune import SpotTuneNet
from runtime.devices import Compute

CPU = Compute(torch.device("cpu"), "fp32")
WIDTH = 4  # channels of the stem
BLOCKS = 12

SETTINGS = Settings(
    epochs=2, milestones=(1,), lr=0.1, lr_agent=0.01, weight_decay=5e-4, batch_size=8, resize=40,
    crop=32, width=2, seed=0, train_split="train", policy="argmax", precision="fp32",
    mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), source_sha256="5" * 64, data_sha256="7" * 64,
).as_plain()  # fmt: skip


def perturb_(module, seed=3):
    """Give every parameter and running statistic a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))
            tensor[tensor == 0] = 0.1  # shifts and means start at zero


def tiny_source(classes=5):
    """A plain network whose statistics, scales and shifts are not those that it starts with."""
    torch.manual_seed(0)
    net = resnet26(classes, WIDTH)
    perturb_(net)
    return net


def tiny_spottune_and_its_source():
    """In evaluation and in float64, where sums in another order are equal to 12 digits."""
    source = tiny_source().double().eval()
    return SpotTuneNet(copy.deepcopy(source)).eval(), source


def tiny_method(kind="spottune", options=NO_OPTIONS, classes=5):
    """A method in training; if it has two copies of each block, they differ."""
    method = build_method(kind, tiny_source(classes), WIDTH, options)
    for pair in getattr(method.net, "pairs", ()):
        perturb_(pair.fine_tuned, seed=5)
    return method.train()


def batch(seed=0, count=8, height=16):
    """Random images 16 pixels wide, labels of 5 classes, and noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, height, 16, generator=generator)
    labels = torch.randint(0, 5, (count,), generator=generator)
    return images, labels, gumbel_noise((count, BLOCKS, 2), generator)


def memory_hungry():
    """A stem and a head without blocks, and 100 images of 64 x 64 that take 100 MiB in between."""
    images, labels, noise = batch(count=100)
    return PlainNetwork(ResNet(5, 64, ())), images.repeat(1, 1, 4, 4), labels, noise
