import pytest
import torch
from torchvision import tv_tensors

from pliant.data import transforms


def detection_sample():
    image = tv_tensors.Image(torch.arange(3 * 10 * 20, dtype=torch.uint8).reshape(3, 10, 20))
    corners = torch.tensor([[1, 2, 5, 6], [0, 0, 20, 10], [3, 3, 3.5, 9], [4, 0, 9, 9.0]])
    target = {
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(10, 20)),
        "labels": torch.tensor([1, 2, 3, 4]),
        "difficult": torch.tensor([False, True, False, False]),
        "truncated": torch.tensor([False, False, False, True]),
        "iscrowd": torch.zeros(4, dtype=torch.bool),
        "area": torch.tensor([16.0, 200, 3, 45]),
        "image_id": 7,
    }
    return image, target


def test_detection_train_flips_and_keeps_fields_in_step():
    image, target = detection_sample()
    out, result = transforms.detection_train(flip=1.0)(image, target)
    assert torch.allclose(out, image.flip(-1).float() / 255)
    assert isinstance(result["boxes"], tv_tensors.BoundingBoxes)
    assert result["boxes"].tolist() == [[15, 2, 19, 6], [11, 0, 16, 9]]
    assert result["labels"].tolist() == [1, 4]
    assert result["truncated"].tolist() == [False, True]
    assert result["difficult"].tolist() == [False, False]
    assert result["area"].tolist() == [16, 45]
    assert len(result["iscrowd"]) == 2
    assert result["image_id"] == 7
    assert len(target["labels"]) == 4


def test_detection_train_without_boxes():
    image, target = detection_sample()
    none = {key: value[:0] if key in transforms._PER_BOX else value for key, value in target.items()}
    none["boxes"] = tv_tensors.wrap(target["boxes"][:0], like=target["boxes"])
    _, result = transforms.detection_train()(image, none)
    assert result["boxes"].shape == (0, 4)
    assert len(result["area"]) == 0


def test_detection_eval_changes_only_the_image():
    image, target = detection_sample()
    out, result = transforms.detection_eval()(image, target)
    assert out.dtype == torch.float32
    assert torch.allclose(out, image.float() / 255)
    assert result["boxes"].tolist() == target["boxes"].tolist()
    assert result["labels"].dtype == torch.int64
    assert result["difficult"].dtype == torch.bool


def segmentation_sample(height=30, width=60):
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[:, width // 2 :] = 2
    mask[:3] = 255
    image = torch.where(mask == 2, 200, 10).to(torch.uint8).expand(3, -1, -1).contiguous()
    return tv_tensors.Image(image), tv_tensors.Mask(mask)


@pytest.mark.parametrize(
    ("short_side", "max_side", "size"),
    [(60, 120, (60, 120)), (60, 100, (50, 100)), (15, 100, (15, 30)), (60, 60, (30, 60))],
)
def test_resize_short_side_up_to_the_longest(short_side, max_side, size):
    image, mask = transforms.segmentation_eval(short_side, max_side)(*segmentation_sample())
    assert image.shape == (3, *size)
    assert mask.shape == size
    assert (image.dtype, mask.dtype) == (torch.float32, torch.int64)
    assert set(mask.unique().tolist()) == {0, 2, 255}
    assert 0 <= image.min() <= image.max() <= 1


def test_segmentation_flip_moves_image_and_mask():
    image, mask = transforms.segmentation_train(30, 60, flip=1.0)(*segmentation_sample())
    assert mask[10, 0] == 2
    assert image[0, 10, 0] == pytest.approx(200 / 255)
    assert mask[10, -1] == 0


@pytest.mark.parametrize(("crop", "size"), [(20, (20, 20)), ((40, 50), (40, 50)), ((48, 96), (48, 96))])
def test_crop_fills_the_mask_with_ignore(crop, size):
    torch.manual_seed(0)
    image, mask = transforms.segmentation_train(30, 60, crop=crop)(*segmentation_sample())
    assert image.shape == (3, *size)
    assert mask.shape == size
    missing = torch.isclose(image[0], torch.tensor(124 / 255))
    assert (mask[missing] == 255).all()
    assert int(missing.sum()) >= max(0, size[0] - 30) * size[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transforms.segmentation_eval(0, 10), "short_side"),
        (lambda: transforms.segmentation_eval(20, 10), "short_side"),
        (lambda: transforms.segmentation_train(10, 20, flip=2), "probability"),
        (lambda: transforms.segmentation_train(10, 20, crop=0), "crop"),
        (lambda: transforms.detection_train(flip=-1), "probability"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
