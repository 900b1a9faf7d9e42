"""Folders of pictures: what is listed, how it is decoded and divided, and what is refused."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import refusal
from PIL import Image

from image_cache.decoding import Reading, decode_image
from image_cache.subsets import Subset, divided, few
from image_folders.images import check_names, folder_name_of, load_folder, mean_and_std
from image_folders.listing import pictures_below, read_listing

READING = Reading(16, "bicubic", photographs=True)


def picture(path, seed=0, size=(24, 20), mode="RGB", **saved):
    """Save random pixels, made larger by eight, so that JPEG keeps them apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(seed)
    small = draws.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.NEAREST).convert(mode).save(path, **saved)


@pytest.fixture
def birds(tmp_path):
    """Three classes of unequal size in train, two of them in val."""
    root = tmp_path / "birds"
    counts = {"train": {"crow": 5, "owl": 3, "wren": 4}, "val": {"crow": 2, "owl": 1}}
    seed = 0
    for split, classes in counts.items():
        for name, count in classes.items():
            for number in range(count):
                seed += 1
                picture(root / split / name / f"{number}.png", seed)
    return root


def load(root, reading=READING, val_share=0.25, subset=Subset(), seed=0):  # noqa: B008
    packed = root.parent / "packed"
    return load_folder(root, read_listing(root), packed, reading, val_share, subset, seed)


def test_classes_are_the_folders_of_train_in_alphabetical_order(birds):
    found = load(birds)
    assert found.classes == ["crow", "owl", "wren"]
    assert found.train.labels.tolist() == [0] * 5 + [1] * 3 + [2] * 4
    assert found.train_names[5] == "train/owl/0.png"
    assert found.val_names == ["val/crow/0.png", "val/crow/1.png", "val/owl/0.png"]
    assert found.val.labels.tolist() == [0, 0, 1]


def test_pixels_are_those_of_the_file_with_the_label(birds):
    found = load(birds)
    for name, place in zip(found.val_names, range(3), strict=True):
        with Image.open(birds / name) as image:
            whole = image.convert("RGB").resize((19, 16), Image.Resampling.BICUBIC)
        corner = np.zeros(1, dtype=np.int64)
        (pixels,) = found.val.crops(np.array([place]), corner, corner, 16, 19)
        assert np.array_equal(pixels, np.asarray(whole))


def test_without_val_a_seeded_share_of_each_class_is_set_aside_and_it_is_said(birds, capsys):
    shutil.rmtree(birds / "val")
    found, again, other = load(birds), load(birds), load(birds, seed=1)
    assert "no val folder, so 3 of 12 pictures of train are val" in capsys.readouterr().out
    assert np.bincount(found.val.labels).tolist() == [1, 1, 1]
    assert not {*found.val_names} & {*found.train_names}
    assert len(found.train_names) + len(found.val_names) == 12
    assert again.val_names == found.val_names
    assert other.val_names != found.val_names


def test_a_share_is_of_each_class_and_leaves_one_on_either_side():
    labels = [0] * 10 + [1] * 2
    train, val = divided(labels, ["a", "b"], 0.3, 0, "birds")
    assert [labels[place] for place in val] == [0, 0, 0, 1]
    assert sorted(train + val) == list(range(12))
    assert "the class b has one picture only" in refusal(
        divided, [0, 0, 1], ["a", "b"], 0.3, 0, "birds"
    )


def test_subsets_are_seeded_and_a_smaller_one_is_part_of_a_larger_one():
    labels = [0] * 20 + [1] * 4
    chosen = [few(labels, Subset(images_per_class=count), 0, "birds") for count in (2, 5)]
    assert [[labels[place] for place in each] for each in chosen] == [
        [0] * 2 + [1] * 2,
        [0] * 5 + [1] * 4,
    ]
    assert {*chosen[0]} < {*chosen[1]}
    assert few(labels, Subset(images_per_class=2), 1, "birds") != chosen[0]
    half = few(labels, Subset(train_share=0.5), 0, "birds")
    assert [labels[place] for place in half] == [0] * 10 + [1] * 2
    assert few(labels, Subset(), 0, "birds") == list(range(24))


def test_lists_take_the_place_of_class_folders(birds):
    shutil.move(birds / "train", birds / "photos")
    shutil.rmtree(birds / "val")
    (birds / "train.csv").write_text("path,class\nphotos/owl/0.png,owl\nphotos/crow/0.png,crow\n")
    (birds / "val.csv").write_text('"photos/owl/1.png","owl"\n')
    found = load(birds)
    assert (found.classes, found.train_names) == (
        ["crow", "owl"],
        ["photos/owl/0.png", "photos/crow/0.png"],
    )
    assert found.train.labels.tolist() == [1, 0]
    assert found.val_names == ["photos/owl/1.png"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("../x.png,owl", "line 2: ../x.png leads outside"),
        ("/x.png,owl", "line 2: /x.png leads outside"),
        ("x.png", "line 2: x.png found; expected path,class"),
        ("photos/owl/0.png,owl", "photos/owl/0.png listed more than once"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(line, words, birds):
    (birds / "train.csv").write_text(f"photos/owl/0.png,owl\n{line}\nphotos/x.png,crow\n")
    assert words in refusal(read_listing, birds)


def test_what_is_no_picture_is_skipped_with_a_message(birds, capsys):
    for name in ("Thumbs.db", ".hidden.png", "notes.txt"):
        (birds / "train/owl" / name).write_bytes(b"x")
    (birds / "train/.git").mkdir()
    picture(birds / "train/owl/.ipynb_checkpoints/0.png", 98)
    picture(birds / "train/loose.png", 97)
    picture(birds / "train/owl/sub folder/Ä Ö.PNG", 99)
    found = load(birds)
    said = capsys.readouterr().out
    assert "birds/train: 5 files that are hidden, twice there, or no pictures of a class" in said
    assert "train/owl/Thumbs.db" in said
    assert found.classes == ["crow", "owl", "wren"]
    assert "train/owl/sub folder/Ä Ö.PNG" in found.train_names


def empty(root):
    (root / "train/finch").mkdir()


def one_class(root):
    for name in ("owl", "wren"):
        shutil.rmtree(root / "train" / name)


def no_classes(root):
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


def classes_on_top(root):
    for name in ("crow", "owl", "wren"):
        shutil.move(root / "train" / name, root / name)
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "val")


def unknown_class(root):
    shutil.move(root / "val/owl", root / "val/Owl")


def empty_val(root):
    shutil.rmtree(root / "val")
    (root / "val").mkdir()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (empty, "train: no pictures of finch"),
        (one_class, "only the class crow found; expected a folder for each of two or more"),
        (no_classes, "no classes found"),
        (classes_on_top, "birds: the folders crow, owl, wren found; expected birds/train/CLASS"),
        (unknown_class, "val: the classes Owl are not among train's 3"),
        (empty_val, "val: no pictures"),
        (lambda root: shutil.rmtree(root), "no such folder; expected one with train/CLASS"),
    ],
)
def test_a_folder_that_cannot_be_learnt_from_is_refused_in_one_line(change, words, birds):
    change(birds)
    assert words in refusal(read_listing, birds)


def test_all_broken_pictures_are_named_at_once(birds):
    for name in ("crow/0.png", "wren/3.png"):
        whole = (birds / "train" / name).read_bytes()
        (birds / "train" / name).write_bytes(whole[:60])
    told = refusal(load, birds)
    assert "crow/0.png" in told
    assert "wren/3.png" in told
    assert "2 of 12 images cannot be used" in told
    assert "Replace or remove them" in told


def test_the_same_picture_in_train_and_val_is_warned_of(birds, capsys):
    shutil.copy(birds / "train/owl/0.png", birds / "val/owl/copy.png")
    load(birds)
    assert "1 pictures of val are in train too" in capsys.readouterr().out


def test_copies_are_warned_of_where_val_is_a_share_of_train_too(birds, capsys):
    shutil.rmtree(birds / "val")
    for number in range(5):
        shutil.copy(birds / f"train/crow/{number}.png", birds / f"train/crow/copy{number}.png")
    load(birds, val_share=0.5)
    assert "pictures of val are in train too" in capsys.readouterr().out


def test_a_dangling_link_is_skipped_or_named(birds):
    (birds / "train/owl/.#notes.txt").symlink_to("nobody@host.1234")
    load(birds)
    (birds / "train/owl/gone.png").symlink_to("nowhere.png")
    assert "gone.png: listed, but there is no such file" in refusal(load, birds)


def test_a_quote_that_is_left_open_is_named(birds):
    (birds / "train.csv").write_text('"train/owl/0.png,owl\n' + "train/crow/0.png,crow\n" * 9000)
    assert "is a quote left open?" in refusal(read_listing, birds)


@pytest.mark.parametrize("folder", ["..", "owl/.."])
def test_a_task_is_never_named_dot_dot(folder, birds, monkeypatch):
    monkeypatch.chdir(birds / "train")
    assert folder_name_of(Path(folder)) in ("birds", "train")


def test_folders_of_one_name_do_not_share_their_packs(tmp_path):
    for number, where in enumerate("ab"):
        for name in ("owl", "wren"):
            path = tmp_path / where / f"birds/train/{name}/0.bmp"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (16, 16), (number * 200,) * 3).save(path)
            shutil.copy(path, path.with_name("1.bmp"))
            for each in path.parent.iterdir():
                os.utime(each, (0, 0))
    for number, where in enumerate("ab"):
        folder, packed = tmp_path / where / "birds", tmp_path / "packed"
        found = load_folder(folder, read_listing(folder), packed, READING, 0.5, Subset(), 0)
        corner = np.zeros(1, dtype=np.int64)
        assert found.train.crops(corner, corner, corner, 16, 16).max() == number * 200


def test_two_folders_of_one_name_are_refused(tmp_path):
    assert "have the same name" in refusal(
        check_names, [tmp_path / "a/birds", tmp_path / "b/birds"]
    )


def test_pictures_below_a_folder_are_all_found_but_hidden_ones(birds):
    picture(birds / "test/.cache/x.png")
    picture(birds / "test/deep/x.JPG")
    picture(birds / "test/y.webp")
    (birds / "test/notes.txt").touch()
    (birds / "test/deep/up").symlink_to(birds / "test")  # a circle
    assert pictures_below(birds / "test") == (["y.webp", "deep/x.JPG"], 1)


def decoded(path, reading=READING):
    return decode_image(path, reading)


def test_exif_turns_photographs_but_no_image_of_the_decathlon(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture(tmp_path / "x.png", size=(32, 16), exif=exif)
    assert decoded(tmp_path / "x.png").shape == (32, 16, 3)
    assert decoded(tmp_path / "x.png", Reading(16)).shape == (16, 32, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_put_on_white(mode, tmp_path):
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (16, 16), 0)
        image.putpalette([255, 0, 0])
        image.info["transparency"] = 0
    image.convert(mode).save(tmp_path / "x.png")
    assert (decoded(tmp_path / "x.png") == 255).all()


def test_sixteen_bits_of_grey_are_scaled_to_eight(tmp_path):
    grey = np.full((16, 16), 128 * 257, dtype=np.uint16)
    grey[0, 0] = 65535
    Image.fromarray(grey).save(tmp_path / "x.png")
    pixels = decoded(tmp_path / "x.png")
    assert pixels[0, 0].tolist() == [255] * 3
    assert pixels[8, 8].tolist() == [128] * 3


@pytest.mark.parametrize(
    ("ending", "mode"),
    [("gif", "P"), ("tiff", "CMYK"), ("bmp", "RGB"), ("webp", "RGB"), ("png", "1"), ("jpg", "L")],
)
def test_every_usual_format_and_mode_is_read(ending, mode, tmp_path):
    path = tmp_path / f"x.{ending}"
    picture(path, mode=mode)
    with Image.open(path) as image:
        expected = image.convert("RGB").resize((19, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(decoded(path), np.asarray(expected))


@pytest.mark.parametrize("value", [-5.0, 70_000.0, 0.5])
def test_grey_whose_white_is_not_known_is_named(value, tmp_path):
    pixels = np.full((16, 16), value, dtype=np.float32 if value == 0.5 else np.int32)
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="more than 16 bits"):
        decoded(tmp_path / "x.tif")


def test_small_pictures_are_enlarged_and_squeezed_ones_become_squares(tmp_path):
    picture(tmp_path / "x.png", size=(8, 12))
    assert decoded(tmp_path / "x.png").shape == (24, 16, 3)
    assert decoded(tmp_path / "x.png", Reading(16, squeeze=True)).shape == (16, 16, 3)


def test_mean_and_std_are_those_of_all_pixels(birds):
    found = load(birds)
    corner, every = np.zeros(1, dtype=np.int64), []
    for place in range(len(found.train)):
        size = (int(found.train.heights[place]), int(found.train.widths[place]))
        every.append(found.train.crops(np.array([place]), corner, corner, *size).reshape(-1, 3))
    pixels = np.concatenate(every) / 255
    mean, std = mean_and_std(found.train)
    assert mean == pytest.approx(pixels.mean(axis=0).tolist())
    assert std == pytest.approx(pixels.std(axis=0).tolist())
