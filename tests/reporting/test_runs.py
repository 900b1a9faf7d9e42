"""Which records are read, refused, and found comparable, with one another and with the paper."""

import json

import pytest
from conftest import refusal
from made_up_runs import (
    SETTINGS,
    read_study,
    record,
    val_figures,
    write_json,
    write_published_like,
    write_run,
)

from reporting.comparability import departures


def complaint(folder):
    return refusal(read_study, [folder])


def test_a_variant_is_a_method_its_k_and_its_way_to_decide(tmp_path):
    for k in (1, 2):
        write_run(tmp_path / f"last{k}", "dtd", "lastk", 50.0, k=k)
    write_run(tmp_path / "global", "dtd", "globalk", 50.0, k=3, lambda_k=1.0, lambda_e=1.0)
    ways = {"spottune": ("argmax", "sample", "kept"), "stochastic": ("sample", "finetuned")}
    for method, policies in ways.items():
        last = record(2, 50.0, policies={policy: val_figures(50.0) for policy in policies})
        write_run(tmp_path / method, "dtd", method, [record(1, 20.0), last])
    assert [variant.title for variant in read_study([tmp_path]).variants] == [
        "Fine-tuning last-1",
        "Fine-tuning last-2",
        "Stochastic fine-tuning",
        "Stochastic fine-tuning, all fine-tuned at test",
        "SpotTune",
        "SpotTune, sampled",
        "SpotTune, all kept at test",
        "SpotTune (Global-3)",
    ]


def test_runs_are_known_by_their_arguments_and_one_below_two_folders_is_one_run(tmp_path):
    folder = write_run(tmp_path / "a", "dtd", "finetune", 50.0)
    folder.rename(tmp_path / "a/svhn_spottune_seed7")
    (run,) = read_study([tmp_path, tmp_path / "a", tmp_path / "a/../a"]).runs
    assert (run.task, run.variant.title, run.settings.seed) == ("dtd", "Standard fine-tuning", 0)


def test_a_folder_without_finished_runs_is_told(tmp_path):
    assert "no such folder" in complaint(tmp_path / "none")
    write_run(tmp_path / "a", "dtd", "finetune", [record(1, 50.0)])
    assert "no finished run of a target task, 0 of the source and 1 unf" in complaint(tmp_path)


# What cannot stand in one table.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"resize": 48}, "resize (40 and 48)"),
        ({"crop": 24}, "crop (32 and 24)"),
        ({"width": 16}, "width (32 and 16)"),
        ({"train_split": "trainval"}, "train_split (train and trainval)"),
        ({"source_sha256": "6" * 64}, "source_sha256 (55555555555555555555 and 6666"),
        ({"num_classes": 10}, "num_classes (47 and 10)"),
        ({"data_sha256": "8" * 64}, "data_sha256 (77777777777777777777 and 8888"),
        ({"mean": [0.4, 0.5, 0.5]}, "mean ((0.5, 0.5, 0.5) and (0.4"),
        ({"epochs": 1}, "epochs (2 and 1)"),
        ({"milestones": []}, "milestones ((1,) and ())"),
        ({"batch_size": 64}, "batch_size (32 and 64)"),
        ({"schedule": "cosine"}, "schedule (step and cosine)"),
        ({"train_share": 0.5}, "train_share (1.0 and 0.5)"),
        ({"val_sha256": "8" * 64}, "val_sha256 (77777777777777777777 and 8888"),
        ({"weight_decay": 0.1}, "weight_decay (0.0005 and 0.1)"),
        # Seeds of one method, and two runs of one seed.
        ({"method": "l2sp", "seed": 1, "l2sp_alpha": 0.2}, "l2sp_alpha (0.0 and 0.2)"),
        ({"method": "l2sp", "precision": "bf16"}, "two runs of L2-SP on dtd with seed 0"),
    ],
)
def test_runs_that_differ_where_they_must_not_are_refused(changes, expected, tmp_path):
    write_run(tmp_path / "a", "dtd", "l2sp", 50.0, val_sha256="7" * 64)
    other = {"method": "feature", "records": 50.0, "val_sha256": "7" * 64, **changes}
    write_run(tmp_path / "b", "dtd", **other)
    text = complaint(tmp_path)
    for part in (expected, str(tmp_path / "a/dtd"), str(tmp_path / "b/dtd")):
        assert part in text


def test_methods_may_differ_in_learning_rate_precision_and_start(tmp_path):
    write_run(tmp_path / "a", "dtd", "finetune", 50.0)
    write_run(tmp_path / "b", "dtd", "feature", 50.0, lr=0.3, precision="bf16")
    write_run(tmp_path / "c", "dtd", "scratch", 50.0, source_sha256="")
    assert len(read_study([tmp_path]).methods) == 3


def test_networks_of_other_depth_do_not_share_a_table(tmp_path):
    six = {"val_fine_tuned_share": [0.5] * 6, "val_blocks_per_image": [0, 0, 0, 9, 0, 0, 0]}
    last = record(2, 50.0, blocks_per_image=[4, 6])
    write_run(tmp_path / "a", "dtd", "spottune", [record(1, 9.0), last])
    write_run(tmp_path / "b", "svhn", "spottune", [record(1, 9.0), last | six])
    assert "num_blocks (12 and 6)" in complaint(tmp_path)


# Published figures.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"resize": 64}, "shorter side of the images, in pixels: 64 (published: 72)"),
        ({"crop": 56}, "side of the crops, in pixels: 56 (published: 64)"),
        ({"train_split": "train"}, "images learnt from: train (published: trainval)"),
        ({"width": 16}, "channels in the stem of the network: 16 (published: 32)"),
        ({"num_classes": 7}, "source: a network trained on 7 classes (published: 1000"),
        ({"epochs": 1}, "epochs: 1 (released code: 110)"),
        ({"milestones": []}, "learning rates drop: never (released code: 40)"),
        ({"batch_size": 32}, "images per step: 32 (released code: 128)"),
        ({"lr": 0.01}, "learning rate: 0.01 (released code: 0.1)"),
        ({"schedule": "cosine"}, "schedule: cosine (released code: step)"),
        ({"optimizer": "adamw"}, "optimizer: adamw (released code: sgd)"),
        ({"images_per_class": 5}, "images per class: 5 (released code: 0)"),
        ({"precision": "bf16"}, "precision: bf16 (released code: fp32)"),
        ({"weight_decay": 0.1}, "weight decay on dtd: 0.1 (released code: 0)"),
        ({"lr_agent": 0.5}, None),  # of no network
        ({"method": "spottune", "lr_agent": 0.1}, "learning rate of the policy network: 0.1"),
        ({"method": "spottune"}, "decisions at test time: argmax (released code: sample)"),
        ({"method": "spottune", "policy": "sample"}, None),
    ],
)
def test_only_runs_as_published_depart_in_nothing(changes, expected, tmp_path):
    write_published_like(tmp_path, **changes)
    found = departures(read_study([tmp_path]))
    assert expected in "\n".join(found) if expected else found == []


def test_other_test_images_and_tasks_without_answers_count_too(tmp_path):
    write_published_like(tmp_path)
    scores = json.loads((tmp_path / "score_test.json").read_text())
    scores["tasks"]["svhn"]["images"] = 20
    scores["tasks"]["dtd"]["missing"] = scores["tasks"]["dtd"]["images"]
    write_json(tmp_path / "score_test.json", scores)
    assert departures(read_study([tmp_path])) == [
        "data: svhn was scored on 20 test images, officially 26,032",
        "tasks: no test score of dtd (published: all ten)",
    ]


# Damaged files.


LAST = json.dumps(record(2, 50.0))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("arguments.json", "{"),
        ("arguments.json", "[]"),
        ("arguments.json", json.dumps(SETTINGS | {"task": "dtd", "method": "another"})),
        ("records.jsonl", "[" * 100_000),
        ("records.jsonl", f"{LAST}\n{LAST[:50]}\n"),
        ("records.jsonl", f"{LAST}\n{LAST.replace('50.0', 'null')}\n"),
        ("records.jsonl", f"{LAST}\n{LAST.replace('50.0', 'NaN')}\n"),
        ("records.jsonl", f"{LAST}\n" + LAST.replace('share": []', 'share": [0.5]')),
        ("environment.json", "null"),
        ("environment.json", None),
        ("../score_test.json", '{"split": "val", "tasks": {}}'),
        ("../score_test.json", '{"split": "test", "tasks": {"dtd": {"accuracy": "high"}}}'),
    ],
)
def test_a_damaged_file_is_named_in_one_line(file, content, tmp_path):
    folder = write_run(tmp_path, "dtd", "finetune", 50.0)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    assert file.rpartition("/")[2] in complaint(tmp_path)
