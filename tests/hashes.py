"""Hash what a small run of every method leaves, to show that a change alters no number.

    python tests/hashes.py DATADIR OUTDIR

DATADIR is a made-up Decathlon (make demo leaves one). Prints a line a file: SHA-256 of the weights
of each checkpoint (names, shapes, values), of records.jsonl without its times, of decisions.json,
and of both results.json. Two versions of the code agree if their lines do.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[1]
METHODS = ("scratch", "feature", "finetune", "lastk", "stochastic", "l2sp", "spottune", "globalk")
SIZE = ["--resize", "24", "--crop", "16", "--width", "4", "--batch_size", "16", "--device", "cpu"]
SIZE += ["--threads", "1", "--nb_epochs", "2", "--step1", "1", "--source_epochs", "2"]
TASKS = ["--tasks", "imagenet12", "dtd", "svhn", "cifar100", "daimlerpedcls"]
FILES = ("checkpoint.safetensors", "compact.*", "records.jsonl", "decisions.json", "results.json")
TIMES = ("seconds", "images_per_second")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("datadir", type=Path)
    parser.add_argument("outdir", type=Path)
    args = parser.parse_args()
    for method in METHODS:
        for precision in ("fp32", "bf16") if method == "spottune" else ("fp32",):
            train_and_submit(method, precision, args.datadir, args.outdir / f"{method}_{precision}")
    for path in sorted(path for name in FILES for path in args.outdir.rglob(name)):
        shown = str(path.relative_to(args.outdir)).removesuffix(".safetensors")
        print(digest_of(path)[:16], shown)


def train_and_submit(method, precision, datadir, ckpdir):
    """From source to both results.json."""
    common = ["--datadir", datadir, "--ckpdir", ckpdir, "--precision", precision]
    split = "train" if method == "spottune" else "trainval"
    flags = [*SIZE, *TASKS, "--method", method, "--pretrained", "none", "--train_split", split]
    run("main.py", *common, *flags)
    for split in ("val", "test"):
        answers = ckpdir.with_name(f"{ckpdir.name}_{split}") / "results.json"
        run(f"submit_{split}.py", *common, "--device", "cpu", "--out", answers)


def run(script, *arguments):
    command = [sys.executable, str(REPOSITORY / script), *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def digest_of(path):
    digest = hashlib.sha256()
    if path.suffix == ".safetensors":
        for name, tensor in sorted(load_file(path).items()):
            if name.startswith("weights."):
                name = name.removeprefix("weights.")
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.contiguous().numpy().tobytes())
    elif path.name == "records.jsonl":
        for line in path.read_text().splitlines():
            record = {k: v for k, v in json.loads(line).items() if k not in TIMES}
            digest.update(json.dumps(record, sort_keys=True).encode())
    elif path.name == "decisions.json":
        content = json.loads(path.read_text())
        content.pop("answers", None)  # which older versions did not write
        digest.update((json.dumps(content, indent=0) + "\n").encode())
    else:
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
