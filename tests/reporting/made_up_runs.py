"""Folders as main.py leaves them, made by hand: a test states what a run found, nothing trains."""

import json
from pathlib import Path

import networks

from decathlon import COLUMNS, SOURCE, TARGETS, TASK_BY_NAME
from engine.answers import COLUMNS as COLUMNS_OF_ANSWERS
from engine.answers import VAL_ANSWERS
from methods.registry import METHODS
from reporting.study import read_studies

BLOCKS = networks.BLOCKS
SETTINGS = {**networks.SETTINGS, "batch_size": 32, "width": 32}
# Those with which test figures share a table with published ones.
PUBLISHED = {"resize": 72, "crop": 64, "train_split": "trainval", "batch_size": 128}
PUBLISHED |= {"epochs": 110, "milestones": [40]}
MACS = {"network": 330_000_000, "policy_network": 0}
COST = {"parameters": 6_000_000, "stored_parameters": 6_000_000, "macs_per_image": MACS}
ENVIRONMENT = {"packages": {"torch": "2.15.0"}, "device": "cpu", "device_name": "an abacus"}
ENVIRONMENT |= {"precision": "fp32", "threads": 1, "commit": "0123456789abcdef"}


def read_study(folders):
    """The one study below the folders."""
    (study,) = read_studies(folders)
    return study


def val_figures(accuracy, blocks_per_image=(), distinct=0):
    """The val fields of a record; so many images fine-tune the first 0, 1, ... blocks."""
    images = sum(blocks_per_image)
    blocks_per_image = [*blocks_per_image, *[0] * (BLOCKS + 1 - len(blocks_per_image))]
    return {
        "val_loss": 1.5,
        "val_accuracy": accuracy,
        "val_fine_tuned_share": [
            sum(blocks_per_image[block + 1 :]) / images for block in range(BLOCKS) if images
        ],
        "val_blocks_per_image": blocks_per_image if images else [],
        "val_distinct_policies": distinct,
        "val_seen_in_training": False,
    }


def record(epoch, accuracy, seconds=30.0, policies=None, **decisions):
    """One line; `policies`: the val fields under each test-time policy."""
    return {
        "epoch": epoch,
        "train_loss": 3.0 / epoch,
        "train_accuracy": accuracy,
        "seconds": seconds,
        **val_figures(accuracy, **decisions),
        **({"val_policies": policies} if policies else {}),
    }


def write_run(
    ckpdir, task="dtd", method="finetune", records=None, cost=None, decisions=None, **settings
):
    """A run's folder; `records`, or its accuracy on val after the last epoch."""
    folder = Path(ckpdir) / task
    folder.mkdir(parents=True)
    known = {"task": task, "method": method}
    known["num_classes"] = TASK_BY_NAME[task].num_classes if task in TASK_BY_NAME else 0
    chosen = METHODS[method].policies[:1] if method in METHODS else ()
    known |= SETTINGS | ({"policy": chosen[0]} if chosen else {}) | settings
    if "classes" in known:
        known["num_classes"] = len(known["classes"])
    write_json(folder / "arguments.json", known)
    write_json(folder / "environment.json", ENVIRONMENT)
    write_json(folder / "cost.json", COST | (cost or {}))
    if isinstance(records, float):
        last = known["epochs"]
        records = [record(epoch, records * epoch / last) for epoch in range(1, last + 1)]
    lines = "".join(json.dumps(line) + "\n" for line in records or [])
    (folder / "records.jsonl").write_text(lines)
    if decisions:
        write_json(folder / "decisions.json", {"split": "val", "decisions": decisions})
    return folder


def write_own_run(ckpdir, task, classes, answers, method="finetune", **settings):
    """A run of one epoch on own pictures; `answers`: class, answer, probability and decisions of
    each val picture, which are named after their places."""
    rows = [f"val/{c}/{n}.png,{c},{a},{p},{c},0.0,{d}" for n, (c, a, p, d) in enumerate(answers)]
    decided = [row[3] for row in answers]
    counts = [sum(d.count("1") == n for d in decided) for n in range(len(decided[0]) + 1)]
    right = {name: [a == c for c, a, *_ in answers if c == name] for name in classes}
    recalls = [100.0 * sum(hits) / len(hits) if hits else None for hits in right.values()]
    known = [recall for recall in recalls if recall is not None]
    last = val_figures(100.0 * sum(map(sum, right.values())) / len(answers))
    last |= {"val_balanced_accuracy": sum(known) / len(known), "val_class_recall": recalls}
    if decided[0]:
        shares = [sum(d[b] == "1" for d in decided) / len(decided) for b in range(len(decided[0]))]
        last |= {"val_fine_tuned_share": shares, "val_blocks_per_image": counts}
        last["val_distinct_policies"] = len(set(decided))
    if len(classes) == 2:
        last["val_auc"] = 0.75
    records = [record(1, 0.0) | last]
    own = {"backbone": "resnet18", "epochs": 1, "val_share": 0.2, "classes": classes}
    folder = write_run(ckpdir, task, method, records, **own | settings)
    (folder / VAL_ANSWERS).write_text("\n".join([",".join(COLUMNS_OF_ANSWERS), *rows, ""]))
    return folder


def write_source(ckpdir, accuracy, **settings):
    """The source network, evaluated on val with the weights of a file."""
    records = [dict(val_figures(accuracy), epoch=0)] if accuracy else []
    return write_run(ckpdir, SOURCE.name, "source", records, **{**settings, "epochs": 0})


def write_published_like(folder, method="finetune", **changes):
    """All ten tasks trained as the released code does, and their test scores: half is right."""
    settings = PUBLISHED | changes
    write_source(folder, 60.0, **settings)
    for task in TARGETS:
        decay = {"weight_decay": task.weight_decay}
        write_run(folder, task.name, method, 80.0, **{**decay, **settings})
    tasks = {
        task: {"accuracy": 50.0, "images": TASK_BY_NAME[task].num_test, "missing": 0}
        for task in COLUMNS
    }
    write_json(folder / "score_test.json", {"split": "test", "tasks": tasks})


def write_json(path, content):
    path.write_text(json.dumps(content))
