"""The report: what stands in its tables and beside them, and what the page is made of."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from conftest import answers_of, records
from made_up_runs import record, val_figures, write_published_like, write_run, write_source

import report
import score
import submit_test
from decathlon import SOURCE
from reporting.page import Part, report_text
from reporting.statistics import Spread
from reporting.study import read_studies

EXTERNAL = ("src", "href", "srcset", "action", "poster", "background")
VAL, TUNED = "Accuracy on val, %", "Standard fine-tuning"


def told(folder, form="markdown"):
    """The report, without figures."""
    return report_text([Part(study) for study in read_studies([folder])], form)


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


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Two reports of fine-tuning with three seeds on dtd and two on svhn, SpotTune with one, the
    feature extractor on dtd alone, the source, and two runs that are not finished."""
    folder = tmp_path_factory.mktemp("runs") / "study"
    for seed, accuracy in enumerate((50.05, 54.05, 58.05)):
        write_run(folder / f"a{seed}", "dtd", "finetune", accuracy, seed=seed)
    for seed in (0, 1):
        write_run(folder / f"b{seed}", "svhn", "finetune", 96.55, seed=seed, lr=0.02)
    macs = {"network": 330_000_000, "policy_network": 70_000_000}
    for task, argmax in (("dtd", 60.0), ("svhn", 97.0)):
        records = [record(1, 20.0), spottune_record(argmax, argmax - 1)]
        cost = {"stored_parameters": 7_000_000, "macs_per_image": macs}
        write_run(folder / "c", task, "spottune", records, cost=cost)
    write_source(folder / "c", 45.25)
    write_run(folder / "f", "dtd", "feature", 40.0)
    write_run(folder / "d", "svhn", "l2sp", [record(1, 90.0)], seed=4)
    write_run(folder / "e", "dtd", "scratch", [])
    for name in ("first", "second"):
        report.main([str(folder), "--out", str(folder.parent / name), "--datadir", "nowhere"])
    return folder.parent / "first"


@pytest.fixture(scope="module")
def markdown(out):
    return (out / "report.md").read_text()


# Tables.


@pytest.mark.parametrize(
    ("caption", "row", "cells"),
    [
        # dtd: (50.05 + 54.05 + 58.05) / 3, deviations -4, 0, 4, so sqrt(32 / 2) = 4.
        # Seeds 0 and 1 have both tasks: 73.3 and 75.3. With the source's 45.25: 63.95 and 65.2833.
        # Points of dtd, E_max 88.94: 1000 (1 - 49.95 / 88.94)^2 = 192.18 and, with an error of
        # 45.95, 233.64; svhn has half of its E_max: 250; imagenet12: 1000 (1 - 54.75 / 80.26)^2 =
        # 101.03.
        (VAL, TUNED, {"dtd": "54.05 ± 4.00", "svhn": "96.55 ± 0.00", "imagenet12": "45.25",
                      "seeds": "2–3", "mean of 2 targets": "74.30 ± 1.41",
                      "mean of 3 tasks": "64.62 ± 0.94",
                      "points of 3 tasks (not S)": "564 ± 29"}),
        (VAL, "SpotTune", {"dtd": "60.00", "seeds": "1", "mean of 2 shared tasks": "52.62"}),
        (VAL, "Feature extractor", {"svhn": "–", "mean of 3 tasks": "–",
                                    "mean of 2 shared tasks": "42.62"}),  # (45.25 + 40) / 2
        ("Fine-tuned blocks per val image, of 12", "SpotTune", {"dtd": "2.3"}),  # (3*0+5*3+2*4)/10
        ("Fine-tuned blocks per val image, of 12", "SpotTune, sampled", {"dtd": "4.0"}),
        ("Distinct policies, of val images", "SpotTune", {"svhn": "4 of 10"}),
        ("Distinct policies, of val images", "SpotTune, sampled", {"svhn": "9 of 10"}),
        # The source has 6 million; SpotTune adds 7 a task: 20 in all. 2 tasks of 2 epochs of 30 s.
        ("Cost over all tasks", "SpotTune", {
            "stored, M": "20.00", "stored, × source": "3.33", "GMAC, network": "0.330",
            "GMAC, policy network": "0.070", "training, minutes": "2.0"}),
        ("Settings of methods", TUNED, {"learning rate": "0.1; 0.02 (svhn)",
                                        "of the policy network": "–"}),
        ("Settings of methods", "SpotTune", {"of the policy network": "0.01"}),
        ("Settings of tasks", "dtd", {"classes": "47", "epochs": "2", "rates drop after": "1"}),
    ],
)  # fmt: skip
def test_cells_are_as_worked_out_by_hand(caption, row, cells, markdown):
    found = tables(markdown)[caption][row]
    assert {column: found[column] for column in cells} == cells


def test_what_a_reader_must_know_is_said_beside_the_tables(markdown):
    for sentence in (
        "scored images: val (published: test)",
        "The mean of 3 tasks includes imagenet12",
        "is over those that every row has: imagenet12, dtd.",
        "an abacus (cpu), 1 thread, fp32, torch 2.15.0",
        "study/d/svhn: l2sp on svhn, seed 4, 1 of 2 epochs",
        "study/e/dtd: scratch on dtd, seed 0, 0 of 2 epochs",
        "SpotTune, without dtd, svhn: the val images were not found in --datadir.",
    ):
        assert sentence in markdown
    found = tables(markdown)
    assert TUNED not in found["Fine-tuned blocks per val image, of 12"]
    assert "L2-SP" not in found[VAL]
    assert not any("(paper)" in row for row in found[VAL])


def test_the_standard_deviation_divides_by_one_less_than_the_seeds():
    assert Spread.of([1.0, 2.0, 3.0, 6.0]) == Spread(3.0, pytest.approx((14 / 3) ** 0.5))
    assert (Spread.of([7.0]), Spread.of([])) == (Spread(7.0, None), None)


def test_spottunes_main_row_takes_the_likelier_decisions_whatever_the_run_was_told(tmp_path):
    last = spottune_record(60.0, 59.0)
    last |= last["val_policies"]["sample"]
    write_run(tmp_path / "a", "dtd", "spottune", [record(1, 20.0), last], policy="sample")
    one_way = [record(1, 20.0), record(2, 62.0, blocks_per_image=[10])]
    write_run(tmp_path / "b", "dtd", "spottune", one_way, seed=1)
    row = tables(told(tmp_path))[VAL]
    assert row["SpotTune"]["dtd"] == "61.00 ± 1.41"
    assert row["SpotTune, sampled"]["dtd"] == "59.00"  # of the run that knows this way to decide


def test_the_source_in_many_folders_is_one_network(tmp_path):
    write_run(tmp_path / "study/a0", "dtd", "finetune", 99.0, train_split="trainval")
    for name, accuracy in (("a0", 45.31), ("a1", None), ("c", 45.25)):  # a1: not evaluated
        write_source(tmp_path / "study" / name, accuracy, train_split="trainval")
    markdown = told(tmp_path / "study")
    assert tables(markdown)[VAL][TUNED]["imagenet12"] == "45.31"
    assert "Its 2 evaluations range from 45.25 to 45.31; shown is the one in study/a0" in markdown
    assert "## Accuracy on val (images seen in training)" in markdown
    assert "The networks have learnt from these val images" in markdown


# Published figures.


@pytest.mark.parametrize(
    ("changes", "row"),
    [({}, TUNED), ({"method": "spottune", "policy": "sample"}, "SpotTune, sampled")],
    ids=["fine-tuning", "drawn decisions"],
)
def test_test_scores_as_published_share_a_table_with_published_rows(changes, row, tmp_path):
    write_published_like(tmp_path, **changes)
    markdown = told(tmp_path)
    table = tables(markdown)["Accuracy on test, %, beside published rows"]
    # Half right is inside E_max for four: 1000 (1 - 50 / E_max)^2 of 80.26, 79.32, 88.94, 97.60.
    assert (table[row]["dtd"], table[row]["S"]) == ("50.00", "708")
    assert table["SpotTune (paper) (published)"]["S"] == "3612"
    assert "The test accuracies were measured as the published ones were." in markdown
    assert "Not comparable" not in markdown
    assert "## Published figures" not in markdown


def test_other_test_scores_stand_apart(tmp_path):
    write_published_like(tmp_path, epochs=1)
    markdown = told(tmp_path)
    assert "- epochs: 1 (released code: 110)" in markdown
    ours = tables(markdown)["Accuracy on test, %"]
    assert list(ours) == [TUNED]
    assert "points of 10 tasks (not S)" in ours[TUNED]
    published = tables(markdown)["Published (test accuracy, official data, 72/64 px)"]
    shown = {"S": "2500", "imagenet12": "59.87", "gtsrb": "97.53", "svhn": "96.55"}
    assert {column: published["Fine-tuning"][column] for column in shown} == shown
    assert TUNED not in published


# The page.


class Page(HTMLParser):
    """Notes every tag that is not closed, every address that is asked for, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.anchors, self.words = [], set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in EXTERNAL]
        self.anchors += [value for name, value in attributes if name == "id"]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_same_records_give_the_same_bytes(out):
    files = [path for path in out.rglob("*.*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        second = out.with_name("second") / path.relative_to(out)
        assert path.read_bytes() == second.read_bytes()
        assert str(out.parent).encode() not in path.read_bytes()


def test_the_page_is_well_formed_and_asks_for_nothing_from_elsewhere(out, markdown):
    html = (out / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    pictures = re.findall(r"!\[.*\]\((figures/.*\.png)\)", markdown)
    assert len(pictures) > 3
    assert all((out / picture).is_file() for picture in pictures)
    inside = [a for a in page.addresses if a.startswith("data:image/svg+xml;base64,")]
    assert len(inside) == len(pictures)
    links = [address for address in page.addresses if address not in inside]
    assert [link.removeprefix("#") for link in links] == page.anchors  # the contents list
    assert "url(" not in html
    assert "@import" not in html


def test_both_forms_say_the_same(out, markdown):
    words = " ".join("".join(Page((out / "report.html").read_text()).words).split())
    rows = [row for table in tables(markdown).values() for row in table.values()]
    cells = [cell for row in rows for pair in row.items() for cell in pair]
    assert len(cells) > 200
    lines = re.findall(r"^(?:- |#+ |\*)?([A-Z].*?)\*?$", markdown, flags=re.MULTILINE)
    for text in (*cells, *lines):
        assert text.replace("\\", "") in words


def test_text_from_files_is_no_markup_in_either_form(tmp_path):
    path = write_run(tmp_path, "dtd", "finetune", 50.0) / "environment.json"
    hostile = "<script>alert(1)</script> | `code` [a](http://b) *c* \x1b[2J"
    hostile_names = {"device_name": hostile, "commit": hostile}
    path.write_text(json.dumps(json.loads(path.read_text()) | hostile_names))
    html, markdown = (told(tmp_path, form) for form in ("html", "markdown"))
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
    answers_of(submit_test, trained.root, ckpdir, answers, "--tasks", *tasks)
    labels = ["--annotations", str(trained.root / "annotations"), "--split", "test"]
    score.main([str(answers), *labels, "--json", str(ckpdir / "score_test.json")])
    report.main([str(ckpdir), "--out", str(tmp_path / "out"), *data])
    markdown = (tmp_path / "out/report.md").read_text()
    found = tables(markdown)
    last = records(ckpdir)[-1]
    for policy, row in (("argmax", "SpotTune"), ("sample", "SpotTune, sampled")):
        assert found[VAL][row]["svhn"] == f"{last['val_policies'][policy]['val_accuracy']:.2f}"
    scores = json.loads((ckpdir / "score_test.json").read_text())["tasks"]
    for task in tasks:
        assert found["Accuracy on test, %"]["SpotTune"][task] == f"{scores[task]['accuracy']:.2f}"
    assert f"svhn was scored on {scores['svhn']['images']} test images" in markdown
    names = {path.stem for path in (tmp_path / "out/figures").iterdir()}
    decisions = ["fine_tuned_share_spottune", "blocks_per_image_spottune", "extremes_spottune"]
    assert names == {"learning_val", "learning_train", *decisions}
