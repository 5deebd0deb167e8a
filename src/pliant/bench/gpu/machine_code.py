"""A kernel's machine code, as cuobjdump prints it: its instructions, and how many a turn of its loop takes."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)([^;]*);")
_TARGET = re.compile(r"0x([0-9a-f]+)")
# How a kernel multiplies, copies, adds, and whether it spills.
_TELLING = ("HGMMA", "HMMA", "LDGSTS", "LDG", "STG", "REDG", "RED", "ATOMG", "LDL", "STL", "FFMA")


class Instruction(NamedTuple):
    """One instruction; `target` is where a branch goes."""

    address: int
    name: str
    target: int | None


def read(text: str) -> list[Instruction]:
    """The instructions of a kernel's listing (`cuobjdump -sass`)."""
    found = []
    for address, name, rest in _LINE.findall(text):
        target = _TARGET.search(rest) if name.split(".")[0] == "BRA" else None
        found.append(Instruction(int(address, 16), name, int(target[1], 16) if target else None))
    return found


def telling(code: list[Instruction]) -> Counter[str]:
    """How often each instruction of interest is there."""
    return Counter(each.name for each in code if each.name.split(".")[0] in _TELLING)


def turn(code: list[Instruction]) -> int:
    """The instructions of a turn of the longest loop, without what its largest branch leaves out; 0 without a loop."""
    most = 0
    for end in code:
        if end.target is None or end.target >= end.address:
            continue
        body = [each for each in code if end.target <= each.address <= end.address]
        skips = (_between(body, each) for each in body if each.target is not None)
        most = max(most, len(body) - max(skips, default=0))
    return most


def _between(body: list[Instruction], branch: Instruction) -> int:
    """How many instructions of a loop a branch forward leaves out; none where it leaves the loop."""
    if branch.target is None or not branch.address < branch.target <= body[-1].address:
        return 0
    return sum(branch.address < each.address < branch.target for each in body)
