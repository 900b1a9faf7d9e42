"""The report: what stands in its tables, what it refuses to tabulate, what the page is made of."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from made_up_runs import SETTINGS, record, val_figures, write_json, write_run

import report
import score
import submit_test
from decathlon import COLUMNS, SOURCE, TARGETS, TASK_BY_NAME
from engine.settings import Settings
from reporting.pages import Heading, Paragraph, Table, as_html, as_markdown
from reporting.results import Spread
from reporting.study import read_study
from runtime.errors import SpotTuneError

OFFICIAL = {"resize": 72, "crop": 64, "train_split": "trainval"}
NO_IMAGES = ("--datadir", "nowhere")
EXTERNAL = ("src", "href", "srcset", "action", "poster", "background")


def written(folder, out, *options):
    """The two forms of the report over a folder, as the script writes them."""
    report.main([str(folder), "--out", str(out), *options])
    return (out / "report.md").read_text(), (out / "report.html").read_text()


def told(*folders):
    """The report as Markdown, without figures."""
    return as_markdown(report.page(read_study(folders), [], [], []))


def tables(markdown):
    """The tables of a Markdown report: caption -> first cell -> column -> cell."""
    found = {}
    for caption, lines in re.findall(r"\*\*(.+)\*\*\n\n((?:\|.*\n?)+)", markdown):
        rows = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines.splitlines()]
        header, _, *body = [[cell.strip() for cell in row] for row in rows]
        found[caption] = {row[0]: dict(zip(header, row, strict=True)) for row in body}
    return found


def complaint(*folders):
    with pytest.raises(SpotTuneError) as error:
        read_study(folders)
    assert "\n" not in str(error.value)
    return str(error.value)


def spottune_record(argmax, sample):
    """The last of a run with two ways to decide: 10 val images, 3 of them fine-tune no block."""
    decisions = {"blocks_per_image": [3, 0, 0, 5, 2] + [0] * 8, "distinct": 4}
    drawn = {"blocks_per_image": [0, 0, 0, 0, 10] + [0] * 8, "distinct": 9}
    policies = {"argmax": val_figures(argmax, **decisions), "sample": val_figures(sample, **drawn)}
    return record(2, argmax, policies=policies, **decisions)


@pytest.fixture
def study(tmp_path):
    """Fine-tuning with three seeds on dtd and two on svhn; SpotTune with one; the source."""
    folder = tmp_path / "study"
    for seed, accuracy in enumerate((50.05, 54.05, 58.05)):
        write_run(folder / f"a{seed}", "dtd", "finetune", accuracy, seed=seed)
    for seed in (0, 1):
        write_run(folder / f"b{seed}", "svhn", "finetune", 96.55, seed=seed, lr=0.02)
    for task, argmax in (("dtd", 60.0), ("svhn", 97.0)):
        records = [record(1, 20.0), spottune_record(argmax, argmax - 1)]
        cost = {"stored_parameters": 7_000_000, "macs_per_image": {}}
        cost["macs_per_image"] = {"network": 330_000_000, "policy_network": 70_000_000}
        write_run(folder / "c", task, "spottune", records, cost=cost)
    source = dict(val_figures(45.25), epoch=0)
    write_run(folder / "c", SOURCE.name, "source", [source], epochs=0)
    return folder


# Tables.


def test_a_cell_is_the_mean_and_the_sample_deviation_over_seeds(study):
    row = tables(told(study))["Accuracy on val, %"]
    # dtd: (50.05 + 54.05 + 58.05) / 3, deviations -4, 0, 4, so sqrt(32 / 2) = 4.
    assert row["Standard fine-tuning"]["dtd"] == "54.05 ± 4.00"
    assert row["Standard fine-tuning"]["svhn"] == "96.55 ± 0.00"
    assert row["Standard fine-tuning"]["seeds"] == "2–3"
    assert (row["SpotTune"]["dtd"], row["SpotTune"]["seeds"]) == ("60.00", "1")


def test_mean_and_points_are_made_per_seed_of_the_seeds_that_have_all_tasks(study):
    row = tables(told(study))["Accuracy on val, %"]
    # Seeds 0 and 1 have both tasks. Means with the source's 45.25: 63.95 and 65.2833.
    assert row["Standard fine-tuning"]["mean"] == "64.62 ± 0.94"
    # dtd, E_max 88.94: 1000 (1 - 49.95 / 88.94)^2 = 192.18 and 1000 (1 - 45.95 / 88.94)^2 = 233.64;
    # svhn has half of its E_max: 250; imagenet12: 1000 (1 - 54.75 / 80.26)^2 = 101.03.
    assert row["Standard fine-tuning"]["points of 3 tasks (not S)"] == "564 ± 29"


def test_the_standard_deviation_divides_by_one_less_than_the_seeds():
    spread = Spread.of([1.0, 2.0, 3.0, 6.0])
    assert (spread.mean, spread.count) == (3.0, 4)
    assert spread.std == pytest.approx((14 / 3) ** 0.5)
    assert Spread.of([7.0]) == Spread(7.0, None, 1)
    assert Spread.of([]) is None


def test_a_row_is_a_method_its_k_and_its_way_to_decide(tmp_path):
    for k in (1, 2):
        write_run(tmp_path / f"last{k}", "dtd", "lastk", 50.0, k=k)
    write_run(tmp_path / "global", "dtd", "globalk", 50.0, k=3, lambda_k=1.0, lambda_e=1.0)
    policies = {policy: val_figures(50.0) for policy in ("argmax", "sample", "finetuned", "kept")}
    last = record(2, 50.0, policies=policies)
    write_run(tmp_path / "spottune", "dtd", "spottune", [record(1, 20.0), last])
    del policies["argmax"]
    last = record(2, 50.0, policies=policies)
    write_run(tmp_path / "coin", "dtd", "stochastic", [record(1, 20.0), last])
    assert [row.title for row in read_study([tmp_path]).rows] == [
        "Fine-tuning last-1",
        "Fine-tuning last-2",
        "Stochastic fine-tuning",
        "Stochastic fine-tuning, all fine-tuned at test",
        "Stochastic fine-tuning, all kept at test",
        "SpotTune",
        "SpotTune, sampled",
        "SpotTune, all fine-tuned at test",
        "SpotTune, all kept at test",
        "SpotTune (Global-3)",
    ]


def test_spottunes_main_row_takes_the_likelier_decisions_whatever_the_run_was_told(tmp_path):
    last = spottune_record(60.0, 59.0)
    last |= last["val_policies"]["sample"]
    write_run(tmp_path / "a", "dtd", "spottune", [record(1, 20.0), last], policy="sample")
    row = tables(told(tmp_path / "a"))["Accuracy on val, %"]
    assert (row["SpotTune"]["dtd"], row["SpotTune, sampled"]["dtd"]) == ("60.00", "59.00")


def test_a_run_that_knows_one_way_to_decide_is_in_no_row_of_others(study):
    write_run(study / "d", "dtd", "spottune", [record(1, 20.0), record(2, 62.0)], seed=1)
    row = tables(told(study))["Accuracy on val, %"]
    assert row["SpotTune"]["dtd"] == "61.00 ± 1.41"
    assert row["SpotTune, sampled"]["dtd"] == "59.00"


def test_decisions_are_told_as_blocks_per_image_and_as_distinct_policies(study):
    found = tables(told(study))
    blocks = found["Fine-tuned blocks of a val image, of 12"]
    assert blocks["SpotTune"]["dtd"] == "2.3"  # (3 * 0 + 5 * 3 + 2 * 4) / 10
    assert blocks["SpotTune, sampled"]["dtd"] == "4.0"
    assert "Standard fine-tuning" not in blocks
    policies = found["Distinct policies, of val images"]
    assert policies["SpotTune"]["svhn"] == "4 of 10"
    assert policies["SpotTune, sampled"]["svhn"] == "9 of 10"


def test_cost_counts_the_source_once_and_the_policy_network_apart(study):
    found = tables(told(study))
    cost = found["Cost over all tasks"]
    # The source has 6 million; SpotTune adds 7 a task: 20 in all.
    assert cost["SpotTune"]["stored, M"] == "20.00"
    assert cost["SpotTune"]["stored, × source"] == "3.33"
    assert cost["Standard fine-tuning"]["stored, × source"] == "3.00"
    assert cost["SpotTune"]["GMAC, network"] == "0.330"
    assert cost["SpotTune"]["GMAC, policy network"] == "0.070"
    assert cost["SpotTune"]["training, seconds"] == "120.0"  # 2 tasks of 2 epochs of 30 s
    compute = found["Compute per image, GMAC: network + policy network"]
    assert compute["SpotTune"]["dtd"] == "0.330 + 0.070"
    assert compute["Standard fine-tuning"]["dtd"] == "0.330"


def test_settings_that_differ_between_methods_are_told(study):
    markdown = told(study)
    settings = tables(markdown)["Settings of methods"]
    assert settings["Standard fine-tuning"]["learning rate"] == "0.1; 0.02 (svhn)"
    assert settings["Standard fine-tuning"]["of the policy network"] == "–"
    assert settings["SpotTune"]["of the policy network"] == "0.01"
    assert "Between methods or seeds these differ too: lr." in markdown
    assert "an abacus (cpu), 1 thread, fp32, torch 2.15.0" in markdown


def test_unfinished_runs_are_named_and_left_out(study, tmp_path):
    write_run(study / "d", "svhn", "l2sp", [record(1, 90.0)], seed=4)
    write_run(study / "e", "dtd", "feature", [])
    for text in written(study, tmp_path / "out", *NO_IMAGES):
        assert "study/d/svhn: l2sp on svhn, seed 4, 1 of 2 epochs" in text
        assert "study/e/dtd: feature on dtd, seed 0, 0 of 2 epochs" in text
        assert "L2-SP" not in text


def test_val_images_seen_in_training_are_told(tmp_path):
    write_run(tmp_path / "a", "dtd", "finetune", 99.0, train_split="trainval")
    markdown = told(tmp_path / "a")
    assert "## Accuracy on val (images seen in training)" in markdown
    assert "The networks have learnt from these val images" in markdown


# Published figures.


def published_like(folder, **changes):
    """Fine-tuning on all ten tasks as the published rows were, and its test scores."""
    for task in (*TARGETS, SOURCE):
        method, epochs = ("source", 0) if task is SOURCE else ("finetune", 2)
        records = [dict(val_figures(60.0), epoch=0)] if task is SOURCE else 80.0
        write_run(folder, task.name, method, records, epochs=epochs, **(OFFICIAL | changes))
    tasks = {
        name: {"accuracy": 50.0, "images": TASK_BY_NAME[name].num_test, "points": 0.0}
        for name in COLUMNS
    }
    write_json(folder / "score_test.json", {"split": "test", "tasks": tasks})
    return tasks


def test_test_scores_as_published_share_a_table_with_published_rows(tmp_path):
    published_like(tmp_path / "runs")
    markdown = told(tmp_path / "runs")
    table = tables(markdown)["Accuracy on test, %, beside published rows"]
    assert table["Standard fine-tuning"]["dtd"] == "50.00"
    # Half right is inside E_max for four: 1000 (1 - 50 / E_max)^2 of 80.26, 79.32, 88.94, 97.60.
    assert table["Standard fine-tuning"]["S"] == "708"
    assert table["SpotTune (paper) (published)"]["S"] == "3612"
    assert "The test accuracies were got as the published ones were." in markdown
    assert "Not comparable" not in markdown


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"resize": 64}, "resolution: shorter side of 64 pixels, cropped to 64"),
        ({"train_split": "train"}, "split: learnt from train alone"),
        ({"width": 16}, "network: 16 channels in the stem"),
        ({"num_classes": 7}, "source: a network trained on 7 classes"),
        ({"num_classes": None}, "numbers of classes were not recorded"),
    ],
)
def test_runs_with_anything_else_stand_apart_and_say_so(changes, expected, tmp_path):
    published_like(tmp_path / "runs", **changes)
    markdown = told(tmp_path / "runs")
    assert expected in markdown
    found = tables(markdown)
    assert not any("published" in row for row in found["Accuracy on test, %"])
    assert "points of 10 tasks (not S)" in found["Accuracy on test, %"]["Standard fine-tuning"]
    published = found["Published (test accuracy, official data, 72/64 px)"]
    assert published["Fine-tuning"]["S"] == "2500"
    assert "Standard fine-tuning" not in published


def test_other_test_images_or_too_few_tasks_stand_apart_too(tmp_path):
    tasks = published_like(tmp_path / "runs")
    tasks["svhn"]["images"] = 20
    del tasks["dtd"]
    write_json(tmp_path / "runs/score_test.json", {"split": "test", "tasks": tasks})
    markdown = told(tmp_path / "runs")
    assert "svhn was scored on 20 test images, officially 26,032" in markdown
    assert "no test score of dtd" in markdown
    assert tables(markdown)["Accuracy on test, %"]["Standard fine-tuning"]["dtd"] == "–"


def test_accuracies_on_val_never_share_a_table_with_published_ones(study):
    markdown = told(study)
    assert "scored images: val (published: test)" in markdown
    assert not any("(paper)" in row for row in tables(markdown)["Accuracy on val, %"])


def test_scores_of_another_split_are_refused(study):
    write_json(study / "c/score_test.json", {"split": "val", "tasks": {}})
    assert "score_test.json: scores of the val split" in complaint(study)


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
        ({"epochs": 1, "records": [record(1, 9.0)]}, "epochs (2 and 1)"),
        ({"milestones": []}, "milestones ([1] and [])"),
        ({"batch_size": 64}, "batch_size (32 and 64)"),
    ],
)
def test_two_methods_on_a_task_differ_in_nothing_that_makes_figures_comparable(
    changes, expected, tmp_path
):
    write_run(tmp_path / "a", "dtd", "finetune", 50.0)
    write_run(tmp_path / "b", "dtd", "feature", **({"records": 50.0} | changes))
    text = complaint(tmp_path).replace("()", "[]").replace("(1,)", "[1]")
    assert expected in text
    for folder in ("a/dtd", "b/dtd"):
        assert str(tmp_path / folder) in text


def test_seeds_of_a_row_differ_in_nothing_else(tmp_path):
    write_run(tmp_path / "a", "dtd", "l2sp", 50.0, l2sp_alpha=0.1)
    write_run(tmp_path / "b", "dtd", "l2sp", 50.0, l2sp_alpha=0.2, seed=1)
    assert "l2sp_alpha (0.1 and 0.2)" in complaint(tmp_path)


def test_methods_may_differ_in_learning_rate_precision_and_start(tmp_path):
    write_run(tmp_path / "a", "dtd", "finetune", 50.0)
    write_run(tmp_path / "b", "dtd", "feature", 50.0, lr=0.3, precision="bf16")
    write_run(tmp_path / "c", "dtd", "scratch", 50.0, source_sha256="")
    assert len(read_study([tmp_path]).methods) == 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"lr": 0.01}, "differ in lr (0.1 and 0.01)"), ({}, "which are alike")],
)
def test_two_runs_of_one_method_task_and_seed_are_refused(changes, expected, tmp_path):
    write_run(tmp_path / "a", "dtd", "finetune", 50.0)
    write_run(tmp_path / "b", "dtd", "finetune", 51.0, **changes)
    text = complaint(tmp_path)
    assert "two runs of Standard fine-tuning on dtd with seed 0" in text
    for part in (expected, str(tmp_path / "a/dtd"), str(tmp_path / "b/dtd")):
        assert part in text


def test_a_run_that_lies_below_two_of_the_folders_is_one_run(study):
    runs = read_study([study, study / "a0", study / "b0/.."]).runs
    assert sorted(run.settings.seed for run in runs if run.folder.parent.name == "a0") == [0]


def test_runs_are_known_by_their_arguments_and_not_by_their_folders(tmp_path):
    folder = write_run(tmp_path, "dtd", "finetune", 50.0)
    folder.rename(tmp_path / "svhn_spottune_seed7")
    (run,) = read_study([tmp_path]).runs
    assert (run.task, run.row.title, run.seed) == ("dtd", "Standard fine-tuning", 0)


def test_the_source_in_many_folders_is_one_network(study):
    record_of_source = dict(val_figures(45.31), epoch=0)
    write_run(study / "a0", SOURCE.name, "source", [record_of_source], epochs=0)
    write_run(study / "a1", SOURCE.name, "source", [], epochs=0)  # not evaluated
    markdown = told(study)
    row = tables(markdown)["Accuracy on val, %"]["Standard fine-tuning"]
    assert row["imagenet12"] == "45.31"
    assert "Its 2 evaluations range from 45.25 to 45.31; shown is the one in study/a0" in markdown


# Bad input.


def test_a_folder_without_finished_runs_is_told_in_one_line(tmp_path):
    assert "found no finished run of a target task, 0 of the source" in complaint(tmp_path)
    assert "no such folder" in complaint(tmp_path / "none")
    write_run(tmp_path / "a", "dtd", "finetune", [record(1, 50.0)])
    assert "0 of the source and 1 unfinished" in complaint(tmp_path)


LAST = json.dumps(record(2, 50.0))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("arguments.json", "{"),
        ("arguments.json", "[]"),
        ("arguments.json", '{"task": "dtd", "method": "finetune"}'),
        ("arguments.json", '{"task": ["dtd"], "method": "finetune"}'),
        ("records.jsonl", "{\n"),
        ("records.jsonl", "\n"),
        ("records.jsonl", "[]\n" * 2),
        ("records.jsonl", "[" * 100_000),
        ("records.jsonl", f"{LAST}\n{LAST}\n"),
        ("records.jsonl", LAST.replace('"epoch": 2', '"epoch": 1')[:-1]),
        ("cost.json", "{}"),
        ("cost.json", '{"parameters": 1, "stored_parameters": 1, "macs_per_image": {}}'),
        ("environment.json", "null"),
        ("environment.json", None),
        ("../score_test.json", '{"split": "test", "tasks": {"dtd": {"accuracy": "high"}}}'),
    ],
)
def test_a_damaged_file_is_named_in_one_line(file, content, tmp_path):
    folder = write_run(tmp_path, "dtd", "finetune", 50.0)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    text = complaint(tmp_path)
    assert file.rpartition("/")[2] in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("setting", "needed"), [("milestones", True), ("std", True), ("lr", True), ("k", False)]
)
def test_settings_may_lack_only_what_older_runs_did_not_record(setting, needed):
    plain = {name: value for name, value in SETTINGS.items() if name != setting}
    if needed:
        with pytest.raises(TypeError, match=setting):
            Settings.from_plain(plain)
    else:
        assert getattr(Settings.from_plain(plain), setting) == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"val_accuracy": None},
        {"val_accuracy": float("nan")},
        {"val_accuracy": "50"},
        {"val_accuracy": 10**400},
        {"val_fine_tuned_share": [0.5]},
        {"val_blocks_per_image": ["a"] * 13},
        {"val_policies": {"argmax": {}}},
        {"seconds": None},
    ],
)
def test_a_record_that_is_no_record_is_refused(damage, tmp_path):
    write_run(tmp_path, "dtd", "finetune", [record(1, 40.0), record(2, 50.0) | damage])
    assert "records.jsonl, l" in complaint(tmp_path)


# The page.


class Page(HTMLParser):
    """Notes every tag that is not closed, every address that is asked for, and the text."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in EXTERNAL]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_well_formed_and_asks_for_nothing_from_elsewhere(study, tmp_path):
    markdown, html = written(study, tmp_path / "out", *NO_IMAGES)
    page = Page(html)
    assert page.open == []
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    pictures = re.findall(r"!\[.*\]\((figures/.*\.png)\)", markdown)
    assert len(pictures) == len(page.addresses) > 3
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert all((tmp_path / "out" / picture).is_file() for picture in pictures)
    assert "url(" not in html
    assert "@import" not in html


def test_both_forms_say_the_same(study, tmp_path):
    markdown, html = written(study, tmp_path / "out", *NO_IMAGES)
    words = " ".join(Page(html).words)
    cells = [
        cell
        for rows in tables(markdown).values()
        for row in rows.values()
        for pair in row.items()
        for cell in pair
    ]
    assert len(cells) > 200
    for cell in cells:
        assert cell in words
    for line in re.findall(r"^(?:- |#+ )?([A-Z].*)$", markdown, flags=re.MULTILINE):
        assert line.replace("\\", "") in words


def test_text_from_files_is_no_markup_in_either_form():
    hostile = "<script>alert(1)</script> | `code` [a](http://b) *c* \x1b[2J\nnext"
    parts = [Heading(hostile), Paragraph(hostile), Table(hostile, ["", hostile], [[hostile, "1"]])]
    html, markdown = as_html(parts, {}), as_markdown(parts)
    page = Page(html)
    assert page.open == []
    assert page.tags.isdisjoint({"script", "a"})
    assert page.addresses == []
    assert "\x1b" not in html + markdown
    row = next(line for line in markdown.splitlines() if line.endswith("1 |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert not re.search(r"(?<!\\)[<`\[]", markdown)


def test_the_same_records_give_the_same_bytes(study, tmp_path):
    def content(out):
        written(study, out, *NO_IMAGES)
        return {path.name: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}

    first, second = content(tmp_path / "first"), content(tmp_path / "second")
    assert len(first) > 8
    assert first == second
    for name in ("report.md", "report.html"):
        assert str(tmp_path).encode() not in first[name]


def test_from_training_over_submission_and_scores_to_the_page(trained, tmp_path):
    ckpdir, answers, tasks = tmp_path / "runs", tmp_path / "results.json", ["svhn", "daimlerpedcls"]
    for task in (*tasks, SOURCE.name):
        shutil.copytree(trained.ckpdir / task, ckpdir / task)
    data = ["--datadir", str(trained.root)]
    told_what = ["--ckpdir", str(ckpdir), "--tasks", *tasks, "--out", str(answers)]
    submit_test.main([*data, *told_what, "--device", "cpu"])
    labels = ["--annotations", str(trained.root / "annotations"), "--split", "test"]
    score.main([str(answers), *labels, "--json", str(ckpdir / "score_test.json")])
    markdown, html = written(ckpdir, tmp_path / "out", *data)
    found = tables(markdown)
    last = json.loads((ckpdir / "svhn/records.jsonl").read_text().splitlines()[-1])
    for policy, row in (("argmax", "SpotTune"), ("sample", "SpotTune, sampled")):
        expected = f"{last['val_policies'][policy]['val_accuracy']:.2f}"
        assert found["Accuracy on val, %"][row]["svhn"] == expected
    scores = json.loads((ckpdir / "score_test.json").read_text())["tasks"]
    on_test = found["Accuracy on test, %"]["SpotTune"]
    assert on_test["svhn"] == f"{scores['svhn']['accuracy']:.2f}"
    assert on_test["daimlerpedcls"] == f"{scores['daimlerpedcls']['accuracy']:.2f}"
    assert "extremes_spottune" in markdown
    assert "svhn was scored on 4 test images" in markdown
    assert Page(html).open == []
