"""Named sources that are arrays of numbers: series, point clouds of meshes, motions."""

from __future__ import annotations

from functools import partial
from typing import Any

from sfumato.domains import ways as w
from sfumato.domains.cards import DataCard, NamedSource
from sfumato.domains.meshes import PYBULLET, wheel_meshes
from sfumato.domains.motion import wheel_clips
from sfumato.domains.series_files import AEON, archive

_SETS = (
    (
        "italy-power",
        "ItalyPowerDemand",
        "1,096 days of the electricity that Italy drew, 24 hours each, scaled; October to March, or April to September",
        1096,
        ("1", "2"),
        "Keogh, E. et al. (2006). Intelligent icons: integrating lite-weight data mining and visualization into GUI "
        "operating systems. ICDM",
    ),
    (
        "japanese-vowels",
        "JapaneseVowels",
        "640 utterances of two vowels by nine men: 12 cepstral coefficients, 7 to 29 times",
        640,
        tuple("123456789"),
        "Kudo, M., Toyama, J. & Shimbo, M. (1999). Multidimensional curve classification using passing-through "
        "regions. Pattern Recognition Letters 20",
    ),
    (
        "osu-leaf",
        "OSULeaf",
        "442 outlines of leaves of six species, as distances from the middle along 427 points",
        442,
        tuple("123456"),
        "Gandhi, A. (2002). Content-based image retrieval: plant species identification. Oregon State University",
    ),
)

ARRAYS: dict[str, NamedSource] = {
    name: NamedSource(
        card=DataCard(
            name=name,
            description=description,
            licence="not stated for the data; BSD-3-Clause for aeon, which carries them",
            origin=f"{title} of the UCR and UEA time series archives, in aeon 1.6.0; splits train, test, all",
            citation=citation,
            count=count,
            classes=classes,
            kind="series",
        ),
        files={AEON: ("d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409", 6_421_000)},
        splits={"train": (), "test": (), "all": ()},
        ways=(w.Wheel("aeon", "1.6.0"),),
        reads=partial(archive, title),
        shelf="aeon",
    )
    for name, title, description, count, classes, citation in _SETS
}

_BULLET: dict[str, Any] = {
    "files": {PYBULLET: ("5d858abf7c12a21ef3ed351cf81dac1b5e486ec25c9ab59bfc84beb89034edff", 103_196_742)},
    "splits": {"train": ()},
    "ways": (w.Wheel("pybullet", "3.2.7", platform="manylinux2014_x86_64", python="3.11"),),
    "shelf": "pybullet",
}
ARRAYS["shapes"] = NamedSource(
    card=DataCard(
        name="shapes",
        description="1,000 meshes of made-up objects for grasping, pieced together of convex parts",
        licence="zlib (pybullet)",
        origin="random_urdfs of pybullet 3.2.7",
        citation="Coumans, E. & Bai, Y. PyBullet, a Python module for physics simulation for games, robotics and "
        "machine learning. http://pybullet.org",
        count=1000,
        kind="shapes",
    ),
    reads=wheel_meshes,
    **_BULLET,
)
ARRAYS["motion"] = NamedSource(
    card=DataCard(
        name="motion",
        description="15 clips of motion capture of a humanoid, 25 to 227 frames of 43 numbers, in five kinds",
        licence="zlib (pybullet)",
        origin="humanoid3d motions of DeepMimic, in pybullet 3.2.7",
        citation="Peng, X. B. et al. (2018). DeepMimic: example-guided deep reinforcement learning of physics-based "
        "character skills. ACM Transactions on Graphics 37(4)",
        count=15,
        classes=tuple(sorted({"ground", "fight", "dance", "acrobatics", "getting up"})),
        kind="motion",
    ),
    reads=wheel_clips,
    **_BULLET,
)
