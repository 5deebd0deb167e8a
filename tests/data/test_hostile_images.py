"""Images that are broken, are not what they say, or want to do harm."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.bounded import memory_limit
from PIL import Image

from pliant.data import DataError, ImageFolder, VOCDetection, transforms
from pliant.data.images import UnreadableFileError, read_image, read_mask, scan_image

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8))


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of a header and other chunks."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    parts = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in (header, *chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def outcome(read: Callable[[Path], Any], path: Path) -> str:
    """`"read"`, or `"refused"` by our error, which names the file; any other error is raised."""
    try:
        read(path)
    except UnreadableFileError as error:
        return "refused" if error.path == path else "another file is named"
    return "read"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "MPO"])
def test_a_file_cut_anywhere_is_found_by_the_scan(tmp_path: Path, image_format: str) -> None:
    options = {"save_all": True, "append_images": [NOISE]} if image_format == "MPO" else {}
    whole = encoded(NOISE, image_format, **options)
    path = tmp_path / "cut.jpg"
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        scanned = outcome(scan_image, path)
        assert scanned == outcome(read_image, path)
        if image_format != "MPO":
            assert scanned == "refused" or length > 0.95 * len(whole)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_wrong_extension_does_no_harm(tmp_path: Path, image_format: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encoded(NOISE, image_format))
    assert scan_image(path).size == (24, 32)
    assert read_image(path).shape == (3, 24, 32)


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file\n",
        b"<html>404 Not Found</html>",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b"%PDF-1.4\n",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0\x08\0\0\0",
    ],
)
def test_what_is_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert {outcome(read, path) for read in (scan_image, read_image, read_mask)} == {"refused"}


def test_cmyk_jpeg_has_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 8), (200, 100, 50)).convert("CMYK").save(path, quality=95)
    assert np.abs(read_image(path)[:, 4, 4].numpy().astype(int) - (200, 100, 50)).max() <= 4


def test_16_bits_a_channel_are_scaled(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pixels = struct.pack(">B9H", 0, 0, 0x8000, 0xFFFF, 0x4000, 0, 0, 0xC0FF, 0x0100, 0x00FF)
    path.write_bytes(png(3, 1, 16, 2, (b"IDAT", zlib.compress(pixels))))
    assert read_image(path)[:, 0].T.tolist() == [[0, 128, 255], [64, 0, 0], [192, 1, 0]]
    path.write_bytes(png(2, 1, 16, 0, (b"IDAT", zlib.compress(struct.pack(">B2H", 0, 0x8000, 0xFFFF)))))
    assert read_image(path)[1].tolist() == [[128, 255]]
    with pytest.raises(UnreadableFileError, match="a mask is a palette or 8-bit grey image"):
        read_mask(path)
    Image.fromarray(np.array([[0, 65535]], dtype=">u2")).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[2].tolist() == [[0, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_and_pixels_agree_whatever_exif_says(voc_folder: Any, orientation: int) -> None:
    folder = voc_folder()
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((30, 40), dtype=np.uint8)
    pixels[5:25, 10:20] = 255
    Image.fromarray(pixels).save(folder.root / "JPEGImages" / "a.png", exif=exif)
    folder.annotation("a", [("cat", (11, 6, 20, 25))])
    folder.split("train", ["a"])
    image, target = VOCDetection(folder.root)[0]
    x0, y0, x1, y1 = target["boxes"][0].int().tolist()
    assert target["boxes"].canvas_size == image.shape[-2:]
    assert (image[:, y0:y1, x0:x1] == 255).all()
    assert image.sum() == 3 * 255 * (y1 - y0) * (x1 - x0)
    # Who drew boxes on the turned image has written its size, too.
    folder.annotation("a", [("cat", (6, 11, 25, 20))], size=(30, 40))
    with pytest.raises(DataError, match=r"size mismatch.*\n.*annotated 30x40, but a\.png is 40x30"):
        VOCDetection(folder.root)


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (1, 1), (9, 8, 7)).save(path)
    assert scan_image(path).size == (1, 1)
    image = read_image(path)
    assert image.tolist() == [[[9]], [[8]], [[7]]]
    assert transforms.segmentation_eval(6, 10)(image).shape == (3, 6, 6)
    assert transforms.classification_eval(9, 9, 8)(image, 0)[0].shape == (3, 8, 8)


@pytest.mark.parametrize("turned", [False, True])
def test_wide_images_are_read_up_to_a_hundred_to_one(tmp_path: Path, turned: bool) -> None:
    path = tmp_path / "a.png"
    size = (30_000, 300)
    Image.new("L", size[::-1] if turned else size).save(path)
    image = read_image(path)
    assert sorted(image.shape) == [3, 300, 30_000]
    assert min(transforms.segmentation_eval(600, 1000)(image).shape) == 3
    Image.new("L", (299, 30_000) if turned else (30_000, 299)).save(path)
    for read in (scan_image, read_image, read_mask):
        with pytest.raises(UnreadableFileError, match=r"too long: .* one side may be at most 100 times the other"):
            read(path)


@pytest.mark.parametrize(
    "content",
    [
        png(2**31 - 1, 2**31 - 1, 8, 2, (b"IDAT", zlib.compress(bytes(100)))),
        png(50_000, 50_000, 8, 0, (b"IDAT", zlib.compress(bytes(100)))),
        png(10_000, 10_000, 1, 0, (b"IDAT", zlib.compress(bytes(10_000 * 1251)))),  # whole, and 100 million pixels
        encoded(Image.new("L", (32, 32)), "GIF").replace(struct.pack("<HH", 32, 32), struct.pack("<HH", 65535, 65535)),
        b"P6 40000 40000 255\n",
    ],
)
@pytest.mark.parametrize("strict_warnings", [False, True])
def test_decompression_bombs_are_refused_by_their_size(tmp_path: Path, content: bytes, strict_warnings: bool) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (scan_image, read_image, read_mask):
        with warnings.catch_warnings(), memory_limit(64):
            warnings.simplefilter("error" if strict_warnings else "ignore")
            with pytest.raises(UnreadableFileError, match=r"too large|exceeds limit"):
                read(path)


def test_compressed_text_in_an_image_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    bomb = zlib.compress(bytes(2**26), 9)
    for chunk in ((b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb)):
        path.write_bytes(png(2, 1, 8, 0, chunk, (b"IDAT", zlib.compress(bytes(3)))))
        with memory_limit(32):
            outcome(scan_image, path)
            outcome(read_image, path)


def test_pixels_that_decompress_to_more_than_the_header_says(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 1, 8, 0, (b"IDAT", zlib.compress(bytes(2**27), 9))))
    with memory_limit(32):
        assert read_image(path).shape == (3, 1, 2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders here")
def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    NOISE.save(folder / "good.png")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "endless.jpg").symlink_to("/dev/zero")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "folder.jpg").mkdir()
    data = ImageFolder(tmp_path)
    assert [path.name for path in data.paths] == ["good.png"]
    assert {problem.path.name for problem in data.problems} == {
        "pipe.jpg",
        "endless.jpg",
        "dangling.jpg",
        "itself.jpg",
    }


def test_folders_that_link_to_each_other_are_read_once(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        NOISE.save(folder / f"{name}.png")
        for link in range(3):
            (folder / f"loop{link}").symlink_to(tmp_path / "train", target_is_directory=True)
    data = ImageFolder(tmp_path)
    # A link is followed, since data sets are often made of links; here each class then holds the other's image, too.
    assert sorted(path.name for path in data.paths) == ["ant.png", "ant.png", "bee.png", "bee.png"]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP"])
def test_random_damage_is_read_or_refused(tmp_path: Path, image_format: str) -> None:
    rng = np.random.default_rng(1)
    whole = np.frombuffer(encoded(NOISE, image_format), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    seen = set()
    for _ in range(150):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), rng.integers(1, 5))] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(len(whole) // 2, 2 * len(whole))].tobytes())
        with warnings.catch_warnings(), memory_limit(800):
            warnings.simplefilter("ignore")
            scanned = outcome(scan_image, path)
            read = outcome(read_image, path)
            outcome(read_mask, path)
        assert (scanned, read) != ("refused", "read")
        seen.add(read)
    assert seen == ({"refused"} if image_format == "PNG" else {"read", "refused"})  # a PNG has checksums
