"""Defects of a data set: reported with their paths, counted and summarised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pliant.console import printable

Action = Literal["skipped", "clipped", "merged"]


class DataError(ValueError):
    """A data set cannot be used: a folder or split is missing or lost, or there is a problem in strict mode.

    Args:
        path: file or folder at fault.
        detail: what is wrong with it.

    Attributes:
        path, detail: the arguments.
    """

    def __init__(self, path: str | Path, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = Path(path)
        self.detail = detail

    def __reduce__(self) -> tuple[type[DataError], tuple[Path, str]]:
        # The default would call DataError(message), which lacks an argument.
        return type(self), (self.path, self.detail)


@dataclass(frozen=True)
class Problem:
    """One defect of a data set.

    Attributes:
        path: file at fault.
        kind: short name shared by all defects of this kind, such as `"zero-area box"`.
        detail: what exactly was found, sufficient to locate it in the file.
        action: `"skipped"` if the image or box is not used, `"clipped"` if it is used after clipping to valid values,
            `"merged"` if it is used as part of a previous one.
    """

    path: Path
    kind: str
    detail: str
    action: Action


class ProblemLog:
    """The problems of a data set, each counted once.

    A problem that recurs (with the same path, kind and detail, for example in the next epoch) is not counted again.
    Data sets look for problems when they are opened; only damaged pixels are found later. Problems that DataLoader
    workers find are logged there and do not reach this object.

    Args:
        strict: raise `DataError` at the first problem instead of recording it.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self._problems: dict[Problem, None] = {}

    def report(self, path: str | Path, kind: str, detail: str, action: Action = "skipped") -> bool:
        """Record a problem.

        Returns:
            True if it is new.

        Raises:
            DataError: in strict mode.
        """
        return self.append(Problem(Path(path), kind, detail, action))

    def append(self, problem: Problem) -> bool:
        """Record `problem`, see `report`."""
        if self.strict:
            raise DataError(problem.path, f"{problem.kind}: {problem.detail}")
        if problem in self._problems:
            return False
        self._problems[problem] = None
        return True

    def __len__(self) -> int:
        return len(self._problems)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._problems)

    def counts(self) -> dict[str, int]:
        """The number of problems of each kind, most frequent first."""
        return dict(Counter(problem.kind for problem in self).most_common())

    def summary(self, limit: int = 5) -> str:
        """The problems as text: a line per kind, followed by up to `limit` paths of that kind."""
        if not self._problems:
            return "no problems"
        lines = [f"{len(self)} problem{'s' if len(self) > 1 else ''}"]
        for kind, count in self.counts().items():
            found = [problem for problem in self if problem.kind == kind]
            actions = " or ".join(sorted({problem.action for problem in found}))
            lines.append(f"  {kind}: {count} ({actions})")
            lines += [printable(f"    {problem.path}: {problem.detail}") for problem in found[:limit]]
            if count > limit:
                lines.append(f"    ... and {count - limit} more")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"ProblemLog({self.counts()}, strict={self.strict})"
