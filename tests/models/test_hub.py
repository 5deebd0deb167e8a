"""Networks in folders of the Hugging Face Hub's form; the Hub itself is replaced by a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pliant.models import (
    RFCN,
    ClassAwareRPN,
    Classifier,
    DeepLab,
    FasterRCNN,
    FPNFasterRCNN,
    class_aware_rpn,
    classifier,
    deeplab,
    faster_rcnn,
    fpn_faster_rcnn,
    hub,
    rfcn,
)

SMALL: dict[str, Any] = {"num_classes": 3, "backbone": "resnet10t"}
STRIDE_16: dict[str, Any] = {**SMALL, "deform_layers": 1, "border": "authors"}
NETWORKS = {
    Classifier: lambda: classifier(**STRIDE_16),
    DeepLab: lambda: deeplab(**STRIDE_16),
    FasterRCNN: lambda: faster_rcnn(**STRIDE_16, anchor_scales=(2, 4), min_size=64),
    RFCN: lambda: rfcn(**STRIDE_16, bins=3, min_size=64),
    ClassAwareRPN: lambda: class_aware_rpn(**STRIDE_16, hidden=False, min_size=64),
    FPNFasterRCNN: lambda: fpn_faster_rcnn(**SMALL, deform_stages=1, min_size=64, max_size=96),
}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_a_saved_network_comes_back(tmp_path: Path, network: Any) -> None:
    model = NETWORKS[network]().train()
    model.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    again = network.from_pretrained(tmp_path / "saved")
    assert type(again) is network
    assert not again.training
    assert again.config == model.config
    state = again.state_dict()
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    image = torch.rand(3, 48, 64)
    with torch.no_grad():
        left, right = (
            (each.eval()(image[None] if network in (Classifier, DeepLab) else [image])) for each in (model, again)
        )
    torch.testing.assert_close(left, right)


def test_arguments_go_before_the_saved_ones(tmp_path: Path) -> None:
    faster_rcnn(**STRIDE_16).save_pretrained(tmp_path)
    model = FasterRCNN.from_pretrained(tmp_path, score_thresh=0.75, backbone="resnet10t")
    assert model.roi_heads.score_thresh == 0.75
    assert model.config["score_thresh"] == 0.75


def test_to_the_hub_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, folder_path: Path, **_: Any) -> str:
            shutil.copytree(folder_path, store)
            return "done"

    def download(repo_id: str, filename: str, **_: Any) -> str:
        assert repo_id == "someone/network"
        return str(store / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.hf_hub_download", lambda *a, **k: download(k["repo_id"], k["filename"])
    )
    monkeypatch.setattr(hub, "hf_hub_download", download)
    model = deeplab(**STRIDE_16)
    model.push_to_hub("someone/network")
    again = DeepLab.from_pretrained("someone/network")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


def test_what_does_not_fit_is_an_error(tmp_path: Path) -> None:
    model: nn.Module = deeplab(**STRIDE_16)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is no RFCN: config.json names DeepLab"):
        RFCN.from_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)
    state["extra"] = state.pop("score.bias")
    save_file(state, weights)
    with pytest.raises(ValueError, match=r"does not fit DeepLab: missing score.bias \[3\]; unknown extra \[3\]"):
        DeepLab.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"num_classes": 3}))
    with pytest.raises(ValueError, match=r"config.json names no network"):
        DeepLab.from_pretrained(tmp_path)
