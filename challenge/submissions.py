"""Read the answers of a results.json, and the labels to score them with.

    answers   [{"image_id": int, "category_id": int}, ...], as the server takes them: results.json,
              or a zip that holds one
    labels    COCO-style files <task>_<split>.json, in a folder or in a zip at any depth

A file in another form raises SpotTuneError, one line that names the file.
"""

import json
import reprlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imdbfolder_coco import UNLABELLED, parse_annotations
from runtime.errors import SpotTuneError, brief

MAX_BYTES = 64 * 2**20  # far above the largest official file (imagenet12_test.json: 10 MB)
LARGEST_ID = 2**63 - 1  # longer ones could be made to share a hash, which slows a dict down
PUBLIC_LABELS = "test labels are public: labels_test.zip in github.com/srebuffi/residual_adapters"

Answers = Mapping[int, Sequence[int]]  # image id -> every category id it was given


@dataclass(frozen=True)
class Labels:
    """What one task's file says: its category ids, and the right one of each image id."""

    categories: frozenset[int]
    by_image: Mapping[int, int]


def read_answers(path: Path) -> Answers:
    """Every answer of a results.json, or of a zip that holds one, by image id."""
    is_zip = path.suffix.lower() == ".zip"
    found = _read_named(path if is_zip else path.parent, ["results.json" if is_zip else path.name])
    if not found:
        raise SpotTuneError(
            f"{path}: no results.json found; submit_val.py and submit_test.py write one"
        )
    (data,) = found.values()
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:  # broken JSON, broken UTF-8, endless numbers
        raise SpotTuneError(f"{path}: not readable as JSON ({brief(error)})") from None
    answers: dict[int, list[int]] = {}
    for row in document if isinstance(document, list) and document else [document]:
        known = row if isinstance(row, dict) else {}
        ids = [known.get(key) for key in ("image_id", "category_id")]
        if not all(type(one) is int and abs(one) <= LARGEST_ID for one in ids):  # True is no id
            raise SpotTuneError(
                f'{path}: expected a list of {{"image_id": whole number, "category_id": whole '
                f"number}}, found {brief(reprlib.repr(row))}"
            )
        answers.setdefault(ids[0], []).append(ids[1])
    return answers


def read_labels(source: Path, split: str, tasks: Iterable[str]) -> dict[str, Labels]:
    """Labels by name of the task, of those `tasks` that have any; SpotTuneError if none has."""
    names = {f"{task}_{split}.json": task for task in tasks}
    found = _read_named(source, names)
    parsed = {names[name]: _labels(data, source / name) for name, data in found.items()}
    labels = {task: one for task, one in parsed.items() if one}
    if not labels:
        raise SpotTuneError(
            f"{source}: no file <task>_{split}.json with annotations, such as {min(names)}"
            f"; is --split {split} meant? The {PUBLIC_LABELS}"
        )
    images = Counter(image for one in labels.values() for image in one.by_image)
    if shared := [image for image, times in images.items() if times > 1]:
        raise SpotTuneError(f"{source}: images that two tasks label: {reprlib.repr(shared)}")
    return labels


def _labels(data: bytes, where: object) -> Labels | None:
    """The labels of one annotation file, or None if it has no annotations."""
    found = parse_annotations(data, where)
    if (found.labels == UNLABELLED).all():
        return None
    right = found.categories[found.labels].tolist()
    by_image = dict(zip(found.image_ids.tolist(), right, strict=True))
    return Labels(frozenset(found.categories.tolist()), by_image)


def _read_named(source: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The named files of a folder, or of a zip at any depth, without those that it lacks."""
    if source.is_dir():
        return {name: _read_file(source / name) for name in names if (source / name).is_file()}
    if not source.is_file():
        raise SpotTuneError(f"{source}: no such folder or zip file; check the path")
    try:
        with zipfile.ZipFile(source) as archive:
            found = {name: _read_member(archive, name) for name in names}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as e:
        raise SpotTuneError(f"{source}: not a readable zip file ({brief(e)})") from None
    return {name: data for name, data in found.items() if data is not None}


def _read_file(path: Path) -> bytes:
    _check_size(path.stat().st_size, path)
    return path.read_bytes()


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes | None:
    """One file of a zip, whatever folder it is in."""
    found = [info for info in archive.infolist() if Path(info.filename).name == name]
    if not found:
        return None
    if len(found) > 1:
        raise zipfile.BadZipFile(f"it holds {name} {len(found)} times; keep one")
    if found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{name} is compressed in an unusual way")
    # A zip bomb unpacks to more than its header says: read no further than the checked size.
    _check_size(found[0].file_size, f"{archive.filename}/{name}")
    with archive.open(found[0]) as stream:
        return stream.read(found[0].file_size)


def _check_size(size: int, where: object) -> None:
    if size > MAX_BYTES:
        raise SpotTuneError(
            f"{where}: {size:,} bytes, more than any file of the Decathlon needs; is this the "
            f"right file?"
        )
