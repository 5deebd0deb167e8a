"""Writes the ledger's figures into the documentation, between markers.

The part of a page between `<!-- gpu: NAME -->` and `<!-- /gpu: NAME -->` is generated from the ledger. A test generates
the parts again and compares them, and it finds figures of GPUs elsewhere. So every figure of a GPU is in the ledger.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pliant.bench.gpu import training
from pliant.bench.gpu.ledger import DEFAULT, Line
from pliant.bench.rows import ConvRow

PAGES = (Path("README.md"), Path("docs/performance.md"))
_MARKED = re.compile(r"<!-- gpu: (\w+) -->\n(.*?)<!-- /gpu: \1 -->", re.DOTALL)
_MANY = 64  # channels
_PLIANT, _CUDNN, _TORCHVISION = "Pliant", "conv2d (cuDNN)", "torchvision"
_FORWARD, _TRAINING = "forward", "forward + backward"
_HEAD = "N, C→O, map, kernel, dilation, offset groups; spread, layout"

# A GPU, or GPUs in general, beside a number with a unit, or beside a ratio.
_GPU = re.compile(
    r"\b(?:[AHVBL](?:4|10|40|40S|100|200)|GH200|T4|RTX ?\d{4}|(?:GTX|Tesla|Quadro) ?\w+|GPUs?|CUDA|NVIDIA)\b"
)
_FIGURE = re.compile(
    r"\d(?:[\d.,]*\d)?\s*(?:ms|µs|us|s|TFLOPS?|TFLOP/s|[GT]B/s|[MG]i?B|%|×|x|times|percent|images)(?![\w/])"
    r"|\btimes as (?:fast|long)|\bfaster\b|\bslower\b|\b(?:twice|half|third|quarter) (?:of|the|as)\b"
)


def write(lines: Sequence[Line], root: Path = Path()) -> None:
    """Write all parts again.

    Raises:
        ValueError: If a page has a part with an unknown name.
    """
    for page in PAGES:
        path = root / page
        if path.exists():
            text = path.read_text(encoding="utf-8")
            new = rewritten(text, lines)
            if new != text:
                path.write_text(new, encoding="utf-8")


def rewritten(text: str, lines: Sequence[Line]) -> str:
    """Return a page with its parts generated from a ledger."""

    def part(match: re.Match[str]) -> str:
        name = match[1]
        if name not in PARTS:
            raise ValueError(f"a part of a page must be one of {', '.join(PARTS)}, got {name!r}")
        return f"<!-- gpu: {name} -->\n{PARTS[name](_measured(lines))}<!-- /gpu: {name} -->"

    return _MARKED.sub(part, text)


def claims(text: str) -> list[str]:
    """Return the sentences outside the parts that name a GPU together with a figure."""
    without = _MARKED.sub("", text)
    blocks = re.split(r"\n\s*\n|\n(?=\s*[-*] )", without)  # paragraphs and the items of lists
    found = []
    for block in blocks:
        whole = block if block.lstrip().startswith("|") else " ".join(block.split())
        pieces = whole.splitlines() if "\n" in whole else re.split(r"(?<=[.!?:])\s+(?=[A-Z`*])", whole)
        found += [piece.strip() for piece in pieces if _GPU.search(piece) and _FIGURE.search(piece)]
    return found


def _measured(lines: Iterable[Line]) -> list[Line]:
    """Return the last lines of each step on each GPU. A repeated step replaces its earlier lines.

    Lines of other kernels than the last ones of their kind are left out: no table mixes two versions. Checks stay until
    they are repeated, and name their commit.
    """
    some = [line for line in lines if not str(line.get("gpu", "")).startswith("none")]
    newest = {(line.get("gpu"), line.get("kind")): line.get("kernels") for line in some}
    last: dict[tuple[Any, str], list[Line]] = {}
    ended: set[tuple[Any, str]] = set()
    for line in some:
        if line.get("kind") != "right" and line.get("kernels") != newest[line.get("gpu"), line.get("kind")]:
            continue
        step = (line.get("gpu"), line["step"])
        if step in ended or step not in last:
            last[step] = []
            ended.discard(step)
        last[step].append(line)
        if line.get("last"):
            ended.add(step)
    return [line for group in last.values() for line in group]


def _right(lines: Sequence[Line]) -> str:
    """Make a table of the checks on each GPU: how many were right, and the largest error in each dtype."""
    checks = [line for line in lines if line.get("kind") == "right" and "right" in line]
    if not checks:
        return _NOTHING
    rows = []
    for gpu, commit in dict.fromkeys((line["gpu"], line["commit"]) for line in checks):
        mine = [line for line in checks if (line["gpu"], line["commit"]) == (gpu, commit)]
        for name in ("dtype", "check"):
            for what in dict.fromkeys(line["key"].get(name) for line in mine if line["key"].get(name)):
                some = [line for line in mine if line["key"].get(name) == what]
                worst = max((line["error64"] for line in some if line.get("error64") is not None), default=None)
                right = sum(bool(line["right"]) for line in some)
                rows.append([gpu, commit, what, f"{right} of {len(some)}", "-" if worst is None else f"{worst:.1e}"])
        for line in mine:
            if "passed" in line:
                passed = f"{line['passed']} of {line['passed'] + line['failed']}"
                rows.append([gpu, commit, f"`{line['key']['tests']}`", passed, "-"])
            if "tool" in line["key"]:
                found = "1 of 1" if line["right"] else "0 of 1"
                rows.append([gpu, commit, f"compute-sanitizer {line['key']['tool']}", found, "-"])
    return _source(checks) + _table(["GPU", "commit", "what", "right", "largest error, of the largest value"], rows)


def _speed(lines: Sequence[Line]) -> str:
    """Make a table for each GPU, dtype and pass: times relative to the plain convolution, on the device and eager."""
    timed = [line for line in lines if line.get("kind") == "speed" and "eager" in line]
    if not timed:
        return _NOTHING
    parts = [_source(timed)]
    for gpu in dict.fromkeys(line["gpu"] for line in timed):
        for dtype in dict.fromkeys(line["key"]["dtype"] for line in timed if line["gpu"] == gpu):
            for what in (_FORWARD, _TRAINING):
                some = [
                    line for line in timed
                    if (line["gpu"], line["key"]["dtype"], line["pass"]) == (gpu, dtype, what)
                ]  # fmt: skip
                parts.append(_speed_table(f"{gpu}, {dtype}, {what}; {_CUDNN} = 1", some))
    return "\n".join(parts)


def _speed_table(title: str, lines: Sequence[Line]) -> str:
    names = list(dict.fromkeys(line["implementation"] for line in lines))
    others = [name for name in dict.fromkeys((_PLIANT, *names)) if name != _CUDNN]
    on_device = [name for name in others if any(line["implementation"] == name and "device" in line for line in lines)]
    by_problem: dict[str, dict[str, Line]] = {}
    for line in lines:
        by_problem.setdefault(_problem(line["key"]), {})[line["implementation"]] = line
    rows = []
    for problem, found in by_problem.items():
        base = found.get(_CUDNN)
        cells = [problem, _ms(base), *(_ratio(found.get(name), base) for name in on_device)]
        cells += [_ms(base, "eager"), *(_ratio(found.get(name), base, "eager") for name in others)]
        share = found.get(_PLIANT, {}).get("roofline")
        memory = [found.get(name, {}).get("peak_mib") for name in (_PLIANT, "torchvision")]
        cells += [
            "-" if share is None else f"{share:.0%}",
            " / ".join("-" if m is None else f"{m:.0f}" for m in memory),
        ]
        rows.append(cells)
    head = [
        _HEAD,
        f"{_CUDNN}, ms on the device",
        *on_device,
        "the same, ms eager",
        *(f"{name}, eager" for name in others),
    ]
    head += ["Pliant, of the roofline", "MiB at the peak, Pliant / torchvision"]
    return f"**{title}**\n\n" + _table(head, rows)


def _beside(lines: Sequence[Line]) -> str:
    """Make a table of what was timed beside torchvision on the device, without graphs."""
    timed = [line for line in lines if line.get("kind") == "beside"]
    if not timed:
        return _NOTHING
    by_problem: dict[str, dict[str, Line]] = {}
    for line in timed:
        by_problem.setdefault(_problem(line["key"]), {})[line["implementation"]] = line
    rows = [
        [
            problem,
            _ms(found.get(_CUDNN)),
            *(_ratio(found.get(name), found.get(_CUDNN)) for name in (_PLIANT, _TORCHVISION)),
            _ratio(found.get(_PLIANT), found.get(_TORCHVISION)),
        ]
        for problem, found in by_problem.items()
    ]
    head = [_HEAD, f"{_CUDNN}, ms", _PLIANT, f"{_TORCHVISION}, float16", "Pliant / torchvision"]
    return (
        f"**{timed[0]['gpu']}, forward + backward, {_PLIANT} in bfloat16; {_CUDNN} = 1**\n\n"
        + _source(timed, "Events around calls before which the device was kept busy, by a script")
        + _table(head, rows)
    )


def _training(lines: Sequence[Line]) -> str:
    """Make a table of the training steps."""
    timed = [line for line in lines if line.get("kind") == "training" and "device" in line]
    if not timed:
        return _NOTHING
    by_step: dict[tuple[Any, ...], dict[str, Line]] = {}
    for line in timed:
        key = line["key"]
        size = "×".join(map(str, key["image"]))
        by_step.setdefault((line["gpu"], key["network"], key["backbone"], size, key["precision"]), {})[
            line["implementation"]
        ] = line
    names = list(dict.fromkeys(line["implementation"] for line in timed))
    base = names[0]
    clocks = [clock for clock in ("device", "busy") if any(clock in line for line in timed)]
    rows = []
    for key, found in by_step.items():
        cells = [", ".join(key)]
        for clock in clocks:
            cells += (
                _ms(found.get(base), clock),
                *(_ratio(found.get(name), found.get(base), clock) for name in names[1:]),
            )
        rows.append(cells)
    head = ["GPU, network, backbone, image, precision", f"{base}, ms", *names[1:]]
    if "busy" in clocks:
        head += f"{base}, ms of kernels", *(f"{name}, kernels" for name in names[1:])
    return _source(timed) + _table(head, rows)


def _summary(lines: Sequence[Line]) -> str:
    """Make the sentences of the README: the range of the ratios in half precision on each GPU.

    Grouped convolutions and few channels are left to the page: their plain convolutions take microseconds.
    """
    timed = [
        line
        for line in lines
        if line.get("kind") == "speed"
        and "eager" in line
        and line["key"]["groups"] == line["key"]["offset_groups"] == 1
        and line["key"]["channels"] >= _MANY
    ]
    if not timed:
        return _NEVER_RAN
    sentences = []
    for gpu in dict.fromkeys(line["gpu"] for line in timed):
        mine = [line for line in timed if line["gpu"] == gpu and line["key"]["dtype"] in ("bfloat16", "float16")]
        beside = [line for line in lines if line.get("kind") == "beside" and line["gpu"] == gpu]
        found = []
        for some, other, clock, said in (
            (mine, _CUDNN, "device", "the plain convolution's on the device"),
            (beside, _TORCHVISION, "device", "torchvision's on the device"),
            (mine, _TORCHVISION, "eager", "torchvision's in eager calls, where the host's launches count"),
        ):
            whole = [line for line in some if line["pass"] == _TRAINING]
            ratios = sorted(_ratios(whole, _PLIANT, other, clock))
            if ratios:
                found.append(f"{_range(ratios)} of {said}")
        if found:
            listed = " and ".join([", ".join(found[:-1]), found[-1]] if found[1:] else found)
            sentences.append(
                f"On an {gpu}, in half precision and with {_MANY} channels or more, the time of forward and backward "
                f"is {listed} ([{len(mine)} measurements](docs/performance.md#on-a-gpu))."
            )
            sentences += _training_sentence([line for line in lines if line["gpu"] == gpu])
    return "\n".join(sentences) + "\n" if sentences else _NEVER_RAN


def _training_sentence(lines: Iterable[Line]) -> list[str]:
    """Make the sentence on training steps, if there are any."""
    timed = [line for line in lines if line.get("kind") == "training" and "device" in line]
    own, peer = (
        sorted(_ratios(timed, name, training.PLAIN, "device")) for name in (training.PLIANT, training.TORCHVISION)
    )
    if not own:
        return []
    networks = "; ".join(dict.fromkeys(line["step"].removeprefix("training ") for line in timed))
    beside = f", and {_range(peer)} with torchvision's operator" if peer else ""
    said = [f"A training step there ({networks}) takes {_range(own)} of the plain network's time{beside}."]
    own, peer = (
        sorted(_ratios(timed, name, training.PLAIN, "busy")) for name in (training.PLIANT, training.TORCHVISION)
    )
    if own:
        beside = f", and {_range(peer)} with torchvision's" if peer else ""
        said.append(f"Its kernels alone, without the time of their launches, take {_range(own)}{beside}.")
    return said


def _range(ratios: Sequence[float]) -> str:
    """The first and the last of sorted ratios; a single one where they are printed alike."""
    return " to ".join(dict.fromkeys(f"{ratio:.2g}" for ratio in (ratios[0], ratios[-1])))


def _ratios(lines: Iterable[Line], one: str, other: str, clock: str) -> list[float]:
    """Return the ratio of one implementation's time to another's for each problem."""
    medians: dict[str, dict[str, float]] = {}
    for line in lines:
        if clock in line:
            same = {name: value for name, value in line["key"].items() if name != "dtype" or line["kind"] != "beside"}
            medians.setdefault(str(same), {})[line["implementation"]] = line[clock]["median_ms"]
    return [each[one] / each[other] for each in medians.values() if one in each and other in each]


def _source(lines: Sequence[Line], how: str = "`python -m pliant.bench.gpu`") -> str:
    """Say which commits and versions the figures are from."""
    commits = sorted({str(line["commit"]) for line in lines})
    dates = sorted({str(line["date"])[:10] for line in lines})
    versions = sorted({f"{name} {version}" for line in lines for name, version in line["versions"].items()})
    drivers = sorted({str(line["driver"]) for line in lines})
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"{how} at {', '.join(commits)}, {days}; {', '.join(versions)}, driver "
        f"{', '.join(drivers)}; the lines are in `{DEFAULT}`.\n\n"
    )


def _problem(key: Mapping[str, Any]) -> str:
    row = ConvRow(**{name: key[name] for name in ConvRow.__dataclass_fields__})
    return f"{row.name}; {row.spread:g}, {key['layout']}"


def _ms(line: Line | None, clock: str = "device") -> str:
    return "-" if line is None or clock not in line else f"{line[clock]['median_ms']:.3g}"


def _ratio(line: Line | None, base: Line | None, clock: str = "device") -> str:
    if line is None or clock not in line:
        return "-"
    if base is None:
        return f"{_ms(line, clock)} ms"
    ratio = line[clock]["median_ms"] / base[clock]["median_ms"]
    return f"{ratio:.2f}" + ("" if line.get("right", True) else " (wrong)")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


_NOTHING = "Nothing has been measured yet.\n"
_NEVER_RAN = "The Triton kernels have **not run on a GPU yet**.\n"
PARTS = {"right": _right, "speed": _speed, "beside": _beside, "training": _training, "summary": _summary}
