"""The figures of a study: what is chosen and computed for them, and that they are drawn."""

import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from made_up_runs import record, val_figures, write_run
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle
from PIL import Image

from decathlon import TASK_BY_NAME
from image_cache.packed import DataFolders
from imdbfolder_coco import load_images
from reporting import figures
from reporting.drawings import Example, extremes_figure, spread_apart
from reporting.extremes import EACH, extremes, find_extremes
from reporting.plots import FINE_TUNED, KEPT, save, share_figure
from reporting.results import mean_blocks_per_image, mean_share
from reporting.study import read_study
from reporting.task_runs import Row
from runtime.errors import SpotTuneError

SPOTTUNE = Row("spottune")


def deciding(accuracy, blocks_per_image):
    """Records of a SpotTune run of two epochs."""
    decisions = {"blocks_per_image": blocks_per_image + [0] * (13 - len(blocks_per_image))}
    return [record(1, accuracy / 2, **decisions), record(2, accuracy, **decisions)]


@pytest.fixture
def study(tmp_path):
    """Fine-tuning and SpotTune on dtd, two seeds each."""
    for seed, accuracy in enumerate((40.0, 44.0)):
        write_run(tmp_path / f"f{seed}", "dtd", "finetune", accuracy, seed=seed)
    write_run(tmp_path / "s0", "dtd", "spottune", deciding(50.0, [4, 6]))
    write_run(tmp_path / "s1", "dtd", "spottune", deciding(52.0, [2, 0, 8]), seed=1)
    return read_study([tmp_path])


def test_every_figure_is_there_as_png_and_svg_and_shows_something(trained, tmp_path):
    tasks = [trained.ckpdir / task for task in ("svhn", "daimlerpedcls", "imagenet12")]
    data = ["--datadir", str(trained.root)]
    figures.main([*map(str, tasks), "--out", str(tmp_path), *data])
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {
        "learning_val",
        "learning_train",
        "fine_tuned_share_spottune",
        "blocks_per_image_spottune",
        "extremes_spottune",
    }
    for name in names:
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
        drawing = ElementTree.parse(tmp_path / "figures" / f"{name}.svg")
        assert len(list(drawing.iter("{http://www.w3.org/2000/svg}path"))) > 20


def test_a_figure_drawn_twice_has_the_same_bytes(tmp_path):
    for suffix in ("png", "svg"):
        paths = [tmp_path / f"{turn}.{suffix}" for turn in ("first", "second")]
        for path in paths:
            save(share_figure({"dtd": [0.1] * 6 + [0.9] * 6}, "a title"), path)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert b"<dc:date>" not in paths[0].read_bytes()


# Numbers.


def test_a_learning_curve_is_the_mean_over_seeds_with_their_deviation(study):
    finetune, spottune = figures.curves_of(study, "val_accuracy")["dtd"]
    assert finetune.epochs == [1, 2]
    assert finetune.mean == [21.0, 42.0]
    # Of 20 and 22, and of 40 and 44: the difference by the root of 2.
    assert finetune.std == pytest.approx([2 / 2**0.5, 4 / 2**0.5])
    assert spottune.mean[-1] == 51.0
    assert spottune.look.colour == FINE_TUNED


def test_an_epoch_that_one_seed_did_not_evaluate_is_not_in_the_curve(tmp_path):
    unevaluated = record(1, 20.0) | {"val_accuracy": None}
    write_run(tmp_path / "a", "dtd", "finetune", [unevaluated, record(2, 40.0)])
    write_run(tmp_path / "b", "dtd", "finetune", 50.0, seed=1)
    (curve,) = figures.curves_of(read_study([tmp_path]), "val_accuracy")["dtd"]
    assert (curve.epochs, curve.mean) == ([2], [45.0])


def test_a_val_curve_is_only_of_runs_that_decided_the_methods_own_way(tmp_path):
    for seed, (policy, accuracy) in enumerate({"argmax": 50.0, "sample": 30.0}.items()):
        tested = {how: val_figures(accuracy) for how in ("argmax", "sample")}
        records = [record(1, accuracy / 2), record(2, accuracy, policies=tested)]
        write_run(tmp_path / policy, "dtd", "spottune", records, seed=seed, policy=policy)
    study = read_study([tmp_path])
    (val,) = figures.curves_of(study, "val_accuracy")["dtd"]
    (train,) = figures.curves_of(study, "train_accuracy")["dtd"]
    assert (val.mean, train.mean) == ([25.0, 50.0], [20.0, 40.0])


def test_shares_and_numbers_of_blocks_are_means_over_seeds(study):
    # Seed 0: 6 of 10 images fine-tune the first block. Seed 1: 8 of 10 the first two.
    (share,) = mean_share(study, SPOTTUNE).values()
    assert share == pytest.approx([0.7, 0.4] + [0.0] * 10)
    (blocks,) = mean_blocks_per_image(study, SPOTTUNE).values()
    assert blocks == pytest.approx([0.3, 0.3, 0.4] + [0.0] * 10)


def test_a_point_is_a_methods_mean_accuracy_over_what_all_tasks_store(study):
    finetune, spottune = figures.tradeoff_points(study)
    assert (finetune.look.label, finetune.x, finetune.y) == ("Standard fine-tuning", 6.0, 42.0)
    assert finetune.deviation == pytest.approx(4 / 2**0.5)
    assert spottune.y == 51.0


def test_tenths_of_a_percent_do_not_fill_a_panel(tmp_path):
    write_run(tmp_path, "dtd", "finetune", [record(1, 99.2), record(2, 99.4)])
    (_, figure), *_ = figures.accuracy_figures(read_study([tmp_path]))
    low, high = figure.axes[0].get_ylim()
    assert high - low == pytest.approx(2)
    assert (low + high) / 2 == pytest.approx(99.3)


def test_labels_keep_their_order_and_their_distance():
    values = [5.0, 5.1, 9.9, 5.05, 0.0]
    places = spread_apart(values, gap=1.0, low=0.0, high=10.0)
    assert np.argsort(places).tolist() == np.argsort(values).tolist()
    assert np.diff(sorted(places)).min() >= 1.0 - 1e-9
    assert min(places) >= 0.5
    assert max(places) <= 9.5
    crowd = spread_apart([5.0] * 40, gap=1.0, low=0.0, high=10.0)
    assert np.diff(sorted(crowd)) == pytest.approx(0.25)


# The images with the most and the fewest fine-tuned blocks.


def test_extremes_are_sorted_by_number_and_among_equals_by_image_id():
    counts = {9: 3, 8: 0, 7: 12, 6: 3, 5: 0, 4: 12, 3: 1, 2: 11, 1: 5, 10: 2, 11: 6}
    decisions = {image: "1" * count + "0" * (12 - count) for image, count in counts.items()}
    fewest, most = extremes(decisions)
    assert fewest == [5, 8, 3, 10]
    assert most == [4, 7, 2, 11]
    assert len(fewest) == EACH


def test_no_image_is_among_both_extremes():
    fewest, most = extremes(dict.fromkeys(range(5), "0" * 12))
    assert (fewest, most) == ([0, 1], [2, 3])


@pytest.fixture
def folders(trained):
    return DataFolders(trained.root, trained.root / "annotations", trained.root / "packed")


def extremes_of(decisions, folders, ckpdir):
    """What is found for a run on the made-up svhn that left these decisions."""
    sides = {"resize": 16, "crop": 16}
    write_run(ckpdir, "svhn", "spottune", deciding(50.0, [1, 1]), decisions=decisions, **sides)
    return find_extremes(read_study([ckpdir]), SPOTTUNE, folders)


def test_pixels_and_decisions_shown_are_those_of_the_image(folders, tmp_path):
    val_images = load_images(TASK_BY_NAME["svhn"], ["val"], folders, 16)
    ids = val_images.image_ids.tolist()
    decisions = {str(image_id): "0" * 12 for image_id in ids} | {str(ids[2]): "010000000001"}
    found, missing = extremes_of(decisions, folders, tmp_path)
    assert missing == []
    _, most = found["svhn"]
    assert most[0].decisions == "010000000001"
    height, width = int(val_images.heights[2]), int(val_images.widths[2])
    first = [np.array([place]) for place in (2, 0, 0)]
    np.testing.assert_array_equal(most[0].pixels, val_images.crops(*first, height, width)[0])


def test_the_squares_under_an_image_are_its_decisions():
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    sides = [Example(pixels, "010000000011")], [Example(pixels, "1" * 12)]
    axes = extremes_figure({"dtd": sides}, "a title").axes
    squares = [
        [to_hex(square.get_facecolor()) for square in part.patches if isinstance(square, Rectangle)]
        for part in axes
    ]
    strips = [colours for colours in squares if len(colours) == 12]
    expected = "010000000011"
    assert strips[0] == [to_hex(to_rgb(FINE_TUNED if d == "1" else KEPT)) for d in expected]
    assert set(strips[1]) == {FINE_TUNED}


def test_missing_images_are_told_and_their_figure_is_left_out(study, tmp_path, capsys):
    folders = sorted({str(run.folder) for run in study.runs})
    figures.main([*folders, "--out", str(tmp_path / "out"), "--datadir", str(tmp_path / "none")])
    told = "Images of SpotTune, without dtd: the val images were not found in --datadir."
    assert told in capsys.readouterr().out
    names = {path.stem for path in (tmp_path / "out/figures").iterdir()}
    assert "blocks_per_image_spottune" in names
    assert "extremes_spottune" not in names


def test_images_of_other_data_are_told_and_left_out(folders, tmp_path):
    found, missing = extremes_of({"80199999": "0" * 12}, folders, tmp_path)
    assert found == {}
    assert missing == ["without svhn: --datadir holds other val images than the run's."]


@pytest.mark.parametrize("damaged", [{"1": "01"}, {"1": "0" * 11 + "2"}, {"x": "0" * 12}, {"1": 0}])
def test_damaged_decisions_are_refused_in_one_line(damaged, folders, tmp_path):
    with pytest.raises(SpotTuneError, match=r"decisions\.json: image"):
        extremes_of(damaged, folders, tmp_path)


def test_nothing_is_cut_off(study):
    """Every title, label and legend lies inside its figure."""
    drawn = [*figures.accuracy_figures(study), *figures.decision_figures(study)]
    assert len(drawn) == 5
    for picture, figure in drawn:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure.draw_without_rendering()
        width, height = figure.bbox.size
        box = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
        assert box.x0 >= 0, picture.name
        assert box.y0 >= 0, picture.name
        assert box.x1 <= width + 1, picture.name
        assert box.y1 <= height + 1, picture.name
