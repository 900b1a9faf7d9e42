"""Images decoded once: pixels, staleness, damage."""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import drop_last_image, edit_json
from PIL import Image
from torchvision import transforms

from decathlon import TASK_BY_NAME
from image_cache import decoding, packed
from image_cache.decoding import Reading, decode_image
from image_cache.packed import DataFolders
from imdbfolder_coco import load_images
from runtime.errors import SpotTuneError


@pytest.fixture
def folders(decathlon_root, tmp_path):
    """A private copy of the data, to be damaged."""
    for part in ("annotations", "data/svhn"):
        shutil.copytree(decathlon_root / part, tmp_path / part)
    return DataFolders(tmp_path, tmp_path / "annotations", tmp_path / "packed")


def pack_of(folders):
    return folders.cachedir / "svhn_train_16.pack"


def load(folders):
    return load_images(TASK_BY_NAME["svhn"], ["train"], folders, 16)


def image_paths(folders):
    content = json.loads((folders.imdbdir / "svhn_train.json").read_text())
    return [folders.datadir / image["file_name"] for image in content["images"]]


@pytest.mark.parametrize("size", [(16, 16), (40, 25), (25, 40), (73, 72), (9, 200)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pixels_are_bit_for_bit_those_of_pillow_and_torchvision(size, mode, tmp_path):
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    path = tmp_path / "image.jpg"
    Image.fromarray(pixels.squeeze(), mode=mode if mode != "L" else None).save(path)
    expected = transforms.Resize(16)(Image.open(path).convert("RGB"))
    assert np.array_equal(decode_image(path, Reading(16)), np.asarray(expected))


def pixels_of(images):
    origin = np.array([0])
    return images.crops(origin, origin, origin, 16, 16)


def test_images_that_are_gone_are_read_from_the_pack_with_a_message(folders, capsys):
    first = pixels_of(load(folders))
    shutil.rmtree(folders.datadir / "data")
    assert np.array_equal(pixels_of(load(folders)), first)
    assert "image files are gone" in capsys.readouterr().out


def test_images_that_were_replaced_in_place_are_packed_again(folders, capsys):
    load(folders)
    Image.new("RGB", (20, 16), "red").save(image_paths(folders)[0], "JPEG")
    assert (pixels_of(load(folders))[..., 0] > 240).all()
    assert "made from other image files" in capsys.readouterr().out


def test_data_sets_that_share_a_cache_keep_their_own_pixels(folders, tmp_path):
    """Equal annotations, other images."""
    white = tmp_path / "white"
    shutil.copytree(folders.datadir / "data", white / "data")
    for path in white.rglob("*.jpg"):
        Image.new("RGB", (16, 16), "white").save(path)
    for _ in range(2):
        assert pixels_of(load(folders)).min() < 200
        other = DataFolders(white, folders.imdbdir, folders.cachedir)
        assert pixels_of(load(other)).min() > 240


def test_packs_of_two_sides_stand_side_by_side(folders, capsys):
    svhn, sides = TASK_BY_NAME["svhn"], (16, 8, 16)
    found = [load_images(svhn, ["train"], folders, side).heights.min() for side in sides]
    assert found == [16, 8, 16]
    assert "packing the images again" not in capsys.readouterr().out


def test_changed_annotations_are_packed_again(folders):
    *kept, _ = load(folders).image_ids
    drop_last_image(folders.imdbdir / "svhn_train.json")
    assert load(folders).image_ids.tolist() == kept


@pytest.mark.parametrize("damage", ["cut short", "emptied", "another file", "index flipped"])
def test_a_damaged_pack_is_made_again_with_a_message(folders, damage, capsys):
    load(folders)
    path = pack_of(folders)
    whole = path.read_bytes()
    damaged = {
        "cut short": whole[:-10],
        "emptied": b"",
        "another file": b"x" * len(whole),
        "index flipped": whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:],
    }
    path.write_bytes(damaged[damage])
    load(folders)
    assert path.read_bytes() == whole
    assert "packing the images again" in capsys.readouterr().out


def forge(path, change):
    """Let `change` alter index and facts of a packed file, under a checksum that is right."""
    data = path.read_bytes()
    _, begin, *_ = packed.HEADER.unpack_from(data)
    index = np.frombuffer(data, packed.INDEX, count=12, offset=begin + 8).copy()
    facts = json.loads(data[begin + 8 + index.nbytes :])
    change(index, facts)
    with path.open("r+b") as stream:
        stream.truncate(begin)
        stream.seek(begin)
        packed.finish(stream, index, facts)


def set_first(field, value):
    def change(index, facts):
        index[field][0] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_first("width", 2**31),
        set_first("label", 60_000),
        set_first("label", -2),
        set_first("offset", 2**64 - 3000),
        lambda index, facts: facts.update(categories=[]),
        lambda index, facts: facts.update(categories=[2**63]),
        lambda index, facts: facts.update(version=1),
    ],
)
def test_a_forged_pack_is_not_believed(folders, change, capsys):
    load(folders)
    whole = pack_of(folders).read_bytes()
    forge(pack_of(folders), change)
    load(folders)
    assert pack_of(folders).read_bytes() == whole
    assert "packing the images again" in capsys.readouterr().out


def test_windows_outside_their_image_are_refused(folders):
    images = load(folders)
    one, zero = np.array([0]), np.array([0])
    for top, left in ((1, 0), (0, 1), (-1, 0)):
        with pytest.raises(IndexError):
            images.crops(one, np.array([top]), np.array([left]), 16, int(images.widths[0]))
    assert images.crops(one, zero, zero, 16, 16).shape == (1, 16, 16, 3)


def damage_four(folders):
    """Four kinds of damage; the files."""
    half, zeros, gone, program = paths = image_paths(folders)[1:11:3]
    data = half.read_bytes()
    half.write_bytes(data[: len(data) // 2])
    zeros.write_bytes(data[:20] + bytes(len(data) - 20))
    gone.unlink()
    program.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")  # runs programs
    return paths


@pytest.mark.parametrize("processes", [False, True])
def test_all_damaged_images_are_named_in_one_line(folders, processes, monkeypatch):
    if processes:
        many(monkeypatch)
    paths = damage_four(folders)
    with pytest.raises(SpotTuneError, match="4 of 12 images") as caught:
        load(folders)
    message = str(caught.value)
    assert all(str(path) in message for path in paths)
    assert "no such file" in message
    assert message.isprintable()
    assert list(folders.cachedir.iterdir()) == []


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "TIFF", "JPEG2000", "PPM"])
def test_other_formats_are_read_too(folders, kind):
    Image.new("RGB", (16, 16), (0, 0, 255)).save(image_paths(folders)[0], kind)
    assert pixels_of(load(folders))[..., 2].min() > 240


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("data/svhn/train/0001/1.jpg", "data\\svhn\\train\\0001\\1.jpg"),  # by Windows
        ("data/svhn/at 3.02\u202fPM.jpg", "data/svhn/at 3.02\u202fPM.jpg"),  # by macOS
        (None, "data/a\nb.jpg"),
        (None, "data/a.jpg\0.png"),
        (None, "data/" + "x" * 3000),
    ],
)
def test_odd_file_names_are_read_or_named_in_a_line(folders, name, listed):
    if name:
        image_paths(folders)[0].rename(folders.datadir / name)
    file = folders.imdbdir / "svhn_train.json"
    edit_json(file, lambda content: content["images"][0].update(file_name=listed))
    if name:
        assert len(load(folders)) == 12
    else:
        with pytest.raises(SpotTuneError, match="1 of 12 images"):
            load(folders)


def test_a_cache_that_cannot_be_written_names_the_flag(folders):
    sealed = DataFolders(folders.datadir, folders.imdbdir, Path("/sys/packed"))  # for root too
    with pytest.raises(SpotTuneError, match="/sys/packed: .* name another folder with --cachedir"):
        load(sealed)


def test_a_process_starts_as_many_decoders_as_it_may_use(monkeypatch):
    assert decoding.usable_cores() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    assert decoding.usable_cores() == 1


def bitmap(width, height):
    """A bitmap's header that claims this size, and a little of its pixels."""
    size = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 2**20, 0, 0, 54) + size + bytes(5000)


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (10_000, 9_000, "more than 89,478,485 pixels"),  # where Pillow only warns
        (1, 500, ""),
        (1, 1_001, "1 x 1001 pixels"),
    ],
)
def test_an_image_that_would_take_gigabytes_is_refused(width, height, words, folders):
    """One that is a thousand times as long as wide would grow without bound when resized."""
    path = image_paths(folders)[0]
    path.write_bytes(bitmap(width, height))
    if not words:
        assert len(load(folders)) == 12
        return
    with pytest.raises(SpotTuneError, match=f"{path}.*{words}"):
        load(folders)


def many(monkeypatch):
    """A handful of images counts as many, so that three processes decode them."""
    monkeypatch.setattr(decoding, "FEW_IMAGES", 2)
    monkeypatch.setattr(decoding, "CHUNK", 2)
    monkeypatch.setattr(decoding, "usable_cores", lambda: 3)


@pytest.fixture
def workers(monkeypatch):
    """The processes that decode; three start for any number of images."""
    many(monkeypatch)
    started = []

    class Counted(decoding.Worker):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(decoding, "Worker", Counted)
    return started


def test_processes_write_the_same_file_as_one_alone(folders, request):
    load(folders)
    alone = pack_of(folders).read_bytes()
    pack_of(folders).unlink()
    workers = request.getfixturevalue("workers")
    load(folders)
    assert len(workers) == 3
    assert pack_of(folders).read_bytes() == alone


@pytest.mark.parametrize("method", ["__init__", "result"])
def test_a_process_that_dies_is_noticed(method, folders, workers, monkeypatch):
    """At once, or after its first image; the next is larger than what a pipe holds."""

    def killed(self, *arguments):
        found = original(self, *arguments)
        self.kill()
        self.wait()
        return found

    original = getattr(decoding.Worker, method)
    monkeypatch.setattr(decoding.Worker, method, killed)
    with pytest.raises(SpotTuneError, match="ended before its work was done"):
        load_images(TASK_BY_NAME["svhn"], ["train"], folders, 200)
    assert len(workers) == 3
    assert all(process.poll() is not None for process in workers)
    assert list(folders.cachedir.iterdir()) == []
