from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pliant.recipes import demo


def test_the_three_networks_start_from_the_same_weights() -> None:
    plain, dilated, deformable = (demo.build(kind, 11, seed=1) for kind in demo.NETWORKS)
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(plain.layers[1][0].weight, deformable.layers[1][0].weight)
    assert torch.equal(plain.layers[1][0].weight, dilated.layers[1][0].weight)
    torch.testing.assert_close(plain.eval()(images), deformable.eval()(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain(images), dilated.eval()(images))


def test_writes_its_report_and_prints_three_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "TEST_SCENES", 8)
    out = tmp_path / "out"
    demo.run(out, steps=2)
    printed = capsys.readouterr().out
    record = json.loads((out / "results.json").read_text())
    assert [result["network"] for result in record["results"]] == list(demo.NETWORKS)
    for result in record["results"]:
        assert f"{result['miou']:.1f}" in printed
        assert f"{result['network']} | {result['miou']:.1f}" in (out / "report.md").read_text()
    for name in ("predictions.png", "sampling.png", "comparison.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    demo.run(out, steps=1)  # over an earlier demo
    assert json.loads((out / "results.json").read_text())["settings"]["steps"] == 1


def test_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="holds other files"):
        demo.run(tmp_path, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"thesis.tex is a file"):
        demo.run(tmp_path / "thesis.tex", steps=1)
