"""Settings and places that all tests share; CONTRIBUTING.md says how the suite is organised."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from multiprocessing.util import Finalize
from pathlib import Path
from types import ModuleType

# One thread for each worker, and for each process that a test starts: on tensors this small a second one only waits,
# and the threads of two workers would fight for two cores. Tests of threads ask for more.
for _library in ("OMP", "MKL", "OPENBLAS"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

# The width of a terminal, which readline puts there in the process that starts the workers.
for _size in ("COLUMNS", "LINES"):
    os.environ.pop(_size, None)

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

if not torch.cuda.is_available():  # before anything imports Triton: its kernels then run on the CPU, interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).parent))

_any_time = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("quick", max_examples=10, derandomize=True, **_any_time)
settings.register_profile("thorough", max_examples=200, print_blob=True, **_any_time)
settings.load_profile("quick")

_MOST_WORKERS = 8
_WORKERS_MEMORY = 3 << 30  # the tests of a worker hold up to that much at once


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for each core, as far as the memory goes; none where single files are named, or tests in them."""
    if all(Path(argument.partition("::")[0]).is_file() for argument in config.args):
        return 0
    given = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS")
    if given:
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _MOST_WORKERS * _WORKERS_MEMORY
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores, _MOST_WORKERS, memory // _WORKERS_MEMORY))


def pytest_configure(config: pytest.Config) -> None:
    """What is left among the temporary files goes with the run; pytest keeps the folders of failed tests."""
    if hasattr(config, "workerinput"):
        return  # the environment is that of the process that started the worker
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = tempfile.mkdtemp(prefix="pliant-tests-")
    # After what multiprocessing removes there itself, whose priority is -100.
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-200)
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None  # found anew
    with suppress(ImportError):  # writes a cache at its first import, and a second worker would read half of it
        importlib.import_module("yapf")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data sets and weights that lie beside the checkout, where they are at hand."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"real data and weights are not at hand: no folder {folder.name} beside the checkout")
    return folder


@pytest.fixture(scope="session")
def miniature() -> ModuleType:
    """The functions that make data sets of a few images."""
    import miniature

    return miniature
