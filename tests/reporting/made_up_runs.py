"""Folders as main.py leaves them, made by hand: a test states what a run found, nothing trains."""

import json
from pathlib import Path

from decathlon import TASK_BY_NAME
from engine.settings import Settings
from methods.registry import METHODS

BLOCKS = 12
SETTINGS = Settings(
    epochs=2,
    milestones=(1,),
    lr=0.1,
    lr_agent=0.01,
    weight_decay=0.0005,
    batch_size=32,
    resize=40,
    crop=32,
    width=32,
    seed=0,
    train_split="train",
    policy="argmax",
    precision="fp32",
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    source_sha256="5" * 64,
    data_sha256="7" * 64,
).as_plain()
COST = {
    "parameters": 6_000_000,
    "trained_parameters": 6_000_000,
    "stored_parameters": 6_000_000,
    "image": [40, 40],
    "macs_per_image": {"network": 330_000_000, "policy_network": 0},
}
ENVIRONMENT = {
    "python": "3.11.7",
    "packages": {"torch": "2.15.0"},
    "device": "cpu",
    "device_name": "an abacus",
    "precision": "fp32",
    "threads": 1,
    "commit": "0123456789abcdef0123456789abcdef01234567",
}


def val_figures(accuracy, blocks_per_image=(), distinct=0):
    """The val fields of a record; so many images fine-tune the first 0, 1, ... blocks."""
    images = sum(blocks_per_image)
    return {
        "val_loss": 1.5,
        "val_accuracy": accuracy,
        "val_fine_tuned_share": [
            sum(blocks_per_image[block + 1 :]) / images for block in range(BLOCKS) if images
        ],
        "val_blocks_per_image": list(blocks_per_image),
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
    """A run's folder; `records` or its accuracy on val after each of two epochs."""
    folder = Path(ckpdir) / task
    folder.mkdir(parents=True)
    known = {"task": task, "method": method, "num_classes": TASK_BY_NAME[task].num_classes}
    chosen = METHODS[method].policies[:1] if method in METHODS else ()
    own = {"policy": chosen[0]} if chosen else {}
    write_json(folder / "arguments.json", known | SETTINGS | own | settings)
    write_json(folder / "environment.json", ENVIRONMENT)
    write_json(folder / "cost.json", COST | (cost or {}))
    if isinstance(records, float):
        records = [record(1, records / 2), record(2, records)]
    lines = "".join(json.dumps(line) + "\n" for line in records or [])
    (folder / "records.jsonl").write_text(lines)
    if decisions:
        write_json(folder / "decisions.json", {"split": "val", "decisions": decisions})
    return folder


def write_json(path, content):
    path.write_text(json.dumps(content))
