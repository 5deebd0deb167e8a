"""Files of tensors that are none, or are damaged."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pliant.runs.tensors import read_tensors, require_fit, unwrapped


def saved(old: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2, 3)}, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


@pytest.mark.parametrize("old", [False, True])
def test_a_file_of_tensors_is_read(tmp_path: Path, old: bool) -> None:
    (tmp_path / "a.pth").write_bytes(saved(old))
    assert read_tensors(tmp_path / "a.pth")["a"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_junk_and_cut_files_are_value_errors(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    wholes = [save({"a": torch.ones(3)}), saved(False), saved(True)]
    junk = [b"", b"junk\n", b"\x80\x02", b"version https://git-lfs", *(rng.bytes(200) for _ in range(60))]
    junk += [whole[: len(whole) * part // 8] for whole in wholes for part in range(1, 8)]
    for content in junk:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_tensors(tmp_path / name)


def test_what_does_not_fit_is_listed() -> None:
    found = {"a": torch.zeros(2), "c": torch.zeros(1)}
    with pytest.raises(
        ValueError, match=r"x does not fit Net: missing b \[3\]; unknown c \[1\]; a has shape \[2\], exp"
    ):
        require_fit("x", found, {"a": [4], "b": [3]}, "Net")
    require_fit("x", found, {"a": torch.Size([2]), "c": [1]}, "Net")


NET = {"conv1.weight": torch.ones(2), "layer.0.weight": torch.zeros(3), "layer.0.bias": torch.zeros(1)}


def after(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in NET.items()}


@pytest.mark.parametrize(
    "stored",
    [
        NET,
        *(after(prefix) for prefix in ("module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.model.")),
        {
            "conv1.weight": NET["conv1.weight"],
            **{f"layer._orig_mod.{n}": NET[f"layer.{n}"] for n in ("0.weight", "0.bias")},
        },
        {"n_averaged": torch.tensor(3), **after("module.")},
        *(
            {key: NET, "epoch": 3}
            for key in ("state_dict", "model", "model_state", "model_state_dict", "ema", "weights")
        ),
        {"model": after("module."), "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "args": {"lr": 0.1}},
        {"checkpoint": {"model": NET}, "model": {"state_dict": NET}},
        {"state_dict": NET, "ema": {name: value + 1 for name, value in NET.items()}},
    ],
)
@pytest.mark.parametrize("counted", [False, True])
def test_weights_are_found_below_keys_and_prefixes(tmp_path: Path, stored: dict[str, object], counted: bool) -> None:
    torch.save(stored, tmp_path / "a.pth")
    expected = {**NET, "layer.1.num_batches_tracked": 0} if counted else NET
    found = read_tensors(tmp_path / "a.pth", expected)
    assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in NET.items()}


def test_a_prefix_that_is_expected_stays(tmp_path: Path) -> None:
    torch.save(after("model."), tmp_path / "a.pth")
    assert read_tensors(tmp_path / "a.pth", after("model.")).keys() == after("model.").keys()
    assert read_tensors(tmp_path / "a.pth").keys() == after("model.").keys()
    assert read_tensors(tmp_path / "a.pth", {"other"}).keys() == after("model.").keys()


def test_a_prefix_that_not_all_names_have_is_named(tmp_path: Path) -> None:
    torch.save({**after("encoder."), "head.weight": torch.ones(1)}, tmp_path / "a.pth")
    found = read_tensors(tmp_path / "a.pth", NET)
    shapes = {name: list(value.shape) for name, value in NET.items()}
    with pytest.raises(
        ValueError, match=r"3 of its 4 names would fit without the prefix 'encoder\.', which is removed only"
    ):
        require_fit("a.pth", found, shapes, "Net")


def test_a_checkpoint_that_contains_itself_ends() -> None:
    stored: dict[str, object] = {"epoch": 1}
    stored["model"] = stored
    assert unwrapped(stored) is stored


def test_optional_names_and_a_limit_to_the_list() -> None:
    shapes = {name: list(value.shape) for name, value in NET.items()}
    some = {"conv1.weight": NET["conv1.weight"]}
    require_fit("x", some, shapes, "Net", optional=("layer.0.weight", "layer.0.bias"))
    with pytest.raises(ValueError, match=r"missing layer.0.weight \[3\]; and 1 more$"):
        require_fit("x", some, shapes, "Net", most=1)
