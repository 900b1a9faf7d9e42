"""Each family of backbones, by its smallest member, against the library's own network."""

import copy
from functools import cache

import pytest
import timm
import torch
from networks import perturb_

from gumbel_softmax import gumbel_noise
from methods.cost import macs_per_image
from methods.optimizers import Rates
from methods.registry import Options, TwoBranches, build_method
from models.backbones import FAMILIES, create, family_of, stem_blocks_head
from models.freezing import BatchNorm
from models.routed import RoutedNet
from models.spottune import SpotTuneNet
from runtime.errors import SpotTuneError
from weights.backbone_weights import load_backbone

SIDE, CLASSES = 32, 5
MEMBERS = (
    "resnet18", "timm:resnet10t", "timm:tf_efficientnet_lite0", "timm:mobilenetv3_small_050",
    "timm:convnext_atto", "timm:vit_tiny_patch16_224", "timm:deit_tiny_distilled_patch16_224",
)  # fmt: skip


@cache
def library_network(name):
    """With statistics, scales and shifts that are not those that it starts with."""
    torch.manual_seed(0)
    network = create(name, CLASSES)
    if hasattr(network, "set_input_size"):
        network.set_input_size(img_size=SIDE)
    perturb_(network)
    return network


@pytest.fixture(params=MEMBERS)
def name(request):
    return request.param


def images(count=4):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def backbone(name):
    return stem_blocks_head(copy.deepcopy(library_network(name)))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_every_family_is_tested():
    assert {family_of(library_network(name)) for name in MEMBERS} == set(FAMILIES)


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_stem_blocks_and_head_are_the_whole_network(name, training):
    ours, theirs = backbone(name).train(training), copy.deepcopy(library_network(name))
    close(ours(images()), theirs.train(training)(images()))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert ours.classifier is ours.head.classifier


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("test_vit", {}),  # the class token
        ("test_vit2", {}),  # the mean over all tokens but a register
        ("test_vit3", {}),  # attention over all tokens
        ("test_vit3", {"pool_include_prefix": False}),
        ("test_convnext", {"head_norm_first": True}),
        ("test_efficientnet", {"drop_rate": 0.5}),
        ("test_resnet", {"drop_rate": 0.5}),
    ],
)
@torch.no_grad()
def test_heads_that_other_members_have_give_the_same_scores_too(name, changed):
    """On timm's own tiny test networks."""
    size = {"img_size": SIDE} if "vit" in name else {}
    theirs = timm.create_model(name, num_classes=CLASSES, **size, **changed)
    perturb_(theirs)
    ours = stem_blocks_head(copy.deepcopy(theirs))
    for training in (True, False):
        scores = []
        for network in (ours, theirs):
            torch.manual_seed(0)  # of dropout
            scores.append(network.train(training)(images()))
        close(*scores)


@torch.no_grad()
def test_all_kept_and_fresh_copies_are_the_source_and_routed_is_two_branch(name):
    expected = library_network(name).eval()(images())
    net = SpotTuneNet(backbone(name)).eval()
    num_blocks = len(net.pairs)
    close(net(images(), torch.ones(4, num_blocks)), expected)
    for pair in net.pairs:
        perturb_(pair.fine_tuned, seed=5)
    close(net(images(), torch.zeros(4, num_blocks)), expected)
    draw = torch.rand(4, num_blocks, generator=torch.Generator().manual_seed(2))
    decisions = (draw < 0.4).float()
    assert len(decisions.unique(dim=0)) > 2
    mixed = net(images(), decisions)
    assert not torch.allclose(mixed, expected, rtol=1e-2)
    close(RoutedNet(net)(images(), decisions), mixed)


@pytest.mark.parametrize("kept_norm", ["train", "frozen"])
def test_gradients_reach_what_trains_and_nothing_else(name, kept_norm):
    branches = TwoBranches(kept_norm, policy_input=16)
    method = build_method("spottune", backbone(name), 4, branches=branches).train()
    for pair in method.net.pairs:
        perturb_(pair.fine_tuned, seed=5)
    noise = gumbel_noise((4, method.num_blocks, 2), torch.Generator().manual_seed(3))
    noise[:2, :, 1] += 20  # both copies of every block are used
    noise[2:, :, 0] += 20
    statistics = {n: b.clone() for n, b in method.named_buffers() if "running_" in n}
    method(images(), noise)[0].square().sum().backward()
    norms = {n for n, m in method.net.named_modules() if isinstance(m, BatchNorm)}
    for parameter_name, parameter in method.net.named_parameters():
        trains = ".kept." not in parameter_name
        if kept_norm == "train":
            trains |= parameter_name.rpartition(".")[0] in norms
        assert (parameter.grad is not None) == trains, parameter_name
    assert all(p.grad is not None for p in method.policy_net.parameters())
    for buffer_name, before in statistics.items():
        is_still = torch.equal(method.get_buffer(buffer_name), before)
        assert is_still == (kept_norm == "frozen" and ".kept." in buffer_name), buffer_name


KINDS = {
    "feature": Options(),
    "lastk": Options(k=2),
    "bn": Options(),
    "bn_lastk": Options(k=2),
    "finetune": Options(),
    "l2sp": Options(l2sp_alpha=0.1, l2sp_beta=0.1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_baselines_train_what_they_say_on_every_family(name, kind):
    net = backbone(name)
    norms = {n for n, m in net.named_modules() if isinstance(m, BatchNorm)}
    if kind.startswith("bn") and not norms:
        with pytest.raises(SpotTuneError, match="no BatchNorm layers"):
            build_method(kind, net, 4, KINDS[kind])
        return
    method = build_method(kind, net, 4, KINDS[kind]).train()
    blocks = len(net.blocks)
    last = ("head.", f"blocks.{blocks - 2}.", f"blocks.{blocks - 1}.")
    begins = {
        "feature": "head.classifier.",
        "lastk": last,
        "bn": "head.classifier.",
        "bn_lastk": ("head.classifier.", *last[1:]),
    }.get(kind, "")
    expected = {n for n, _ in net.named_parameters() if n.startswith(begins)}
    if kind.startswith("bn"):
        expected |= {n for n, _ in net.named_parameters() if n.rpartition(".")[0] in norms}
    scores, _ = method(images(), None)
    (scores.square().sum() + method.penalty(None)).backward()
    (optimizer,) = method.optimizers(Rates(0.1, 0.1, 0.01))
    trained = {id(p) for p in optimizer.param_groups[0]["params"] if p.grad.any()}
    assert {n for n, p in net.named_parameters() if id(p) in trained} == expected


@pytest.mark.parametrize("kind", ["spottune", "stochastic", "globalk"])
@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "timm:vit_tiny_patch16_224"])
@torch.no_grad()
def test_the_evaluator_of_a_two_branch_method_answers_as_the_method_does(name, kind):
    method = build_method(kind, backbone(name), 4, Options(k=3)).eval()
    for pair in method.net.pairs:
        perturb_(pair.fine_tuned, seed=5)
    noise = gumbel_noise((4, method.num_blocks, 2), torch.Generator().manual_seed(3))
    (ours, routed), (theirs, both) = method.evaluator()(images(), noise), method(images(), noise)
    assert torch.equal(routed, both)
    close(ours, theirs)


def test_k_is_at_most_the_networks_number_of_blocks():
    for kind in ("lastk", "bn_lastk", "globalk"):
        with pytest.raises(SpotTuneError, match="--k 9: expected at most 8"):
            build_method(kind, backbone("resnet18"), 4, Options(k=9))


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet18", 8), ("resnet34", 16), ("resnet50", 16), ("resnet101", 33), ("resnet152", 50),
        ("wide_resnet50_2", 16), ("resnext50_32x4d", 16), ("timm:resnet50d", 16),
        ("timm:seresnet50", 16), ("timm:tf_efficientnet_lite0", 16), ("timm:efficientnet_b0", 16),
        ("timm:mobilenetv2_100", 17), ("timm:mobilenetv3_large_100", 16),
        ("timm:convnext_tiny", 18), ("timm:vit_tiny_patch16_224", 12),
        ("timm:deit_tiny_patch16_224", 12), ("timm:vit_large_patch16_224", 24),
    ],
)  # fmt: skip
def test_a_network_has_as_many_blocks_as_its_papers_count(name, blocks):
    with torch.device("meta"):
        network, _ = load_backbone(name, 10, "none")
    assert len(network.blocks) == blocks


@pytest.mark.parametrize(
    ("name", "side", "gmacs"),
    [
        ("resnet18", 224, 1.814),
        ("timm:tf_efficientnet_lite0", 224, 0.384),
        ("timm:vit_tiny_patch16_224", 224, 1.254),  # attention included
    ],
)
def test_the_cost_of_an_image_is_the_published_one(name, side, gmacs):
    network, _ = load_backbone(name, 10, "none", side)
    evaluator = build_method("finetune", network, 4).evaluator()
    assert macs_per_image(evaluator, side, side)["network"] / 1e9 == pytest.approx(gmacs, abs=2e-3)


@torch.no_grad()
def test_batch_norm_is_folded_wherever_a_plain_convolution_stands_before_it():
    remaining = {
        "resnet18": [], "timm:mobilenetv3_small_050": [], "timm:convnext_atto": [],
        "timm:resnet10t": ["stem.1"],  # of a deep stem
        "timm:tf_efficientnet_lite0": [  # behind TensorFlow's padding
            "stem.1", "blocks.1.bn2", "blocks.3.bn2", "blocks.5.bn2", "blocks.11.bn2",
        ],
    }  # fmt: skip
    for name, expected in remaining.items():
        net = build_method("finetune", backbone(name), 4).evaluator().net
        assert [n for n, m in net.named_modules() if isinstance(m, BatchNorm)] == expected


def test_what_cannot_be_paired_is_refused_with_the_families_that_can():
    for unknown, hint in (
        ("convnext_tiny", "did you mean timm:convnext_tiny?"),
        ("resnet51", "did you mean resnet5"),
        ("timm:swin_tiny_patch4_window7_224", "ViT and DeiT"),
        ("vgg16", "torchvision's ResNets"),
    ):
        with pytest.raises(SpotTuneError) as caught:
            create(unknown, CLASSES)
        assert hint in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(SpotTuneError, match="a Linear of torch.* cannot be paired.*ConvNeXt"):
        stem_blocks_head(torch.nn.Linear(2, 2))
