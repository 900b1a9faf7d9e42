"""Whatever stands in a file, reading it runs nothing, ends soon, and takes little memory.

Six thousand damaged files, some damaged blindly and some by the rules of their format, are read as
a run would read them. Each must be loaded, or refused in one clear line.
"""

import io
import json
import multiprocessing
import os
import pickle
import shutil
import struct
import sys
import textwrap
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
import torch.nested._internal.ops  # which torch.load may import
from conftest import REPOSITORY
from damage import blind, damaged_json, damaged_pickle, in_safetensors, in_tar, in_zip, zip_of
from fuzzing import Guard, Kind, fuzz
from PIL import Image
from released_files import ATTACKS, THREE_EIGHTHS, pickled, raw_array, saved, with_mean
from safetensors import torch as safe

import score
from decathlon import TASK_BY_NAME
from engine.checkpoints import Checkpoint
from engine.fit import resume
from engine.run import Run
from engine.settings import Settings
from engine.step import EpochSums, Trainer
from image_cache import decoding, packed
from imdbfolder_coco import load_images
from methods.optimizers import Rates
from methods.registry import build_method
from models.resnet26 import resnet26
from reporting.run_table import table
from runtime.devices import Compute
from runtime.errors import SpotTuneError
from sample_data import make
from weights.mean_std import read_mean_std
from weights.source_weights import SourceWeights
from weights.tensor_file import content_sha256

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="memory is limited and measured in Linux's way"
)

TASK, CPU, IDS = TASK_BY_NAME["svhn"], torch.device("cpu"), [80_000_001, 80_000_002]
SETTINGS = Settings.from_plain({**networks.SETTINGS, "resize": 16, "crop": 16, "width": 1})
RECORD = {"epoch": 1, "train_loss": 0.5, "val_accuracy": 75.0, "val_loss": 0.5}
RECORD |= {"val_fine_tuned_share": [0.5] * 12, "val_seen_in_training": False}


# Files to damage, of each kind first a good one.


def weight_files(folder):
    weights, four = resnet26(2, width=1).state_dict(), torch.ones(4)
    odd = [torch.zeros(1).expand(2**40), torch.zeros(4).as_strided((2**24,), (0,)), four * 1j]
    odd += [torch.empty(4, device="meta"), torch.eye(2).to_sparse(), four.bfloat16(), four[:0]]
    odd = [by_torch({"net": {**weights, "head.bn.bias": tensor}}) for tensor in odd]
    arrays = {"dtdmean": np.full(3, 0.5), "dtdstd": list(np.full(3, 0.25, np.float32))}
    means = [pickle.dumps(arrays, protocol) for protocol in range(6)]
    means += map(pickled, ATTACKS.values())
    method = build_method("spottune", resnet26(2, width=1), 1)
    sums = {**EpochSums.zero(12, CPU).state_dict(), "steps": 1}
    trained = {n: torch.ones_like(p) for n, p in method.named_parameters() if p.requires_grad}
    parts = (method.state_dict(), trained, [RECORD], sums)
    Checkpoint("svhn", "spottune", IDS, SETTINGS, *parts).save(folder / "checkpoint")
    module = by_torch({"net": resnet26(2, width=1)}, _use_new_zipfile_serialization=False)
    return {
        "pretrained": [module, saved(), *(saved(body=attack) for attack in ATTACKS.values())],
        "state dict": [by_torch(weights), *odd],
        "safetensors": [safe.save(weights)],
        "mean and std": [with_mean(raw_array(THREE_EIGHTHS)), *means],
        "checkpoint": [(folder / "checkpoint").read_bytes()],
    }


def by_torch(value, **how):
    stream = io.BytesIO()
    torch.save(value, stream, **how)
    return stream.getvalue()


def data_files(folder):
    """Of a made-up task, whose images and answers are put into the folder."""
    (folder / "annotations").mkdir()
    make.write_task(folder, TASK, make.Settings(classes=2, images_per_class=6, side=16, seed=0))
    names = ("annotations/svhn_val.json", "annotations/svhn_test_stripped.json")
    labelled, without = ((folder / name).read_bytes() for name in names)
    answers = json.dumps(json.loads(labelled)["annotations"]).encode()  # they hold both ids
    (folder / "results.json").write_bytes(answers)
    bomb = zip_of({"results.json": bytes(2**28)})
    bombs = [bomb, bomb.replace((2**28).to_bytes(4, "little"), b"\xff\0\0\0")]  # one lies
    load_images(TASK, ["val"], packed.DataFolders(folder, folder / "annotations", folder), 16)
    pictures = {name: io.BytesIO() for name in decoding.IMAGE_FORMATS}
    for name, stream in pictures.items():
        Image.linear_gradient("L").resize((24, 20)).convert("RGB").save(stream, name)
    hostile = [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"]  # is run
    for size in ((60_000_000, 1), (13_000, 13_000)):
        Image.new("1", size).save(large := io.BytesIO(), "PNG")
        hostile.append(large.getvalue())
    tar = Path(shutil.make_archive(folder / "svhn", "tar", folder / "data"))
    return {
        "annotations": [labelled, without],
        "labels": [labelled, without],
        "answers": [answers],
        "zipped answers": [zip_of({"results.json": answers}), *bombs],
        "pack": [(folder / "svhn_val_16.pack").read_bytes()],
        "image": [*(stream.getvalue() for stream in pictures.values()), *hostile],
        "archive": [tar.read_bytes()],
    }


# How they are damaged by the rules of their format, and read as a user's run would.


def damaged_checkpoint(data, chance):
    """Other facts, and sometimes another tensor, under a checksum that is right."""
    header, tensors = data[8 : 8 + int.from_bytes(data[:8], "little")], safe.load(data)
    facts = json.loads(header)["__metadata__"]["spottune"]
    if chance.random() < 0.3:
        tensors[chance.choice(sorted(tensors))] = torch.ones(chance.choice((0, 1, 2, 4, 2**16)))
    else:
        facts = damaged_json(facts.encode(), chance).decode(errors="replace")
    signed = {"spottune": facts, "sha256": content_sha256(facts, tensors)}
    return safe.save(tensors, signed)


def damaged_pack(data, chance):
    """Another index or other facts, under a checksum that is right."""
    (begin,) = struct.unpack_from("<Q", data, len(packed.MAGIC))
    end = begin + 8 + packed.INDEX.itemsize * struct.unpack_from("<Q", data, begin)[0]
    index, facts = data[begin:end], data[end:]
    lies = chance.random() < 0.5
    tail = blind(index, chance) + facts if lies else index + damaged_json(facts, chance)
    header = packed.HEADER.pack(packed.MAGIC, begin, begin + len(tail), zlib.crc32(tail))
    return header + data[packed.HEADER.size : begin] + tail


def read(kind, data, path):
    """`data`: the folder with images and answers."""
    match kind:
        case "pretrained" | "state dict" | "safetensors":
            SourceWeights.read(path, width=1)
        case "mean and std":
            read_mean_std(path)
        case "checkpoint":
            method = Checkpoint.load(path).network(path)
            trainer = Trainer(method, Rates(0.1, 0.01, 5e-4), Compute(CPU, "fp32"), batch_size=8)
            run = Run(path.parents[1], "svhn", "spottune", IDS, SETTINGS)
            history = resume(run, trainer, EpochSums.zero(12, CPU), steps=2)
            table({"svhn": history[-1]} if history else {})
        case "annotations" | "pack":
            imdbdir = path.parent if kind == "annotations" else data / "annotations"
            folders = packed.DataFolders(data, imdbdir, Path("out").absolute())
            images = load_images(TASK, ["val"], folders, 16)
            images.crops(np.arange(len(images)), images.heights - 16, images.widths - 16, 16, 16)
        case "image":
            list(
                decoding.write_pixels(io.BytesIO(), [path.name], path.parent, decoding.Reading(16))
            )
        case "answers" | "zipped answers":
            score.main([str(path), "--annotations", str(data / "annotations")])
        case "labels":
            score.main([str(data / "results.json"), "--annotations", str(path.parent)])
        case "archive":
            sys.argv = ["-", str(path), str(Path("out").absolute()), "svhn"]
            try:
                unpacker()()
            except SystemExit as end:
                raise SpotTuneError(str(end)) from end


@cache
def unpacker():
    """The program inside download_data.sh, as it stands there."""
    script, names = (REPOSITORY / "download_data.sh").read_text(), {}
    program = script.partition("<<'PYTHON'\n")[2].partition("\nPYTHON\n")[0]
    exec("def unpack():\n" + textwrap.indent(program, "    "), names)  # noqa: S102
    return names["unpack"]


KINDS = {  # how many files, where each is put, damage by the rules of the format
    "pretrained": Kind(900, "in/weights.t7", damaged_pickle),
    "state dict": Kind(600, "in/weights.pt", partial(in_zip, damaged_pickle)),
    "safetensors": Kind(400, "in/weights", in_safetensors),
    "mean and std": Kind(900, "in/mean_std.pickle", damaged_pickle),
    "checkpoint": Kind(500, "out/svhn/checkpoint.safetensors", damaged_checkpoint),
    "annotations": Kind(900, "in/svhn_val.json", damaged_json),
    "pack": Kind(400, "out/svhn_val_16.pack", damaged_pack),
    "image": Kind(600, "in/1.jpg", blind, 600),  # Pillow's own limit takes 0.4 GB
    "answers": Kind(400, "in/results.json", damaged_json),
    "zipped answers": Kind(400, "in/results.zip", partial(in_zip, damaged_json)),
    "labels": Kind(300, "in/svhn_val.json", damaged_json),
    "archive": Kind(300, "in/svhn.tar", in_tar),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the made-up task, and files of every kind."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("data")
    return folder, weight_files(folder) | data_files(folder)


def in_a_process(folder, function, *arguments):
    """What the function returns; BrokenProcessPool if the process ends before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["main", "score"])  # importing torch takes its time
    folder.mkdir()
    with ProcessPoolExecutor(1, context, os.chdir, (folder,)) as pool:
        return pool.submit(function, *arguments).result()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_loaded_or_refused_in_one_clear_line(kind, made, capsys):
    data, seeds = made
    folder = data.parent / kind
    try:
        found = in_a_process(folder, fuzz, KINDS[kind], seeds[kind], partial(read, kind, data))
    except BrokenProcessPool:
        where = (folder / "traceback").read_text()
        pytest.fail(f"case {(folder / 'case').read_text()} ended its process: {where}")
    with capsys.disabled():
        print(f"\n{kind:15} {found}")
    assert not found["failures"]
    assert found["loaded"] > 0 and found["loaded"] + found["refused"] == KINDS[kind].cases


SEEN = {
    "pickle.loads(b'cposix\\nsystem\\n(Vtouch canary\\ntR.')": "it did pickle.find_class",
    "try: os.system('touch canary')\nexcept BaseException: pass": "it did os.system",
    "__import__('antigravity')": "it did import",
    "open('/etc/passwd')": "it did open",
    "open('canary', 'w')": "it did open",
    "os.open('canary', os.O_CREAT)": "it did open",
    "os.symlink('../canary', 'out/link')": "it did os.symlink",
    "os.rename('out', 'canary')": "it did os.rename",
    "print(chr(27) + '[2J')": "it printed",
    "bytearray(2**30)": "MemoryError",
    "raise SpotTuneError('something is wrong')": "too long, or names no file",
    "raise SpotTuneError(folder + ': found nothing')": "refused",
    "open('out/file', 'w').close(); os.remove('out/file')": "loaded",
}


def seen(body):
    """What the guard says of a reader that does this."""
    names = {"SpotTuneError": SpotTuneError, "folder": str(Path.cwd())}
    program = "import os, pickle\ndef read():\n" + textwrap.indent(body, "    ")
    exec(program, names)  # noqa: S102
    Path("out").mkdir()
    return Guard(Path.cwd(), mebibytes=256).outcome(names["read"], seconds=2)


@pytest.mark.parametrize("body", SEEN)
def test_what_a_reader_does_besides_reading_is_seen_and_stopped(body, tmp_path):
    assert in_a_process(tmp_path / "here", seen, body).startswith(SEEN[body])
    assert not (tmp_path / "here/canary").exists()


@pytest.mark.parametrize(
    "body", ["while True: pass", "k = ()\nfor _ in range(60): k = k, k\nhash(k)"]
)
def test_a_reader_that_does_not_end_is_ended_and_where_is_told(body, tmp_path):
    with pytest.raises(BrokenProcessPool):
        in_a_process(tmp_path / "here", seen, body)
    assert "in read" in (tmp_path / "here/traceback").read_text()
