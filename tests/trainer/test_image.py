"""Image files as people have them: what a viewer shows, or an error that names the file."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data
from errors import UserError
from image import read_square

RAMP = np.tile(np.linspace(0, 1, 40), (40, 1))
EIGHT = (RAMP * 255).round().astype(np.uint8)
SIXTEEN = (RAMP * 65535).round().astype("<u2")


def picture(content: np.ndarray | Image.Image, suffix: str, **options) -> bytes:
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[suffix], **options)
    return file.getvalue()


@pytest.fixture
def read(tmp_path) -> Callable[[bytes, str], np.ndarray]:
    def write_and_read(content: bytes, suffix: str = ".png") -> np.ndarray:
        path = tmp_path / f"x{suffix}"
        path.write_bytes(content)
        images, _ = data._read_images({"a": [path]}, ("a", "b"), 40)
        return images[0].permute(1, 2, 0).numpy()

    return write_and_read


def big_endian_tiff(values: np.ndarray, bits: int, sample_format: int) -> bytes:
    """One strip of grey values, written by hand: Pillow writes little-endian ones alone."""
    height, width = values.shape
    body = values.astype(values.dtype.newbyteorder(">")).tobytes()
    tags = [
        (256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, 1),
        (273, 4, 8 + 2 + 12 * 10 + 4), (277, 3, 1), (278, 3, height), (279, 4, len(body)),
        (339, 3, sample_format),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1)
        + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in tags
    )
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(tags)) + entries + b"\0\0\0\0" + body


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (picture(EIGHT, ".png"), ".png"),
        (picture(SIXTEEN, ".png"), ".png"),
        (picture(SIXTEEN, ".tif"), ".tif"),
        (big_endian_tiff(SIXTEEN, 16, 1), ".tif"),
        (picture(RAMP.astype("f4"), ".tif"), ".tif"),
        (b"P5\n40 40\n65535\n" + SIXTEEN.astype(">u2").tobytes(), ".pgm"),
        (picture(Image.fromarray(EIGHT).convert("P"), ".gif"), ".gif"),
        (picture(Image.fromarray(EIGHT).convert("CMYK"), ".tif"), ".tif"),
        (picture(Image.fromarray(EIGHT).convert("RGB"), ".bmp"), ".bmp"),
    ],
    ids=["grey", "grey16", "tiff16", "tiff16 MM", "float", "pgm16", "palette", "cmyk", "bmp"],
)
def test_a_ramp_is_a_ramp_in_every_kind_of_pixel(read, content, suffix):
    assert np.abs(read(content, suffix).astype(int) - EIGHT[..., None]).max() <= 1


@pytest.mark.parametrize("quality", [95, 100])
def test_jpeg_of_four_inks(read, quality):
    got = read(picture(Image.fromarray(EIGHT).convert("CMYK"), ".jpg", quality=quality), ".jpg")
    assert np.abs(got.astype(int) - EIGHT[..., None]).max() <= 6


HIDDEN = np.zeros((40, 40, 4), np.uint8)
HIDDEN[..., 0] = 255  # red that nobody sees
HIDDEN[10:30, 10:30] = (0, 255, 0, 255)


def palette_with_transparency() -> bytes:
    image = Image.fromarray(HIDDEN[..., :3]).quantize(4)
    return picture(image, ".png", transparency=image.getpixel((0, 0)))


@pytest.mark.parametrize(
    "content",
    [
        picture(HIDDEN, ".png"),
        picture(HIDDEN[..., :3], ".png", transparency=(255, 0, 0)),
        palette_with_transparency(),
        picture(HIDDEN, ".webp", lossless=True),
        picture(HIDDEN, ".tif"),
    ],
    ids=["alpha", "key colour", "palette", "webp", "tiff"],
)
def test_the_background_of_transparency_is_white(read, content):
    got = read(content)  # by its content, whatever its name
    assert (got[0, 0] == 255).all()
    assert got[20, 20].tolist() == [0, 255, 0]


def test_half_transparent_grey_is_half_white(read):
    grey = np.full((40, 40, 2), 128, np.uint8)
    grey[..., 0] = 0
    assert abs(int(read(picture(Image.fromarray(grey, "LA"), ".png"))[0, 0, 0]) - 127) <= 1


def test_the_key_of_a_16_bit_png_is_white(read):
    """A chunk tRNS with the grey value 0, which Pillow reads but does not write."""
    content = picture(SIXTEEN, ".png")
    end = content.index(b"IDAT") - 4
    key = b"tRNS\0\0"
    chunk = struct.pack(">I", 2) + key + struct.pack(">I", zlib.crc32(key))
    got = read(content[:end] + chunk + content[end:])
    assert (got[:, 0] > 200).all()
    assert got[20, 39, 0] == 255
    assert got[20, 5, 0] < 60


TALL = np.zeros((60, 40, 3), np.uint8)
TALL[:30, :20] = (255, 0, 0)  # red top left
TALL[:30, 20:] = (0, 255, 0)
TALL[30:, :20] = (0, 0, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_images_are_upright(read, orientation, suffix):
    """The picture is stored as a camera held otherwise would, with the tag that says so."""
    shown = Image.fromarray(TALL)
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = shown if undo is None else shown.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = read(picture(stored, suffix, exif=exif), suffix)
    corners = got[3, 3], got[3, 36], got[36, 3], got[36, 36]
    reds = [corner.argmax() if corner.max() > 128 else -1 for corner in corners]
    assert reds == [0, 1, 2, -1]


def test_damaged_metadata_leave_the_pixels_alone(read):
    exif = b"Exif\0\0" + b"MM\0*" + b"\xff" * 40
    got = read(picture(Image.fromarray(EIGHT).convert("RGB"), ".jpg", exif=exif), ".jpg")
    assert np.abs(got.astype(int) - EIGHT[..., None]).max() <= 6


def test_the_first_of_several_frames(read):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    for suffix in (".gif", ".webp", ".tif", ".png"):
        options = {"lossless": True} if suffix == ".webp" else {}
        content = picture(frames[0], suffix, save_all=True, append_images=frames[1:], **options)
        assert read(content, suffix)[20, 20].tolist() == [255, 0, 0]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


def png_with_a_damaged_second_chunk() -> bytes:
    pixels = zlib.compress(b"".join(b"\0" + bytes(120) for _ in range(40)), 0)
    whole = png_header(40, 40) + chunk(b"IDAT", pixels[:2000])
    return whole + struct.pack(">I", 50) + b"\t\x19V\x02" + b"x" * 60


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        (png_header(20000, 10000) + chunk(b"IDAT", b""), ".png", "decompression bomb"),
        (png_with_a_damaged_second_chunk(), ".png", ""),
        (b"hello", ".jpg", "cannot identify"),
        (b"", ".png", "cannot identify"),
        (picture(RAMP.astype("f4") * 1000, ".tif"), ".tif", "floating-point pixels from 0 to 1000"),
        (picture(np.full((8, 8), np.nan, "f4"), ".tif"), ".tif", "floating-point pixels from nan"),
        (picture(EIGHT.astype(np.int32), ".tif"), ".tif", "32-bit integers"),
    ],
    ids=["bomb", "chunk", "text", "empty", "float of 1000", "nan", "int32"],
)
def test_what_cannot_be_shown_is_named_with_the_reason(read, content, suffix, message):
    with pytest.raises(UserError, match=rf"x{suffix}: cannot be read as an image \(.*{message}"):
        read(content, suffix)


@pytest.mark.parametrize(
    "error", [MemoryError, SyntaxError("odd"), struct.error, IndexError, OSError]
)
def test_whatever_pillow_raises_names_the_file(read, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(data, "read_square", fail)
    with pytest.raises(UserError, match=r"x\.png: cannot be read as an image"):
        read(b"")


def test_ctrl_c_is_no_unreadable_image(read, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "read_square", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read(b"")


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_what_is_no_file_is_named(tmp_path, kind):
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)  # to open it would wait for ever
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(UserError, match=r"x\.png: cannot be read as an image"):
        data._read_images({"a": [path]}, ("a", "b"), 8)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm"])
def test_a_file_cut_anywhere_is_whole_or_refused(tmp_path, suffix):
    """An image with its lower half missing is worse than none."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    content, path = picture(noise, suffix), tmp_path / "x"
    path.write_bytes(content)
    right, refused = read_square(path, 12), 0
    for size in range(0, len(content), max(1, len(content) // 100)):
        path.write_bytes(content[:size])
        try:
            images, _ = data._read_images({"a": [path]}, ("a", "b"), 12)
        except UserError:
            refused += 1
        else:
            assert (images[0].permute(1, 2, 0).numpy() == right).all(), size
    assert refused > 50


def folder_of(root: Path, names: list[str]) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (7, 7, 7)).save(path)


def test_unreadable_images_are_left_out_and_counted(tmp_path):
    folder_of(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in range(10)])
    for name in ("a/0.png", "b/4.png"):  # one to train on, one held out
        (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"a.0\.png: cannot .* leave such images out by --skip-unr"):
        data.load_folder(tmp_path, 8)
    loaded = data.load_folder(tmp_path, 8, skip_unreadable=True)
    assert (len(loaded.train_images), len(loaded.test_images)) == (15, 3)
    assert loaded.train_labels.sum(0).tolist() == [7, 8]
    assert loaded.test_labels.sum(0).tolist() == [2, 1]
    assert (loaded.train_images == 7).all()
    said = "\n".join(loaded.notes)
    assert "skipped 2 images that cannot be read" in said
    assert f"{tmp_path / 'b/4.png'}: cannot be read as an image (" in said


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([f"train/a/{i}.png" for i in range(3)], "no readable image to train on of a/"),
        (["test/a/0.png", "test/b/0.png"], "no readable image to test on"),
    ],
)
def test_nothing_left_after_skipping_is_an_error(tmp_path, bad, message):
    names = [f"train/{c}/{i}.png" for c in "ab" for i in range(3)]
    folder_of(tmp_path, [*names, "test/a/0.png", "test/b/0.png"])
    for name in bad:
        (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=message):
        data.load_folder(tmp_path, 8, skip_unreadable=True)


def test_many_skipped_images_are_named_in_part(tmp_path):
    folder_of(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in range(50)])
    for i in range(40):
        (tmp_path / f"a/{i}.png").write_bytes(b"damaged")
    notes = data.load_folder(tmp_path, 8, skip_unreadable=True).notes
    assert "skipped 40 images that cannot be read:" in notes
    assert "... and 20 more" in notes
