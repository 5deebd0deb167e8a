from __future__ import annotations

import math

import pytest
import torch
import torchvision
from cases import ROIS
from torch import Tensor

from pliant import ops
from pliant.ops.roi_pool import bins

SCALE = 1 / 8
SIZE = (9, 11)


def feature_map(channels: int, dtype: torch.dtype = torch.float64, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(2, channels, *size, dtype=dtype, requires_grad=True)


def roi_lines(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(ROIS, dtype=dtype)


def bilinear(plane: Tensor, y: float, x: float) -> float:
    total = 0.0
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            weight = max(0, 1 - abs(row - y)) * max(0, 1 - abs(column - x))
            total += weight * plane[row, column].item()
    return total


def c_round(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def equation_6(
    image: Tensor, roi: list[float], bin: tuple[int, int], bins: tuple[int, int], move: list[float]
) -> float:
    """One bin of one channel: cells of the snapped bin inside the map, moved, read and averaged."""
    x0, y0 = c_round(roi[1] * SCALE), c_round(roi[2] * SCALE)
    width, height = max(c_round(roi[3] * SCALE) - x0, 1), max(c_round(roi[4] * SCALE) - y0, 1)
    rows = range(math.floor(bin[0] * height / bins[0]), math.ceil((bin[0] + 1) * height / bins[0]))
    columns = range(math.floor(bin[1] * width / bins[1]), math.ceil((bin[1] + 1) * width / bins[1]))
    cells = [
        (y0 + row, x0 + column)
        for row in rows
        for column in columns
        if 0 <= y0 + row < SIZE[0] and 0 <= x0 + column < SIZE[1]
    ]
    if not cells:
        return 0.0
    return sum(bilinear(image, y + move[1] * height, x + move[0] * width) for y, x in cells) / len(cells)


def authors_bin(
    plane: Tensor, roi: list[float], bin: tuple[int, int], bins: tuple[int, int], move: list[float], samples: int
) -> float:
    """The released sampled operator, one output, as a plain loop."""
    x0, y0 = c_round(roi[1]) * SCALE - 0.5, c_round(roi[2]) * SCALE - 0.5
    width = max((c_round(roi[3]) + 1) * SCALE - 0.5 - x0, 0.1)
    height = max((c_round(roi[4]) + 1) * SCALE - 0.5 - y0, 0.1)
    total, count = 0.0, 0
    for i in range(samples):
        for j in range(samples):
            y = y0 + (bin[0] + i / samples) * height / bins[0] + move[1] * height
            x = x0 + (bin[1] + j / samples) * width / bins[1] + move[0] * width
            if y < -0.5 or y > SIZE[0] - 0.5 or x < -0.5 or x > SIZE[1] - 0.5:
                continue
            total += bilinear(plane, min(max(y, 0), SIZE[0] - 1), min(max(x, 0), SIZE[1] - 1))
            count += 1
    return total / count if count else 0.0


@pytest.mark.parametrize("sampling", ["paper", "authors"])
@pytest.mark.parametrize("classes", [1, 2])
def test_deform_ps_roi_pool_against_the_equation_in_loops(sampling: str, classes: int) -> None:
    bins, gamma = (3, 2), 0.2
    scores, rois = feature_map(2 * 6).detach(), roi_lines()
    offset = torch.randn(len(ROIS), 2 * classes, *bins, dtype=torch.float64)
    out = ops.deform_ps_roi_pool(scores, rois, offset, bins, SCALE, gamma, sampling=sampling, sample_per_part=3)
    for r, roi in enumerate(ROIS):
        for c in range(2):
            for i in range(3):
                for j in range(2):
                    plane = scores[int(roi[0]), (c * 3 + i) * 2 + j]
                    start = 2 * (c * classes // 2)
                    move = (offset[r, start : start + 2, i, j] * gamma).tolist()
                    if sampling == "paper":
                        expected = equation_6(plane, list(roi), (i, j), bins, move)
                    else:
                        expected = authors_bin(plane, list(roi), (i, j), bins, move, 3)
                    assert out[r, c, i, j].item() == pytest.approx(expected, abs=1e-10)


def test_roi_pool_is_the_average_of_whole_cells() -> None:
    image, rois = feature_map(3).detach(), roi_lines()
    out = ops.roi_pool(image, rois, (2, 3), SCALE)
    for r, roi in enumerate(ROIS):
        for c in range(3):
            for i in range(2):
                for j in range(3):
                    expected = equation_6(image[int(roi[0]), c], list(roi), (i, j), (2, 3), [0.0, 0.0])
                    assert out[r, c, i, j].item() == pytest.approx(expected, abs=1e-12)


def test_ps_roi_pool_has_torchvisions_bins_away_from_the_last_row_and_column() -> None:
    scores, rois = feature_map(2 * 6), roi_lines()[[1, 4]]
    ours, theirs = (
        ops.ps_roi_pool(scores, rois, (3, 2), SCALE),
        torchvision.ops.ps_roi_pool(scores, rois, (3, 2), SCALE),
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    grad = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, scores, grad), torch.autograd.grad(theirs, scores, grad), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("sampling", ["paper", "authors"])
def test_zero_offsets_change_nothing(sampling: str) -> None:
    image, rois = feature_map(4), roi_lines()
    zero = torch.zeros(len(ROIS), 2, 3, 2, dtype=torch.float64)
    plain = ops.roi_pool(image, rois, (3, 2), SCALE, sampling=sampling)
    assert torch.equal(ops.deform_roi_pool(image, rois, zero, (3, 2), SCALE, sampling=sampling), plain)
    assert torch.equal(ops.deform_roi_pool(image, rois, None, (3, 2), SCALE, sampling=sampling), plain)


@pytest.mark.parametrize("sampling", ["paper", "authors"])
def test_offsets_of_a_coarser_grid_serve_several_bins(sampling: str) -> None:
    image, rois = feature_map(4), roi_lines()
    coarse = torch.randn(len(ROIS), 2, 2, 1, dtype=torch.float64)
    fine = coarse[:, :, [0, 0, 1, 1]].expand(-1, -1, -1, 3)
    options = {"output_size": (4, 3), "spatial_scale": SCALE, "sampling": sampling}
    left, right = (ops.deform_roi_pool(image, rois, offset, **options) for offset in (coarse, fine))
    assert torch.equal(left, right)


@pytest.mark.parametrize("sampling", ["paper", "authors"])
def test_gradcheck(sampling: str) -> None:
    """On half the map, with RoIs of half the size in cells: every cell is two calls."""
    rois, scale, size = roi_lines(), SCALE / 2, (5, 6)
    offset = torch.randn(len(ROIS), 4, 2, 2, dtype=torch.float64, requires_grad=True)
    scores = feature_map(2 * 6, size=size)
    assert torch.autograd.gradcheck(
        lambda x, o: ops.deform_ps_roi_pool(x, rois, o, (3, 2), scale, 0.3, sampling=sampling), (scores, offset)
    )
    assert torch.autograd.gradcheck(lambda x: ops.ps_roi_pool(x, rois, (3, 2), scale, sampling=sampling), scores)
    image = feature_map(3, size=size)
    assert torch.autograd.gradcheck(lambda x: ops.roi_pool(x, rois, 2, scale, sampling=sampling), image)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("rule", ["whole_cells", "authors_whole_cells", "authors_samples"])
def test_opcheck(rule: str) -> None:
    offset = None if rule == "authors_whole_cells" else torch.randn(len(ROIS), 2, 3, 2, requires_grad=True)
    args = (feature_map(12, torch.float32), roi_lines(torch.float32), offset, (3, 2), (3, 2), SCALE, 0.1, rule, 4)
    torch.library.opcheck(torch.ops.pliant.roi_pool.default, args)


def test_many_rois_in_several_runs_are_the_same_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from pliant.ops.roi_pool import reference

    def both() -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        image = feature_map(8)
        offset = torch.randn(len(ROIS), 4, 3, 2, dtype=torch.float64, requires_grad=True)
        out = ops.deform_roi_pool(image, roi_lines(), offset, (3, 2), SCALE)
        return out, *torch.autograd.grad(out.sin().sum(), (image, offset))

    whole = both()
    monkeypatch.setattr(reference, "_ENTRIES_AT_ONCE", 1)
    for left, right in zip(both(), whole, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampling", ["paper", "authors"])
def test_no_rois_and_no_images(sampling: str) -> None:
    image = feature_map(12)
    out = ops.deform_ps_roi_pool(
        image, image.new_zeros(0, 5), image.new_zeros(0, 2, 3, 2), (3, 2), SCALE, sampling=sampling
    )
    assert out.shape == (0, 2, 3, 2)
    out.sum().backward()
    assert image.grad.count_nonzero() == 0
    assert ops.roi_pool(image[:0], [], 7, SCALE, sampling=sampling).shape == (0, 12, 7, 7)


@pytest.mark.parametrize("sampling", ["paper", "authors"])
def test_rois_outside_the_map_are_zero_and_one_cell_maps_work(sampling: str) -> None:
    rois = torch.tensor([[0.0, 900, 900, 950, 990], [0, -300, -300, -200, -100], [0, 0, 0, 7, 7]])
    image = torch.full((1, 2, 1, 1), 3.0)
    out = ops.roi_pool(image, rois, 2, SCALE, sampling=sampling)
    assert out[:2].count_nonzero() == 0
    assert out[2].unique().tolist() == [3.0]


@pytest.mark.parametrize("far", [1e6, -1e6, 1e30, float("inf"), -float("inf")])
@pytest.mark.parametrize("sampling", ["paper", "authors"])
def test_far_offsets_read_zero(sampling: str, far: float) -> None:
    image, rois = feature_map(4), roi_lines()
    offset = torch.full((len(ROIS), 2, 3, 2), far, dtype=torch.float64, requires_grad=True)
    out = ops.deform_roi_pool(image, rois, offset, (3, 2), SCALE, sampling=sampling)
    assert out.count_nonzero() == 0
    out.sum().backward()
    assert offset.grad.count_nonzero() == 0
    assert image.grad.count_nonzero() == 0


@pytest.mark.parametrize("sampling", ["paper", "authors"])
def test_a_nan_offset_shows_in_its_own_bin_only(sampling: str) -> None:
    image, rois = feature_map(4).detach(), roi_lines()
    offset = torch.zeros(len(ROIS), 2, 3, 2, dtype=torch.float64)
    offset[5, 0, 1, 1] = float("nan")
    bad = ops.deform_roi_pool(image, rois, offset, (3, 2), SCALE, sampling=sampling).isnan()
    assert bad[5, :, 1, 1].all()
    assert bad.sum() == 4


def test_a_nan_offset_of_a_bin_without_cells_changes_nothing() -> None:
    image, rois = feature_map(4), roi_lines()
    offset = torch.full((len(ROIS), 2, 3, 2), float("nan"), dtype=torch.float64, requires_grad=True)
    out = ops.deform_roi_pool(image, rois, offset, (3, 2), SCALE)
    out.sum().backward()
    assert out[3].count_nonzero() == 0  # outside the map
    assert offset.grad[3].count_nonzero() == 0


def test_gradients_of_no_images() -> None:
    image = feature_map(12).detach()[:0].requires_grad_()
    ops.ps_roi_pool(image, [], (3, 2), SCALE).sum().backward()
    assert image.grad.shape == (0, 12, *SIZE)


@pytest.mark.parametrize("pool", [ops.roi_pool, ops.ps_roi_pool])
def test_corners_beyond_all_numbers_of_cells(pool) -> None:  # type: ignore[no-untyped-def]
    rois = torch.tensor([[0.0, -3e38, -3e38, 3e38, 3e38], [0, 3e38, 3e38, 3e38, 3e38]])
    out = pool(torch.ones(1, 4, *SIZE), rois, 2, 4.0, sampling="authors")
    assert out.isfinite().all()
    assert out[1].count_nonzero() == 0


@pytest.mark.parametrize("edge", [0.5, 3.5, 8388609.0])
def test_rounding_is_that_of_c(edge: float) -> None:
    values = torch.nextafter(torch.tensor([edge, edge, edge]), torch.tensor([0.0, edge, 1e30]))
    rounded = bins.round_half_away(torch.cat((values, -values)))
    assert rounded.tolist() == [c_round(value) for value in [*values.tolist(), *(-values).tolist()]]


def test_an_image_index_that_narrows_to_the_next_image_is_refused() -> None:
    rois = torch.tensor([[2 - 1e-12, 0, 0, 8, 8]], dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="image index of 0 to 1"):
        ops.roi_pool(feature_map(4, torch.float32), rois, 2, SCALE)


def test_rois_as_a_list_and_half_precision() -> None:
    image, rois = feature_map(4, torch.float32).detach(), roi_lines(torch.float32)
    ordered = rois[rois[:, 0].argsort(stable=True)]
    as_list = [rois[rois[:, 0] == i, 1:] for i in (0, 1)]
    assert torch.equal(ops.roi_pool(image, ordered, 3, SCALE), ops.roi_pool(image, as_list, 3, SCALE))
    half = ops.roi_pool(image.bfloat16(), ordered, 3, SCALE)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, ops.roi_pool(image.bfloat16().float(), ordered, 3, SCALE).bfloat16())


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_compiles_without_graph_breaks() -> None:
    image, rois = feature_map(4), roi_lines()
    offset = torch.randn(len(ROIS), 2, 3, 2, dtype=torch.float64)
    compiled = torch.compile(
        lambda x, r, o: ops.deform_roi_pool(x, r, o, (3, 2), SCALE), fullgraph=True, backend="aot_eager"
    )
    expected = ops.deform_roi_pool(image, rois, offset, (3, 2), SCALE)
    torch.testing.assert_close(compiled(image, rois, offset), expected, rtol=0, atol=1e-12)


WRONG = {
    r"rois must have shape \[R, 5\]": {"rois": torch.zeros(3, 4)},
    "one Tensor an image": {"rois": [torch.zeros(3, 4)]},
    r"rois\[1\] must have shape": {"rois": [torch.zeros(3, 4), torch.zeros(3, 5)]},
    "image index of 0 to 1": {"rois": torch.tensor([[2.0, 0, 0, 8, 8]]), "offset": None},
    "must be finite": {"rois": torch.tensor([[1.0, 0, float("nan"), 8, 8]]), "offset": None},
    "offset must have shape": {"offset": torch.zeros(7, 3, 2, 2)},
    r"T dividing the 12": {"offset": torch.zeros(7, 10, 2, 2)},
    "output_size must be at least 1": {"output_size": 0},
    "spatial_scale must be positive": {"spatial_scale": 0.0},
    "must be positive and finite": {"spatial_scale": math.inf},
    "sampling must be one of": {"sampling": "nearest"},
    "input must have 4 dimensions": {"input": torch.zeros(12, 9, 11)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    right = {
        "input": feature_map(12, torch.float32).detach(),
        "rois": roi_lines(torch.float32),
        "offset": torch.zeros(7, 2, 2, 2),
        "output_size": 2,
    }
    if message not in ("image index of 0 to 1", "must be finite"):  # which the kernels check, by values
        right["input"] = right["input"].double()  # shapes and values are looked at before dtypes
    with pytest.raises(ValueError, match=message):
        ops.deform_roi_pool(**{**right, **WRONG[message]})


def test_wrong_types_are_named() -> None:
    image, rois = feature_map(12, torch.float32), roi_lines(torch.float32)
    offset = torch.zeros(len(ROIS), 2, 2, 2)
    wrong = {
        r"rois has dtype torch\.float64": lambda: ops.roi_pool(image, rois.double(), 2),
        r"rois\[1\] has dtype torch\.float64": lambda: ops.ps_roi_pool(image, [rois[:, 1:], rois[:, 1:].double()], 2),
        r"offset has dtype torch\.float64": lambda: ops.deform_roi_pool(image, rois, offset.double(), 2),
        "input must have dtype": lambda: ops.deform_ps_roi_pool(image.int(), rois, offset, 2),
        "rois must be a Tensor or a list of them, got float": lambda: ops.roi_pool(image, 1.0, 2),
        "sample_per_part must be an int": lambda: ops.roi_pool(image, rois, 2, sample_per_part=1.5),
    }
    for message, pool in wrong.items():
        with pytest.raises(TypeError, match=message) as caught:
            pool()
        assert isinstance(caught.value, RuntimeError), "as torchvision's"
    with pytest.raises(ValueError, match="multiple of 49 channels"):
        ops.ps_roi_pool(image, rois.double(), 7)


POOLS = {
    "roi_pool": (ops.roi_pool, ()),
    "deform_roi_pool": (ops.deform_roi_pool, (torch.linspace(-1, 1, 12 * len(ROIS)).view(-1, 2, 3, 2),)),
    "ps_roi_pool": (ops.ps_roi_pool, ()),
    "deform_ps_roi_pool": (ops.deform_ps_roi_pool, (torch.linspace(-1, 1, 12 * len(ROIS)).view(-1, 2, 3, 2),)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("sampling", ["paper", "authors"])
@pytest.mark.parametrize("name", POOLS)
def test_scripts_as_torchvisions_functions_do(name: str, sampling: str) -> None:
    pool, offset = POOLS[name]
    scripted = torch.jit.script(pool)
    image, lines = feature_map(12, torch.float32), roi_lines(torch.float32)
    lists = [lines[:4, 1:], lines[4:, 1:]]
    for rois in (lines, lists):
        for size in ((3, 2), 3 if "ps" not in name else 2):
            out = scripted(image, rois, *offset, size, SCALE, sampling=sampling)
            want = pool(image, rois, *offset, size, SCALE, sampling=sampling)
            assert torch.equal(out, want)
            grads = (torch.autograd.grad(each.square().sum(), image)[0] for each in (out, want))
            assert torch.equal(*grads)
