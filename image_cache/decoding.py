"""Image files -> RGB pixels with the shorter side resized, back to back in one file, on all cores.

Bit for bit what Pillow and torchvision's Resize give. Pillow holds the interpreter's lock for most
of the time that a small JPEG takes, so two threads decode no more images than one. Many images are
therefore decoded by processes, which import nothing but Pillow and numpy: worker w of W decodes
every W-th chunk of images and sends it through a pipe. Images that cannot be decoded are collected
and named together.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from runtime.errors import MISFITS, SpotTuneError

# Pillow can start an interpreter for some formats (EPS); these hold pixels and nothing else.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "JPEG2000", "PPM")
BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
MOST_OBLONG = 1000  # longer side by shorter side
SHOWN_DAMAGED = 20  # of the images that cannot be decoded
FEW_IMAGES = 1000  # fewer are decoded sooner than processes start
FETCH_AGAIN = "Fetch them again with ./download_data.sh"
CHUNK = 16  # images that a process decodes before it sends them
ROOT = Path(__file__).resolve().parents[1]
AS_SCRIPT = (
    f"import sys; sys.path[0] = {str(ROOT)!r}; from image_cache.decoding import main; main()"
)
HEAD = struct.Struct("<II")  # before pixels: height and width; before a message: 0 and its length


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
        results = _decoded_by_workers(names, folder, reading, workers)
    else:
        results = all_decoded((folder / name for name in names), reading)
    damaged = []
    for result in results:
        if isinstance(result, str):
            damaged.append(result)
        else:
            stream.write(result.data)
            yield result.shape[:2]
    if damaged:
        more = len(damaged) - SHOWN_DAMAGED
        raise SpotTuneError(
            f"{'; '.join(damaged[:SHOWN_DAMAGED])}{f'; and {more} more' if more > 0 else ''}. "
            f"{len(damaged)} of {len(names)} images cannot be used, so none was packed. "
            f"{'Replace or remove them' if reading.photographs else FETCH_AGAIN}"
        )


def _decoded_by_workers(
    names: Sequence[str], folder: Path, reading: Reading, workers: int
) -> Iterator[np.ndarray | str]:
    with ExitStack() as stack:
        task = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".json"))
        facts = {"names": names, "folder": str(folder), "chunk": CHUNK}
        json.dump({**facts, "reading": asdict(reading)}, task)
        task.flush()
        running = [stack.enter_context(Worker(task.name, w, workers)) for w in range(workers)]
        for place in range(len(names)):
            yield running[place // CHUNK % workers].result()


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
        super().__init__(command, stdout=subprocess.PIPE)

    def __exit__(self, *details: object) -> None:
        self.kill()
        super().__exit__(*details)

    def result(self) -> np.ndarray | str:
        """The next image, or what is wrong with it; see `decoded`."""
        height, width = HEAD.unpack(self._read(HEAD.size))
        if height == 0:
            return self._read(width).decode()
        return np.frombuffer(self._read(3 * height * width), np.uint8).reshape(height, width, 3)

    def _read(self, length: int) -> bytes:
        data = self.stdout.read(length)
        if len(data) < length:
            raise SpotTuneError(
                "a process that decodes images ended before its work was done; was it killed, or "
                "did memory run out? Start again: nothing unfinished was kept"
            )
        return data


def main() -> None:
    """A worker: chunks `number`, `number` + `workers`, ... of the task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent stops its workers
    _refuse_bombs()
    task, number, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    content = json.loads(Path(task).read_text())
    names, folder, chunk = content["names"], Path(content["folder"]), content["chunk"]
    reading = Reading(**content["reading"])
    for first in range(number * chunk, len(names), workers * chunk):
        results = [_decoded(folder / name, reading) for name in names[first : first + chunk]]
        try:
            sys.stdout.buffer.write(b"".join(map(_sent, results)))
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            os._exit(1)  # the parent is gone


def _sent(result: np.ndarray | str) -> bytes:
    if isinstance(result, str):
        text = result.encode(errors="replace")
        return HEAD.pack(0, len(text)) + text
    return HEAD.pack(*result.shape[:2]) + result.tobytes()


def all_decoded(paths: Iterable[Path], reading: Reading) -> Iterator[np.ndarray | str]:
    """The pixels of each image, or what is wrong with it; images that are too large are refused."""
    with warnings.catch_warnings():
        _refuse_bombs()
        for path in paths:
            yield _decoded(path, reading)


def _decoded(path: Path, reading: Reading) -> np.ndarray | str:
    """As `decode_image`; where the image is missing or broken, which one it is and how."""
    try:
        return decode_image(path, reading)
    except FileNotFoundError:
        return f"{path}: listed, but there is no such file"
    except PermissionError:
        return f"{path}: permission was denied"
    except BOMBS:
        return f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller"
    except (OSError, SyntaxError, *MISFITS) as error:
        formats = ", ".join(IMAGE_FORMATS)
        return f"{path}: cannot be decoded ({error}); cut short, or none of {formats}"


def decode_image(path: Path, reading: Reading) -> np.ndarray:
    """RGB pixels H x W x 3 uint8, resized as torchvision does.

    Raises what Pillow raises if the image cannot be decoded to its end.
    """
    with Image.open(path, formats=IMAGE_FORMATS) as image:
        rgb = as_photograph(image) if reading.photographs else image.convert("RGB")
        return np.asarray(resized(rgb, reading))


def _refuse_bombs() -> None:
    """Turn Pillow's warning about a large image (89 million pixels, 0.4 GB) into an error."""
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def as_photograph(image: Image.Image) -> Image.Image:
    """RGB as a viewer shows it: turned by EXIF, on white, 16 bits of grey scaled to 8.

    Raises ValueError for grey of more than 16 bits, whose white is not known.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() >= 2**16:
            raise ValueError("grey of more than 16 bits; save it with 8 or 16")
        image = Image.fromarray((pixels // 257).astype(np.uint8))
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
