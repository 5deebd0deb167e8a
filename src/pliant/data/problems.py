"""What is wrong with a data set: reported with its path, counted, and shown in one summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pliant.console import printable

Action = Literal["skipped", "clipped", "merged"]


class DataError(ValueError):
    """A data set cannot be used as asked: a missing or lost folder or split, or any problem in strict mode.

    Args:
        path: The file or folder at fault.
        detail: What is wrong with it.

    Attributes:
        path: The file or folder at fault.
        detail: What is wrong with it.
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
    """One defect found in a data set.

    Attributes:
        path: The file at fault.
        kind: A short name shared by all defects of this sort, such as ``"zero-area box"``.
        detail: What exactly was found, enough to find it again in the file.
        action: ``"skipped"``: the image or box is not used; ``"clipped"``: it is used, cut to what is valid;
            ``"merged"``: it is used, as part of what came before.
    """

    path: Path
    kind: str
    detail: str
    action: Action


class ProblemLog:
    """The problems of one data set, each counted once.

    A problem that comes again (same path, kind and detail, as in the next epoch) is not counted again.
    Data sets look for problems once, when they are made; only pixels that turn out to be damaged are found
    later. Those found inside a ``DataLoader`` worker are logged there and do not reach this object.

    Args:
        strict: Raise `DataError` at the first problem instead of recording it.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self._problems: dict[Problem, None] = {}

    def report(self, path: str | Path, kind: str, detail: str, action: Action = "skipped") -> bool:
        """Record a problem.

        Returns:
            True if it is new, False if it was known.

        Raises:
            DataError: In strict mode.
        """
        return self.append(Problem(Path(path), kind, detail, action))

    def append(self, problem: Problem) -> bool:
        """Record `problem`; see `report`."""
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
        """The number of problems of each kind, the most frequent first."""
        return dict(Counter(problem.kind for problem in self).most_common())

    def summary(self, limit: int = 5) -> str:
        """The problems as text: a line for each kind, then up to `limit` paths of that kind."""
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
