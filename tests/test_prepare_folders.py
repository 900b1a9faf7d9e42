"""The paper's five data sets in folder form, from made-up files in the form of the real ones."""

import errno
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script
from PIL import Image

import prepare_folders
from runtime.errors import SpotTuneError

needs_scipy = pytest.mark.skipif(
    importlib.util.find_spec("scipy") is None, reason="scipy is not installed: no .mat files"
)
SLASH = "Ram C/V Cargo Van Minivan 2012"


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10)).save(path)


def save_mat(path, **arrays):
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, arrays)


def cells(*texts):
    return np.array(texts, dtype=object)


def cubs(raw):
    """Two classes of two pictures; the first of a class is for training."""
    paths = [f"{name}/{name[4:]}_{i}.jpg" for name in ("001.Auk", "002.Wren") for i in (1, 2)]
    for path in paths:
        picture(raw / "images" / path)
    rows = list(enumerate(paths, start=1))
    lists = {
        "images": [f"{i} {path}" for i, path in rows],
        "train_test_split": [f"{i} {i % 2}" for i, _ in rows],
        "image_class_labels": [f"{i} {1 + (i > 2)}" for i, _ in rows],
        "classes": ["1 001.Auk", "2 002.Wren"],
        "bounding_boxes": [f"{i} 2.0 3.0 10.0 90.0" for i, _ in rows],
    }
    for name, lines in lists.items():
        (raw / f"{name}.txt").write_text("\n".join(lines) + "\n")


def annotations(names, path_field, **more):
    """MATLAB's array of structures, one a picture, of the classes 1, 2, 1, 2, ..."""
    fields = {"bbox_x1": 3, "bbox_y1": 4, "bbox_x2": 12, "bbox_y2": 10}
    rows = [
        (*fields.values(), 1 + i % 2, *(values[i] for values in more.values()), name)
        for i, name in enumerate(names)
    ]
    kinds = [(field, "uint16") for field in (*fields, "class", *more)]
    return np.array(rows, dtype=[*kinds, (path_field, object)])


def cars(raw):
    save_mat(raw / "devkit" / "cars_meta.mat", class_names=cells("Audi R8 2012", SLASH))
    names = ["00001.jpg", "00002.jpg"]
    for split, place in (("train", "devkit"), ("test", ".")):
        for name in names:
            picture(raw / f"cars_{split}" / name)
        end = "train_annos" if split == "train" else "test_annos_withlabels"
        save_mat(raw / place / f"cars_{end}.mat", annotations=annotations(names, "fname"))


def cars_in_one_list(raw):
    names = [f"car_ims/00000{i}.jpg" for i in (1, 2, 3, 4)]
    for name in names:
        picture(raw / name)
    rows = annotations(names, "relative_im_path", test=[0, 0, 1, 1])
    save_mat(raw / "cars_annos.mat", annotations=rows, class_names=cells("Audi R8 2012", SLASH))


def flowers(raw):
    for number in range(1, 7):
        picture(raw / "jpg" / f"image_{number:05d}.jpg")
    save_mat(raw / "imagelabels.mat", labels=[[1, 1, 1, 77, 77, 77]])
    save_mat(raw / "setid.mat", trnid=[[1, 4]], valid=[[2, 5]], tstid=[[6, 3]])


def wikiart(raw):
    for split in ("train", "test"):
        for name in ("Cubism/a b.jpg", "Pop_Art/é.jpg"):
            picture(raw / split / name)
        (raw / split / "Cubism" / "Thumbs.db").write_text("no picture")


def wikiart_by_lists(raw):
    """With the numbers of classes, as for the artists of pictures in folders of styles."""
    paths = ["Cubism/a,1.jpg", "Pop_Art/a,1.jpg", "Pop_Art/b 2.jpg", "Cubism/b 3.jpg"]
    for path in paths:
        picture(raw / path)
    (raw / "wikiart_train.csv").write_text(f"{paths[0]},0\n{paths[1]},0\n")
    (raw / "wikiart_val.csv").write_text(f"{paths[2]},1\r\n{paths[3]},1\r\n")
    (raw / "wikiart_class.txt").write_text("0 Ann\n1 Bob\n")


def wikiart_by_paths(raw):
    for path in ("Cubism/a.jpg", "Cubism/b.jpg"):
        picture(raw / path)
    (raw / "wikiart_train.txt").write_text("Cubism/a.jpg\n")
    (raw / "wikiart_test.txt").write_text("Cubism/b.jpg\n")


def sketches(raw):
    names = [f"alarm clock/{i}.png" for i in range(1, 6)] + [f"zebra/{i}.png" for i in range(6, 11)]
    for name in names:
        picture(raw / "png" / name)
    (raw / "png" / "filelist.txt").write_text("\n".join(names))


def prepared(tmp_path, make, *flags):
    """What main makes of a made-up data set: the paths in OUT of all pictures."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    if not raw.exists():
        make(raw)
    prepare_folders.main([make.__name__.split("_")[0], str(raw), str(out), *flags])
    return found(out)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def found(folder):
    return {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and file.name != prepare_folders.MARKER
    }


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            cubs,
            "train/001.Auk/Auk_1.jpg test/001.Auk/Auk_2.jpg "
            "train/002.Wren/Wren_1.jpg test/002.Wren/Wren_2.jpg",
        ),
        pytest.param(
            flowers,
            "train/001/image_00001.jpg val/001/image_00002.jpg test/001/image_00003.jpg "
            "train/077/image_00004.jpg val/077/image_00005.jpg test/077/image_00006.jpg",
            marks=needs_scipy,
        ),
        (
            wikiart_by_lists,
            "train/Ann/Cubism-a,1.jpg train/Ann/Pop_Art-a,1.jpg "
            "test/Bob/Pop_Art-b_2.jpg test/Bob/Cubism-b_3.jpg",
        ),
        (
            wikiart,
            "train/Cubism/a_b.jpg train/Pop_Art/é.jpg test/Cubism/a_b.jpg test/Pop_Art/é.jpg",
        ),
        (wikiart_by_paths, "train/Cubism/a.jpg test/Cubism/b.jpg"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_lists_of_a_data_set_say_where_each_picture_goes(tmp_path, make, expected):
    assert {path.replace(" ", "_") for path in prepared(tmp_path, make)} == set(expected.split())


@needs_scipy
@pytest.mark.parametrize(
    ("make", "train", "test"),
    [
        (cars, ["00001", "00002"], ["00001", "00002"]),
        (cars_in_one_list, ["000001", "000002"], ["000003", "000004"]),
    ],
)
def test_both_forms_of_stanford_cars_are_read(tmp_path, make, train, test):
    assert prepared(tmp_path, make) == {
        f"{split}/{class_name}/{name}.jpg"
        for split, names in (("train", train), ("test", test))
        for class_name, name in zip(("Audi R8 2012", SLASH.replace("/", "-")), names, strict=True)
    }


def test_every_sketch_is_for_testing_in_one_fold(tmp_path):
    sketches(tmp_path / "raw")
    tests = []
    for fold in "12345":
        out = tmp_path / fold
        prepare_folders.main(["sketches", str(tmp_path / "raw"), str(out), "--fold", fold])
        tests += [path for path in found(out) if path.startswith("test/")]
        assert len(found(out)) == 10
    assert len(set(tests)) == len(tests) == 10
    with pytest.raises(SpotTuneError, match="--folds 3 --fold 4: expected"):
        prepared(tmp_path, sketches, "--folds", "3", "--fold", "4")


@needs_scipy
def test_the_official_test_can_stand_in_for_val_and_val_then_joins_train(tmp_path):
    usual = prepared(tmp_path / "usual", flowers)
    as_val = prepared(tmp_path / "as_val", flowers, "--test_as_val")
    moved = {"train": "train", "val": "train", "test": "val"}
    assert as_val == {f"{moved[path.split('/')[0]]}/{path.split('/', 1)[1]}" for path in usual}


def test_the_last_line_tells_classes_and_pictures(tmp_path, capsys):
    prepared(tmp_path, cubs)
    out = tmp_path / "out"
    line = f"{out}: train 2 classes, 2 pictures; test 2 classes, 2 pictures\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize("flags", [[], ["--copy"]])
def test_pictures_are_hard_links_or_copies(tmp_path, flags):
    prepared(tmp_path, cubs, *flags)
    source = tmp_path / "raw/images/001.Auk/Auk_1.jpg"
    made = tmp_path / "out/train/001.Auk/Auk_1.jpg"
    assert made.read_bytes() == source.read_bytes()
    assert made.samefile(source) == (not flags)


def test_a_linked_picture_of_raw_becomes_a_link_to_what_it_names(tmp_path):
    cubs(tmp_path / "raw")
    picture(tmp_path / "elsewhere.jpg")
    linked = tmp_path / "raw/images/001.Auk/Auk_1.jpg"
    linked.unlink()
    linked.symlink_to("../../../elsewhere.jpg")
    prepared(tmp_path, cubs)
    made = tmp_path / "out/train/001.Auk/Auk_1.jpg"
    assert made.samefile(tmp_path / "elsewhere.jpg") and not made.is_symlink()


@pytest.mark.parametrize("make", [cubs, pytest.param(cars, marks=needs_scipy)])
def test_pictures_are_cropped_to_the_part_of_the_box_inside_them(tmp_path, make):
    """CUB: 10 wide and 90 high from row 3 on, of 10. Cars: columns 3 to 12, rows 4 to 10."""
    for path in prepared(tmp_path, make, "--crop_boxes"):
        with Image.open(tmp_path / "out" / path) as image:
            assert image.size == (10, 7)


def test_a_crop_shows_what_the_box_holds(tmp_path):
    cubs(tmp_path / "raw")
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[3:, 2:12] = 255
    file = tmp_path / "raw/images/001.Auk/Auk_1.jpg"
    Image.fromarray(pixels).save(file, "PNG")  # without loss, whatever its name
    prepared(tmp_path, cubs, "--crop_boxes")
    with Image.open(tmp_path / "out/train/001.Auk/Auk_1.jpg") as image:
        assert np.asarray(image).min() > 250


@pytest.mark.parametrize("name", ["bounding_boxes", "classes"])
def test_a_list_that_is_cut_short_is_refused_in_one_line(tmp_path, name):
    cubs(tmp_path / "raw")
    file = tmp_path / f"raw/{name}.txt"
    file.write_text(file.read_text()[:-11])
    with pytest.raises(SpotTuneError, match="one may be cut short"):
        prepare_folders.main(["cubs", str(tmp_path / "raw"), str(tmp_path / "out"), "--crop_boxes"])
    assert not (tmp_path / "out").exists()


def test_what_was_made_with_other_flags_or_has_lost_pictures_is_no_success(tmp_path):
    made = prepared(tmp_path, cubs)
    again = ["cubs", str(tmp_path / "raw"), str(tmp_path / "out")]
    with pytest.raises(SpotTuneError, match="holds hard links, not copies"):
        prepare_folders.main([*again, "--copy"])
    (tmp_path / "out" / sorted(made)[0]).unlink()
    with pytest.raises(SpotTuneError, match="lacks 1 of its pictures"):
        prepare_folders.main(again)


@pytest.mark.parametrize("flags", [[], ["--copy"], ["--crop_boxes"]])
def test_a_stopped_run_continues_and_ends_as_one_that_was_not_stopped(tmp_path, monkeypatch, flags):
    whole = prepared(tmp_path / "whole", cubs, *flags)

    def stop_after_two(items, *_):
        yield from items[:2]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare_folders, "track", stop_after_two)
        prepared(tmp_path, cubs, *flags)
    assert not (tmp_path / "out").exists()  # half a data set is never taken for a whole one
    first = next((tmp_path / "out.partial").glob("*/*/*"))
    before = first.stat().st_ino
    assert prepared(tmp_path, cubs, *flags) == whole
    kept = tmp_path / "out" / first.relative_to(tmp_path / "out.partial")
    assert kept.stat().st_ino == before
    assert not (tmp_path / "out.partial").exists()
    assert prepared(tmp_path, cubs, *flags) == whole  # and once more: nothing is left to do


@pytest.mark.parametrize("flags", [["--crop_boxes"], ["--test_as_val"]])
def test_a_folder_made_with_other_flags_is_refused(tmp_path, flags):
    prepared(tmp_path, cubs)
    with pytest.raises(SpotTuneError, match="out: not empty, and not of these lists and flags"):
        prepared(tmp_path, cubs, *flags)


def test_a_folder_with_other_content_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    with pytest.raises(SpotTuneError, match="out: not empty"):
        prepared(tmp_path, cubs)
    assert found(tmp_path / "out") == {"thesis.txt"}


@pytest.mark.parametrize(
    "name", ["../../../escaped.jpg", "/etc/hostname", "001.Auk/../../../x.jpg", "."]
)
def test_a_list_cannot_lead_outside(tmp_path, name):
    cubs(tmp_path / "raw")
    listed = tmp_path / "raw/images.txt"
    listed.write_text(listed.read_text().replace("001.Auk/Auk_1.jpg", name))
    with pytest.raises(SpotTuneError, match=r"images\.txt: .* found; expected a path inside"):
        prepared(tmp_path, cubs)
    assert names_in(tmp_path) == ["raw"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [("../../up", "..-..-up"), ("/root", "-root"), ("a\\b", "a-b"), ("..", None), (".", None)],
)
def test_a_class_is_one_folder_whatever_its_name(tmp_path, name, folder):
    cubs(tmp_path / "raw")
    (tmp_path / "raw/classes.txt").write_text(f"1 {name}\n2 002.Wren\n")
    if folder is None:
        with pytest.raises(SpotTuneError, match="its class is named '[.]+'; expected a name"):
            prepared(tmp_path, cubs)
    else:
        assert f"train/{folder}/Auk_1.jpg" in prepared(tmp_path, cubs)
    assert names_in(tmp_path) == (["out", "raw"] if folder else ["raw"])


@pytest.mark.parametrize(
    ("make", "lost"),
    [
        (cubs, ["images", "train_test_split", "image_class_labels", "classes"]),
        (sketches, ["png/filelist"]),
        (wikiart_by_lists, ["wikiart_train"]),
        pytest.param(
            cars,
            ["devkit/cars_meta", "devkit/cars_train_annos", "cars_test_annos_withlabels"],
            marks=needs_scipy,
        ),
        pytest.param(cars_in_one_list, ["cars_annos"], marks=needs_scipy),
        pytest.param(flowers, ["imagelabels", "setid"], marks=needs_scipy),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_list_that_is_missing_is_named_with_its_source(tmp_path, make, lost):
    raw = tmp_path / "raw"
    make(raw)
    for name in lost:
        (file,) = raw.glob(f"{name}.*")
        file.rename(tmp_path / "away")
        with pytest.raises(SpotTuneError) as told:
            prepared(tmp_path, make)
        (tmp_path / "away").rename(file)
        assert Path(name).name in str(told.value)
        assert "https://" in str(told.value) or "docs/five_data_sets.md" in str(told.value)


def test_missing_pictures_are_counted_and_the_first_is_named(tmp_path):
    cubs(tmp_path / "raw")
    for file in (tmp_path / "raw/images/002.Wren").iterdir():
        file.unlink()
    with pytest.raises(SpotTuneError, match=r"2 of 4 listed pictures are missing.*Wren_1\.jpg\. U"):
        prepared(tmp_path, cubs)
    assert not (tmp_path / "out").exists()


def test_a_picture_in_train_and_test_is_refused(tmp_path):
    wikiart_by_paths(tmp_path / "raw")
    (tmp_path / "raw/wikiart_test.txt").write_text("Cubism/a.jpg\n")
    with pytest.raises(SpotTuneError, match=r"Cubism/a\.jpg is listed 2 times"):
        prepared(tmp_path, wikiart_by_paths)


def test_lists_that_do_not_belong_together_are_refused(tmp_path):
    cubs(tmp_path / "raw")
    (tmp_path / "raw/image_class_labels.txt").write_text("1 1\n2 1\n")
    with pytest.raises(SpotTuneError, match=r"image_class_labels\.txt: other numbers than"):
        prepared(tmp_path, cubs)


def test_a_line_of_a_list_without_its_second_half_is_refused(tmp_path):
    cubs(tmp_path / "raw")
    (tmp_path / "raw/classes.txt").write_text("1 001.Auk\n2")
    with pytest.raises(SpotTuneError, match=r"classes\.txt: 2 found; expected a number and a text"):
        prepared(tmp_path, cubs)


@pytest.mark.parametrize("content", [b"<html>", b"P6 20 10 255 " + bytes(600)])
def test_a_picture_that_is_neither_jpeg_nor_png_is_not_cropped_but_named(tmp_path, content):
    cubs(tmp_path / "raw")
    (tmp_path / "raw/images/002.Wren/Wren_1.jpg").write_bytes(content)
    with pytest.raises(SpotTuneError, match=r"Wren_1\.jpg: cannot be cropped"):
        prepared(tmp_path, cubs, "--crop_boxes")


def test_where_no_hard_links_can_be_made_copies_are_proposed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(SpotTuneError, match="cannot be a hard link .*; add --copy"):
        prepared(tmp_path, cubs)
    assert prepared(tmp_path, cubs, "--copy")


@needs_scipy
@pytest.mark.parametrize("content", [b"<!DOCTYPE html>" * 20, b"", None], ids=str)
def test_a_mat_file_that_is_not_whole_is_told_in_one_line(tmp_path, content):
    flowers(tmp_path / "raw")
    file = tmp_path / "raw/setid.mat"
    file.write_bytes(file.read_bytes()[:200] if content is None else content)
    with pytest.raises(SpotTuneError, match=r"setid\.mat: not a whole \.mat file"):
        prepared(tmp_path, flowers)


@needs_scipy
def test_a_mat_file_of_another_data_set_is_told(tmp_path):
    flowers(tmp_path / "raw")
    save_mat(tmp_path / "raw/setid.mat", trn1=[[1]])  # as in the data set of 17 flowers
    with pytest.raises(SpotTuneError, match=r"setid\.mat: holds no trnid"):
        prepared(tmp_path, flowers)


def test_without_scipy_one_line_says_what_to_install(tmp_path, monkeypatch):
    for name in ("imagelabels.mat", "setid.mat"):
        (tmp_path / "raw").mkdir(exist_ok=True)
        (tmp_path / "raw" / name).touch()
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(SpotTuneError, match="pip install scipy"):
        prepared(tmp_path, flowers)


def test_as_a_script_a_mistake_is_one_line(tmp_path):
    done = run_script("prepare_folders.py", "cubs", tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'images.txt'}: no such file.")
    assert done.stderr.count("\n") == 1 and done.stdout == ""
