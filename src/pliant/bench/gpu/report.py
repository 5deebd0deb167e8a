"""Prints lines of the ledger as short sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sentence(line: Mapping[str, Any]) -> str:
    """Return a short sentence about a line."""
    words = [line["step"]]
    words += [str(line[name]) for name in ("implementation", "kernel", "design", "pass") if line.get(name)]
    if "call" in line.get("key", {}):
        words += [str(value) for value in line["key"].values() if str(value) not in line["step"]]
    if line.get("tiles"):
        words.append("/".join(map(str, line["tiles"].values())))
    return f"{', '.join(words)}: {'; '.join(_figures(line)) or 'done'}"


def is_wrong(line: Mapping[str, Any]) -> bool:
    """Whether a line reports something wrong with Pliant, and not with a peer or a candidate for its settings."""
    own = line.get("implementation", "Pliant") in ("Pliant", "plain", "deformable")
    own = own and (line.get("kind") != "tuning" or bool(line.get("chosen")))
    return own and ("error" in line or line.get("right") is False)


def _figures(line: Mapping[str, Any]) -> list[str]:
    found = []
    for name in ("device", "eager"):
        if name in line:
            found.append(f"{line[name]['median_ms']:.4g} ms {name}")
    if line.get("device", {}).get("graph") is False:
        found.append("not as a graph")
    if line.get("roofline") is not None:
        found.append(f"{line['roofline']:.0%} of the roofline ({line['bound']})")
    if line.get("to_chosen") is not None:
        found.append(f"{line['to_chosen']:.3f} of the chosen")
    if line.get("peak_mib") is not None:
        found.append(f"{line['peak_mib']:.0f} MiB")
    if "tolerance" in line:
        error = line["error64"]
        found.append(f"error {'is no number' if error is None else f'{error:.1e}'} ({line['worst']})")
    if "passed" in line:
        found.append(f"{line['passed']} passed, {line['failed']} failed, {line['skipped']} skipped")
        found += [f"{name}: {said[:80]}" for name, said in line["failures"].items()]
    if "bandwidth" in line:
        found.append(f"{line['bandwidth'] / 1e12:.3g} TB/s")
        found += [f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in line["operations"].items()]
    if "absent" in line:
        found.append(f"absent: {line['absent']}")
    if line.get("right") is False:
        found.append("WRONG")
    if "error" in line:
        found.append(f"ERROR {line['error_type']}: {line['error'].splitlines()[0][:160]}")
    return found
