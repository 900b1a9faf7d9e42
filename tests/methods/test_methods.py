"""The paper's baselines, SpotTune's variants, and Global-k."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import left, outcome, records
from networks import BLOCKS, CPU, WIDTH, batch, tiny_method, tiny_source

import submit_val
from engine.checkpoints import checkpoint_file, compact_file
from engine.records import cost, parameter_counts
from engine.run import Run
from engine.step import Trainer
from gumbel_softmax import added_at_test_time
from image_cache.orders import View
from methods.cost import macs_per_image
from methods.global_k import Compact
from methods.optimizers import Rates
from methods.registry import METHODS, Options, build_method
from models.residual import ResidualNetwork
from models.resnet26 import resnet26
from runtime.errors import SpotTuneError

RATES = Rates(network=0.1, policy=0.01, weight_decay=5e-4)
OPTIONS = {
    "lastk": Options(k=3),
    "l2sp": Options(l2sp_alpha=0.1, l2sp_beta=0.01),
    "globalk": Options(k=3, lambda_k=1.0, lambda_e=1.0),
}


def build(kind, options=None):
    return tiny_method(kind, options or OPTIONS.get(kind, Options()))


def train(method, steps=1, rates=RATES):
    """Updates on one batch, in which half of the images use each copy of each block."""
    images, labels, noise = batch()
    chosen = (torch.arange(8)[:, None] + torch.arange(BLOCKS)) % 2
    noise[..., 1] = noise[..., 0] + (2 * chosen - 1) * 20
    trainer = Trainer(method.train(), rates, CPU, 8)
    for _ in range(steps):
        trainer.step(images, labels, noise)
    return method


def moved(method):
    """Names of what one training step changed, running statistics included."""
    before = copy.deepcopy(method.state_dict())
    return {name for name, t in train(method).state_dict().items() if (t != before[name]).any()}


@pytest.mark.parametrize("kind", ["scratch", "finetune", "l2sp", "source"])
def test_everything_trains_in_fine_tuning_from_scratch_and_l2sp(kind):
    assert moved(build(kind)) == set(build(kind).state_dict())


def test_the_feature_extractor_trains_only_the_classifier():
    """Running statistics of BatchNorm stay the source's too."""
    assert moved(build("feature")) == {"net.head.linear.weight", "net.head.linear.bias"}


@pytest.mark.parametrize("k", [0, 1, 3, 12])
def test_last_k_trains_the_last_k_blocks_and_the_head(k):
    method = build("lastk", Options(k=k))
    trained = ["net.head.", *(f"net.blocks.{block}." for block in range(BLOCKS - k, BLOCKS))]
    assert moved(method) == {n for n in method.state_dict() if n.startswith(tuple(trained))}


@pytest.mark.parametrize("kind", ["spottune", "stochastic", "globalk"])
def test_two_branch_methods_train_all_but_the_kept_convolutions(kind):
    method = build(kind)
    still = set(method.state_dict()) - moved(method)
    assert still - {"share_L"} == {  # Global-k's shares start at one half, and half of them chose
        f"net.pairs.{block}.kept.conv{number}.weight"
        for block in range(BLOCKS)
        for number in (1, 2)
    }


def test_stochastic_fine_tuning_throws_a_fair_coin_for_each_image_and_block():
    method = build("stochastic")
    images, _, noise = batch(count=400)
    for mode in (True, False):
        _, decisions = method.train(mode)(images, noise)
        assert decisions.round().mean(dim=0).tolist() == pytest.approx([0.5] * BLOCKS, abs=0.1)
    assert len(decisions.unique(dim=0)) > 350
    assert torch.equal(method(torch.zeros_like(images), noise)[1], decisions)  # looks at nothing
    assert parameter_counts(method.policy_net) == (0, 0)


@pytest.mark.parametrize(("policy", "branch"), [("finetuned", "fine_tuned"), ("kept", "kept")])
@torch.no_grad()
def test_all_fine_tuned_or_all_kept_at_test_time_is_a_plain_network(policy, branch):
    method = build("spottune").double().eval()
    images = batch()[0].double()
    blocks = [getattr(pair, branch) for pair in method.net.pairs]
    plain = ResidualNetwork(method.net.stem, blocks, method.net.head)
    added = added_at_test_time(policy, 8, BLOCKS, torch.Generator())
    for ours in (method, method.evaluator()):
        torch.testing.assert_close(ours(images, added)[0], plain(images))


def test_l2sp_penalises_the_way_from_the_pretrained_weights_by_its_formula():
    method = build("l2sp", Options(l2sp_alpha=0.2, l2sp_beta=0.03))
    classifier = method.net.head.linear
    size = sum(value**2 for p in classifier.parameters() for value in p.flatten().tolist())
    assert method.penalty(None).item() == pytest.approx(0.03 / 2 * size, rel=1e-5)
    with torch.no_grad():
        method.net.stem.conv.weight[0, 0, 0, 0] += 3.0
        method.net.blocks[5].bn2.bias[1] -= 2.0
        method.net.head.bn.weight[2] += 1.0
    expected = 0.2 / 2 * (3.0**2 + 2.0**2 + 1.0**2) + 0.03 / 2 * size
    assert method.penalty(None).item() == pytest.approx(expected, rel=1e-5)
    method.penalty(None).backward()
    gradient = method.net.stem.conv.weight.grad
    assert gradient[0, 0, 0, 0].item() == pytest.approx(0.2 * 3.0)
    assert gradient.count_nonzero() == 1


def test_l2sp_takes_the_place_of_weight_decay_and_stores_no_second_network():
    method = build("l2sp")
    (optimizer,) = method.optimizers(RATES)
    assert optimizer.param_groups[0]["weight_decay"] == 0
    assert set(method.state_dict()) == set(build("finetune").state_dict())


def test_l2sp_holds_the_network_near_its_source():
    start = tiny_source().blocks[3].conv1.weight
    ways = [
        (train(method, 10, Rates(0.1, 0.01, 0.0)).net.blocks[3].conv1.weight - start).norm()
        for method in (build("l2sp", Options(l2sp_alpha=1.0)), build("finetune"))
    ]
    assert ways[0] < 0.8 * ways[1]


@pytest.mark.parametrize(("lambda_k", "lambda_e"), [(1.0, 0.0), (0.0, 1.0), (0.3, 0.7)])
def test_global_k_adds_the_papers_two_losses(lambda_k, lambda_e):
    """v = (1, 1/2, 1/4, 0, ...), by hand: L_k = (7/4 - 3)^2, L_e = (1/2 + 1/2) log 2."""
    decisions = torch.zeros(4, BLOCKS)
    decisions[:, 0] = 1.0
    decisions[:2, 1] = 1.0
    decisions[:1, 2] = 1.0
    method = build("globalk", Options(k=3, lambda_k=lambda_k, lambda_e=lambda_e))
    expected = lambda_k * (7 / 4 - 3) ** 2 + lambda_e * math.log(2)
    assert method.penalty(decisions).item() == pytest.approx(expected, rel=1e-5)


def test_global_ks_losses_reach_the_policy_network():
    method = build("globalk", Options(k=0, lambda_k=1.0))
    images, _, noise = batch()
    method.penalty(method(images, noise)[1]).backward()
    gradient = method.policy_net.resnet.head.linear.bias.grad.view(BLOCKS, 2)
    assert (gradient[:, 1] > 0).all()  # fewer fine-tuned blocks: their logits go down
    assert torch.isfinite(gradient).all()


@torch.no_grad()
def test_the_k_chosen_blocks_are_the_same_for_every_image_and_draw():
    method = torch.enable_grad()(train)(build("globalk"), 5).eval()
    for candidate in (method, method.evaluator()):
        for seed in (0, 1):
            images, _, noise = batch(seed, 50)
            _, decisions = candidate(images, noise)
            assert decisions.shape == (50, BLOCKS)
            assert len(decisions.unique(dim=0)) == 1
            assert decisions[0].sum() == 3


@pytest.mark.parametrize("k", [0, 1, 3, 12])
def test_global_k_chooses_the_k_blocks_that_most_images_used(k):
    method = build("globalk", Options(k=k, lambda_k=1.0))
    method.share_L.copy_(torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.8] + [0.0] * 6))
    order = [1, 3, 5, 4, 2, 0, 6, 7, 8, 9, 10, 11]  # of equal ones the earlier
    assert set(method.chosen_L().nonzero()[:, 0].tolist()) == set(order[:k])


def test_the_running_share_follows_the_sampled_decisions():
    method = build("globalk")
    images, _, noise = batch()
    before = method.share_L.clone()
    _, decisions = method(images, noise)
    expected = 0.99 * before + 0.01 * decisions.detach().round().mean(dim=0)
    torch.testing.assert_close(method.share_L, expected)
    method.eval()(images, noise)
    torch.testing.assert_close(method.share_L, expected)


@torch.no_grad()
def test_the_compact_network_predicts_exactly_as_the_whole_with_one_copy_and_no_policy():
    method = torch.enable_grad()(train)(build("globalk"), 5).eval()
    images, _, noise = batch(count=50)
    compact = method.kept_for_predicting().eval()
    whole, small = method(images, noise), compact(images, None)
    assert torch.equal(whole[0], small[0])
    assert torch.equal(whole[1], small[1])
    again = build_method("compact", resnet26(5, WIDTH), WIDTH).eval()
    again.to(memory_format=torch.channels_last)  # as the whole was trained
    again.load_state_dict(compact.state_dict())
    assert torch.equal(again(images, None)[0], small[0])
    assert isinstance(compact, Compact)
    plain, _ = parameter_counts(tiny_source())
    kept = [
        pair.kept for pair, chosen in zip(method.net.pairs, whole[1][0], strict=True) if not chosen
    ]
    convolutions = sum(w.numel() for pair in kept for w in (pair.conv1.weight, pair.conv2.weight))
    assert parameter_counts(compact) == (plain, plain - convolutions)
    of_plain = macs_per_image(build("finetune").evaluator(), 16, 16)
    assert macs_per_image(method.evaluator(), 16, 16) == of_plain


def test_stored_parameters_are_what_a_task_adds_to_the_source():
    net = tiny_source()
    last_3 = sum(p.numel() for part in (*net.blocks[9:], net.head) for p in part.parameters())
    linear = sum(p.numel() for p in net.head.linear.parameters())
    whole, _ = parameter_counts(net)
    _, trained = parameter_counts(build("spottune"))
    for kind, stored in (
        ("feature", linear),
        ("lastk", last_3),
        ("finetune", whole),
        ("spottune", trained),
    ):
        assert cost(build(kind), View(16, 16))["stored_parameters"] == stored, kind


def multiply_accumulates(blocks_per_stage, outputs, height, width):
    """Of a network's convolutions and its linear layer, for one image."""
    total, channels = height * width * 9 * 3 * WIDTH, WIDTH
    for stage in (1, 2, 3):
        height, width, size = height // 2, width // 2, WIDTH * 2**stage
        for _ in range(blocks_per_stage):
            total += height * width * 9 * (channels * size + size * size)
            channels = size
    return total + channels * outputs


def test_compute_is_one_copy_of_each_block_and_the_policy_network_apart():
    expected = {
        "network": multiply_accumulates(4, 5, 32, 16),
        "policy_network": multiply_accumulates(1, 2 * BLOCKS, 32, 16),
    }
    assert macs_per_image(build("spottune").evaluator(), 32, 16) == expected
    plain = {**expected, "policy_network": 0}
    assert macs_per_image(build("finetune").evaluator(), 32, 16) == plain


# Whole runs.


def submit(trained, ckpdir, *flags):
    """The category of each image of svhn's val."""
    out = ckpdir / "results.json"
    arguments = ["--datadir", trained.root, "--ckpdir", ckpdir, "--out", out, "--tasks", "svhn"]
    arguments += ["--device", "cpu", "--precision", "fp32"]  # as in training
    submit_val.main([str(each) for each in (*arguments, *flags)])
    return {answer["image_id"]: answer["category_id"] for answer in json.loads(out.read_text())}


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind != "spottune"])
def test_each_method_trains_resumes_and_answers_in_the_same_way(kind, trained, tmp_path):
    """SpotTune, which is what all other tests train, aside."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    flags = ["--tasks", "svhn", "--method", kind]
    trained.again(once, *flags, *(["--pretrained", "none"] if kind == "scratch" else []))
    assert (once / "imagenet12").exists() == (kind != "scratch")  # which needs no source
    trained.again(twice, *flags, "--nb_epochs", "1")
    trained.again(twice, *flags)
    assert outcome(once) == outcome(twice)
    checkpoint = left(once)
    asked = set(METHODS[kind].options)
    assert {name for name in vars(Options()) if getattr(checkpoint.settings, name)} == asked
    assert (checkpoint.settings.source_sha256 == "") == (kind == "scratch")
    assert json.loads((once / "svhn/arguments.json").read_text())["method"] == kind
    last = records(once)[-1]
    assert set(last.get("val_policies", ())) == set(METHODS[kind].policies)
    answers = submit(trained, once)
    truth = json.loads((trained.root / "annotations/svhn_val.json").read_text())["annotations"]
    right = [answers[label["image_id"]] == label["category_id"] for label in truth]
    assert 100 * sum(right) / len(right) == pytest.approx(last["val_accuracy"])


def test_global_k_leaves_a_compact_network_with_the_same_answers_and_its_cost(
    trained, tmp_path, capsys
):
    """It is of the last epoch: gone while more epochs are trained."""
    flags = ["--tasks", "svhn", "--method", "globalk", "--k", "1", "--lr_agent", "1"]
    trained.again(tmp_path, *flags)
    said = capsys.readouterr().out
    assert f"{parameter_counts(resnet26(3, WIDTH))[0]:,} parameters instead of" in said
    (block,) = [i for i, s in enumerate(records(tmp_path)[-1]["val_fine_tuned_share"]) if s]
    assert block > 0  # with the first one, the cost would be that of an untrained network
    checkpoint = left(tmp_path)
    method = build_method("globalk", resnet26(3, WIDTH), WIDTH, checkpoint.settings.options)
    method.share_L[block] = 1.0
    stored = [p for p in method.kept_for_predicting().parameters() if p.requires_grad]
    found = json.loads((tmp_path / "svhn/cost.json").read_text())
    assert found["stored_parameters"] == sum(p.numel() for p in stored)
    answers = submit(trained, tmp_path)
    checkpoint_file(tmp_path, "svhn").rename(tmp_path / "whole")  # the compact one stands alone
    assert submit(trained, tmp_path, "--compact") == answers
    compact = compact_file(tmp_path, "svhn")
    assert compact.stat().st_size < 0.3 * (tmp_path / "whole").stat().st_size
    more = replace(checkpoint.settings, epochs=3)
    Run(tmp_path, "svhn", "globalk", checkpoint.categories, more).save(method, [], [])
    with pytest.raises(SpotTuneError, match="no task could be predicted"):
        submit(trained, tmp_path, "--compact")
