"""The figures of a study: what is computed for them, and that they show it whole."""

import itertools
import json

import numpy as np
import pytest
from made_up_runs import read_study, record, val_figures, write_run
from matplotlib.colors import to_hex, to_rgb

from decathlon import TASK_BY_NAME
from imdbfolder_coco import load_images
from methods.registry import METHODS
from reporting import figures, plots
from reporting.extremes import EACH, Example, extremes, find_extremes
from reporting.plots import FINE_TUNED, KEPT, share_figure
from reporting.runs import Variant
from reporting.statistics import mean_shares
from runtime.errors import SpotTuneError

SPOTTUNE = Variant("spottune")


def deciding(accuracy, blocks_per_image):
    """Records of a SpotTune run of two epochs."""
    return [
        record(epoch, accuracy * epoch / 2, blocks_per_image=blocks_per_image) for epoch in (1, 2)
    ]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Fine-tuning and SpotTune on dtd, two seeds each; SpotTune on svhn too."""
    folder = tmp_path_factory.mktemp("study")
    for seed, accuracy in enumerate((40.0, 44.0)):
        write_run(folder / f"f{seed}", "dtd", "finetune", accuracy, seed=seed)
    write_run(folder / "s0", "dtd", "spottune", deciding(50.0, [4, 6]))
    write_run(folder / "s1", "dtd", "spottune", deciding(52.0, [2, 0, 8]), seed=1)
    write_run(folder / "s0", "svhn", "spottune", deciding(90.0, [4, 6]))
    return read_study([folder])


def test_every_title_label_and_legend_lies_inside_its_figure(study):
    drawn = [*figures.accuracy_figures(study), *figures.decision_figures(study)]
    assert len(drawn) == 5
    for picture in drawn:
        picture.figure.draw_without_rendering()  # a warning, as of a missing letter, is an error
        width, height = picture.figure.bbox.size
        box = picture.figure.get_tightbbox().transformed(picture.figure.dpi_scale_trans)
        assert min(box.x0, box.y0) >= 0, picture.name
        assert (box.x1 <= width + 1, box.y1 <= height + 1) == (True, True), picture.name


def test_any_two_methods_have_colours_that_can_be_told_apart():
    assert figures.COLOURS.keys() == METHODS.keys()
    for pair in itertools.combinations(figures.COLOURS.values(), 2):
        first, second = (255 * np.array(to_rgb(colour)) for colour in pair)
        assert np.linalg.norm(first - second) > 80, pair


@pytest.mark.parametrize(("stages", "marks"), [((4, 4, 4), 3), ((), 0)])
def test_stages_are_marked_on_the_blocks_where_they_are_known(stages, marks):
    axes, _ = share_figure({"dtd": [0.5] * 12}, "a title", stages).axes
    assert sum(text.get_text().startswith("stage") for text in axes.texts) == marks
    assert [label.get_text() for label in axes.get_xticklabels()][-1] == "12"


# Numbers.


def test_a_learning_curve_is_the_mean_over_seeds_with_their_deviation(study):
    (_, finetune), (style, spottune) = figures.curves_of(study, "val_accuracy")["dtd"]
    assert [spread.mean for spread in finetune.values()] == [21.0, 42.0]
    # Of 20 and 22, and of 40 and 44: the difference by the root of 2.
    assert [s.std for s in finetune.values()] == pytest.approx([2 / 2**0.5, 4 / 2**0.5])
    assert (style["color"], spottune[2].mean) == (FINE_TUNED, 51.0)


def test_an_epoch_that_one_seed_did_not_evaluate_is_not_in_the_curve(tmp_path):
    unevaluated = record(1, 20.0) | {"val_accuracy": None}
    write_run(tmp_path / "a", "dtd", "finetune", [unevaluated, record(2, 40.0)])
    write_run(tmp_path / "b", "dtd", "finetune", 50.0, seed=1)
    ((_, means),) = figures.curves_of(read_study([tmp_path]), "val_accuracy")["dtd"]
    assert {epoch: spread.mean for epoch, spread in means.items()} == {2: 45.0}


def test_a_val_curve_is_only_of_runs_that_decided_the_methods_own_way(tmp_path):
    for seed, (policy, accuracy) in enumerate({"argmax": 50.0, "sample": 30.0}.items()):
        tested = {how: val_figures(accuracy) for how in ("argmax", "sample")}
        records = [record(1, accuracy / 2), record(2, accuracy, policies=tested)]
        write_run(tmp_path / policy, "dtd", "spottune", records, seed=seed, policy=policy)
    study = read_study([tmp_path])
    ((_, val),) = figures.curves_of(study, "val_accuracy")["dtd"]
    ((_, train),) = figures.curves_of(study, "train_loss")["dtd"]
    assert [(spread.mean, spread.std) for spread in val.values()] == [(25.0, None), (50.0, None)]
    assert [spread.std for spread in train.values()] == [0.0, 0.0]  # of two


def test_shares_and_numbers_of_blocks_are_means_over_seeds(study):
    # Seed 0: 6 of 10 images fine-tune the first block. Seed 1: 8 of 10 the first two.
    share = mean_shares(study, SPOTTUNE, "block shares")["dtd"]
    assert share == pytest.approx([0.7, 0.4] + [0.0] * 10)
    blocks = mean_shares(study, SPOTTUNE, "count shares")["dtd"]
    assert blocks == pytest.approx([0.3, 0.3, 0.4] + [0.0] * 10)


def test_accuracy_and_parameters_are_over_the_tasks_that_all_methods_have(study):
    (finetune, stored, accuracy), spottune = figures.tradeoff_points(study, ["dtd"])
    assert (finetune["label"], stored, accuracy.mean) == ("Standard fine-tuning", 6.0, 42.0)
    assert accuracy.std == pytest.approx(4 / 2**0.5)
    assert spottune[2].mean == 51.0
    *_, picture = figures.accuracy_figures(study)
    assert picture.caption.startswith("Over dtd, which all methods have.")
    labels = [text.get_text() for text in picture.figure.legends[0].texts]
    assert labels == ["Standard fine-tuning", "SpotTune"]


def test_the_band_is_one_deviation_to_either_side(study):
    picture, *_ = figures.accuracy_figures(study)
    band = picture.figure.axes[0].collections[0].get_paths()[0].vertices
    at_the_end = band[band[:, 0] == 2, 1]  # of 40 and 44
    assert {round(y, 4) for y in at_the_end} == {round(42 + d, 4) for d in (-(8**0.5), 8**0.5)}


def test_accuracy_against_parameters_is_the_mean_of_the_tasks_over_their_sum(tmp_path):
    for task, accuracy in (("dtd", 40.0), ("svhn", 90.0)):
        write_run(tmp_path, task, "finetune", accuracy)
    ((_, stored, accuracy),) = figures.tradeoff_points(read_study([tmp_path]), ["dtd", "svhn"])
    assert (stored, accuracy.mean) == (12.0, 65.0)


def test_the_upper_axis_counts_in_source_networks(study):
    figure = figures.tradeoff_figure(figures.tradeoff_points(study, ["dtd"]), "a title", 4.0)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    (top,) = axes.child_axes
    assert 4.0 * top.get_xlim()[1] == pytest.approx(axes.get_xlim()[1])


def test_bars_show_how_many_images_fine_tune_so_many_blocks_and_their_mean():
    axes, *_ = figures.blocks_figure({"dtd": [0.3, 0.3, 0.4]}, "a title").axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([30, 30, 40])
    assert axes.get_title() == "dtd: mean 1.1"  # 0.3 + 2 * 0.4


def test_each_row_of_shares_stands_beside_its_task():
    axes, _ = share_figure({"svhn": [0.9] * 12, "dtd": [0.1] * 12}, "a title").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["svhn", "dtd"]
    numbers = [text.get_text() for text in axes.texts if not text.get_text().startswith("stage")]
    assert numbers == ["90"] * 12 + ["10"] * 12


def test_the_curves_of_a_run_are_those_of_its_records(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    history = [record(epoch, 30.0 * epoch, blocks_per_image=[4, 6]) for epoch in (1, 2)]
    plots.draw_curves(history, "dtd", tmp_path / "curves.png")
    lines = [{y.get_label(): list(y.get_ydata()) for y in axes.lines} for axes in drawn[0].axes]
    assert lines[0] == {"train": [3.0, 1.5], "val": [1.5, 1.5]}
    assert lines[1] == {"train": [30.0, 60.0], "val": [30.0, 60.0]}
    assert lines[2] == {"val": pytest.approx([5.0, 5.0])}  # 6 of 10 images, 1 of 12 blocks


def test_tenths_of_a_percent_do_not_fill_a_panel(tmp_path):
    write_run(tmp_path, "dtd", "finetune", [record(1, 99.2), record(2, 99.4)])
    picture, *_ = figures.accuracy_figures(read_study([tmp_path]))
    low, high = picture.figure.axes[0].get_ylim()
    assert (high - low, (low + high) / 2) == pytest.approx((2, 99.3))


# The images with the most and the fewest fine-tuned blocks.


def test_extremes_are_sorted_by_number_and_among_equals_by_image_id():
    counts = {9: 3, 8: 0, 7: 12, 6: 3, 5: 0, 4: 12, 3: 1, 2: 11, 1: 5, 10: 2, 11: 6}
    decisions = {image: "1" * count + "0" * (12 - count) for image, count in counts.items()}
    assert extremes(decisions) == ([5, 8, 3, 10], [4, 7, 2, 11])
    assert EACH == 4
    # Of few images, none is among both.
    assert extremes(dict.fromkeys(range(5), "0" * 12)) == ([0, 1], [2, 3])


def extremes_of(decisions, folders, ckpdir):
    """What is found for a run on the made-up svhn that left these decisions."""
    sides = {"resize": 16, "crop": 16}
    write_run(ckpdir, "svhn", "spottune", deciding(50.0, [1, 1]), decisions=decisions, **sides)
    return find_extremes(read_study([ckpdir]), SPOTTUNE, folders)


def test_an_example_is_the_image_its_decisions_and_its_class(folders, tmp_path):
    val_images = load_images(TASK_BY_NAME["svhn"], ["val"], folders, 16)
    ids = val_images.image_ids.tolist()
    decisions = {str(image_id): "0" * 12 for image_id in ids} | {str(ids[2]): "010000000001"}
    found, missing = extremes_of(decisions, folders, tmp_path)
    assert missing == []
    _, most = found["svhn"]
    assert most[0].decisions == "010000000001"
    dataset = json.loads((folders.imdbdir / "svhn_val.json").read_text())
    category = val_images.categories[val_images.labels[2]]
    assert most[0].category in {c["name"] for c in dataset["categories"] if c["id"] == category}
    height, width = int(val_images.heights[2]), int(val_images.widths[2])
    first = [np.array([place]) for place in (2, 0, 0)]
    np.testing.assert_array_equal(most[0].pixels, val_images.crops(*first, height, width)[0])


def test_under_an_image_stand_its_decisions_class_correctness_and_count(study):
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    sides = (
        [Example(pixels, "010000000011", "a $class", "another")],
        [Example(pixels, "1" * 12, "b", "b"), Example(pixels, "1" * 12, "c", None)],
    )
    figure = figures.extremes_picture(study, SPOTTUNE, {"dtd": sides}).figure
    figure.draw_without_rendering()
    meshes = [axes.collections[0] for axes in figure.axes if axes.collections]
    shown = [[to_hex(colour) for colour in mesh.get_facecolors()] for mesh in meshes]
    assert shown[0] == [FINE_TUNED if d == "1" else KEPT for d in "010000000011"]
    assert shown[1] == [FINE_TUNED] * 12
    labels = {axes.get_xlabel() for axes in figure.axes}
    assert labels == {"", "a $class\nwrong: another\n3 of 12", "b\nright\n12 of 12", "c\n12 of 12"}


def test_images_of_other_data_are_told_and_left_out(folders, tmp_path):
    found, missing = extremes_of({"80199999": "0" * 12}, folders, tmp_path)
    assert found == {}
    assert missing == ["without svhn: --datadir holds other val images than the run's."]


@pytest.mark.parametrize("damaged", [{"1": "01", "2": "1"}, {"1": "02"}, {"x": "01"}, {"1": 0}])
def test_damaged_decisions_are_refused_in_one_line(damaged, folders, tmp_path):
    with pytest.raises(SpotTuneError, match=r"decisions\.json: damaged"):
        extremes_of(damaged, folders, tmp_path)
