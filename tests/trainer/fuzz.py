"""Tries odd command lines and damaged files on the trainer: none may end in a traceback.

    python tests/trainer/fuzz.py --tries 2000 --seed 0

A try is right if it ends with status 0; with 1 and one line "error: ..."; with 2 where the command
line has no such value; or, when it is interrupted because it has run for some seconds, with 130.
Each is made from (seed, number) alone, so `--only NUMBER` repeats one. A test runs a few.
"""

import argparse
import contextlib
import io
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import checkpoint
import data
import plots
import train
from cifar import read_batch
from config import METHODS, Config
from errors import UserError
from trainer import Trainer

SMALL = (
    "--epochs", "1", "--batch-size", "8", "--dim", "16", "--bottleneck", "8", "--queue-size", "32",
    "--scenes", "24", "8", "--image-size", "24", "--global-size", "16", "--local-size", "12",
    "--knn-k", "5", "--checkpoint-every", "2", "--log-every", "1",
)  # fmt: skip
INTEGERS = (
    "-1", "0", "1", "2", "3", "7", "100", "2147483647", "2147483648", "4294967295", "4294967296",
    "9223372036854775807", "9223372036854775808", "1" + "0" * 30, "-" + "9" * 40, "1" + "0" * 5000,
    "1.5", "1e3", "nan", "", "x", "0x10", "１", "None", "--", "1_0",
)  # fmt: skip
FLOATS = (
    "-1", "-0.0", "0", "1", "0.5", "1e-40", "1e-300", "5e-324", "1e-8", "1e8", "1e38", "1e39",
    "1e300", "1e400", "nan", "-nan", "inf", "-inf", "", "x", "1,5", "None", "1" + "0" * 5000, "1_0",
)  # fmt: skip
NAMES = (
    "", " ", "x", "x:y", ":", "a:", ":b", "..:x", ".x:y", "os:getcwd", "sys:exit", "json:loads",
    "torch.nn:Identity", "torch.nn:Flatten", "torch:zeros", "torch.nn:Linear", "small ", "SMALL",
    "resnet18", "résumé:é", "\udcff:x", "a" * 5000, "x\ny:z", "config:METHODS",
    "math:pi", "torch.nn:Dropout",
)  # fmt: skip
DEVICES = (
    "", "cpu", "cpu:0", "cpu:1", "cpu:-1", "cuda", "cuda:99", "cuda:-1", "meta", "mps", "xpu",
    "CPU", "cpu ", "x", "cuda:x", "0", "cpu:99999999999999999999", "vulkan", "hip",
)  # fmt: skip
PATHS = (
    "", ".", "/dev/null", "/dev/full", "/proc/x", "/proc/self/mem", "file", "file/x",
    "empty", "empty/a/b/c", "a" * 300, "a/" * 2100, "\udcff", "x\ny", " ", "~", "-x", "link",
    "circle", "images", "cifar",
)  # fmt: skip

STOPPED = ("--epochs", "3")  # 9 steps, of which 4 are done when it is resumed
RIGHT = (0, 1, 2, 130)  # of exit statuses

# Encoders that fail in one way each.
ENCODERS = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, act=lambda x: x):
        super().__init__()
        self.layer, self.act, self.calls = nn.Linear(4, 6), act, 0
    def forward(self, x):
        self.calls += 1
        return self.act(self.layer(nn.functional.adaptive_avg_pool2d(x.mean(1), 2).flatten(1)))

class Trains(Net):
    def forward(self, x):
        if self.training:
            raise OSError(5, "flaky disk", "weights.bin")
        return super().forward(x)

class Late(Net):
    def forward(self, x):
        if self.calls > 9:
            raise ValueError("two\\nlines \\x00 \\udcff")
        return super().forward(x)

class Whole(Net):
    def forward(self, x):
        if len(x) > 16 and not self.training:
            raise KeyError("whole images")
        return super().forward(x)

class Backward(Net):
    def forward(self, x):
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(lambda g: 1 / 0)
        return y

class Tied(Net):
    def __init__(self):
        super().__init__()
        self.again = self.layer

class Stateful(Net):
    def get_extra_state(self):
        return {"a": 1}
    def set_extra_state(self, state):
        pass

class Pinned(Net):
    def __deepcopy__(self, memo):
        raise TypeError("no copies")

class Sized(nn.Module):
    def forward(self, x):
        return x.flatten(1)

class Base(Net):
    def forward(self, x):
        raise SystemExit(3)

def nan(): return Net(lambda x: x * float("nan"))
def inf(): return Net(lambda x: x * float("inf"))
def huge(): return Net(lambda x: x * 1e38)
def half(): return Net(lambda x: x.half())
def double(): return Net().double()
def pair(): return Net(lambda x: (x, x))
def scalar(): return Net(lambda x: x.sum())
def empty(): return Net(lambda x: x[:, :0])
def short(): return Net(lambda x: x[:1])
def detached(): return Net(lambda x: x.detach())
def constant(): return Net(lambda x: x * 0)
def meta(): return Net().to("meta")
def raises(): raise RuntimeError("no weights: " + "long " * 500)
def exits(): sys.exit("bye")
def memory(): return Net(lambda x: torch.empty(1 << 62))
def many(a, b): return Net()
def none(): return None
def lazy(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
def deep(): return deep()
instance = Net()
"""
FACTORIES = (
    "Net", "Trains", "Late", "Whole", "Backward", "Tied", "Stateful", "Pinned", "Sized", "Base",
    "nan", "inf", "huge", "half", "double", "pair", "scalar", "empty", "short", "detached",
    "constant", "meta", "raises", "exits", "memory", "many", "none", "lazy", "deep", "instance",
    "absent",
)  # fmt: skip


def odd_value(chance: random.Random, name: str, hint: Any) -> list[str]:
    """An option with some value of its type or near it."""
    option = "--" + name.replace("_", "-")
    choices = [t for t in get_args(hint) if t is not type(None)] or [hint]
    kind = choices[0]
    if hint is bool:
        return [chance.choice((option, option.replace("--", "--no-", 1), option + "=maybe"))]
    literal = hint if get_origin(hint) is Literal else kind
    if get_origin(literal) is Literal:
        return [option, chance.choice((*get_args(literal), "", "X"))]
    if get_origin(hint) is tuple:
        pool = INTEGERS if kind is int else FLOATS
        return [option, *(chance.choice(pool) for _ in range(chance.choice((2, 2, 2, 2, 1, 3))))]
    if kind is int or kind is float:
        return [option, chance.choice(INTEGERS if kind is int else FLOATS)]
    if kind is Path:
        return [option, chance.choice(PATHS)]
    return [option, chance.choice(DEVICES if name == "device" else NAMES)]


HINTS = get_type_hints(Config)
OPTIONS = [field.name for field in fields(Config)]


def options(chance: random.Random, folder: Path) -> list[str]:
    chosen = chance.sample(OPTIONS, chance.choice((1, 1, 1, 2, 2, 3)))
    return [word for name in chosen for word in odd_value(chance, name, HINTS[name])]


def encoder(chance: random.Random, folder: Path) -> list[str]:
    (folder / "nets.py").write_text(ENCODERS)
    if chance.random() < 0.1:
        (folder / "nets.py").write_bytes(damaged(chance, ENCODERS.encode()))
    words = ["--encoder", f"nets:{chance.choice(FACTORIES)}", "--method", chance.choice([*METHODS])]
    return words + chance.choice(([], ["--export"], ["--knn-every", "1"]))


def damaged(chance: random.Random, content: bytes) -> bytes:
    kind = chance.randrange(4)
    place = chance.randrange(len(content) + 1)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + chance.randbytes(chance.randrange(1, 9)) + content[place:]
    if kind == 2:
        return content[:place] + content[place + chance.randrange(1, 99) :]
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 50))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def replace(chance: random.Random, path: Path) -> None:
    """Something else takes the file's place."""
    path.unlink()
    kind = chance.randrange(5)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(chance.choice(("nowhere", path.name, "/dev/full", "..")))
    elif kind == 2:
        path.write_bytes(chance.randbytes(chance.choice((0, 1, 10, 1000))))
    elif kind == 3:
        os.mkfifo(path)


def spoil(chance: random.Random, path: Path) -> None:
    if chance.random() < 0.75:
        path.write_bytes(damaged(chance, path.read_bytes()))
    else:
        replace(chance, path)


def image(chance: random.Random, suffix: str) -> bytes:
    numbers = np.random.default_rng(chance.randrange(2**32))
    pixels = numbers.integers(0, 256, (12, chance.choice((1, 12, 12, 30)), 4), dtype=np.uint8)
    modes = {"jpg": ("L", "RGB", "CMYK"), "bmp": ("1", "L", "P", "RGB"), "webp": ("RGB", "RGBA")}
    mode = chance.choice(modes.get(suffix, ("1", "L", "LA", "P", "RGB", "RGBA")))
    if suffix == "gif":
        mode = "P"
    if suffix in ("png", "tif") and chance.random() < 0.3:
        wide = pixels[..., 0].astype("<u2") * 257
        picture = Image.fromarray(wide if suffix == "png" else wide.astype("f4") / 65535)
    else:
        picture = Image.fromarray(pixels).convert("RGB").convert(mode)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = chance.randrange(11)
    names = {"jpg": "JPEG", "tif": "TIFF"}
    picture.save(file, names.get(suffix, suffix.upper()), exif=exif)
    return file.getvalue()


def images(chance: random.Random, folder: Path) -> list[str]:
    root = folder / "images"
    splits = chance.choice(("", "", "train val", "Train TEST valid", "training", "train test/x"))
    made = []
    for split in splits.split(" "):
        for name in chance.choice(("ab", "ab", "abc", "a", "a.", "AB")):
            for i in range(chance.choice((6, 9, 12, 12, 2))):
                suffix = chance.choice(("png", "jpg", "gif", "bmp", "tif", "webp"))
                path = root / split / name / f"{i}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image(chance, suffix))
                made.append(path)
    for path in chance.sample(made, min(len(made), chance.choice((0, 1, 1, 2)))):
        spoil(chance, path)
    for extra in chance.sample(("test", "empty", ".x/1.png", "up", "stray.png", "a.txt"), 2):
        path = root / extra
        path.parent.mkdir(parents=True, exist_ok=True)
        if extra == "up":
            path.symlink_to(root)
        elif "." in extra:
            path.write_bytes(b"x")
        else:
            path.mkdir(exist_ok=True)
    size = chance.choice(("8", "12", "24"))
    words = ["--dataset", "folder", "--data", "images", "--image-size", size]
    return words + chance.choice(([], ["--skip-unreadable"], ["--skip-unreadable", "--export"]))


def cifar(chance: random.Random, folder: Path) -> list[str]:
    root = folder / "cifar"
    root.mkdir()
    numbers = np.random.default_rng(chance.randrange(2**32))
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {
            b"data": numbers.integers(0, 256, (8, 3072), dtype=np.uint8),
            b"labels": numbers.integers(0, 10, 8).tolist(),
        }
        protocol = chance.randrange(pickle.HIGHEST_PROTOCOL + 1)
        (root / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    for path in chance.sample(sorted(root.iterdir()), chance.choice((0, 1, 1, 1, 2))):
        spoil(chance, path)
    return ["--dataset", "cifar10", "--data", chance.choice(("cifar", "cifar", "."))]


def resumed(chance: random.Random, folder: Path) -> list[str]:
    """A run that was stopped, one of its files damaged."""
    shutil.copytree(folder.parent / "stopped", folder / "out")
    checkpoint, metrics = folder / "out" / "checkpoint.pt", folder / "out" / "metrics.csv"
    kind = chance.randrange(7)
    if kind < 3:
        spoil(chance, checkpoint)
    elif kind < 5:
        spoil(chance, metrics)
    elif kind == 5:
        state = torch.load(checkpoint, weights_only=True)
        key = chance.choice([*state])
        if chance.random() < 0.5:
            del state[key]
        else:
            others = (None, -1, "x", [], {}, torch.zeros(3), 10**30, float("nan"))
            state[key] = chance.choice(others)
        torch.save(state, checkpoint)
    else:
        (folder / "out" / "checkpoint.pt.tmp").mkdir()
    more = options(chance, folder) if chance.random() < 0.2 else []
    return [*STOPPED, *chance.choice((["--resume"], ["--resume"], ["--resume"], [])), *more]


def unwritable(chance: random.Random, folder: Path) -> list[str]:
    """One of the files of the results cannot be written."""
    out = folder / "out"
    out.mkdir()
    names = (
        "metrics.csv", "checkpoint.pt", "checkpoint.pt.tmp", "losses.png", "crops.png", "knn.png",
        "similarity.png", "results.json", "encoder.safetensors", "encoder.safetensors.tmp",
    )  # fmt: skip
    path = out / chance.choice(names)
    if chance.random() < 0.5:
        path.symlink_to(chance.choice(("/dev/full", "/proc/version", "/nowhere/x")))
    else:
        path.mkdir()
    return ["--export", *chance.choice(([], ["--resume"]))]


KINDS: tuple[tuple[Callable[[random.Random, Path], list[str]], int], ...] = (
    (options, 50), (encoder, 12), (images, 14), (cifar, 6), (resumed, 12), (unwritable, 6),
)  # fmt: skip


def surroundings(folder: Path) -> None:
    """What the odd paths point at."""
    folder.mkdir()
    (folder / "file").write_text("x")
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("nowhere")
    (folder / "circle").symlink_to("circle")


def words_of(seed: int, number: int, folder: Path) -> list[str]:
    chance = random.Random(f"{seed} {number}")
    surroundings(folder)
    kinds, weights = zip(*KINDS, strict=True)
    make = chance.choices(kinds, weights)[0]
    words = [*SMALL, "--out", "out", *make(chance, folder)]
    return words if chance.random() < 0.95 else [*words, *options(chance, folder)]


def call(
    words: list[str], folder: Path, seconds: float, pictures: bool = False, stop: int | None = None
) -> tuple[int, str, str]:
    """The command in a fork of this process, which has the libraries loaded: status and output.

    stop: the step after whose checkpoint it is interrupted.
    """
    child = os.fork()
    if child == 0:
        status = 70
        try:
            for descriptor, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
            sys.stdout = os.fdopen(1, "w", errors="backslashreplace")
            sys.stderr = os.fdopen(2, "w", errors="backslashreplace")
            resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
            os.chdir(folder)
            status = enter(words, pictures, stop)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(status)
    status = wait(child, seconds)
    return status, *((folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))


def enter(words: list[str], pictures: bool, stop: int | None) -> int:
    """What Python does around a script."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if not pictures:
        for name in ("losses", "crops", "similarity", "knn"):
            setattr(plots, name, lambda *_: None)
    save = Trainer.save

    def save_and_stop(self: Trainer, file: IO[str]) -> None:
        save(self, file)
        if self.step == stop:
            raise KeyboardInterrupt

    Trainer.save = save_and_stop
    sys.argv = ["train.py", *words]
    try:
        train.main()
    except SystemExit as end:
        if isinstance(end.code, int):
            return end.code
        if end.code is not None:
            print(end.code, file=sys.stderr)
            return 1
    return 0


def wait(child: int, seconds: float) -> int:
    """Its status; it is interrupted after some seconds, and killed a while after that."""
    began, asked = time.monotonic(), False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        elapsed = time.monotonic() - began
        if elapsed > seconds and not asked:
            os.kill(child, signal.SIGINT)
            asked = True
        elif elapsed > seconds + 60:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def complaint(status: int, stderr: str) -> str | None:
    """What is wrong with the end of a try, or None."""
    if "Traceback" in stderr:
        return "traceback"
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    if status == 1 and len(lines) != 1:
        return f"{len(lines)} lines of error"
    return None if status in RIGHT else f"status {status}"


def tries(
    numbers: Iterable[int], seed: int, seconds: float = 8, show: bool = False
) -> Counter[str]:
    """Run them and print each that is wrong: how many ended how."""
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        surroundings(root / "before")
        words = [*SMALL, *STOPPED, "--out", "../stopped"]
        status, _, stderr = call(words, root / "before", 60, stop=4)
        assert status == 130, stderr
        for number in numbers:
            folder = root / str(number)
            words = words_of(seed, number, folder)
            status, stdout, stderr = call(words, folder, seconds, pictures=number % 10 == 0)
            wrong = complaint(status, stderr)
            ends[wrong or f"status {status}"] += 1
            if wrong or show:
                print(f"try {number}: {wrong}: {words[len(SMALL) :]}")
                print(stdout[-500:], stderr[-3000:], flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    return ends


def cuts() -> int:
    """Every kind of file that is read, cut at every length: whole or refused in words."""
    count = 0
    with tempfile.TemporaryDirectory() as name:
        folder, chance = Path(name), random.Random(0)
        path = folder / "file"
        checkpoint.save(path, {"network": {str(i): torch.randn(20) for i in range(4)}})
        cifar(chance, folder)
        readers: list[tuple[bytes, Callable[[], Any]]] = [
            (path.read_bytes(), lambda: checkpoint.load(path)),
            *(((folder / "cifar" / f"data_batch_{i}").read_bytes(), lambda: read_batch(path))
              for i in range(1, 4)),
        ]  # fmt: skip
        for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp"):
            for _ in range(5):
                files = {"a": [path]}
                read = partial(data._read_images, files, ("a", "b"), 8)
                readers.append((image(chance, suffix), read))
        for content, read in readers:
            for size in range(len(content)):
                path.write_bytes(content[:size])
                with contextlib.suppress(UserError):
                    read()
                count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat this one and show what it says")
    chosen = parser.parse_args()
    numbers = range(chosen.tries) if chosen.only is None else [chosen.only]
    ends = tries(numbers, chosen.seed, show=chosen.only is not None)
    said = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    print(f"{len(numbers)} tries, seed {chosen.seed}: {said}")
    if chosen.only is None:
        print(f"{cuts()} files cut, one at every length of every kind: whole or refused")
    sys.exit(not ends.keys() <= {f"status {status}" for status in RIGHT})


if __name__ == "__main__":
    main()
