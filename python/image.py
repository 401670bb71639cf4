"""One image file as an image viewer shows it: eight bits, upright, on white."""

from pathlib import Path

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # EXIF: how the camera was held
TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_square(path: Path, size: int) -> np.ndarray:
    """Uint8 [size, size, 3]: the short side scaled to size, the long one cropped at the centre.

    A damaged file makes Pillow raise nearly anything.
    """
    with Image.open(path) as file:
        file.load()  # A TIFF is turned here, and its orientation then forgotten.
        image = upright(file, on_white(eight_bits(file)))
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box))


def eight_bits(image: Image.Image) -> Image.Image:
    """Pillow's own conversion of wider pixels clips them at 255."""
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # nan is neither
            raise ValueError(
                f"floating-point pixels from {values.min():g} to {values.max():g}; want 0 to 1"
            )
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if not image.mode.startswith("I"):
        return image
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # both: 0 to 65535
        raise ValueError("pixels are 32-bit integers, whose range no format fixes; want 8 or 16")
    values = np.asarray(image).astype(np.int64)
    grey = ((values + 128) // 257).clip(0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def on_white(image: Image.Image) -> Image.Image:
    """RGB; where the image is transparent, its hidden colour gives way to white."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode not in ("RGBA", "RGBa", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def upright(file: Image.Image, image: Image.Image) -> Image.Image:
    try:
        orientation = file.getexif().get(ORIENTATION)
    except Exception:  # Metadata may be damaged where the pixels are not.
        return image
    return image.transpose(TO_UPRIGHT[orientation]) if orientation in TO_UPRIGHT else image
