#!/usr/bin/env python
"""Which families of timm's models serve as backbones of stride 16: the table of docs/your-model.md.

    tools/timm_families.py          one small model of each family, as Markdown
    tools/timm_families.py --all    every model that timm lists; ends with 1 if one does anything but work or be refused

Models are built without memory, on torch's meta device, where they can be. Each has a limit of time.
"""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any, NamedTuple, TypeVar

import timm
import torch

from pliant import surgery
from pliant.backbones.timm_maps import find_maps

_T = TypeVar("_T")
_LOOKED_AT = 12  # models of a family, to find a small one


class Row(NamedTuple):
    model: str
    form: str  # how the maps of stride 16 are had, or ""
    channels: str
    layers: int  # how many of the last convolutions can be deformed
    refused: str  # why not


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"no answer in {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def on_meta(build: Callable[[], _T]) -> _T:
    """Build without memory, or with it where that is an error."""
    try:
        with torch.device("meta"):
            return build()
    except TimeoutError:
        raise
    except Exception:
        return build()


def row(model: str) -> Row:
    """What becomes of a model; any other error than a ValueError of one line is not caught."""
    try:
        body, maps = on_meta(lambda: find_maps(model, (16, 16)))
    except ValueError as error:
        if "\n" in str(error) or not str(error).startswith(f"timm/{model} gives no maps"):
            raise
        return Row(model, "", "", 0, str(error).split("(", 1)[1].rsplit(")", 1)[0])
    found: Any = body
    channels = [found.feature_info.channels()[level] for level in maps.levels]
    form = "dilated" if "output_stride" in maps.options else "two maps" if len(set(maps.levels)) > 1 else "one map"
    return Row(model, form, ", ".join(map(str, channels)), surgery.most_deformable(body), "")


def smallest(names: list[str]) -> str:
    """Of a family's first models, the one with the fewest parameters."""
    sizes: dict[str, int] = {}
    for name in names[:_LOOKED_AT]:
        try:
            with limit(20), torch.device("meta"):
                sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        except Exception:  # a model that cannot be built here is not the smallest
            continue
    return min(sizes, key=lambda name: sizes[name]) if sizes else names[0]


def table() -> None:
    rows = {}
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        if names:
            with limit(240):
                rows[family] = row(smallest(names))
            print(family, file=sys.stderr)
    print(f"timm {timm.__version__}, torch {torch.__version__.split('+')[0]}, {date.today()}:\n")
    print("| Family | Tried | Maps of stride 16 | Channels | Can be deformed |\n| --- | --- | --- | --- | --- |")
    for family, each in rows.items():
        if each.form:
            print(f"| {family} | `{each.model}` | {each.form} | {each.channels} | {each.layers} |")
    refused = [f"{family} (`{each.model}`)" for family, each in rows.items() if not each.form]
    print(f"\nRefused: {', '.join(refused)}.")


def everything() -> int:
    """Try every model, and name those that end in an error of another kind."""
    bad, works = [], 0
    names = timm.list_models()
    for name in names:
        try:
            with limit(240):
                works += bool(row(name).form)
        except Exception as error:
            bad.append(name)
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
    print(f"{len(names)} models: {works} work, {len(names) - works - len(bad)} are refused, {len(bad)} end otherwise")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every model, and not one of each family")
    every = parser.parse_args().all
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if every:
        return everything()
    table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
