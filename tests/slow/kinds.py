"""The kinds of files that the fuzz test damages: good ones, how to damage them, who reads them."""

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import base_files
import numpy as np
import torch
from base_files import CATEGORIES, SETTINGS, SIDE, SPLIT, TASK, WIDTH
from damage_bytes import EXTREMES, damaged_bytes
from damage_json import damaged_json, damaged_values
from damage_pickles import damaged_pickle, opcodes
from damage_zips import damaged_zip, member, members_of

import main
import score
from challenge.predictions import remark
from engine.checkpoints import Checkpoint
from engine.fit import Run, restore
from engine.step import EpochSums
from image_cache import packed
from image_cache.decoding import bombs_refused, decode_image
from imdbfolder_coco import load_images
from methods.optimizers import Rates
from weights.mean_std import read_mean_std
from weights.source_weights import SourceWeights


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    path: Path  # where a damaged file is put, and read
    good: Sequence[bytes]
    damaged: Callable[[Random], bytes]
    read: Callable[[], object]  # as a user's run would
    before: Callable[[], object] = lambda: None  # puts things back where a run left something
    mebibytes: int = 128  # of memory that reading may take


def sometimes_bytes(
    good: Sequence[bytes], share: float, knowing: Callable[[Random], bytes]
) -> Callable[[Random], bytes]:
    """Damage that is blind in `share` of the cases, and knows the format in the others."""

    def damaged(chance: Random) -> bytes:
        if chance.random() < share:
            return damaged_bytes(chance.choice(good), chance, good)
        data = knowing(chance)
        return damaged_bytes(data, chance, good) if chance.random() < 0.1 else data

    return damaged


def pickles(path: Path, good: Sequence[bytes], count: int, read: Callable[[], object]) -> Kind:
    """Files that begin with `count` pickles."""
    cut = [opcodes(data, count) for data in good]
    others = [part for parts, _ in cut for part in parts]

    def knowing(chance: Random) -> bytes:
        parts, rest = chance.choice(cut)
        return damaged_pickle(parts, chance, others) + rest

    return Kind(path, good, sometimes_bytes(good, 0.4, knowing), read)


def pretrained(folder: Path) -> Kind:
    path = folder / "resnet26_pretrained.t7"
    full, as_today, tiny = base_files.pretrained_files()
    good = [full, as_today, tiny, tiny, tiny]
    return pickles(path, good, 5, lambda: SourceWeights.read(path, WIDTH))


def mean_std(folder: Path) -> Kind:
    path = folder / "mean_std.pickle"
    return pickles(path, base_files.mean_std_files(), 1, lambda: read_mean_std(path))


def damaged_checkpoint(good: Sequence[bytes]) -> Callable[[Random], bytes]:
    """Other values, saved as PyTorch saves them, or another zip around other opcodes."""
    contents = [torch.load(io.BytesIO(data), weights_only=True) for data in good]
    zips = [members_of(data) for data in good]
    pickled = {members[0].raw: opcodes(members[0].raw, 1)[0] for members in zips}
    others = [part for parts in pickled.values() for part in parts]
    odd = base_files.odd_values()

    def damaged_member(data: bytes, chance: Random) -> bytes:
        if data in pickled and chance.random() < 0.9:
            return damaged_pickle(pickled[data], chance, others)
        return damaged_bytes(data, chance)

    def knowing(chance: Random) -> bytes:
        which = chance.choice((0, 0, 1))  # the second is twice as long
        if chance.random() < 0.5:
            return base_files.saved_now(damaged_values(contents[which], chance, odd))
        return damaged_zip(zips[which], chance, damaged_member)

    return sometimes_bytes(good, 0.25, knowing)


def checkpoint(folder: Path) -> Kind:
    """Read as a run reads it that goes on, or that starts from it."""
    run = Run(folder / "out", TASK.name, "spottune", CATEGORIES, SETTINGS)
    run.folder.mkdir(parents=True)
    good = [base_files.checkpoint_bytes(kind, folder) for kind in ("source", "spottune")]
    method = base_files.untrained("spottune", len(CATEGORIES))
    rates = Rates(SETTINGS.lr, SETTINGS.lr_agent, SETTINGS.weight_decay)

    def read() -> None:
        found = Checkpoint.load(run.path)
        remark(found, "val")
        if found.kind == "source":
            SourceWeights.read(run.path, WIDTH)
        else:
            sums = EpochSums.zero(method.num_blocks, torch.device("cpu"))
            history = restore(run, run.found(), method, method.optimizers(rates), sums, steps=2)
            main.table({TASK.name: history[-1]} if history else {})

    return Kind(run.path, good, damaged_checkpoint(good), read)


def annotations(folder: Path) -> Kind:
    """Read as a run reads them: with the images that they name."""
    folders = base_files.make_data(folder)
    good = base_files.annotation_files(folders)
    folders = replace(folders, cachedir=folder / "out")
    pack = packed.pack_file(folders, f"{TASK.name}_{SPLIT}", SIDE)
    return Kind(
        folders.imdbdir / f"{TASK.name}_{SPLIT}.json",
        good,
        sometimes_bytes(good, 0.3, lambda chance: damaged_json(chance.choice(good), chance)),
        lambda: load_images(TASK, [SPLIT], folders, SIDE),
        lambda: pack.unlink(missing_ok=True),
    )


def pack(folder: Path) -> Kind:
    """Packed images; a run reads them or makes them again, and never a pixel beside them."""
    folders = replace(base_files.make_data(folder), cachedir=folder / "out")
    whole = base_files.packed_file(folders)
    (begin,) = struct.unpack_from("<Q", whole, 8)
    facts_begin = begin + 8 + packed.INDEX.itemsize * struct.unpack_from("<Q", whole, begin)[0]

    def knowing(chance: Random) -> bytes:
        """Another index or other facts, under a checksum that is right."""
        index, facts = whole[begin:facts_begin], whole[facts_begin:]
        if chance.random() < 0.5:
            facts = damaged_json(facts, chance)
        else:
            index = damaged_bytes(index, chance)
        tail = index + facts
        numbers = [begin, begin + len(tail)]
        if chance.random() < 0.2:
            numbers[chance.randrange(2)] = chance.choice(EXTREMES)
        header = packed.HEADER.pack(packed.MAGIC, *numbers, zlib.crc32(tail))
        return header + whole[packed.HEADER.size : begin] + tail

    def read() -> None:
        images = load_images(TASK, [SPLIT], folders, SIDE)
        zero = np.zeros(1, np.int64)
        for i in range(len(images)):
            images.crops(np.array([i]), zero, zero, int(images.heights[i]), int(images.widths[i]))

    path = packed.pack_file(folders, f"{TASK.name}_{SPLIT}", SIDE)
    return Kind(path, [whole], sometimes_bytes([whole], 0.3, knowing), read)


def scoring(path: Path, good: bytes, results: Path, labels: Path) -> Kind:
    """JSON that is read to score `results`; it is either these or one of the labels."""
    damaged = sometimes_bytes([good], 0.3, lambda chance: damaged_json(good, chance))
    arguments = [str(results), "--annotations", str(labels)]
    return Kind(path, [good], damaged, lambda: score.main(arguments))


def answers(folder: Path) -> Kind:
    folders, path = base_files.make_data(folder), folder / "results.json"
    return scoring(path, base_files.answer_file(folders), path, folders.imdbdir)


def zipped_answers(folder: Path) -> Kind:
    folders, path = base_files.make_data(folder), folder / "results.zip"
    answered = base_files.answer_file(folders)
    good = [base_files.zipped("results.json", answered)]

    def knowing(chance: Random) -> bytes:
        return damaged_zip([member("results.json", answered)], chance, damaged_json)

    return Kind(
        path,
        good,
        sometimes_bytes(good, 0.3, knowing),
        lambda: score.main([str(path), "--annotations", str(folders.imdbdir)]),
    )


def labels(folder: Path) -> Kind:
    folders, results = base_files.make_data(folder), folder / "results.json"
    results.write_bytes(base_files.answer_file(folders))
    path = folder / "labels" / f"{TASK.name}_{SPLIT}.json"
    path.parent.mkdir()
    good = (folders.imdbdir / path.name).read_bytes()
    return scoring(path, good, results, path.parent)


def image(folder: Path) -> Kind:
    path, good = folder / "000001.jpg", base_files.image_files()

    def knowing(chance: Random) -> bytes:
        """Another size in the header; a PNG's is under a checksum."""
        data = bytearray(chance.choice(good))
        if data.startswith(b"\x89PNG"):
            sizes = [chance.choice((*EXTREMES, 20_000, 60_000)) % 2**32 for _ in range(2)]
            struct.pack_into(">II", data, 16, *sizes)
            struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
        elif data.startswith(b"BM"):
            struct.pack_into("<I", data, chance.choice((18, 22)), chance.choice(EXTREMES) % 2**32)
        elif (frame := data.find(b"\xff\xc0")) > 0:
            struct.pack_into(
                ">H", data, frame + 5 + 2 * chance.randrange(2), chance.randrange(2**16)
            )
        return bytes(data)

    def read() -> None:
        with bombs_refused():
            decode_image(path, SIDE)

    # Pillow's own limit on an image, 89 million pixels, is 0.4 GB, and twice that to make it RGB.
    return Kind(path, good, sometimes_bytes(good, 0.7, knowing), read, mebibytes=1024)


KINDS = {
    "pretrained": pretrained,
    "mean_std": mean_std,
    "checkpoint": checkpoint,
    "annotations": annotations,
    "pack": pack,
    "answers": answers,
    "zipped_answers": zipped_answers,
    "labels": labels,
    "image": image,
}
