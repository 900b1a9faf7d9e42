"""The paper's baselines, SpotTune's variants, and Global-k."""

import copy
import json
import math
import signal

import pytest
import torch
import torch.nn.functional as F
from conftest import run_script

import main
import submit_val
from decathlon import SOURCE
from engine.checkpoints import Checkpoint
from engine.records import cost, parameter_counts
from engine.step import train_step
from gumbel_softmax import added_at_test_time, gumbel_noise
from methods.cost import macs_per_image
from methods.global_k import Compact
from methods.optimizers import Rates
from methods.registry import METHODS, Options, build_method
from models.resnet26 import resnet26
from runtime.errors import SpotTuneError
from runtime.signals import Stopped, StopRequest

BLOCKS = 12
RATES = Rates(network=0.1, policy=0.01, weight_decay=5e-4)
GLOBAL_3 = Options(k=3, lambda_k=1.0, lambda_e=1.0)
OPTIONS = {
    "lastk": Options(k=3),
    "l2sp": Options(l2sp_alpha=0.1, l2sp_beta=0.01),
    "globalk": GLOBAL_3,
}


def build(kind, options=None):
    torch.manual_seed(0)
    net = resnet26(2, width=4)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # a source whose statistics are not the start
            module.running_mean.normal_()
            module.weight.data.uniform_(0.5, 1.5)
    return build_method(kind, net, 4, options or OPTIONS.get(kind, Options()))


def images(count=8):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def noise(method, count=8, seed=0):
    return gumbel_noise((count, method.num_blocks, 2), torch.Generator().manual_seed(seed))


def step(method, optimizers=None):
    """One update as the trainer makes it, without autocast."""

    def forward(batch, labels, draw):
        scores, decisions = method(batch, draw)
        return F.cross_entropy(scores, labels), method.penalty(decisions), scores, decisions

    labels = torch.arange(8) % 2
    optimizers = optimizers or method.optimizers(RATES)
    return train_step(images(), labels, noise(method), forward, optimizers)


def moved(method):
    """Names of what one training step changed, running statistics included."""
    before = copy.deepcopy(method.state_dict())
    method.train()
    step(method)
    return {name for name, tensor in method.state_dict().items() if (tensor != before[name]).any()}


@pytest.mark.parametrize("kind", ["scratch", "finetune", "l2sp", "source"])
def test_everything_trains_in_fine_tuning_from_scratch_and_l2sp(kind):
    assert moved(build(kind)) == set(build(kind).state_dict())


def test_the_feature_extractor_trains_only_the_classifier():
    """Running statistics of BatchNorm stay the source's too."""
    assert moved(build("feature")) == {"net.head.linear.weight", "net.head.linear.bias"}


@pytest.mark.parametrize("k", [0, 1, 2, 3, 12])
def test_last_k_trains_the_last_k_blocks_and_the_head(k):
    method = build("lastk", Options(k=k))
    expected = {name for name in method.state_dict() if name.startswith("net.head.")}
    for block in range(BLOCKS - k, BLOCKS):
        expected |= {name for name in method.state_dict() if f".blocks.{block}." in name}
    assert moved(method) == expected


@pytest.mark.parametrize("kind", ["spottune", "globalk"])
def test_two_branch_methods_train_all_but_the_kept_convolutions(kind):
    method = build(kind)
    still = set(method.state_dict()) - moved(method)
    assert {name for name in still if "kept.conv" in name} == {
        f"net.pairs.{block}.kept.conv{number}.weight"
        for block in range(BLOCKS)
        for number in (1, 2)
    }
    # A first step cannot tell equal copies apart, so the policy's weights may stand still.
    assert all("kept.conv" in name or name.startswith("policy_net.") for name in still)


def test_stochastic_fine_tuning_throws_a_fair_coin_for_each_image_and_block():
    method = build("stochastic").train()
    for mode in (True, False):
        _, decisions = method.train(mode)(images(400), noise(method, 400))
        assert decisions.round().mean(dim=0).tolist() == pytest.approx([0.5] * BLOCKS, abs=0.1)
    assert len(decisions.unique(dim=0)) > 350
    _, same = method(torch.zeros(400, 3, 16, 16), noise(method, 400))
    assert torch.equal(same, decisions)  # it looks at nothing
    assert parameter_counts(method.policy_net) == (0, 0)


@pytest.mark.parametrize(("policy", "branch"), [("finetuned", "fine_tuned"), ("kept", "kept")])
@torch.no_grad()
def test_all_fine_tuned_or_all_kept_at_test_time_is_a_plain_network(policy, branch):
    method = build("spottune").train()
    step_with_grad = torch.enable_grad()(step)
    step_with_grad(method)
    method.eval()
    plain = resnet26(2, width=4).eval()
    plain.stem, plain.head = method.net.stem, method.net.head
    plain.blocks = torch.nn.ModuleList(getattr(pair, branch) for pair in method.net.pairs)
    added = added_at_test_time(policy, 8, BLOCKS, torch.Generator())
    torch.testing.assert_close(method(images(), added)[0], plain(images()))
    torch.testing.assert_close(method.evaluator()(images(), added)[0], plain(images()))


def test_l2sp_penalises_the_way_from_the_pretrained_weights_by_its_formula():
    method = build("l2sp", Options(l2sp_alpha=0.2, l2sp_beta=0.03))
    classifier = method.net.head.linear
    size = sum(value**2 for p in classifier.parameters() for value in p.flatten().tolist())
    assert method.penalty(None).item() == pytest.approx(0.03 / 2 * size, rel=1e-5)
    with torch.no_grad():
        method.net.stem.conv.weight[0, 0, 0, 0] += 3.0
        method.net.blocks[5].bn2.bias[1] -= 2.0
    expected = 0.2 / 2 * (3.0**2 + 2.0**2) + 0.03 / 2 * size
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
    near, far = build("l2sp", Options(l2sp_alpha=1.0)), build("finetune")
    start = far.net.blocks[3].conv1.weight.detach().clone()
    for method in (near, far):
        optimizers = method.train().optimizers(Rates(0.1, 0.01, 0.0))
        for _ in range(10):
            step(method, optimizers)
    ways = [(method.net.blocks[3].conv1.weight - start).norm().item() for method in (near, far)]
    assert ways[0] < 0.8 * ways[1]


def test_global_k_adds_the_papers_two_losses():
    """v = (1, 1/2, 1/4, 0, ...), by hand: L_k = (7/4 - 3)^2, L_e = (1/2 + 1/2) log 2."""
    decisions = torch.zeros(4, BLOCKS)
    decisions[:, 0] = 1.0
    decisions[:2, 1] = 1.0
    decisions[:1, 2] = 1.0
    number, entropy = (7 / 4 - 3) ** 2, 0.5 * math.log(2) + 0.25 * math.log(4)
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.3, 0.7)):
        method = build("globalk", Options(k=3, lambda_k=weights[0], lambda_e=weights[1]))
        expected = weights[0] * number + weights[1] * entropy
        assert method.penalty(decisions).item() == pytest.approx(expected, rel=1e-5)


def test_global_ks_losses_reach_the_policy_network():
    method = build("globalk", Options(k=0, lambda_k=1.0)).train()
    scores, decisions = method(images(), noise(method))
    method.penalty(decisions).backward()
    gradient = method.policy_net.resnet.head.linear.bias.grad.view(BLOCKS, 2)
    assert (gradient[:, 1] > 0).all()  # fewer fine-tuned blocks: their logits go down
    assert torch.isfinite(gradient).all()


def global_3_after_training():
    method = build("globalk").train()
    optimizers = method.optimizers(RATES)
    for _ in range(5):
        step(method, optimizers)
    return method.eval()


@torch.no_grad()
def test_the_k_chosen_blocks_are_the_same_for_every_image():
    method = torch.enable_grad()(global_3_after_training)()
    for candidate in (method, method.evaluator()):
        for draw in (0, 1):
            _, decisions = candidate(images(50), noise(method, 50, seed=draw))
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
    method = build("globalk").train()
    before = method.share_L.clone()
    _, decisions = method(images(), noise(method))
    expected = 0.99 * before + 0.01 * decisions.detach().round().mean(dim=0)
    torch.testing.assert_close(method.share_L, expected)
    method.eval()(images(), noise(method))
    torch.testing.assert_close(method.share_L, expected)


@torch.no_grad()
def test_the_compact_network_predicts_exactly_as_the_whole():
    method = torch.enable_grad()(global_3_after_training)()
    compact = method.kept_for_predicting().eval()
    whole, small = method(images(50), noise(method, 50)), compact(images(50), None)
    assert torch.equal(whole[0], small[0])
    assert torch.equal(whole[1], small[1])
    again = build_method("compact", resnet26(2, width=4), 4).eval()
    again.load_state_dict(compact.state_dict())
    assert torch.equal(again(images(50), None)[0], small[0])


def test_the_compact_network_has_one_copy_of_each_block_and_no_policy():
    method = global_3_after_training()
    compact = method.kept_for_predicting()
    plain, _ = parameter_counts(resnet26(2, width=4))
    whole, stored = parameter_counts(compact)
    assert isinstance(compact, Compact)
    assert whole == plain
    kept = [method.net.pairs[block].kept for block in range(BLOCKS) if not method.chosen_L()[block]]
    convolutions = sum(w.numel() for pair in kept for w in (pair.conv1.weight, pair.conv2.weight))
    assert stored == plain - convolutions
    costs = macs_per_image(method.evaluator(), 16, 16)
    assert costs == {**macs_per_image(build("finetune").evaluator(), 16, 16)}


@pytest.mark.parametrize(
    ("kind", "stored"),
    [("feature", 66), ("finetune", "plain"), ("lastk", "some"), ("spottune", "trained")],
)
def test_stored_parameters_are_what_a_task_adds_to_the_source(kind, stored, decathlon_root):
    from image_cache.orders import View

    method = build(kind)
    found = cost(method, View(16, 16))
    plain, _ = parameter_counts(resnet26(2, width=4))
    net = build("lastk").net
    some = sum(p.numel() for part in (*net.blocks[9:], net.head) for p in part.parameters())
    expected = {"plain": plain, "some": some, "trained": found["trained_parameters"]}
    assert found["stored_parameters"] == expected.get(stored, stored)


@pytest.fixture(scope="module")
def source(trained):
    return str(trained.ckpdir / SOURCE.name / "checkpoint.safetensors")


def train(trained, ckpdir, *arguments):
    base = [*trained.arguments, "--ckpdir", str(ckpdir), "--nb_epochs", "2", "--tasks", "svhn"]
    main.main([*base, *arguments])
    return Checkpoint.load(ckpdir / "svhn/checkpoint.safetensors")


@pytest.mark.parametrize("kind", list(METHODS))
def test_each_method_trains_resumes_and_answers_through_the_same_road(
    kind, trained, source, tmp_path
):
    flags = ["--pretrained", source, "--method", kind]
    once = train(trained, tmp_path / "once", *flags)
    train(trained, tmp_path / "twice", *flags, "--nb_epochs", "1")
    twice = train(trained, tmp_path / "twice", *flags)
    assert all(torch.equal(tensor, twice.weights[name]) for name, tensor in once.weights.items())
    last = once.history[-1]
    assert set(last.get("val_policies", ())) == set(METHODS[kind].policies)
    asked = set(METHODS[kind].options)
    assert {name for name in vars(Options()) if getattr(once.settings, name)} == asked
    assert (once.settings.source_sha256 == "") == (kind == "scratch")
    arguments = json.loads((tmp_path / "once/svhn/arguments.json").read_text())
    assert arguments["method"] == kind
    answers = submit(trained, tmp_path / "once")
    truth = json.loads((trained.root / "annotations/svhn_val.json").read_text())["annotations"]
    right = {row["image_id"]: row["category_id"] for row in truth}
    share = sum(right[a["image_id"]] == a["category_id"] for a in answers) / len(answers)
    assert 100 * share == pytest.approx(last["val_accuracy"])


def submit(trained, ckpdir, *flags):
    out = ckpdir / "results.json"
    arguments = ["--datadir", str(trained.root), "--ckpdir", str(ckpdir), "--out", str(out)]
    submit_val.main([*arguments, "--tasks", "svhn", "--device", "cpu", *flags])
    return json.loads(out.read_text())


def test_the_compact_checkpoint_gives_the_same_answers(trained, source, tmp_path, capsys):
    whole = train(trained, tmp_path, "--pretrained", source, "--method", "globalk")
    said = capsys.readouterr().out
    compact = Checkpoint.load(tmp_path / "svhn/compact.safetensors")
    assert f"{parameter_counts(resnet26(2, 4))[0]:,} parameters instead of" in said
    assert sum(t.numel() for t in compact.weights.values()) < 0.5 * sum(
        tensor.numel() for tensor in whole.weights.values()
    )
    answers = submit(trained, tmp_path)
    (tmp_path / "svhn/checkpoint.safetensors").unlink()  # the compact one stands alone
    assert submit(trained, tmp_path, "--compact") == answers


@pytest.mark.parametrize(
    ("kind", "file"), [("globalk", "compact.safetensors"), ("spottune", "decisions.json")]
)
def test_what_only_a_finished_run_has_is_gone_while_more_epochs_are_trained(
    kind, file, trained, source, tmp_path, monkeypatch
):
    flags = ["--pretrained", source, "--method", kind]
    train(trained, tmp_path, *flags, "--nb_epochs", "1")
    assert (tmp_path / "svhn" / file).exists()

    def stop(self, group=None):
        raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "raise_if_asked", stop)
        with pytest.raises(Stopped):
            train(trained, tmp_path, *flags)
    assert not (tmp_path / "svhn" / file).exists()
    if kind == "globalk":
        with pytest.raises(SpotTuneError, match="no task could be predicted"):
            submit(trained, tmp_path, "--compact")
    train(trained, tmp_path, *flags)
    assert (tmp_path / "svhn" / file).exists()


def test_decisions_of_the_last_epoch_are_those_of_the_record(trained):
    found = json.loads((trained.ckpdir / "svhn/decisions.json").read_text())
    lines = (trained.ckpdir / "svhn/records.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    rows = list(found["decisions"].values())
    shares = [sum(row[block] == "1" for row in rows) / len(rows) for block in range(BLOCKS)]
    assert shares == pytest.approx(last["val_fine_tuned_share"])
    counts = [sum(row.count("1") == number for row in rows) for number in range(BLOCKS + 1)]
    assert counts == last["val_blocks_per_image"]
    assert len(set(rows)) == last["val_distinct_policies"]
    assert last["val_policies"]["argmax"]["val_accuracy"] == last["val_accuracy"]
    assert last["val_policies"]["kept"]["val_fine_tuned_share"] == [0.0] * BLOCKS
    assert last["val_policies"]["finetuned"]["val_blocks_per_image"][BLOCKS] == len(rows)


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind != "scratch"])
def test_a_method_that_needs_pretrained_weights_says_so(kind, trained, tmp_path):
    arguments = [*trained.arguments, "--ckpdir", str(tmp_path), "--tasks", "svhn"]
    with pytest.raises(SpotTuneError, match="no source weights.*only --method scratch needs none"):
        main.main([*arguments, "--method", kind])


def test_training_from_scratch_needs_no_source(trained, tmp_path):
    base = [*trained.arguments, "--ckpdir", str(tmp_path), "--tasks", "svhn", "--nb_epochs", "1"]
    main.main([*base, "--method", "scratch"])
    assert not (tmp_path / SOURCE.name).exists()


@pytest.mark.parametrize("k", ["-1", "13", "three"])
def test_k_outside_0_to_12_is_one_clear_line(k):
    done = run_script("main.py", "--method", "globalk", "--k", k)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "--k" in line
    assert "expected 0 to 12" in line or "invalid" in line


def test_a_policy_that_a_method_does_not_know_is_one_clear_line(trained, source, tmp_path):
    base = [*trained.arguments, "--ckpdir", str(tmp_path), "--tasks", "svhn"]
    with pytest.raises(SpotTuneError, match="argmax: this method decides by sample, finetuned"):
        main.main([*base, "--pretrained", source, "--method", "stochastic", "--policy", "argmax"])


def test_another_method_does_not_go_on_from_a_checkpoint(trained):
    with pytest.raises(SpotTuneError, match="method spottune, but this run asks for finetune"):
        main.main([*trained.arguments, "--tasks", "svhn", "--method", "finetune"])
