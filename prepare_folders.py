"""Put one of the paper's five data sets into folders named after the classes, for train_folder.py.

    python prepare_folders.py {cubs,cars,flowers,wikiart,sketches} RAW OUT

RAW is what the archives of its authors unpack to. Their lists say what becomes OUT/train/CLASS/...
and OUT/test/CLASS/...; Flowers alone has an official OUT/val/CLASS/... too. A killed run continues
when it is started again: OUT gets its name once it is complete. Where to fetch each data set, and
its terms: docs/five_data_sets.md.
"""

import errno
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from runtime.cli import Parser, folder_name, positive_int
from runtime.errors import MISFITS, SpotTuneError, brief, run_script
from runtime.files import leads_outside, write_whole
from runtime.progress import track

SPLITS = ("train", "val", "test")
TEST_AS_VAL = {"train": "train", "val": "train", "test": "val"}
MARKER = "prepared.sha256"  # of the lists and flags that a folder was made from
NO_HARD_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)

CUBS = "CUB_200_2011.tgz, https://data.caltech.edu/records/65de6-vp158"
CARS = "see docs/five_data_sets.md; ai.stanford.edu no longer serves it"
FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
SKETCHES = "sketches_png.zip, https://cybertron.cg.tu-berlin.de/eitz/projects/classifysketch/"

# A line of WikiArt's lists: a path, then perhaps the number of its class.
LISTED = re.compile(r"(?P<path>.+?)(?:[,\s]\s*(?P<number>\d+))?")


@dataclass(frozen=True)
class Picture:
    """A picture in RAW and where it goes."""

    split: str
    class_name: str
    file: Path
    name: str = ""  # in OUT; empty: that of the file
    box: tuple[float, ...] | None = None  # crop to it: left, top, right, bottom edge, in pixels

    @property
    def place(self) -> Path:
        """Relative to OUT. Each part is one plain name, so it cannot lead outside."""
        # Stanford Cars has a class "Ram C/V Cargo Van Minivan 2012".
        class_name = re.sub(r"[/\\\0]", "-", self.class_name)
        if class_name in ("", ".", ".."):
            raise SpotTuneError(f"{self.file}: its class is named {class_name!r}; expected a name")
        return Path(self.split, class_name, self.name or self.file.name)


def cubs(raw: Path, crop_boxes: bool) -> Iterator[Picture]:
    """CUB-200-2011, 200 kinds of birds; RAW holds images.txt and images/."""
    names = ["images", "train_test_split", "image_class_labels"]
    names += ["bounding_boxes"] if crop_boxes else []
    tables = {name: read_table(needed(raw / f"{name}.txt", CUBS)) for name in names}
    classes = read_table(needed(raw / "classes.txt", CUBS))
    for name, table in tables.items():
        if table.keys() != tables["images"].keys():
            raise SpotTuneError(
                f"{raw / name}.txt: other numbers than in images.txt; unpack {CUBS} again"
            )
    for number, path in tables["images"].items():
        box = None
        if crop_boxes:
            left, top, width, height = map(float, tables["bounding_boxes"][number].split())
            box = (left, top, left + width, top + height)
        split = "train" if tables["train_test_split"][number] == "1" else "test"
        class_name = classes[tables["image_class_labels"][number]]
        file = inside(raw / "images", path, raw / "images.txt")
        yield Picture(split, class_name, file, box=box)


def cars(raw: Path, crop_boxes: bool) -> Iterator[Picture]:
    """Stanford Cars, 196 makes, models and years; RAW holds devkit/, cars_train/ and cars_test/,
    or cars_annos.mat and car_ims/."""
    if (raw / "car_ims").is_dir():  # the later form: one list and one folder of all pictures
        listed = needed(raw / "cars_annos.mat", CARS)
        classes, rows = read_mat(listed, "class_names", "annotations")
        found = [("test" if row["test"] else "train", raw, row, listed) for row in rows]
        path_field = "relative_im_path"
    else:
        (classes,) = read_mat(needed(raw / "devkit" / "cars_meta.mat", CARS), "class_names")
        found = []
        for split, name in (("train", "cars_train_annos"), ("test", "cars_test_annos_withlabels")):
            listed = raw / f"{name}.mat"  # the labels of test are a download of their own
            listed = listed if listed.is_file() else needed(raw / "devkit" / listed.name, CARS)
            (rows,) = read_mat(listed, "annotations")
            found += [(split, raw / f"cars_{split}", row, listed) for row in rows]
        path_field = "fname"
    for split, folder, row, listed in found:
        file = inside(folder, str(row[path_field]), listed)
        box = None
        if crop_boxes:
            edges = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
            left, top, right, bottom = (int(row[edge]) for edge in edges)
            box = (left - 1, top - 1, right, bottom)  # MATLAB counts from 1, ends included
        yield Picture(split, str(classes[int(row["class"]) - 1]), file, box=box)


def flowers(raw: Path) -> Iterator[Picture]:
    """Flowers-102, kinds of flowers by their numbers; RAW holds the two .mat files and jpg/."""
    (labels,) = read_mat(needed(raw / "imagelabels.mat", FLOWERS), "labels")
    ids = read_mat(needed(raw / "setid.mat", FLOWERS), "trnid", "valid", "tstid")
    for split, numbers in zip(SPLITS, ids, strict=True):
        for number in numbers:
            file = raw / "jpg" / f"image_{number:05d}.jpg"
            yield Picture(split, f"{labels[number - 1]:03d}", file)


def wikiart(raw: Path, lists: str) -> Iterator[Picture]:
    """WikiArt, paintings; RAW holds train/CLASS and test/CLASS, or class folders and lists."""
    if (raw / "train").is_dir() and (raw / "test").is_dir():
        for split in filter(lambda split: (raw / split).is_dir(), SPLITS):
            for file in sorted((raw / split).glob("*/*")):
                if file.suffix.lower() in (".jpg", ".jpeg", ".png"):
                    yield Picture(split, file.parent.name, file)
        return
    named = {(raw / f"{lists}_{split}{end}"): split for end in (".txt", ".csv") for split in SPLITS}
    there = {split: listed for listed, split in named.items() if listed.is_file()}
    if "train" not in there or len(there) == 1:
        raise SpotTuneError(
            f"{raw}: neither train/ and test/ nor the lists {lists}_train.csv and {lists}_test.csv "
            f"(or _val.csv, or .txt); see docs/five_data_sets.md, and --lists for other names"
        )
    if "test" not in there:
        there["test"] = there.pop("val")  # some lists call the part for testing val
    numbered = raw / f"{lists}_class.txt"
    names = read_table(numbered) if numbered.is_file() else {}
    for split, listed in there.items():
        for line in read_lines(listed):
            path, number = LISTED.fullmatch(line).group("path", "number")
            file = inside(raw, path, listed)
            folder = file.parent.name
            class_name = folder if number is None else names.get(number, number)
            # Paintings of one artist lie in the folders of several styles.
            name = file.name if class_name == folder else f"{folder}-{file.name}"
            yield Picture(split, class_name, file, name)


def sketches(raw: Path, folds: int, fold: int) -> Iterator[Picture]:
    """TU-Berlin's sketches, 250 kinds of things; RAW holds png/filelist.txt and png/CLASS/."""
    if folds < 2 or fold > folds:
        raise SpotTuneError(
            f"--folds {folds} --fold {fold}: expected two or more folds, and one of them"
        )
    listed = needed(raw / "png" / "filelist.txt", SKETCHES)
    seen = Counter()
    for line in read_lines(listed):
        file = inside(listed.parent, line, listed)
        class_name = file.parent.name
        split = "test" if seen[class_name] % folds == fold - 1 else "train"
        seen[class_name] += 1
        yield Picture(split, class_name, file)


DATA_SETS = {
    "cubs": cubs,
    "cars": cars,
    "flowers": flowers,
    "wikiart": wikiart,
    "sketches": sketches,
}


def needed(file: Path, source: str) -> Path:
    """`file`; SpotTuneError that names its source if it is not there."""
    if not file.is_file():
        raise SpotTuneError(f"{file}: no such file. It is part of the data set ({source})")
    return file


def inside(folder: Path, name: str, listed: Path) -> Path:
    """folder/name; SpotTuneError if the list `listed` leads outside the folder."""
    if leads_outside(name) or not PurePosixPath(name).name:
        raise SpotTuneError(f"{listed}: {brief(name)} found; expected a path inside {folder}")
    return folder / name


def read_lines(file: Path) -> list[str]:
    """The lines of a text, but for empty ones; undecodable letters stay as in file names."""
    lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    return [line.strip() for line in lines if line.strip()]


def read_table(file: Path) -> dict[str, str]:
    """Lines `number text` as {number: text}."""
    rows = [line.split(maxsplit=1) for line in read_lines(file)]
    if wrong := [row for row in rows if len(row) != 2]:
        raise SpotTuneError(f"{file}: {brief(wrong[0][0])} found; expected a number and a text")
    return dict(rows)


def read_mat(file: Path, *names: str) -> list[np.ndarray]:
    """The named arrays of a MATLAB file."""
    try:
        from scipy.io import loadmat  # here, since nothing else needs scipy
    except ImportError:
        raise SpotTuneError(f"{file}: scipy reads such files; run pip install scipy") from None
    try:
        content = loadmat(file, squeeze_me=True)
    except Exception as error:  # scipy names no errors of damaged files, and raises many kinds
        raise SpotTuneError(f"{file}: not a whole .mat file ({error}); fetch it again") from error
    if missing := set(names) - content.keys():
        raise SpotTuneError(f"{file}: holds no {min(missing)}; is it of another data set?")
    return [np.atleast_1d(content[name]) for name in names]


def check(pictures: Sequence[Picture], raw: Path) -> None:
    """Raise SpotTuneError if pictures are missing, or one is listed twice."""
    missing = [picture.file for picture in pictures if not picture.file.is_file()]
    if missing or not pictures:
        first = f", the first: {missing[0]}" if missing else ""
        raise SpotTuneError(
            f"{raw}: {len(missing):,} of {len(pictures):,} listed pictures are missing{first}. "
            f"Unpack the archives again"
        )
    for attribute in ("file", "place"):
        counts = Counter(getattr(picture, attribute) for picture in pictures)
        (most, count) = counts.most_common(1)[0]
        if count > 1:
            raise SpotTuneError(f"{raw}: {most} is listed {count} times; list it once")


def prepare(pictures: Sequence[Picture], raw: Path, out: Path, copy: bool) -> None:
    """Fill `out`, unless the same pictures fill it already; SpotTuneError if others do."""
    rows = sorted(f"{each.place} {each.file.relative_to(raw)} {each.box}" for each in pictures)
    content = hashlib.sha256("\n".join(rows).encode(errors="surrogateescape")).hexdigest()
    out = out.resolve()
    partial = out.with_name(f"{out.name}.partial")
    for folder in (out, partial):
        if folder.exists() and any(folder.iterdir()):
            marker = folder / MARKER
            if not marker.is_file() or marker.read_text() != content:
                raise SpotTuneError(
                    f"{folder}: not empty, and not of these lists and flags. Name another OUT, or "
                    f"remove it"
                )
            if folder == out:
                check_whole(pictures, out, copy)
                return
    partial.mkdir(parents=True, exist_ok=True)
    write_whole(partial / MARKER, content.encode())
    place(pictures, partial, copy)
    partial.replace(out)


def check_whole(pictures: Sequence[Picture], out: Path, copy: bool) -> None:
    """Raise SpotTuneError if `out` lacks pictures, or has links where copies are asked for."""
    gone = [each.place for each in pictures if not (out / each.place).is_file()]
    problem = f"lacks {len(gone)} of its pictures, such as {gone[0]}" if gone else ""
    if copy and not gone and (out / pictures[0].place).samefile(pictures[0].file):
        problem = "holds hard links, not copies"
    if problem:
        raise SpotTuneError(f"{out}: {problem}. Remove it to make it again")


def place(pictures: Sequence[Picture], folder: Path, copy: bool) -> None:
    """Put the pictures that `folder` lacks into it: as crops, as copies, or as hard links."""
    unfinished = folder / ".unfinished"
    for picture in track(pictures, len(pictures), "placing", "picture"):
        target = folder / picture.place
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if picture.box is None and not copy:
            link(picture.file, target)
            continue
        if picture.box is None:
            shutil.copyfile(picture.file, unfinished)
        else:
            crop(picture).save(unfinished, "JPEG", quality=95)
        unfinished.replace(target)
    unfinished.unlink(missing_ok=True)


def link(file: Path, target: Path) -> None:
    try:
        target.hardlink_to(file.resolve())  # not to a symbolic link, which may be relative
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        raise SpotTuneError(f"{target}: cannot be a hard link to {file}; add --copy") from error


def crop(picture: Picture) -> Image.Image:
    """The part of a picture in its box, where that lies inside the picture."""
    left, top, right, bottom = map(round, picture.box)
    try:  # no other formats: to read some of them, Pillow starts programs
        with Image.open(picture.file, formats=("JPEG", "PNG")) as image:
            box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
            return image.crop(box).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        message = f"{picture.file}: cannot be cropped ({error}); unpack it again"
        raise SpotTuneError(message) from error


def summary(pictures: Sequence[Picture]) -> str:
    parts = []
    for split in SPLITS:
        classes = [picture.class_name for picture in pictures if picture.split == split]
        if classes:
            parts.append(f"{split} {len(set(classes)):,} classes, {len(classes):,} pictures")
    return "; ".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("Put one of the paper's five data sets into folders named after the classes.")
    chosen = parser.add_subparsers(dest="data_set", metavar="DATA_SET", required=True)
    for name, read in DATA_SETS.items():
        add = chosen.add_parser(name, help=read.__doc__, description=read.__doc__).add_argument
        # fmt: off
        add("raw", type=folder_name, metavar="RAW", help="what the archives unpack to")
        add("out", type=folder_name, metavar="OUT", help="the folder to make")
        add("--copy", action="store_true",
            help="copy the pictures; otherwise hard links take no space, and a picture changed in "
                 "OUT changes in RAW")
        add("--test_as_val", action="store_true",
            help="put the official test pictures into val/, and an official val into train/: "
                 "training then uses all training pictures and reports on the official test")
        if name in ("cubs", "cars"):
            add("--crop_boxes", action="store_true",
                help="cut each picture to the box of its object, and save it as JPEG")
        if name == "wikiart":
            add("--lists", default="wikiart", metavar="NAME",
                help="lists are NAME_train.csv and NAME_test.csv in RAW")
        if name == "sketches":
            add("--folds", type=positive_int, default=5, metavar="N",
                help="every N-th drawing of a class is for testing")
            add("--fold", type=positive_int, default=1, metavar="K",
                help="which of the N folds is for testing, from 1 on")
        # fmt: on
    options = vars(parser.parse_args(argv))
    name, raw, out = options.pop("data_set"), options.pop("raw"), options.pop("out")
    copy, test_as_val = options.pop("copy"), options.pop("test_as_val")

    try:
        pictures = list(DATA_SETS[name](raw, **options))
    except MISFITS as error:
        raise SpotTuneError(
            f"{raw}: its lists do not fit together ({type(error).__name__}: {brief(error)}); one "
            f"may be cut short. Fetch and unpack them again"
        ) from error
    if test_as_val:
        pictures = [replace(each, split=TEST_AS_VAL[each.split]) for each in pictures]
    check(pictures, raw)
    prepare(pictures, raw, out, copy)
    print(f"{out}: {summary(pictures)}")


if __name__ == "__main__":
    run_script(main)
