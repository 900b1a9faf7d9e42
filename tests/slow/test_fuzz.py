"""Whatever stands in a file, reading it runs nothing, ends soon, and takes little memory.

Thousands of damaged files, some damaged blindly and some by rules of their format, are read as a
run would read them. Each must be loaded, or refused in one clear line.
"""

import io
import json
import multiprocessing
import pickle
import struct
import sys
import tarfile
import textwrap
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import REPOSITORY
from damage import SNIPPETS, blind, damaged_json, damaged_pickle, in_safetensors, in_tar, in_zip
from fuzzing import Kind, Tally, fuzz, guarded
from PIL import Image
from released_files import (
    ATTACKS,
    NESTED_TUPLE,
    THREE_EIGHTHS,
    pickled,
    raw_array,
    saved,
    with_mean,
)

import score
from challenge.predictions import remark
from decathlon import TASK_BY_NAME
from engine.checkpoints import Checkpoint, content_sha256
from engine.fit import go_on
from engine.run import Run
from engine.settings import Settings
from engine.step import EpochSums, Trainer
from image_cache.decoding import IMAGE_FORMATS, write_pixels
from image_cache.packed import HEADER, INDEX, MAGIC, DataFolders
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

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="memory is limited and measured in Linux's way"
)

WIDTH, SIDE = 1, 16
TASK = TASK_BY_NAME["svhn"]
CATEGORIES = [TASK.first_category_id, TASK.first_category_id + 1]
SETTINGS = Settings(
    epochs=2, milestones=(1,), lr=0.1, lr_agent=0.01, weight_decay=5e-4, batch_size=8, resize=SIDE,
    crop=SIDE, width=WIDTH, seed=0, train_split="train", policy="argmax", precision="fp32",
    mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), source_sha256="",
)  # fmt: skip


# Weights, means, checkpoints.


def source_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return resnet26(len(CATEGORIES), WIDTH)


def torch_saved(value: object, as_zip: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=as_zip)
    return stream.getvalue()


def pretrained(folder: Path) -> Kind:
    path = folder / "resnet26_pretrained.t7"
    good = [torch_saved({"net": source_network()}, as_zip=False)]
    hostile = [saved(body=attack) for attack in ATTACKS.values()]
    return Kind(path, good, damaged_pickle, lambda: SourceWeights.read(path, WIDTH), hostile)


def odd_tensors() -> list[torch.Tensor]:
    """What PyTorch can save, and no training leaves."""
    four = torch.ones(4)
    return [
        torch.zeros(1).expand(2**40), torch.zeros(4).as_strided((2**24,), (0,)), torch.zeros(()),
        torch.empty(4, device="meta"), torch.eye(2).to_sparse(), four * torch.nan, four.double(),
        four.bool(), four.bfloat16(), four * 1j, torch.zeros(0), torch.nn.Parameter(four),
    ]  # fmt: skip


def state_dict(folder: Path) -> Kind:
    """Source weights as users' own torch.save leaves them."""
    path, ours = folder / "weights.pt", source_network().state_dict()
    odd = [torch_saved({**ours, "head.bn.bias": tensor}) for tensor in odd_tensors()]
    good = [torch_saved(ours), torch_saved({"net": ours, "epoch": 3})]
    # torch.load hashes whatever a file has as a key, and would be busy with this one for ever.
    snippets = [snippet for snippet in SNIPPETS if NESTED_TUPLE not in snippet]
    damage = in_zip(partial(damaged_pickle, snippets=snippets))
    return Kind(path, good, damage, lambda: SourceWeights.read(path, WIDTH), odd)


def weights_safetensors(folder: Path) -> Kind:
    path = folder / "weights.safetensors"
    good = [safetensors.torch.save(source_network().state_dict())]
    return Kind(path, good, in_safetensors, lambda: SourceWeights.read(path, WIDTH))


def mean_std(folder: Path) -> Kind:
    """With numpy arrays as Python 3 writes them in each protocol, and as Python 2 did."""
    path = folder / "mean_std.pickle"
    arrays = {"dtdmean": np.full(3, 0.5), "dtdstd": list(np.full(3, 0.25, np.float32))}
    good = [pickle.dumps(arrays, protocol) for protocol in range(6)]
    good.append(with_mean(raw_array(THREE_EIGHTHS)))
    hostile = [pickled(attack) for attack in ATTACKS.values()]
    return Kind(path, good, damaged_pickle, lambda: read_mean_std(path), hostile)


def record(epoch: int, shares: list[float]) -> dict:
    """What a history keeps of an epoch."""
    figures = {"train_loss": 0.5, "train_accuracy": 75.0, "val_loss": 0.5, "val_accuracy": 75.0}
    shown = {"val_fine_tuned_share": shares, "train_fine_tuned_share": shares}
    policies = {"val_policies": {"argmax": {"val_loss": 0.5}}}
    return {"epoch": epoch, **figures, **shown, **policies, "val_seen_in_training": False}


def checkpoint(folder: Path) -> Kind:
    """Read as a run reads it that goes on, and as a script that predicts."""
    run = Run(folder / "out", TASK.name, "spottune", CATEGORIES, SETTINGS)
    method = build_method("spottune", source_network(), WIDTH, SETTINGS.options)
    trainer = Trainer(method, Rates(0.1, 0.01, 5e-4), Compute(torch.device("cpu"), "fp32"), 4)
    trainer.step(torch.randn(4, 3, SIDE, SIDE), torch.tensor([0, 1, 0, 1]), torch.randn(4, 12, 2))
    sums = EpochSums.zero(method.num_blocks, torch.device("cpu"))
    sums.steps = 1
    run.folder.mkdir(parents=True)
    run.save(method, trainer.optimizers, [record(1, [0.5] * 12)], sums)
    good = [run.path.read_bytes()]
    tensors = safetensors.torch.load(good[0])
    (text,) = [safe.metadata()["spottune"] for safe in [safetensors.safe_open(run.path, "pt")]]

    def damage(data: bytes, chance: Random) -> bytes:
        """Another header; or other facts or another tensor, under a checksum that is right."""
        if chance.random() < 0.3:
            return in_safetensors(data, chance)
        facts, changed = text, dict(tensors)
        if chance.random() < 0.7:
            facts = damaged_json(text.encode(), chance).decode(errors="replace")
        else:
            changed[chance.choice(list(tensors))] = torch.randn(chance.choice((0, 1, 2, 4, 2**16)))
        signed = {"spottune": facts, "sha256": content_sha256(facts, changed)}
        return safetensors.torch.save(changed, signed)

    def read() -> None:
        found = Checkpoint.load(run.path)
        found.network(run.path)
        remark(found, "val")
        sums = EpochSums.zero(method.num_blocks, torch.device("cpu"))
        history = go_on(run, trainer, sums, steps=2)
        table({TASK.name: history[-1]} if history else {})

    return Kind(run.path, good, damage, read)


# Annotations, images, answers.


def data_in(folder: Path) -> DataFolders:
    """One task of the made-up Decathlon; packed images go to `folder`/out."""
    root = folder / "decathlon-1.0"
    (root / "annotations").mkdir(parents=True)
    make.write_task(root, TASK, make.Settings(classes=2, images_per_class=6, side=SIDE, seed=0))
    return DataFolders(root, root / "annotations", folder / "out")


def annotations(folder: Path) -> Kind:
    """Read as a run reads them: with the images that they name."""
    folders = data_in(folder)
    path = folders.imdbdir / f"{TASK.name}_val.json"
    good = [path.read_bytes(), (folders.imdbdir / f"{TASK.name}_test_stripped.json").read_bytes()]
    return Kind(path, good, damaged_json, lambda: load_images(TASK, ["val"], folders, SIDE))


def pack(folder: Path) -> Kind:
    """Packed images; a run reads them or makes them again, and never a pixel beside them."""
    folders = data_in(folder)
    load_images(TASK, ["val"], folders, SIDE)
    path = folders.pack_of(f"{TASK.name}_val", SIDE)
    whole = path.read_bytes()

    def damage(data: bytes, chance: Random) -> bytes:
        """Another index or other facts, under a checksum that is right."""
        (begin,) = struct.unpack_from("<Q", whole, len(MAGIC))
        end = begin + 8 + INDEX.itemsize * struct.unpack_from("<Q", whole, begin)[0]
        index, facts = whole[begin:end], whole[end:]
        if chance.random() < 0.5:
            facts = damaged_json(facts, chance)
        else:
            index = blind(index, chance, [facts])
        tail = index + facts
        header = HEADER.pack(MAGIC, begin, begin + len(tail), zlib.crc32(tail))
        return header + whole[HEADER.size : begin] + tail

    def read() -> None:
        images, zero = load_images(TASK, ["val"], folders, SIDE), np.zeros(1, np.int64)
        for i, (height, width) in enumerate(zip(images.heights, images.widths, strict=True)):
            images.crops(np.array([i]), zero, zero, int(height), int(width))

    return Kind(path, [whole], damage, read)


def image(folder: Path) -> Kind:
    """One of each format; PNGs that claim a size under a checksum that is right."""
    path = folder / "000001.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    good, hostile = [], []
    for image_format in IMAGE_FORMATS:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, image_format)
        good.append(stream.getvalue())
    png = bytearray(good[IMAGE_FORMATS.index("PNG")])
    for size in ((60_000, 60_000), (2**31 - 1, 1), (9000, 9000), (0, 5), (1, 100_000)):
        struct.pack_into(">II", png, 16, *size)
        struct.pack_into(">I", png, 29, zlib.crc32(png[12:29]))
        hostile.append(bytes(png))

    def read() -> None:
        list(write_pixels(io.BytesIO(), [path.name], folder, SIDE))

    # Pillow's own limit, 89 million pixels, is 0.4 GB, and twice that to make it RGB.
    return Kind(path, good, None, read, hostile, mebibytes=1024)


def answers_in(folder: Path) -> bytes:
    """A results.json for the made-up task."""
    content = json.loads((data_in(folder).imdbdir / f"{TASK.name}_val.json").read_bytes())
    labels = content["annotations"]
    return json.dumps(
        [{key: each[key] for key in ("image_id", "category_id")} for each in labels]
    ).encode()


def answers(folder: Path) -> Kind:
    path, good = folder / "results.json", [answers_in(folder)]
    arguments = [str(path), "--annotations", str(folder / "decathlon-1.0/annotations")]
    return Kind(path, good, damaged_json, lambda: score.main(arguments))


def zipped_answers(folder: Path) -> Kind:
    path, stream, bomb = folder / "results.zip", io.BytesIO(), io.BytesIO()
    for each, content in ((stream, answers_in(folder)), (bomb, bytes(2**28))):
        with zipfile.ZipFile(each, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("results.json", content)
    size = (2**28).to_bytes(4, "little")
    lying = bomb.getvalue().replace(size, (1000).to_bytes(4, "little"))
    arguments = [str(path), "--annotations", str(folder / "decathlon-1.0/annotations")]
    hostile = [bomb.getvalue(), lying]
    return Kind(
        path, [stream.getvalue()], in_zip(damaged_json), lambda: score.main(arguments), hostile
    )


def labels(folder: Path) -> Kind:
    results = folder / "results.json"
    results.write_bytes(answers_in(folder))
    path = folder / "decathlon-1.0/annotations" / f"{TASK.name}_val.json"
    arguments = [str(results), "--annotations", str(path.parent)]
    return Kind(path, [path.read_bytes()], damaged_json, lambda: score.main(arguments))


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def archive(folder: Path) -> Kind:
    """Unpacked by the program inside download_data.sh, as it stands there."""
    path, script = folder / "decathlon.tar.gz", (REPOSITORY / "download_data.sh").read_text()
    program = script.partition("<<'PYTHON'\n")[2].partition("\nPYTHON\n")[0]
    names = {}
    exec("def unpack():\n" + textwrap.indent(program, "    "), names)  # noqa: S102
    sys.argv = ["-", str(path), str(folder / "out"), "svhn"]
    files = {f"svhn/{place}/000001.jpg": b"pixels" * 200 for place in ("train/0001", "test")}

    def read() -> None:
        try:
            names["unpack"]()
        except SystemExit as end:
            raise SpotTuneError(str(end).removeprefix("error: ")) from end

    return Kind(path, [tar_of(files), tar_of({"svhn.tar": tar_of(files)}, "w:gz")], in_tar, read)


# The test.

CASES = {
    pretrained: 900,
    state_dict: 600,
    weights_safetensors: 400,
    mean_std: 900,
    checkpoint: 500,
    annotations: 900,
    pack: 400,
    image: 600,
    answers: 400,
    zipped_answers: 400,
    labels: 300,
    archive: 300,
}
MOST_MEBIBYTES = 32  # of memory that reading a file of some kilobytes may add
OF_IMAGES = 512


def in_a_process(function, *arguments):
    """What the function returns; BrokenProcessPool if the process ends before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["main", "score"])  # importing torch takes its time
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def fuzzed(name: str, folder: Path) -> Tally:
    kind = globals()[name]
    return fuzz(kind(folder), name, CASES[kind], folder)


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_a_damaged_file_is_loaded_or_refused_in_one_clear_line(kind, tmp_path, figures):
    name = kind.__name__
    try:
        tally = in_a_process(fuzzed, name, tmp_path)
    except BrokenProcessPool:
        where = (tmp_path / "traceback").read_text()
        pytest.fail(f"case {(tmp_path / 'case').read_text()} ended its process: {where}")
    figures.append(
        f"{name:20} {CASES[kind]:5} files  {tally.loaded:5} loaded  {tally.refused:5} refused"
        f"  slowest {tally.slowest_s:.2f} s  memory +{tally.added_MiB} MiB"
    )
    assert not tally.failures, "\n".join(tally.failures)
    assert tally.added_MiB < (OF_IMAGES if kind is image else MOST_MEBIBYTES)
    assert tally.loaded + tally.refused == CASES[kind]
    assert tally.loaded  # some damage spares what is read


# The guard itself: what it would see if a reader did it.


def seen(body: str, folder: Path) -> str:
    """What the guard says of a reader that does this."""
    names = {"SpotTuneError": SpotTuneError, "folder": str(folder)}
    exec(
        "import os, pickle, socket, subprocess\ndef read():\n" + textwrap.indent(body, "    "),
        names,
    )  # noqa: S102
    return guarded(folder, mebibytes=256).outcome(names["read"], seconds=2)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("pickle.loads(b'cposix\\nsystem\\n(Vtouch canary\\ntR.')", "it did pickle.find_class"),
        ("os.system('touch canary')", "it did os.system"),
        ("subprocess.run(['touch', 'canary'])", "it did subprocess.Popen"),
        ("os.posix_spawn('/usr/bin/touch', ['touch', 'canary'], {})", "it did os.posix_spawn"),
        ("socket.socket()", "it did socket.__new__"),
        ("eval('1 + 1')", "it did compile"),
        ("__import__('antigravity')", "it did import"),
        ("open('/etc/passwd')", "it did open"),
        ("open('canary', 'w')", "it did open"),
        ("os.symlink('../canary', 'out/link')", "it did os.symlink"),
        ("os.rename('out', 'canary')", "it did os.rename"),
        ("try: os.system('touch canary')\nexcept BaseException: pass", "it did os.system"),
        ("print(chr(27) + '[2J')", "it printed what could steer a terminal"),
        ("1 / 0", "ZeroDivisionError"),
        ("bytearray(2**30)", "MemoryError"),
        ("raise SpotTuneError('something is wrong')", "a message that names no file"),
        ("raise SpotTuneError(folder + 'x' * 1001)", "a message of 1001 characters"),
        ("raise SpotTuneError(folder + ': found nothing')", "refused"),
        ("open('out/file', 'w').close(); os.remove('out/file')", "loaded"),
    ],
)
def test_what_a_reader_does_besides_reading_is_seen_and_stopped(body, said, tmp_path):
    assert in_a_process(seen, body, tmp_path).startswith(said)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "body", ["while True: pass", "k = ()\nfor _ in range(60): k = (k, k)\nhash(k)"]
)
def test_a_reader_that_does_not_end_is_ended_and_where_is_told(body, tmp_path):
    with pytest.raises(BrokenProcessPool):
        in_a_process(seen, body, tmp_path)
    assert "in read" in (tmp_path / "traceback").read_text()
