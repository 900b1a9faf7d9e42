"""A small data set in the Decathlon's format, on which every number is worked out a second time.

Slowly, in plain Python and float64, from the paper and the format; nothing of the project is used
but the files that its scripts leave. Two tasks, four epochs with a drop of the learning rates after
the second, a run that ends there and is continued, and a last batch that is smaller:

    annotations -> labels -> crops -> normalised pixels -> logits -> decisions -> loss -> gradients
    -> both optimisers' updates -> records, weights -> test answers -> category ids -> score S

Each epoch is worked out from the checkpoint before it, the first from the initial weights. Else the
two would drift apart: where a ReLU's input is nearly zero, it may be on in float32 alone.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pytest
import reference
import torch
from PIL import Image
from safetensors.torch import load_file

import main
import score
import submit_test

RESIZE, CROP, WIDTH, BATCH = 24, 16, 4, 5
EPOCHS, MILESTONE, LR, LR_AGENT, SEED = 4, 2, 0.005, 0.004, 3
NUM_BLOCKS = 12
CLASSES = (2, 3, 5, 9)  # from 1; those between are not in this folder
COUNTS = {"train": (5, 3, 2, 1), "val": (2, 1, 3, 1), "test": (2, 3, 1, 3)}  # of each class
SPLITS = {"train": 0, "val": 1, "test": 2}  # the split's digit in an image id


@dataclass(frozen=True)
class Facts:
    """Of a task of the Decathlon."""

    number: int
    max_error: float
    weight_decay: float
    random_crops: bool
    mean: tuple
    std: tuple


TASKS = {
    "aircraft": Facts(
        1, 79.32, 5e-4, True,
        (0.47983041, 0.51074066, 0.53437998), (0.21070221, 0.20508901, 0.23729657),
    ),
    "svhn": Facts(
        8, 6.90, 0.0, False,
        (0.4376821, 0.4437697, 0.47280442), (0.19803012, 0.20101562, 0.19703614),
    ),
}  # fmt: skip


# The data set.


def draw(rng, kind):
    """A noisy picture; what its class is shows in its colour and its brighter side."""
    sides = [(RESIZE, RESIZE + rng.integers(1, 10)), (RESIZE + rng.integers(1, 10), RESIZE)]
    height, width = sides[rng.integers(2)]
    pixels = rng.integers(0, 100, (height, width, 3))
    pixels[:, :, kind % 3] += 80
    pixels[:, (kind // 2) * (width // 2) :][:, : width // 2] += 70
    return Image.fromarray(pixels.astype(np.uint8))


def write_task(root, task, number):
    """Images stand sorted by class; categories and annotations are in no order."""
    rng = np.random.default_rng(number)
    index = 0
    categories = [{"id": number * 10**7 + kind, "name": f"class {kind}"} for kind in CLASSES]
    categories = [categories[place] for place in (2, 0, 3, 1)]
    for split, digit in SPLITS.items():
        images, annotations = [], []
        for kind, count in zip(CLASSES, COUNTS[split], strict=True):
            folder = f"data/{task}/{split}" + (f"/{kind:04}" if split != "test" else "")
            (root / folder).mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                index += 1
                image_id, name = number * 10**7 + digit * 10**5 + index, f"{folder}/{index:06}.jpg"
                draw(rng, CLASSES.index(kind)).save(root / name, quality=95)
                images.append({"id": image_id, "file_name": name})
                label = {"image_id": image_id, "category_id": number * 10**7 + kind}
                annotations.append({"id": image_id, **label})
        if split == "test":  # in no order
            images = images[5:] + images[:5][::-1]
        common = {"info": {}, "images": images, "categories": categories}
        labelled = common | {"annotations": annotations[::-1], "licenses": []}
        write_json(root / f"annotations/{task}_{split}.json", labelled)
        if split == "test":
            write_json(root / f"annotations/{task}_test_stripped.json", common | {"licenses": {}})


def write_json(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def read(path):
    return json.loads(path.read_text())


def source_weights(images):
    """A source network with random weights, by the names of the released file.

    Its running statistics are those of these images.
    """
    generator = torch.Generator().manual_seed(0)

    def around(value, spread, *shape):
        return value + spread * torch.randn(shape, generator=generator)

    weights, channels = {}, WIDTH

    def add_norm(name, size):
        weights[f"{name}.weight"] = around(1.0, 0.1, size)
        weights[f"{name}.bias"] = around(0.0, 0.1, size)
        weights[f"{name}.running_mean"] = around(0.0, 0.1, size)
        weights[f"{name}.running_var"] = around(1.0, 0.1, size)

    weights["pre_layers_conv.conv.weight"] = around(0.0, 0.2, WIDTH, 3, 3, 3)
    add_norm("pre_layers_conv.bns.0", WIDTH)
    for stage in (1, 2, 3):
        size = WIDTH * 2**stage
        for number in range(4):
            name = f"layer{stage}.{number}"
            weights[f"{name}.conv1.conv.weight"] = around(0.0, 0.1, size, channels, 3, 3)
            add_norm(f"{name}.conv1.bns.0", size)
            weights[f"{name}.conv2.1.conv.weight"] = around(0.0, 0.1, size, size, 3, 3)
            add_norm(f"{name}.conv2.1.bns.0", size)
            channels = size
    add_norm("end_bns.0.0", channels)
    weights["linears.0.weight"] = around(0.0, 0.1, 7, channels)
    weights["linears.0.bias"] = around(0.0, 0.1, 7)
    with torch.no_grad():
        for _ in range(20):
            reference.resnet(images.float(), weights)
    return weights


# What the project does, on disk.


@dataclass(frozen=True)
class Left:
    """Where the runs left their files, by what was asked of them."""

    root: object
    source: dict  # weights by the released file's names
    start: object  # one epoch with rates that move nothing: the initial weights
    states: dict  # by task: the tensors of the checkpoint after each epoch
    ckpdir: object


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    folder = tmp_path_factory.mktemp("by_hand")
    root = folder / "decathlon-1.0"
    for task, facts in TASKS.items():
        write_task(root, task, facts.number)
    windows = [centre(pixels) for _, pixels, _ in labelled(root, "aircraft", "val")]
    source = source_weights(normalised(windows, TASKS["aircraft"]))
    torch.save({"net": source}, folder / "source.pth")
    flags = ["--datadir", root, "--tasks", *TASKS, "--pretrained", folder / "source.pth"]
    flags += ["--device", "cpu", "--precision", "fp32", "--width", WIDTH, "--seed", SEED]
    flags += ["--resize", RESIZE, "--crop", CROP, "--batch_size", BATCH, "--step1", MILESTONE]

    def train(ckpdir, epochs, lr, lr_agent):
        rates = ["--lr", lr, "--lr_agent", lr_agent, "--nb_epochs", epochs]
        main.main([str(each) for each in (*flags, *rates, "--ckpdir", ckpdir)])

    train(folder / "start", 1, 1e-30, 1e-30)
    states = {task: [] for task in TASKS}
    for epochs in (2, EPOCHS):
        train(folder / "run", epochs, LR, LR_AGENT)
        for task in TASKS:
            for name in ("checkpoint.previous", "checkpoint"):  # after the last epoch but one
                states[task].append(load_file(folder / "run" / task / f"{name}.safetensors"))
    return Left(root, source, folder / "start", states, folder / "run")


def place(name, copy=""):
    """The name in a checkpoint of a tensor of the released file; `copy`: kept or fine_tuned.

    Without `copy` it is one of the policy network's, whose stages have one block.
    """
    name, _, kind = name.rpartition(".")
    parts = {"conv1.conv": "conv1", "conv1.bns.0": "bn1"}
    parts |= {"conv2.1.conv": "conv2", "conv2.1.bns.0": "bn2"}
    others = {"pre_layers_conv.conv": "stem.conv", "pre_layers_conv.bns.0": "stem.bn"}
    others |= {"end_bns.0.0": "head.bn", "linears.0": "head.linear"}
    if name in others:
        return f"{'net' if copy else 'policy_net.resnet'}.{others[name]}.{kind}"
    stage, number, part = int(name[5]) - 1, int(name[7]), parts[name[9:]]
    if copy:
        return f"net.pairs.{4 * stage + number}.{copy}.{part}.{kind}"
    return f"policy_net.resnet.blocks.{stage}.{part}.{kind}"


def initial_networks(left, task):
    """The source's weights; the classifier and the policy network as the run drew them."""
    drawn = load_file(left.start / task / "checkpoint.safetensors")
    kept = {name: tensor.double() for name, tensor in left.source.items()}
    for name in ("linears.0.weight", "linears.0.bias"):
        kept[name] = drawn[f"weights.{place(name, 'kept')}"].double()
    tuned = {name: tensor.clone() for name, tensor in kept.items() if name.startswith("layer")}
    policy = {name: drawn[f"weights.{place(name)}"].double() for name in in_policy(kept)}
    for name in policy:
        if "running" in name:
            policy[name] = torch.full_like(policy[name], float(name.endswith("var")))
    return reference.SpotTune(kept, tuned, policy)


def in_policy(names):
    """Those of the source's names that the policy network has: the first block of each stage."""
    return [name for name in names if not name.startswith("layer") or name[7] == "0"]


def networks_of(state, names):
    """What a checkpoint holds, to go on from; `names`: of the source's tensors."""

    def found(part, name, copy=""):
        return state[f"{part}.{place(name, copy)}"].double()

    blocks = [name for name in names if name.startswith("layer")]
    networks = reference.SpotTune(
        {name: found("weights", name, "kept") for name in names},
        {name: found("weights", name, "fine_tuned") for name in blocks},
        {name: found("weights", name) for name in in_policy(names)},
    )
    for name in networks.trained_net:
        copy = "fine_tuned" if name.startswith("tuned.") else "kept"
        networks.momenta[name] = found("momenta", name.removeprefix("tuned."), copy)
    for name in networks.trained_policy:
        networks.policy_momenta[name] = found("momenta", name)
    return networks


# By hand.


def stream(purpose, *parts):
    """Random numbers that depend on purpose, seed, task and epoch, or split, and on nothing else.

    As runtime/randomness.py documents: SHA-256 of the parts gives the seed.
    """
    digest = hashlib.sha256(repr((purpose, *parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def gumbel(count, *parts):
    """If E is exponential, -log E is Gumbel."""
    draws = torch.empty(count, NUM_BLOCKS, 2).exponential_(generator=stream("gumbel", *parts))
    return -draws.double().log()


def labelled(root, task, split):
    """Ids, pictures and classes from 0, in the order of the file."""
    content = read(root / f"annotations/{task}_{split}.json")
    ids = sorted(category["id"] for category in content["categories"])
    of_image = {each["image_id"]: each["category_id"] for each in content["annotations"]}
    found = []
    for image in content["images"]:
        with Image.open(root / image["file_name"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        found.append((image["id"], pixels, ids.index(of_image[image["id"]])))
    return found


def normalised(windows, facts):
    """Windows of pixels, height x width x RGB, as the networks see them."""
    planes = [
        [(window[:, :, rgb] / 255 - facts.mean[rgb]) / facts.std[rgb] for rgb in range(3)]
        for window in windows
    ]
    return torch.tensor(np.array(planes))


def centre(pixels):
    """A square of RESIZE pixels; halves round to even."""
    top, left = (round((side - RESIZE) / 2) for side in pixels.shape[:2])
    return pixels[top : top + RESIZE, left : left + RESIZE]


def random_crop(pixels, down, right):
    """`down` and `right`, from 0 to 1, choose among all corners of a square of CROP pixels."""
    top = int(down * (pixels.shape[0] - CROP + 1))
    left = int(right * (pixels.shape[1] - CROP + 1))
    return pixels[top : top + CROP, left : left + CROP]


def train_epoch(networks, task, images, epoch):
    """One pass, and the training part of its record."""
    facts, names = TASKS[task], (SEED, task, epoch)
    drop = 0.1 if epoch >= MILESTONE else 1.0
    order = torch.randperm(len(images), generator=stream("order", *names)).tolist()
    corners = torch.rand(2, len(images), generator=stream("crops", *names), dtype=torch.float64)
    noise = gumbel(len(images), *names)
    loss_sum, correct, fine_tuned = 0.0, 0, [0] * NUM_BLOCKS
    for first in range(0, len(images), BATCH):
        positions = range(first, min(first + BATCH, len(images)))
        windows, labels = [], []
        for position in positions:
            _, pixels, label = images[order[position]]
            if facts.random_crops:
                windows.append(random_crop(pixels, *corners[:, position].tolist()))
            else:
                windows.append(centre(pixels))
            labels.append(label)
        loss, scores, decisions, *_ = networks.step(
            normalised(windows, facts), torch.tensor(labels), noise[first : positions.stop],
            LR * drop, LR_AGENT * drop, facts.weight_decay,
        )  # fmt: skip
        loss_sum += loss * len(labels)
        for row, label, decided in zip(scores.tolist(), labels, decisions.tolist(), strict=True):
            correct += row.index(max(row)) == label
            fine_tuned = [n + round(d) for n, d in zip(fine_tuned, decided, strict=True)]
    return {
        "epoch": epoch + 1,
        "lr": LR * drop,
        "lr_agent": LR_AGENT * drop,
        "train_loss": loss_sum / len(images),
        "train_penalty": 0.0,
        "train_accuracy": 100 * correct / len(images),
        "train_fine_tuned_share": [number / len(images) for number in fine_tuned],
    }


def answered(networks, task, images, policy, split):
    """Of each image: its id, class, decisions and cross-entropy under a test-time policy."""
    drawn = gumbel(len(images), "test", SEED, task, split)
    found = []
    for (image_id, pixels, label), noise in zip(images, drawn, strict=True):
        picture = normalised([centre(pixels)], TASKS[task])
        keep, fine_tune = (networks.logits(picture)[0] + noise * (policy == "sample")).T
        decisions = (fine_tune > keep).double()
        if policy in ("finetuned", "kept"):
            decisions = torch.full((NUM_BLOCKS,), float(policy == "finetuned"))
        scores = networks.scores(picture, decisions[None])
        loss = reference.cross_entropy(scores, torch.tensor([label])).item()
        found.append((image_id, scores[0].argmax().item(), decisions.int().tolist(), loss))
    return found


def val_part(answers, images):
    rows = [decisions for _, _, decisions, _ in answers]
    right = [
        answer == label for (_, answer, _, _), (_, _, label) in zip(answers, images, strict=True)
    ]
    return {
        "val_loss": sum(loss for *_, loss in answers) / len(images),
        "val_accuracy": 100 * sum(right) / len(images),
        "val_fine_tuned_share": [sum(column) / len(images) for column in zip(*rows, strict=True)],
        "val_blocks_per_image": [sum(sum(row) == n for row in rows) for n in range(NUM_BLOCKS + 1)],
        "val_distinct_policies": len({tuple(row) for row in rows}),
        "val_seen_in_training": True,
    }


@dataclass(frozen=True)
class ByHand:
    """What must be on disk for one task."""

    before: list  # of each epoch: the tensors that it started from
    after: list
    records: list
    decisions: dict  # what decisions.json says of the val images, after the last epoch
    answers: dict  # by test-time policy: of each test image the category id


def tensors_of(networks):
    """Weights, running statistics and momenta under the checkpoint's names."""
    found = {f"weights.{place(n, 'kept')}": t.clone() for n, t in networks.kept.items()}
    found |= {f"weights.{place(n, 'fine_tuned')}": t.clone() for n, t in networks.tuned.items()}
    found |= {f"weights.{place(name)}": t.clone() for name, t in networks.policy.items()}
    for name, momentum in networks.momenta.items():
        copy = "fine_tuned" if name.startswith("tuned.") else "kept"
        found[f"momenta.{place(name.removeprefix('tuned.'), copy)}"] = momentum.clone()
    found |= {f"momenta.{place(n)}": t.clone() for n, t in networks.policy_momenta.items()}
    return found


@pytest.fixture(scope="module")
def by_hand(left):
    found = {}
    for task, facts in TASKS.items():
        train, val, test = (labelled(left.root, task, split) for split in SPLITS)
        before, after, records = [], [], []
        networks = initial_networks(left, task)
        for epoch, state in enumerate(left.states[task]):
            before.append(tensors_of(networks))
            record = train_epoch(networks, task, [*train, *val], epoch)
            after.append(tensors_of(networks))
            networks = networks_of(state, left.source)
            answers = answered(networks, task, val, "argmax", "val")
            records.append(record | val_part(answers, val))
        records[-1]["val_policies"] = {
            policy: val_part(answered(networks, task, val, policy, "val"), val)
            for policy in ("argmax", "sample", "finetuned", "kept")
        }
        decisions = {
            "split": "val",
            "decisions": {str(image): "".join(map(str, row)) for image, _, row, _ in answers},
            "answers": {
                str(image): facts.number * 10**7 + CLASSES[answer] for image, answer, *_ in answers
            },
        }
        categories = {
            policy: {
                image_id: facts.number * 10**7 + CLASSES[answer]
                for image_id, answer, *_ in answered(networks, task, test, policy, "test")
            }
            for policy in ("argmax", "sample")
        }
        found[task] = ByHand(before, after, records, decisions, categories)
    return found


# Both.


def distance(first, second):
    return (first.double() - second).norm().item()


def errors_of(found, before, expected):
    """Of each momentum and each update: how far off it is, by its own size."""
    assert found.keys() - expected.keys() == {n for n in found if "num_batches" in n}
    errors = {}
    for name, tensor in expected.items():
        if "running" in name:
            torch.testing.assert_close(found[name].double(), tensor, rtol=1e-3, atol=1e-3)
        elif tensor.equal(start := before.get(name, torch.zeros(()))):  # a kept convolution
            assert found[name].equal(tensor.float())
        else:
            errors[name] = distance(found[name], tensor) / distance(tensor, start)
    return sorted(errors.values())


def test_updates_and_momenta_are_those_worked_out_by_hand(left, by_hand):
    """To a thousandth; in a few epochs a ReLU that is on in float32 alone may cost up to a tenth.

    On other processors it is other epochs.
    """
    exact = 0
    for task in TASKS:
        epochs = zip(left.states[task], by_hand[task].before, by_hand[task].after, strict=True)
        for found, before, expected in epochs:
            errors = errors_of(found, before, expected)
            assert errors[-1] < 0.3
            assert errors[len(errors) // 2] < 0.02
            exact += errors[len(errors) // 2] < 1e-3
    assert exact > EPOCHS


def close(expected):
    """To four digits, all the way down."""
    if isinstance(expected, dict):
        return {name: close(value) for name, value in expected.items()}
    return expected if isinstance(expected, bool) else pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_records_and_decisions_are_those_worked_out_by_hand(task, left, by_hand):
    lines = (left.ckpdir / task / "records.jsonl").read_text().splitlines()
    for line, expected in zip(lines, by_hand[task].records, strict=True):
        found = json.loads(line)
        assert found.keys() - expected.keys() == {"seconds", "images_per_second"}
        assert {name: found[name] for name in expected} == close(expected)
    assert read(left.ckpdir / task / "decisions.json") == by_hand[task].decisions


@pytest.mark.parametrize("policy", ["argmax", "sample"])
def test_test_answers_and_score_are_those_worked_out_by_hand(policy, left, by_hand, tmp_path):
    results, out = tmp_path / "results.json", tmp_path / "score.json"
    flags = ["--datadir", left.root, "--ckpdir", left.ckpdir, "--device", "cpu", "--seed", SEED]
    flags += ["--precision", "fp32", "--policy", policy, "--out", results, "--batch_size", 4]
    submit_test.main(list(map(str, flags)))
    answers = {each["image_id"]: each["category_id"] for each in read(results)}
    expected = {task: by_hand[task].answers[policy] for task in TASKS}
    assert answers == expected["aircraft"] | expected["svhn"]

    labels = ["--annotations", left.root / "annotations", "--split", "test"]
    score.main([str(each) for each in (results, *labels, "--json", out)])
    points, accuracies = {}, {}
    for task, facts in TASKS.items():
        truth = read(left.root / f"annotations/{task}_test.json")["annotations"]
        wrong = sum(expected[task][each["image_id"]] != each["category_id"] for each in truth)
        error = 100 * wrong / len(truth)
        accuracies[task] = 100 - error
        points[task] = 1000 * max(0, 1 - error / facts.max_error) ** 2
    found = read(out)
    for task in TASKS:
        assert found["tasks"][task]["accuracy"] == pytest.approx(accuracies[task])
        assert found["tasks"][task]["points"] == pytest.approx(points[task])
    assert found["score"] == pytest.approx(points["aircraft"] + points["svhn"])
    assert found["mean"] == pytest.approx((accuracies["aircraft"] + accuracies["svhn"]) / 2)


def test_the_data_set_can_tell_right_from_wrong(by_hand):
    """Neither all answers nor all decisions are the same."""
    for task in TASKS:
        assert len(set(by_hand[task].answers["argmax"].values())) == 3
        assert len(set(by_hand[task].decisions["decisions"].values())) > 3
        assert by_hand[task].answers["argmax"] != by_hand[task].answers["sample"]
        assert 50 < by_hand[task].records[-1]["val_accuracy"] < 100
