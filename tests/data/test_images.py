import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from pliant.data.files import relative_path
from pliant.data.images import (
    IMAGE_SUFFIXES,
    UnreadableFileError,
    find_images,
    read_image,
    read_mask,
    scan_image,
)

COLOUR = (200, 100, 50)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "L", "LA", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (5, 3), COLOUR).convert(mode).save(path)
    image = read_image(path)
    assert isinstance(image, tv_tensors.Image)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 3, 5)
    assert image.is_contiguous()
    pixel = image[:, 0, 0].tolist()
    if mode in ("RGB", "RGBA", "CMYK"):
        assert pixel == list(COLOUR)
    elif mode != "P":
        assert pixel[0] == pixel[1] == pixel[2]


def test_palette_with_transparency(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (4, 4), COLOUR).quantize(4).save(path, transparency=b"\x00\xff")
    assert torch.allclose(read_image(path)[:, 0, 0].int(), torch.tensor(COLOUR).int(), atol=4)


def test_16_bits_are_scaled_not_cut(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(path)
    assert read_image(path)[0].tolist() == [[0, 128, 255]]


def test_exif_orientation_is_not_applied(tmp_path):
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4), COLOUR).save(path, exif=exif)
    assert read_image(path).shape == (3, 4, 8)
    assert scan_image(path) == ((4, 8), 6)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_cut_file_is_found_by_the_scan(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    assert scan_image(path).size == (60, 80)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableFileError):
        scan_image(path)
    with pytest.raises(UnreadableFileError):
        read_image(path)


def test_bytes_after_the_end_do_no_harm(tmp_path):
    path = tmp_path / "image.jpg"
    Image.new("RGB", (8, 4), COLOUR).save(path)
    path.write_bytes(path.read_bytes() + b"\0" * 1000)
    assert scan_image(path).size == (4, 8)


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_what_is_no_image(tmp_path, content):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match="cannot identify"):
        scan_image(path)


def test_floating_point_images_are_refused(tmp_path):
    path = tmp_path / "image.tif"
    Image.fromarray(np.ones((3, 3), dtype=np.float32)).save(path)
    with pytest.raises(UnreadableFileError, match="floating-point"):
        scan_image(path)


def test_masks_keep_their_ids(tmp_path):
    ids = np.array([[0, 1, 255], [20, 3, 0]], dtype=np.uint8)
    palette = Image.new("P", (3, 2))
    palette.putdata(ids.ravel().tolist())
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(tmp_path / "p.png")
    Image.fromarray(ids).save(tmp_path / "l.png")
    for name in ("p.png", "l.png"):
        assert read_mask(tmp_path / name).tolist() == ids.tolist()
    Image.new("1", (2, 1), 1).save(tmp_path / "1.png")
    assert read_mask(tmp_path / "1.png").tolist() == [[1, 1]]
    Image.new("RGB", (3, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(UnreadableFileError, match="mode RGB"):
        read_mask(tmp_path / "rgb.png")


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "..\\a", "C:\\a", "", ".", "a\0b"])
def test_paths_that_leave_the_folder(name):
    with pytest.raises(ValueError, match="not a path inside"):
        relative_path(name)


def test_paths_that_stay():
    assert str(relative_path("a/b..c.jpg")) == "a/b..c.jpg"


def test_the_endings_are_those_of_the_formats_that_are_read(tmp_path):
    formats = {"JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM"}
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    assert set(IMAGE_SUFFIXES) == known - {".pfm"}  # floating-point pixels
    for suffix in IMAGE_SUFFIXES:
        path = tmp_path / f"image{suffix}"
        Image.new("RGB", (5, 3), COLOUR).save(path)
        assert read_image(path).shape == (3, 3, 5)


def test_images_are_found_in_any_case_and_depth_and_other_files_are_named(tmp_path):
    names = ["a.WEBP", "b.tiff", "deep/deeper/c.BMP", "deep/d.jpg"]
    for name in [*names, "notes.txt", "deep/README", ".hidden.jpg", ".cache/e.jpg", "out/a.png"]:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set", target_is_directory=True)
    found = find_images([tmp_path / "set"], leave_out=tmp_path / "set" / "out")
    assert [path.relative_to(tmp_path / "set").as_posix() for path in found.images] == [
        "a.WEBP",
        "b.tiff",
        "deep/d.jpg",
        "deep/deeper/c.BMP",
    ]
    said = found.passed_over()
    assert said.startswith("2 files are ignored")
    assert "1 .txt" in said
    assert str(tmp_path / "set" / "notes.txt") in said
    assert find_images([tmp_path / "set" / "notes.txt"]).images == [tmp_path / "set" / "notes.txt"]
    assert find_images([tmp_path / "set" / "a.WEBP"]).passed_over() is None


def test_folders_without_an_image(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such image or folder"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match="it is empty"):
        find_images([tmp_path])
    (tmp_path / "photo.heic").touch()
    with pytest.raises(FileNotFoundError, match=r"1 file is ignored.*1 \.heic.*photo\.heic"):
        find_images([tmp_path])
