from __future__ import annotations

import contextlib
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from pliant.commands.demo import report as demo_report
from pliant.commands.demo import run as demo
from pliant.data import Glyphs
from pliant.introspect import EffectiveDilation

SCENES = 3


class Page(HTMLParser):
    """What a page shows, and what it asks for outside of itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.captions: list[str] = []
        self.linked: list[str] = []
        self.explorer = ""
        self._texts: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "img":
            self.pictures.append((given["src"], given["alt"]))
        if tag == "iframe":
            self.explorer = given["srcdoc"]
        for name in ("src", "href"):
            if name in given and not given[name].startswith("data:"):
                self.linked.append(given[name])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._texts = self.rows[-1]
        if tag == "figcaption":
            self.captions.append("")
            self._texts = self.captions

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "figcaption"):
            self._texts = None

    def handle_data(self, data: str) -> None:
        if self._texts is not None:
            self._texts[-1] += data


def test_the_three_networks_start_from_the_same_weights() -> None:
    plain, dilated, deformable = (demo.build(kind, 11, seed=1) for kind in demo.NETWORKS)
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(plain.layers[1][0].weight, deformable.layers[1][0].weight)
    assert torch.equal(plain.layers[1][0].weight, dilated.layers[1][0].weight)
    torch.testing.assert_close(plain.eval()(images), deformable.eval()(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain(images), dilated.eval()(images))


class Demo(NamedTuple):
    """What one demo left: its folder, what it printed, and the deformable network."""

    out: Path
    printed: str
    network: nn.Module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    networks: list[nn.Module] = []
    predict = demo.predict

    def recording(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        networks.append(model)
        return predict(model, images)

    out, printed = tmp_path_factory.mktemp("demo") / "out", io.StringIO()
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(demo, "predict", recording)
        patch.setattr(demo, "TEST_SCENES", SCENES)
        demo.run(out, steps=2)
    return Demo(out, printed.getvalue(), networks[-1])


def test_writes_a_page_and_prints_three_rows(made: Demo) -> None:
    out, printed, _ = made
    assert printed.splitlines()[-1] == f"Open {out / 'report.html'}"
    record = json.loads((out / "results.json").read_text())
    page = Page((out / "report.html").read_text())
    assert [result["network"] for result in record["results"]] == list(demo.NETWORKS)
    for result in record["results"]:
        score = f"{result['miou']:.1f}"
        assert score in printed
        assert [result["network"], score] in [row[:2] for row in page.rows]
    for layer, groups in enumerate(record["effective_dilation"].values(), 1):
        cells = [f"{each['mean']:.2f} ± {each['std']:.2f}" if each["number"] else "–" for each in groups.values()]
        assert [f"layer {layer}", *cells] in page.rows
    sides = [record["cost"][side] for side in ("plain", "deformable")]
    assert ["parameters", *(f"{side['parameters']:,}" for side in sides)] in page.rows
    assert ["time of the pass", *(f"{1e3 * side['seconds']:.1f} ms" for side in sides)] in page.rows
    for name, value in record["settings"].items():
        shown = " to ".join(map(str, value)) if isinstance(value, list) else value
        assert f"<dt>{name.replace('_', ' ')}</dt><dd>{shown}</dd>" in (out / "report.html").read_text()


def test_is_written_over_an_earlier_demo(made: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made.out, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(demo, "TEST_SCENES", SCENES)
    demo.run(tmp_path, steps=1)
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["steps"] == 1


def test_the_page_needs_no_other_file_and_says_what_to_see(made: Demo) -> None:
    page = Page((made.out / "report.html").read_text())
    assert len(page.pictures) == 4
    for source, alt in page.pictures:
        assert source.startswith("data:image/")
        assert len(alt) > 20
    assert len(page.captions) == len(page.pictures) + 2  # a table, and what `pliant look` writes
    assert all(len(caption.split()) > 15 for caption in page.captions)
    assert page.linked == []
    assert page.explorer == (made.out / "look.html").read_text()


def test_the_effective_dilation_is_that_of_the_trained_network(made: Demo) -> None:
    measure = EffectiveDilation(made.network, demo_report.AREAS)
    scenes = Glyphs(SCENES, split="test", seed=0, **demo.SCENES)
    for index in range(SCENES):
        scene = scenes.scene(index)
        measure.update(torch.from_numpy(scene.image) / 255, torch.from_numpy(scene.boxes))
    found = json.loads((made.out / "results.json").read_text())["effective_dilation"]
    for layer, groups in measure.compute().items():
        for group, spread in groups.items():
            assert found[layer][group]["number"] == spread.number
            assert found[layer][group]["mean"] == (pytest.approx(spread.mean) if spread.number else None)


def test_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="contains files that Pliant did not write"):
        demo.run(tmp_path, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"thesis.tex is a file"):
        demo.run(tmp_path / "thesis.tex", steps=1)
