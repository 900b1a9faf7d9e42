"""Read the answers of a results.json and the labels to hold them against; refuse what is amiss.

    answers   [{"image_id": whole number, "category_id": whole number}, ...], as the server takes
              them: results.json, or a zip that holds one
    labels    COCO-style files <task>_<split>.json, in a folder or in a zip at any depth

Nothing is guessed: every fault of a file ends in a SpotTuneError, one line that names the file.
"""

import json
import reprlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from decathlon import TASKS
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


def check_size(size: int, where: object) -> None:
    if size > MAX_BYTES:
        raise SpotTuneError(
            f"{where}: {size:,} bytes, where no file of the Decathlon needs more than "
            f"{MAX_BYTES:,}; is this the right file?"
        )


def read_file(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    check_size(path.stat().st_size, path)
    return path.read_bytes()


def read_member(archive: zipfile.ZipFile, name: str) -> bytes | None:
    """One file of a zip, in whichever of its folders."""
    found = [info for info in archive.infolist() if Path(info.filename).name == name]
    if not found:
        return None
    if len(found) > 1:
        raise zipfile.BadZipFile(f"it holds {name} {len(found)} times; keep one")
    if found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{name} is compressed in an unusual way")
    # A zip bomb is disarmed by reading no further than a size that has been checked.
    check_size(found[0].file_size, f"{archive.filename}/{name}")
    with archive.open(found[0]) as stream:
        return stream.read(found[0].file_size)


def read_named(source: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The named files of a folder, or of a zip at any depth; those it lacks are left out."""
    if source.is_dir():
        found = {name: read_file(source / name) for name in names}
    elif source.is_file():
        try:
            with zipfile.ZipFile(source) as archive:
                found = {name: read_member(archive, name) for name in names}
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as e:
            raise SpotTuneError(f"{source}: not a readable zip file ({brief(e)})") from None
    else:
        raise SpotTuneError(f"{source}: no such folder or zip file; check the path")
    return {name: data for name, data in found.items() if data is not None}


def parse_json(data: bytes, where: object) -> object:
    try:
        return json.loads(data)
    except RecursionError:
        raise SpotTuneError(f"{where}: nested too deeply; is this the right file?") from None
    except ValueError as error:  # broken JSON, broken UTF-8, numbers of thousands of digits
        raise SpotTuneError(f"{where}: not readable as JSON ({error})") from None


def rows(document: object, key: str, where: object) -> list[object]:
    """The list under `key`; an absent one is empty, as in `*_test_stripped.json`."""
    found = document.get(key, []) if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise SpotTuneError(f'{where}: expected a JSON object with a list "{key}" (COCO style)')
    return found


def integer(row: object, key: str, where: object) -> int:
    value = row.get(key) if isinstance(row, dict) else None
    if type(value) is not int or abs(value) > LARGEST_ID:  # for isinstance, True is an int too
        raise SpotTuneError(f'{where}: no whole number "{key}" in {brief(reprlib.repr(row))}')
    return value


def parse_labels(data: bytes, where: object) -> Labels | None:
    """The labels of one annotation file, or None if it has no annotations."""
    document = parse_json(data, where)
    images = {integer(row, "id", where) for row in rows(document, "images", where)}
    categories = frozenset(integer(row, "id", where) for row in rows(document, "categories", where))
    by_image: dict[int, int] = {}
    for row in rows(document, "annotations", where):
        image, category = integer(row, "image_id", where), integer(row, "category_id", where)
        if image in by_image or category not in categories:
            fault = "a second label" if image in by_image else "none of the file's categories"
            raise SpotTuneError(f"{where}: image {reprlib.repr(image)} has {fault}")
        by_image[image] = category
    if by_image and not images <= by_image.keys():
        some = reprlib.repr(sorted(images - by_image.keys()))
        raise SpotTuneError(f"{where}: an accuracy needs all labels, and these have none: {some}")
    return Labels(categories, by_image) if by_image else None


def read_labels(source: Path, split: str) -> dict[str, Labels]:
    """Labels by task name, of the tasks that have any (at least one)."""
    found = read_named(source, [f"{task.name}_{split}.json" for task in TASKS])
    parsed = {name: parse_labels(data, source / name) for name, data in found.items()}
    labels = {name.removesuffix(f"_{split}.json"): one for name, one in parsed.items() if one}
    if not labels:
        raise SpotTuneError(
            f"{source}: no file <task>_{split}.json with annotations, such as aircraft_{split}.json"
            f"; is --split {split} meant? The {PUBLIC_LABELS}"
        )
    images = Counter(image for one in labels.values() for image in one.by_image)
    if shared := [image for image, times in images.items() if times > 1]:
        raise SpotTuneError(f"{source}: images that two tasks label: {reprlib.repr(shared)}")
    return labels


def read_answers(path: Path) -> Answers:
    """Every answer of a results.json, or of a zip that holds one, by image id."""
    is_zip = path.suffix.lower() == ".zip"
    data = read_named(path, ["results.json"]).get("results.json") if is_zip else read_file(path)
    if data is None:
        raise SpotTuneError(
            f"{path}: no results.json found; submit_val.py and submit_test.py write one"
        )
    document = parse_json(data, path)
    if not isinstance(document, list) or not document:
        raise SpotTuneError(
            f'{path}: expected a list of {{"image_id": whole number, "category_id": whole number}}'
            f", found {brief(reprlib.repr(document))}"
        )
    answers: dict[int, list[int]] = {}
    for row in document:
        image, category = integer(row, "image_id", path), integer(row, "category_id", path)
        answers.setdefault(image, []).append(category)
    return answers
