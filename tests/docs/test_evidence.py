"""The tables of docs/results.md are made from the files of the cells."""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest
from ablations import cell_record

from pliant.outputs import wrote

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", DOCS / "evidence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evidence"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def started(evidence: ModuleType) -> list[str]:
    names: list[str] = evidence.started()
    if not names:
        pytest.skip("docs/results has no cells of a study yet")
    return names


def test_parts_are_made_from_cells(evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    deformed = {"nuclei": (0.55, 0.58, 0.58), "nuclei-offset-rate-10": (0.60, 0.62, 0.64)}
    for name, values in deformed.items():
        study = evidence.STUDIES[name]
        (tmp_path / name / "cells").mkdir(parents=True)
        asked = {"recipe": study.recipe, "assignments": study.assignments, "data": study.data, "seeds": 3}
        asked |= {"networks": study.networks, "budget": None, "curve": 6, "steps": 300}
        (tmp_path / name / "ablation.json").write_text(json.dumps(asked))
        for seed, value in enumerate(values):
            (tmp_path / name / "cells" / f"layers-3_seed{seed}.json").write_text(json.dumps(cell_record(value)))
    (tmp_path / "nuclei" / "cells" / "layers-0_seed1.json").write_text(json.dumps(cell_record(0.52)))
    page = "\n".join(
        f"<!-- {part}: nuclei -->\nold\n<!-- /{part}: nuclei -->\nbetween" for part in ("study", "otherwise")
    )
    new = evidence.rewritten(page)
    assert "old" not in new
    assert "between" in new
    assert "| dilation 2 | 52.0 | 90.0 | 1 |  |  |" in new
    assert "| deformable convolution | 57.0 ± 1.7 | 90.0 ± 0.0 | 3 | +6.0 |  |" in new  # with the seed that both have
    assert "4 of 21 cells, 300 steps each" in new
    assert "| as above | 57.0 ± 1.7 | 3 |  |  |" in new
    assert "| `offset_lr_mult=10` | 62.0 ± 2.0 | 3 | +5.0 | +2.5 to +7.5 |" in new
    assert evidence.rewritten(new) == new


def test_the_page_and_the_reports_have_the_numbers_of_the_cells(evidence: ModuleType, tmp_path: Path) -> None:
    page = evidence.PAGE.read_text(encoding="utf-8")
    assert evidence.rewritten(page) == page, "run python docs/evidence.py"
    for name in started(evidence):
        bases = [
            base
            for base, changes in evidence.OTHERWISE.items()
            if any(name.removeprefix(f"{base}-") in ways for ways in changes.values())
        ]
        parts = [f"study: {name}", *(f"otherwise: {base}" for base in bases)]
        assert any(f"<!-- {part} -->" in page for part in parts), name
        kept = evidence.RESULTS / name
        copy = shutil.copytree(kept, tmp_path / name, ignore=shutil.ignore_patterns("runs", "maps"))
        report = evidence.write_report(evidence.Outputs(copy, evidence.REPORT))
        assert report.read_text(encoding="utf-8") == (kept / "ablation.md").read_text(encoding="utf-8")


def test_cells_are_those_of_their_study(evidence: ModuleType) -> None:
    for name in started(evidence):
        study, folder = evidence.STUDIES[name], evidence.RESULTS / name
        asked = json.loads((folder / "ablation.json").read_text(encoding="utf-8"))
        assert asked["assignments"] == list(study.assignments), name
        assert (asked["recipe"], asked["data"], asked["networks"]) == (study.recipe, study.data, list(study.networks))
        for path in (folder / "cells").iterdir():
            record = json.loads(path.read_text(encoding="utf-8"))
            assert path.stem == f"{record['network']}_seed{record['seed']}"
            assert record["network"] in study.networks
            words = record["command"].split()
            for field, value in study.settings.items():
                if field not in ("dilation",):
                    assert f"{field}={value}" in words, path
            assert record["commit"]
            assert record["machine"]
            if "failed" not in record:
                assert record["curve"][-1]["step"] == record["step"] == asked["steps"]


def test_studies_continue_where_they_stopped(evidence: ModuleType) -> None:
    for name in started(evidence):
        for file in (evidence.PLAN, *evidence.REPORT):
            assert wrote(evidence.RESULTS / name / file), f"{name}/{file} would be refused: it is not in its list"


def test_means_by_another_arithmetic(evidence: ModuleType) -> None:
    for name in started(evidence):
        cells, recipe, _ = evidence.read_cells(evidence.RESULTS / name)
        report = (evidence.RESULTS / name / "ablation.md").read_text(encoding="utf-8")
        key = next(iter(evidence.metrics_of(recipe).values()))
        for variant in dict.fromkeys(cell.variant.key for cell in cells):
            files = sorted((evidence.RESULTS / name / "cells").glob(f"{variant}_seed*.json"))
            records = [json.loads(path.read_text(encoding="utf-8")) for path in files]
            values = [100 * record["results"][key] for record in records if "results" in record]
            if len(values) > 1:
                assert f"| {statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} |" in report
