"""Image files -> RGB pixels with the shorter side resized, back to back in one file, on all cores.

Bit for bit what Pillow and torchvision's Resize give. Pillow holds the interpreter's lock for most
of the time that a small JPEG takes: on two cores, two threads pack no more images than one (7,500
images/s), but two processes pack 14,000. Many images are therefore decoded by processes that import
nothing but Pillow and numpy. Worker w of W decodes every W-th chunk of
images, tells their sizes, is told where the chunk begins, and writes it there itself; only sizes
and places pass through the pipes. Images that cannot be decoded are collected and named together.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from runtime.errors import REMEDIES, SpotTuneError

# Pillow can start an interpreter for some formats (EPS); these hold pixels and nothing else.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "JPEG2000", "PPM")
BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
MOST_OBLONG = 1000  # longer side by shorter side
SHOWN_DAMAGED = 20  # of the images that cannot be decoded
FEW_IMAGES = 1000  # fewer are decoded sooner than processes start
FETCH_AGAIN = "Fetch them again with ./download_data.sh"
CHUNK = 16  # images; 128 do not fit into the processor's caches and give 12,000 images/s
NUMBER = struct.Struct("<Q")  # a place in the file, or the length of a message
ROOT = Path(__file__).resolve().parents[1]
AS_SCRIPT = (
    f"import sys; sys.path[0] = {str(ROOT)!r}; from image_cache.decoding import main; main()"
)
SIZE = struct.Struct("<II")  # height and width of an image, or one of these before a message:
DAMAGED, FAILED = (0, 1), (0, 0)  # this image cannot be decoded; the worker cannot go on


@dataclass(frozen=True)
class Reading:
    """How an image file becomes pixels: by default as in the Decathlon.

    `photographs`: EXIF's orientation is applied, transparent pixels are put on white, and 16 bits
    are scaled to 8. The Decathlon's pixels are as Pillow converts them.
    """

    side: int  # in pixels: the shorter side's, or both sides' if the image is squeezed
    interpolation: str = "bilinear"  # a name in Pillow's Resampling, in small letters
    squeeze: bool = False  # to a square, not keeping the aspect ratio
    photographs: bool = False


def write_pixels(
    stream: IO[bytes], names: Sequence[str], folder: Path, reading: Reading
) -> Iterator[tuple[int, int]]:
    """Write all images from where `stream` stands; yields height and width of each.

    Raises SpotTuneError at the end, naming the files, if images are missing or broken.
    """
    workers = usable_cores()
    if workers > 1 and len(names) >= FEW_IMAGES:
        decoded = _decoded_by_workers(stream, names, folder, reading, workers)
    else:
        decoded = _decoded_here(stream, names, folder, reading)
    damaged = []
    for result in decoded:
        if isinstance(result, str):
            damaged.append(result)
        else:
            yield result
    if damaged:
        more = len(damaged) - SHOWN_DAMAGED
        raise SpotTuneError(
            f"{'; '.join(damaged[:SHOWN_DAMAGED])}{f'; and {more} more' if more > 0 else ''}. "
            f"{len(damaged)} of {len(names)} images cannot be used, so none was packed. "
            f"{'Replace or remove them' if reading.photographs else FETCH_AGAIN}"
        )


def _decoded_here(
    stream: IO[bytes], names: Sequence[str], folder: Path, reading: Reading
) -> Iterator[tuple[int, int] | str]:
    for name in names:
        try:
            with bombs_refused():
                pixels = decode_image(folder / name, reading)
        except UndecodableError as error:
            yield str(error)
            continue
        stream.write(pixels.data)
        yield pixels.shape[:2]


def _decoded_by_workers(
    stream: IO[bytes], names: Sequence[str], folder: Path, reading: Reading, workers: int
) -> Iterator[tuple[int, int] | str]:
    stream.flush()
    place = stream.tell()
    with ExitStack() as stack:
        task = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".json"))
        facts = {
            "names": list(names),
            "folder": str(folder),
            "reading": asdict(reading),
            "file": stream.name,
        }
        json.dump({**facts, "chunk": CHUNK}, task)
        task.flush()
        running = [stack.enter_context(Worker(task.name, w, workers)) for w in range(workers)]
        for number, first in enumerate(range(0, len(names), CHUNK)):
            count = min(CHUNK, len(names) - first)
            results = running[number % workers].chunk_results(count)
            running[number % workers].begin_at(place)
            sizes = [size for size in results if not isinstance(size, str)]
            place += sum(3 * height * width for height, width in sizes)
            yield from results
        for worker in running:
            worker.finish()
    stream.seek(place)


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has under SLURM or in a container."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")  # "microseconds of time, in a period of so many", or max
    if quota.is_file():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            cores = min(cores, max(1, int(allowed) // int(period)))
    return cores


class Worker(subprocess.Popen):
    """A process that decodes its chunks; it is killed when its images are no longer needed."""

    def __init__(self, task: str, number: int, workers: int) -> None:
        command = [sys.executable, "-c", AS_SCRIPT, task, str(number), str(workers)]
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.stdin = self.stdin.detach()  # unbuffered, so that closing it writes nothing

    def __exit__(self, *details: object) -> None:
        self.kill()
        super().__exit__(*details)

    def chunk_results(self, count: int) -> list[tuple[int, int] | str]:
        """Heights and widths of the next `count` images, or what is wrong with them."""
        return [self._result() for _ in range(count)]

    def _result(self) -> tuple[int, int] | str:
        height, width = SIZE.unpack(self._read(SIZE.size))
        if (height, width) == DAMAGED:
            return self._message()
        if (height, width) == FAILED:
            raise SpotTuneError(self._message())
        return height, width

    def _message(self) -> str:
        (length,) = NUMBER.unpack(self._read(NUMBER.size))
        return self._read(length).decode()

    def begin_at(self, place: int) -> None:
        try:
            self.stdin.write(NUMBER.pack(place))
        except BrokenPipeError as error:
            raise SpotTuneError(DIED) from error

    def finish(self) -> None:
        """Wait until everything is written; raises SpotTuneError if something went wrong."""
        message = self.stdout.read()
        if message:
            raise SpotTuneError(message[SIZE.size + NUMBER.size :].decode())
        if self.wait() != 0:
            raise SpotTuneError(DIED)

    def _read(self, length: int) -> bytes:
        data = self.stdout.read(length)
        if len(data) < length:
            raise SpotTuneError(DIED)
        return data


DIED = (
    "a process that decodes images ended before its work was done; was it killed, or did memory "
    "run out? Start again: nothing unfinished was kept"
)


def main() -> None:
    """A worker: chunks `number`, `number` + `workers`, ... of the task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent stops its workers
    task, number, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    content = json.loads(Path(task).read_text())
    names, chunk, reading = content["names"], content["chunk"], Reading(**content["reading"])
    try:
        with bombs_refused(), Path(content["file"]).open("r+b", buffering=0) as file:
            for first in range(number * chunk, len(names), workers * chunk):
                paths = [Path(content["folder"]) / name for name in names[first : first + chunk]]
                _decode_chunk(paths, reading, file)
    except BrokenPipeError:
        sys.exit(1)  # the parent is gone
    except OSError as error:  # from writing, or of an image that may not be read
        where = error.filename or content["file"]
        reason = f"{where}: {REMEDIES.get(error.errno, error.strerror)}"
        sys.stdout.buffer.write(_message(FAILED, reason))
        sys.stdout.buffer.flush()


def _decode_chunk(paths: Sequence[Path], reading: Reading, file: IO[bytes]) -> None:
    """Decode, report the sizes, receive the place, write."""
    images, told = [], []
    for path in paths:
        try:
            images.append(decode_image(path, reading))
        except UndecodableError as error:
            told.append(_message(DAMAGED, str(error)))
        else:
            told.append(SIZE.pack(*images[-1].shape[:2]))
    sys.stdout.buffer.write(b"".join(told))
    sys.stdout.buffer.flush()
    place = sys.stdin.buffer.read(NUMBER.size)
    if len(place) < NUMBER.size:
        sys.exit(1)  # the images are no longer needed
    file.seek(NUMBER.unpack(place)[0])
    data = memoryview(b"".join(pixels.tobytes() for pixels in images))
    while data:
        data = data[file.write(data) :]


def _message(kind: tuple[int, int], text: str) -> bytes:
    data = text.encode(errors="replace")
    return SIZE.pack(*kind) + NUMBER.pack(len(data)) + data


class UndecodableError(Exception):
    """Which image is missing or broken, and how; not final, so that all of them can be named."""


def decode_image(path: Path, reading: Reading) -> np.ndarray:
    """RGB pixels H x W x 3 uint8, resized as torchvision does.

    Raises UndecodableError, naming the file, if it is missing or cannot be decoded to its end.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            rgb = as_photograph(image) if reading.photographs else image.convert("RGB")
            return np.asarray(resized(rgb, reading))
    except FileNotFoundError as error:
        raise UndecodableError(f"{path}: listed, but there is no such file") from error
    except PermissionError:
        raise
    except (OSError, ValueError, SyntaxError, *BOMBS) as error:
        raise UndecodableError(
            f"{path}: cannot be decoded ({error}); cut short, or none of {', '.join(IMAGE_FORMATS)}"
        ) from error


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Turn Pillow's warning about a large image (89 million pixels, 0.4 GB) into an error.

    Not part of `decode_image`, where it would cost 7 % of a small image's time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def as_photograph(image: Image.Image) -> Image.Image:
    """RGB as a viewer shows it: turned by EXIF, on white, 16 bits of grey scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # whole numbers, of 16 bits in files
        pixels = np.asarray(image)
        image = Image.fromarray((pixels // 257 if pixels.max() > 255 else pixels).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def resized(image: Image.Image, reading: Reading) -> Image.Image:
    """To a square, or keeping the aspect ratio; then the longer side is rounded down.

    That is torchvision's rule.
    """
    (width, height), side = image.size, reading.side
    if reading.squeeze:
        size = (side, side)
    elif width < height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    if size == (width, height):
        return image
    if max(width, height) > MOST_OBLONG * min(width, height):
        raise ValueError(f"{width} x {height} pixels")  # a line of pixels would become gigabytes
    return image.resize(size, Image.Resampling[reading.interpolation.upper()])
