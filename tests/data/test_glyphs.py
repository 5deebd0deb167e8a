import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from pliant.data import Glyphs, transforms
from pliant.data.glyphs import source_digits


def same(first, second):
    names = ("image", "mask", "instances", "boxes", "labels")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


def test_scenes_depend_on_seed_split_and_index_alone():
    forward = [Glyphs(6, seed=3).scene(index) for index in range(6)]
    other = Glyphs(60, seed=3)
    backward = [other.scene(index) for index in reversed(range(6))][::-1]
    assert all(map(same, forward, backward))
    assert len({scene.image.tobytes() for scene in forward}) == 6
    assert not same(forward[0], Glyphs(6, seed=4).scene(0))
    assert not same(forward[0], Glyphs(6, seed=3, split="test").scene(0))


def test_workers_draw_the_same_scenes():
    data = Glyphs(8)
    loader = DataLoader(data, batch_size=4, num_workers=2)
    images, masks = (torch.cat(part) for part in zip(*loader, strict=True))
    stacked = data.stack()
    assert torch.equal(images, stacked[0])
    assert torch.equal(masks, stacked[1])


def test_splits_share_no_source_digit():
    train, train_values = source_digits("train")
    test, test_values = source_digits("test")
    assert (len(train), len(test)) == (1438, 359)
    assert set(train_values) == set(test_values) == set(range(10))
    assert train.dtype == np.float32
    assert not {digit.tobytes() for digit in train} & {digit.tobytes() for digit in test}


def test_a_scene_agrees_with_itself():
    data = Glyphs(150)
    for index in range(len(data)):
        scene = data.scene(index)
        assert scene.image.shape == (3, 112, 112)
        assert scene.image.dtype == scene.mask.dtype == np.uint8
        assert 1 <= len(scene.labels) <= 4
        assert scene.labels.min() >= 1
        assert scene.labels.max() <= 10
        assert np.array_equal(scene.mask, np.array([0, *scene.labels])[scene.instances])
        for number, (x0, y0, x1, y1) in enumerate(scene.boxes.astype(int), start=1):
            visible = scene.instances == number
            assert visible[y0:y1, x0:x1].sum() == visible.sum() > 0
            assert visible[[y0, y1 - 1], x0:x1].any(axis=1).all()
            assert visible[y0:y1, [x0, x1 - 1]].any(axis=0).all()


def test_scale_and_shape_vary_strongly():
    boxes = np.concatenate([Glyphs(200).scene(index).boxes for index in range(200)])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    longer = np.maximum(width, height)
    assert np.quantile(longer, 0.05) < 18
    assert np.quantile(longer, 0.95) > 60
    assert np.quantile(width / height, 0.05) < 0.55
    assert np.quantile(width / height, 0.95) > 1.3


def test_digits_stand_out_from_the_background():
    """The colour of a digit and of the ring around it differ in nearly all scenes."""
    distances = []
    for index in range(60):
        scene = Glyphs(60).scene(index)
        ink = scene.mask > 0
        distances.append(np.abs(scene.image[:, ink].mean(axis=1) - scene.image[:, ~ink].mean(axis=1)).max())
    assert np.median(distances) > 40


def test_detection_task():
    data = Glyphs(5, task="detection")
    assert data.classes == tuple("0123456789")
    image, target = data[2]
    scene = data.scene(2)
    assert isinstance(image, tv_tensors.Image)
    assert target["boxes"].tolist() == scene.boxes.tolist()
    assert target["labels"].tolist() == scene.labels.tolist()
    assert target["area"].tolist() == [(scene.instances == number).sum() for number in range(1, len(scene.labels) + 1)]
    assert target["image_id"] == 2
    assert not target["iscrowd"].any()


def test_segmentation_task_and_transforms():
    data = Glyphs(3, size=64, sides=(14, 40), transforms=transforms.segmentation_eval(64, 64))
    assert data.classes[:2] == ("background", "0")
    image, mask = data[0]
    assert (image.shape, image.dtype) == ((3, 64, 64), torch.float32)
    assert (mask.shape, mask.dtype) == ((64, 64), torch.int64)
    assert len(list(data)) == 3


def test_a_changed_sample_does_not_change_the_scene():
    data = Glyphs(4)
    before = data.stack()
    data[1][0].zero_()
    assert all(torch.equal(first, second) for first, second in zip(before, data.stack(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length must be positive"),
        ({"seed": -1}, "seed not negative"),
        ({"split": "val"}, "'train' or 'test'"),
        ({"task": "boxes"}, "'segmentation' or 'detection'"),
        ({"digits": (4, 2)}, "digits must be"),
        ({"sides": (14, 200)}, "sides"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Glyphs(**{"length": 4, **options})
    with pytest.raises(IndexError):
        Glyphs(4)[4]
