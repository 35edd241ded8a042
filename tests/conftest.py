"""What every test stands on: one thread, a cache of its own, no way out to the network, keyed randomness.

Run `pytest` for the quick tests, `pytest -m slow` for those that train or kill real runs, `pytest -m network`
for those that reach another machine, or name one test in full to run it whatever its mark.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import sys
import tempfile
from pathlib import Path

# Before the first import of torch, here and in every process a test starts: with several workers on few cores, more
# threads only fight, and the order of a sum (hence its last bit) depends on how many share it.
THREADS = os.environ.get("SFUMATO_TEST_THREADS", "1")
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = THREADS
os.environ.update(
    CUBLAS_WORKSPACE_CONFIG=":4096:8",
    MPLBACKEND="Agg",
    HF_HUB_OFFLINE="1",
    NO_COLOR="1",
    COLUMNS="100",
)
os.environ.pop("FORCE_COLOR", None)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "quick", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("ci", parent=settings.get_profile("quick"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "quick")

ASKED_FOR = {
    "slow": "takes long: run it with pytest -m slow",
    "network": "needs another machine: run it with pytest -m network",
}


CACHE = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """One cache for this run and all its workers, so that nothing is learned from, or left in, the user's own."""
    if not hasattr(config, "workerinput"):  # the process that starts the workers, or the only one
        folder = tempfile.mkdtemp(prefix="sfumato-test-cache-")
        config.stash[CACHE] = Path(folder)
        os.environ["SFUMATO_CACHE"] = folder
        os.environ["MPLCONFIGDIR"] = str(Path(folder, "matplotlib"))


def pytest_unconfigure(config: pytest.Config) -> None:
    folder = config.stash.get(CACHE, None)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("-m"):
        return
    for item in items:
        if any(argument.split("[")[0] == item.nodeid.split("[")[0] for argument in config.args):
            continue
        for mark, reason in ASKED_FOR.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _known_randomness() -> None:
    """Ours is keyed and needs no seed; this is for the libraries that tests compare with."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _no_way_out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unmarked tests talk to this machine only."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if self.family != socket.AF_UNIX and host not in {"localhost", "127.0.0.1", "::1"}:
            raise ConnectionRefusedError(f"a test without the mark 'network' tried to reach {host}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test alone."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("SFUMATO_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder as `make demo` leaves it, with a model at runs/demo/model that is tiny and knows little.

    Copy it or only read it: other tests of the same worker share it.
    """
    demo_model = pytest.importorskip(
        "demo_model", reason="tests/demo_model.py makes the demo's run, and is missing"
    )
    folder = tmp_path_factory.mktemp("demo")
    demo_model.make_demo_run(folder / "runs" / "demo")
    return folder
