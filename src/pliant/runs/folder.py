"""The folder of a training run."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pliant.outputs import is_free, require_folder
from pliant.runs.checkpoints import step_of
from pliant.runs.files import UNFINISHED, write_json
from pliant.suggestions import did_you_mean_path

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

_BEFORE_THE_FIRST_STEP = (
    "recipe.json",
    "data.json",
    "versions.json",
    "problems.txt",
    "checkpoints",
    "tensorboard",
    ".lock",
)
_LIBRARIES = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "faster-coco-eval", "numpy")


class RunFolder:
    """The folder that a run writes to.

    | file | what it holds |
    | --- | --- |
    | `recipe.json` | the recipe with its fields, the data and the classes |
    | `data.json` | what was found in the data, and the splits that were made |
    | `versions.json` | versions of the libraries and Python, and the machine |
    | `problems.txt` | defects of the data |
    | `train.csv`, `val.csv` | losses of each step; results of each validation |
    | `curves.html` | the same as curves, written whenever a training ends or is interrupted |
    | `tensorboard/` | the same for TensorBoard |
    | `checkpoints/last.safetensors` | the weights of the last checkpoint, with the recipe and classes in the header |
    | `checkpoints/last.ckpt` | what resuming needs besides these weights (`pliant.runs.checkpoints`) |
    | `checkpoints/best.safetensors` | the weights that were best in validation |

    With `full_checkpoints`, `last.ckpt` and `best.ckpt` contain the weights as well, so that each is complete.

    Args:
        path: The folder; see `create` and `open`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.description_path = self.path / "recipe.json"
        self.data_path = self.path / "data.json"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"

    @classmethod
    def create(
        cls, path: str | Path, description: Mapping[str, Any], data: Mapping[str, Any] | None = None
    ) -> RunFolder:
        """Make the folder of a new run.

        Args:
            path: The folder; it must be empty or not exist.
            description: Content of ``recipe.json``, of values that JSON can hold.
            data: Content of ``data.json``; None for no such file.

        Raises:
            ValueError: If the folder already holds something.
        """
        run = cls(path)
        run.require_free()
        run.checkpoints.mkdir(parents=True)
        if data is not None:
            write_json(run.data_path, data)
        write_json(run.path / "versions.json", versions())
        write_json(run.description_path, description)
        return run

    @classmethod
    @contextlib.contextmanager
    def new(
        cls, path: str | Path, description: Mapping[str, Any], data: Mapping[str, Any] | None = None
    ) -> Iterator[RunFolder]:
        """Make the folder of a new run; remove it if the block fails before the first step. See `create`."""
        place = Path(path)
        made = [folder for folder in (place, *place.parents) if not folder.exists()]
        run = cls.create(path, description, data)
        try:
            yield run
        except BaseException:
            if not run.started:
                run.clear()
                with contextlib.suppress(OSError):
                    for folder in made:
                        folder.rmdir()
            raise

    def clear(self) -> None:
        """Remove the files that a run has before its first step."""
        for name in _BEFORE_THE_FIRST_STEP:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @property
    def started(self) -> bool:
        """Whether the run has done a step, or tried one whose loss was NaN or infinite."""
        return any((self.path / name).exists() for name in ("train.csv", "not_finite")) or self.last.exists()

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open the folder of an earlier run.

        Raises:
            ValueError: If it is not a run folder.
        """
        run = cls(path)
        if not run.description_path.is_file():
            raise ValueError(
                f"{run.path} is not a run folder: there is no {run.description_path.name} in it"
                f"{'' if run.path.exists() else did_you_mean_path(run.path)}"
            )
        return run

    def require_free(self) -> None:
        """Raise `ValueError` if the folder holds something, and `OSError` if it cannot be created."""
        require_folder(self.path)
        if not is_free(self.path):
            raise ValueError(
                f"{self.path} already holds something and is left as it is: continue that run with "
                f"--resume {self.path}, or choose another folder with --run"
            )

    def description(self) -> dict[str, Any]:
        """The content of ``recipe.json``.

        Raises:
            ValueError: If it cannot be read as a JSON object.
        """
        return _read_object(self.description_path)

    def data(self) -> dict[str, Any]:
        """The content of ``data.json``; empty for a run that has none.

        Raises:
            ValueError: If it cannot be read as a JSON object.
        """
        return _read_object(self.data_path) if self.data_path.exists() else {}

    def weights(self) -> Path:
        """The weights to use: the best by validation, or the last if there was no validation.

        Raises:
            ValueError: If the run has none yet.
        """
        for checkpoint in (self.best, self.last):
            if checkpoint.with_suffix(".safetensors").is_file():
                return checkpoint.with_suffix(".safetensors")
        raise ValueError(f"{self.path} holds no weights yet: no checkpoint was written")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def resume_step(checkpoint: Path) -> int:
    """The number of steps before a checkpoint was written; 0 if the file does not exist.

    Raises:
        ValueError: If the file is damaged or not a checkpoint, or the weights that belong to it are missing.
    """
    return step_of(checkpoint) if checkpoint.is_file() else 0


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Lock a run's folder against other trainings, and remove files that a killed process left unfinished.

    The system releases the lock when the process ends, however it ends.

    Raises:
        ValueError: If another process is training into it.
    """
    with (folder / ".lock").open("w") as file:
        if fcntl is not None:
            try:
                # A lock of flock would pass to the data-loading processes, which may outlive this one.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise ValueError(f"another process trains into {folder}; wait for it, or stop it") from None
            except OSError:
                pass  # a file system without locks
        for left in folder.rglob(f".*{UNFINISHED}"):
            left.unlink()
        yield


def versions() -> dict[str, str]:
    """The versions that a result depends on, and the machine."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("pliant", *_LIBRARIES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    found["threads"] = str(torch.get_num_threads())
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
    return found
