"""The report: what stands in its tables and beside them, and what the page is made of."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from made_up_runs import (
    record,
    val_figures,
    write_published_like,
    write_run,
    write_source,
)

import report
import score
import submit_test
from decathlon import SOURCE
from reporting.page import report_text
from reporting.statistics import Spread
from reporting.study import read_study

EXTERNAL = ("src", "href", "srcset", "action", "poster", "background")


def told(folder):
    """The report as Markdown, without figures."""
    return report_text(read_study([folder]), "markdown")


def tables(markdown):
    """The tables of a Markdown report: caption -> first cell -> column -> cell."""
    found = {}
    for caption, lines in re.findall(r"\*\*(.+)\*\*\n\n((?:\|.*\n?)+)", markdown):
        rows = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines.splitlines()]
        header, _, *body = rows
        found[caption] = {row[0]: dict(zip(header, row, strict=True)) for row in body}
    return found


def spottune_record(argmax, sample):
    """The last of a run with two ways to decide: 10 val images, 3 of them fine-tune no block."""
    decisions = {"blocks_per_image": [3, 0, 0, 5, 2], "distinct": 4}
    drawn = {"blocks_per_image": [0, 0, 0, 0, 10], "distinct": 9}
    policies = {"argmax": val_figures(argmax, **decisions), "sample": val_figures(sample, **drawn)}
    return record(2, argmax, policies=policies, **decisions)


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path / "study")


def write_study(folder):
    """Fine-tuning with three seeds on dtd and two on svhn; SpotTune with one; the source."""
    for seed, accuracy in enumerate((50.05, 54.05, 58.05)):
        write_run(folder / f"a{seed}", "dtd", "finetune", accuracy, seed=seed)
    for seed in (0, 1):
        write_run(folder / f"b{seed}", "svhn", "finetune", 96.55, seed=seed, lr=0.02)
    for task, argmax in (("dtd", 60.0), ("svhn", 97.0)):
        records = [record(1, 20.0), spottune_record(argmax, argmax - 1)]
        cost = {"stored_parameters": 7_000_000, "macs_per_image": {}}
        cost["macs_per_image"] = {"network": 330_000_000, "policy_network": 70_000_000}
        write_run(folder / "c", task, "spottune", records, cost=cost)
    write_source(folder / "c", 45.25)
    return folder


# Tables.


def test_a_cell_is_the_mean_and_the_sample_deviation_over_seeds(study):
    row = tables(told(study))["Accuracy on val, %"]
    # dtd: (50.05 + 54.05 + 58.05) / 3, deviations -4, 0, 4, so sqrt(32 / 2) = 4.
    assert row["Standard fine-tuning"]["dtd"] == "54.05 ± 4.00"
    assert row["Standard fine-tuning"]["svhn"] == "96.55 ± 0.00"
    assert row["Standard fine-tuning"]["seeds"] == "2–3"
    assert (row["SpotTune"]["dtd"], row["SpotTune"]["seeds"]) == ("60.00", "1")


def test_means_and_points_are_made_per_seed_of_the_seeds_that_have_all_tasks(study):
    markdown = told(study)
    row = tables(markdown)["Accuracy on val, %"]["Standard fine-tuning"]
    # Seeds 0 and 1 have both tasks: 73.3 and 75.3. With the source's 45.25: 63.95 and 65.2833.
    assert row["mean of 2 targets"] == "74.30 ± 1.41"
    assert row["mean of 3 tasks"] == "64.62 ± 0.94"
    assert "The mean of 3 tasks includes imagenet12" in markdown
    # dtd, E_max 88.94: 1000 (1 - 49.95 / 88.94)^2 = 192.18 and 1000 (1 - 45.95 / 88.94)^2 = 233.64;
    # svhn has half of its E_max: 250; imagenet12: 1000 (1 - 54.75 / 80.26)^2 = 101.03.
    assert row["points of 3 tasks (not S)"] == "564 ± 29"


def test_incomplete_methods_keep_the_mean_over_the_tasks_that_all_share(study):
    write_run(study / "d", "dtd", "feature", 40.0)
    markdown = told(study)
    rows = tables(markdown)["Accuracy on val, %"]
    assert rows["Feature extractor"]["mean of 3 tasks"] == "–"
    assert rows["Feature extractor"]["mean of 2 shared tasks"] == "42.62"  # (45.25 + 40) / 2
    assert rows["SpotTune"]["mean of 2 shared tasks"] == "52.62"
    assert "is over those that every row has: imagenet12, dtd." in markdown


def test_the_standard_deviation_divides_by_one_less_than_the_seeds():
    spread = Spread.of([1.0, 2.0, 3.0, 6.0])
    assert (spread.mean, spread.count) == (3.0, 4)
    assert spread.std == pytest.approx((14 / 3) ** 0.5)
    assert Spread.of([7.0]) == Spread(7.0, None, 1)
    assert Spread.of([]) is None


def test_spottunes_main_row_takes_the_likelier_decisions_whatever_the_run_was_told(tmp_path):
    last = spottune_record(60.0, 59.0)
    last |= last["val_policies"]["sample"]
    write_run(tmp_path / "a", "dtd", "spottune", [record(1, 20.0), last], policy="sample")
    row = tables(told(tmp_path / "a"))["Accuracy on val, %"]
    assert (row["SpotTune"]["dtd"], row["SpotTune, sampled"]["dtd"]) == ("60.00", "59.00")


def test_a_run_that_knows_one_way_to_decide_is_in_no_row_of_others(study):
    records = [record(1, 20.0), record(2, 62.0, blocks_per_image=[10])]
    write_run(study / "d", "dtd", "spottune", records, seed=1)
    row = tables(told(study))["Accuracy on val, %"]
    assert row["SpotTune"]["dtd"] == "61.00 ± 1.41"
    assert row["SpotTune, sampled"]["dtd"] == "59.00"


def test_decisions_are_shown_as_blocks_per_image_and_as_distinct_policies(study):
    found = tables(told(study))
    blocks = found["Fine-tuned blocks per val image, of 12"]
    assert blocks["SpotTune"]["dtd"] == "2.3"  # (3 * 0 + 5 * 3 + 2 * 4) / 10
    assert blocks["SpotTune, sampled"]["dtd"] == "4.0"
    assert "Standard fine-tuning" not in blocks
    policies = found["Distinct policies, of val images"]
    assert policies["SpotTune"]["svhn"] == "4 of 10"
    assert policies["SpotTune, sampled"]["svhn"] == "9 of 10"


def test_cost_counts_the_source_once_and_the_policy_network_apart(study):
    found = tables(told(study))
    # The source has 6 million; SpotTune adds 7 a task: 20 in all. 2 tasks of 2 epochs of 30 s.
    assert list(found["Cost over all tasks"]["SpotTune"].items())[1:] == [
        ("stored, M", "20.00"),
        ("stored, × source", "3.33"),
        ("GMAC, network", "0.330"),
        ("GMAC, policy network", "0.070"),
        ("training, seconds", "120.0"),
    ]
    compute = found["Compute per image, GMAC: network + policy network"]
    assert compute["SpotTune"]["dtd"] == "0.330 + 0.070"
    assert compute["Standard fine-tuning"]["dtd"] == "0.330"


def test_settings_that_differ_between_methods_are_told(study):
    markdown = told(study)
    settings = tables(markdown)["Settings of methods"]
    assert settings["Standard fine-tuning"]["learning rate"] == "0.1; 0.02 (svhn)"
    assert settings["Standard fine-tuning"]["of the policy network"] == "–"
    assert settings["SpotTune"]["of the policy network"] == "0.01"
    assert "These also differ between methods or seeds: lr." in markdown
    assert "an abacus (cpu), 1 thread, fp32, torch 2.15.0" in markdown


def test_the_source_in_many_folders_is_one_network(study):
    write_source(study / "a0", 45.31)
    write_source(study / "a1", None)  # not evaluated
    markdown = told(study)
    row = tables(markdown)["Accuracy on val, %"]["Standard fine-tuning"]
    assert row["imagenet12"] == "45.31"
    assert "Its 2 evaluations range from 45.25 to 45.31; shown is the one in study/a0" in markdown


def test_val_images_seen_in_training_are_told(tmp_path):
    write_run(tmp_path / "a", "dtd", "finetune", 99.0, train_split="trainval")
    markdown = told(tmp_path / "a")
    assert "## Accuracy on val (images seen in training)" in markdown
    assert "The networks have learnt from these val images" in markdown


# Published figures.


def test_test_scores_as_published_share_a_table_with_published_rows(tmp_path):
    write_published_like(tmp_path)
    markdown = told(tmp_path)
    table = tables(markdown)["Accuracy on test, %, beside published rows"]
    assert table["Standard fine-tuning"]["dtd"] == "50.00"
    # Half right is inside E_max for four: 1000 (1 - 50 / E_max)^2 of 80.26, 79.32, 88.94, 97.60.
    assert table["Standard fine-tuning"]["S"] == "708"
    assert table["SpotTune (paper) (published)"]["S"] == "3612"
    assert "The test accuracies were measured as the published ones were." in markdown
    assert "Not comparable" not in markdown
    assert "## Published figures" not in markdown


def test_drawn_decisions_as_in_the_released_code_share_it_too(tmp_path):
    write_published_like(tmp_path, method="spottune", policy="sample")
    table = tables(told(tmp_path))["Accuracy on test, %, beside published rows"]
    assert table["SpotTune, sampled"]["S"] == "708"


def test_other_test_scores_stand_apart(tmp_path):
    write_published_like(tmp_path, epochs=1)
    markdown = told(tmp_path)
    assert "- epochs: 1 (released code: 110)" in markdown
    ours = tables(markdown)["Accuracy on test, %"]
    assert list(ours) == ["Standard fine-tuning"]
    assert "points of 10 tasks (not S)" in ours["Standard fine-tuning"]
    published = tables(markdown)["Published (test accuracy, official data, 72/64 px)"]
    assert published["Fine-tuning"]["S"] == "2500"
    assert "Standard fine-tuning" not in published


def test_accuracies_on_val_never_share_a_table_with_published_ones(study):
    markdown = told(study)
    assert "scored images: val (published: test)" in markdown
    assert not any("(paper)" in row for row in tables(markdown)["Accuracy on val, %"])


# The page.


class Page(HTMLParser):
    """Notes every tag that is not closed, every address that is asked for, and the text."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.anchors, self.words = [], set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in EXTERNAL]
        self.anchors += [value for name, value in attributes if name == "id"]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The report of the study and of two runs that are not finished."""
    folder = write_study(tmp_path_factory.mktemp("runs") / "study")
    write_run(folder / "d", "svhn", "l2sp", [record(1, 90.0)], seed=4)
    write_run(folder / "e", "dtd", "feature", [])
    for name in ("first", "second"):
        report.main([str(folder), "--out", str(folder.parent / name), "--datadir", "nowhere"])
    return folder.parent / "first"


def test_the_same_records_give_the_same_bytes(out):
    files = [path for path in out.rglob("*.*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        second = out.with_name("second") / path.relative_to(out)
        assert path.read_bytes() == second.read_bytes()
        assert str(out.parent).encode() not in path.read_bytes()


def test_the_page_is_well_formed_and_asks_for_nothing_from_elsewhere(out):
    html = (out / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    pictures = re.findall(r"!\[.*\]\((figures/.*\.png)\)", (out / "report.md").read_text())
    assert len(pictures) > 3
    assert all((out / picture).is_file() for picture in pictures)
    inside = [a for a in page.addresses if a.startswith("data:image/svg+xml;base64,")]
    assert len(inside) == len(pictures)
    links = [address for address in page.addresses if address not in inside]
    assert [link.removeprefix("#") for link in links] == page.anchors  # the contents list
    assert "url(" not in html
    assert "@import" not in html


def test_both_forms_say_the_same(out):
    markdown = (out / "report.md").read_text()
    words = " ".join("".join(Page((out / "report.html").read_text()).words).split())
    rows = [row for table in tables(markdown).values() for row in table.values()]
    cells = [cell for row in rows for pair in row.items() for cell in pair]
    assert len(cells) > 200
    lines = re.findall(r"^(?:- |#+ |\*)?([A-Z].*?)\*?$", markdown, flags=re.MULTILINE)
    for text in (*cells, *lines):
        assert text.replace("\\", "") in words


def test_what_is_missing_is_said(out):
    for name in ("report.md", "report.html"):
        text = (out / name).read_text()
        assert "study/d/svhn: l2sp on svhn, seed 4, 1 of 2 epochs" in text
        assert "study/e/dtd: feature on dtd, seed 0, 0 of 2 epochs" in text
        assert "L2-SP" not in text
        assert "SpotTune, without dtd, svhn: the val images were not found in --datadir." in text
    assert not list((out / "figures").glob("extremes*"))


def test_text_from_files_is_no_markup_in_either_form(study):
    hostile = "<script>alert(1)</script> | `code` [a](http://b) *c* \x1b[2J"
    path = study / "c/dtd/environment.json"
    hostile_names = {"device_name": hostile, "commit": hostile}
    path.write_text(json.dumps(json.loads(path.read_text()) | hostile_names))
    html, markdown = (report_text(read_study([study]), form) for form in ("html", "markdown"))
    page = Page(html)
    assert page.open == []
    assert "script" not in page.tags
    assert "alert(1)" in "".join(page.words)
    assert all(address.startswith("#") for address in page.addresses)
    assert "\x1b" not in html + markdown
    lines = [line for line in markdown.splitlines() if "alert" in line]
    assert len(lines) == 2
    assert not any(re.search(r"(?<!\\)[<`\[*]", line) for line in lines)


def test_from_training_over_submission_and_scores_to_the_page(trained, tmp_path):
    ckpdir, answers, tasks = tmp_path / "runs", tmp_path / "results.json", ["svhn", "daimlerpedcls"]
    for task in (*tasks, SOURCE.name):
        shutil.copytree(trained.ckpdir / task, ckpdir / task)
    data = ["--datadir", str(trained.root)]
    told_what = ["--ckpdir", str(ckpdir), "--tasks", *tasks, "--out", str(answers)]
    submit_test.main([*data, *told_what, "--device", "cpu"])
    labels = ["--annotations", str(trained.root / "annotations"), "--split", "test"]
    score.main([str(answers), *labels, "--json", str(ckpdir / "score_test.json")])
    report.main([str(ckpdir), "--out", str(tmp_path / "out"), *data])
    markdown = (tmp_path / "out/report.md").read_text()
    found = tables(markdown)
    last = json.loads((ckpdir / "svhn/records.jsonl").read_text().splitlines()[-1])
    for policy, row in (("argmax", "SpotTune"), ("sample", "SpotTune, sampled")):
        expected = f"{last['val_policies'][policy]['val_accuracy']:.2f}"
        assert found["Accuracy on val, %"][row]["svhn"] == expected
    scores = json.loads((ckpdir / "score_test.json").read_text())["tasks"]
    for task in tasks:
        expected = f"{scores[task]['accuracy']:.2f}"
        assert found["Accuracy on test, %"]["SpotTune"][task] == expected
    assert "svhn was scored on 6 test images" in markdown
    names = {path.stem for path in (tmp_path / "out/figures").iterdir()}
    assert names == {
        "learning_val",
        "learning_train",
        "fine_tuned_share_spottune",
        "blocks_per_image_spottune",
        "extremes_spottune",
    }
