"""Image files -> RGB pixels with the shorter side resized, back to back in one file, on all cores.

Bit for bit what Pillow and torchvision's Resize give. Pillow holds the interpreter's lock for most
of the time that a small JPEG takes: on two cores, two threads pack no more images than one (7,500
images/s), but two processes pack 14,000. Many images are therefore decoded by processes that import
nothing but Pillow and numpy. Worker w of W decodes every W-th chunk of images, reports their sizes,
is told where the chunk begins, and writes it there itself. Only sizes and places pass through the
pipes.
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
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from runtime.errors import REMEDIES, SpotTuneError

# Pillow can start an interpreter for some formats (EPS); these hold pixels and nothing else.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
MOST_OBLONG = 1000  # longer side by shorter side
FEW_IMAGES = 1000  # fewer are decoded sooner than processes start
CHUNK = 16  # images; 128 do not fit into the processor's caches and give 12,000 images/s
NUMBER = struct.Struct("<Q")  # a place in the file, or the length of a message
ROOT = Path(__file__).resolve().parents[1]
AS_SCRIPT = (
    f"import sys; sys.path[0] = {str(ROOT)!r}; from image_cache.decoding import main; main()"
)
SIZE = struct.Struct("<II")  # height and width of an image; 0 and 0 announce a message


def write_pixels(
    stream: IO[bytes], names: Sequence[str], folder: Path, side: int
) -> Iterator[tuple[int, int]]:
    """Write all images from where `stream` stands; yields height and width of each.

    Raises SpotTuneError, naming the file, if an image is missing or broken.
    """
    workers = os.cpu_count() or 1
    if workers > 1 and len(names) >= FEW_IMAGES:
        yield from _write_with_workers(stream, names, folder, side, workers)
        return
    for name in names:
        with bombs_refused():
            pixels = decode_image(folder / name, side)
        stream.write(pixels.data)
        yield pixels.shape[:2]


def _write_with_workers(
    stream: IO[bytes], names: Sequence[str], folder: Path, side: int, workers: int
) -> Iterator[tuple[int, int]]:
    stream.flush()
    place = stream.tell()
    with ExitStack() as stack:
        task = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".json"))
        facts = {"names": list(names), "folder": str(folder), "side": side, "file": stream.name}
        json.dump({**facts, "chunk": CHUNK}, task)
        task.flush()
        running = [stack.enter_context(Worker(task.name, w, workers)) for w in range(workers)]
        for number, first in enumerate(range(0, len(names), CHUNK)):
            count = min(CHUNK, len(names) - first)
            sizes = running[number % workers].chunk_sizes(count)
            running[number % workers].begin_at(place)
            place += sum(3 * height * width for height, width in sizes)
            yield from sizes
        for worker in running:
            worker.finish()
    stream.seek(place)


class Worker(subprocess.Popen):
    """A process that decodes its chunks; it is killed when its images are no longer needed."""

    def __init__(self, task: str, number: int, workers: int) -> None:
        command = [sys.executable, "-c", AS_SCRIPT, task, str(number), str(workers)]
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.stdin = self.stdin.detach()  # unbuffered, so that closing it writes nothing

    def __exit__(self, *details: object) -> None:
        self.kill()
        super().__exit__(*details)

    def chunk_sizes(self, count: int) -> list[tuple[int, int]]:
        """Heights and widths of the next `count` images, once they are decoded."""
        return [self._size() for _ in range(count)]

    def _size(self) -> tuple[int, int]:
        height, width = SIZE.unpack(self._read(SIZE.size))
        if height == 0:
            (length,) = NUMBER.unpack(self._read(NUMBER.size))
            raise SpotTuneError(self._read(length).decode())
        return height, width

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
    names, chunk = content["names"], content["chunk"]
    try:
        with bombs_refused(), Path(content["file"]).open("r+b", buffering=0) as file:
            for first in range(number * chunk, len(names), workers * chunk):
                paths = [Path(content["folder"]) / name for name in names[first : first + chunk]]
                _decode_chunk(paths, content["side"], file)
    except BrokenPipeError:
        sys.exit(1)  # the parent is gone
    except SpotTuneError as error:
        _tell(str(error))
    except OSError as error:  # from writing, or of an image that may not be read
        _tell(f"{error.filename or content['file']}: {REMEDIES.get(error.errno, error.strerror)}")


def _decode_chunk(paths: Sequence[Path], side: int, file: IO[bytes]) -> None:
    """Decode, report the sizes, receive the place, write."""
    images = [decode_image(path, side) for path in paths]
    sys.stdout.buffer.write(b"".join(SIZE.pack(*pixels.shape[:2]) for pixels in images))
    sys.stdout.buffer.flush()
    place = sys.stdin.buffer.read(NUMBER.size)
    if len(place) < NUMBER.size:
        sys.exit(1)  # the images are no longer needed
    file.seek(NUMBER.unpack(place)[0])
    data = memoryview(b"".join(pixels.tobytes() for pixels in images))
    while data:
        data = data[file.write(data) :]


def _tell(message: str) -> None:
    data = message.encode()
    sys.stdout.buffer.write(SIZE.pack(0, 0) + NUMBER.pack(len(data)) + data)
    sys.stdout.buffer.flush()


def decode_image(path: Path, side: int) -> np.ndarray:
    """RGB pixels H x W x 3 uint8 with the shorter side resized to `side`, as torchvision does.

    Raises SpotTuneError, naming the file, if it is missing or cannot be decoded to its end.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return np.asarray(resize_shorter_side(image.convert("RGB"), side))
    except FileNotFoundError as error:
        raise SpotTuneError(
            f"{path}: listed in the annotations, but there is no such file. Check --datadir, or "
            f"remove the task's folder and fetch it again with ./download_data.sh"
        ) from error
    except PermissionError:
        raise
    except (OSError, ValueError, SyntaxError, *BOMBS) as error:
        raise SpotTuneError(
            f"{path}: cannot be decoded as an image ({error}); it may be cut short. Remove "
            f"the task's folder and fetch it again with ./download_data.sh"
        ) from error


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Turn Pillow's warning about a large image (89 million pixels, 0.4 GB) into an error.

    Not part of `decode_image`, where it would cost 7 % of a small image's time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def resize_shorter_side(image: Image.Image, side: int) -> Image.Image:
    """Bilinear, keeping the aspect ratio; the longer side is rounded down (torchvision's rule)."""
    width, height = image.size
    if min(width, height) == side:
        return image
    if max(width, height) > MOST_OBLONG * min(width, height):
        raise ValueError(f"{width} x {height} pixels")  # a line of pixels would become gigabytes
    if width < height:
        return image.resize((side, int(side * height / width)), Image.Resampling.BILINEAR)
    return image.resize((int(side * width / height), side), Image.Resampling.BILINEAR)
