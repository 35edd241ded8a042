"""The data that sfumato knows by name: what each is, on what terms, the content of its files and the ways to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfumato.domains import ways as w
from sfumato.domains.catalogue_sounds import SOUNDS
from sfumato.domains.emoji import open_fluent, open_google
from sfumato.domains.records import Records, labelled, member
from sfumato.domains.source import Found


@dataclass(frozen=True)
class DataCard:
    """What there is to know about data before using them: what they are, whose, and on what terms."""

    name: str
    description: str
    licence: str
    origin: str
    citation: str
    count: int
    size: tuple[int, ...] = ()
    channels: int = 0
    classes: tuple[str, ...] = ()
    kind: str = "pictures"

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class NamedSource:
    """Files with known content, and the ways of getting them.

    files: name -> (SHA-256 of the content after gzip, its length in bytes); a file may be there as name or name.gz.
    splits: name -> (file of pictures, file of labels), both IDX; or, if `opens` reads the files, anything.
    opens(folder, split): looks into files of another kind. records(folder, split): into those that hold text.
    """

    card: DataCard
    files: dict[str, tuple[str, int]]
    splits: dict[str, tuple[str, ...]]
    ways: tuple[w.Way, ...]
    opens: Callable[[Path, str], Found] | None = None
    records: Callable[[Path, str], Records] | None = None

    @property
    def name(self) -> str:
        """The name it goes by in a recipe."""
        return self.card.name


_EMOJI = (
    "emojibase-data-17.0.0.tgz",
    ("fd3d0e864f7cb98dab0491b9ba7e8b43e46ff6b0fdfb21ce6bf3c8455c2ba537", 50_317_824),
)
_FASHION = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"


def _peptides(folder: Path, split: str) -> Records:
    text = member(folder, "modlamp-4.3.3-py3-none-any.whl", "modlamp/data/AMPvsUniProt.csv")
    rows = [line.replace(" ", "").split(",") for line in text.splitlines()[1:] if line.strip()]
    names = {"1": "antimicrobial", "0": "other"}
    return labelled([(row[0], names[row[1]]) for row in dict.fromkeys(map(tuple, rows))], {})


def _moses(folder: Path, split: str) -> Records:
    text = member(folder, "molsets-0.3.1-py3-none-any.whl", f"moses/dataset/data/{split}.csv.gz")
    return Records(tuple(line.partition(",")[0] for line in text.splitlines()[1:] if line))


TEXTS = {
    "peptides": NamedSource(
        card=DataCard(
            name="peptides",
            description="4,642 peptides of 7 to 174 residues: antimicrobial ones, and stretches of other proteins",
            licence="BSD-3-Clause (modlAMP)",
            origin="antimicrobial peptides of the APD3 and stretches of UniProt, in modlamp 4.3.3",
            citation="Müller, A. T. et al. (2017). modlAMP: Python for antimicrobial peptides. Bioinformatics 33(17)",
            count=4642,
            classes=("antimicrobial", "other"),
            kind="sequences",
        ),
        files={
            "modlamp-4.3.3-py3-none-any.whl": (
                "6948bcbc4a9614d10b6b47a051d4576c42fe8e5487fbbeb3cfe0d8033eb27f91",
                178_326,
            )
        },
        splits={"train": ()},
        ways=(w.Wheel("modlamp", "4.3.3"),),
        records=_peptides,
    ),
    "moses": NamedSource(
        card=DataCard(
            name="moses",
            description="1.6 million molecules as SMILES, and 176,000 to test on: the MOSES benchmark, drug-like ZINC",
            licence="MIT (MOSES)",
            origin="ZINC Clean Leads, filtered, in molsets 0.3.1; splits train, test, test_scaffolds",
            citation="Polykovskiy, D. et al. (2020). Molecular Sets (MOSES): A Benchmarking Platform for Molecular "
            "Generation Models. Frontiers in Pharmacology 11",
            count=1_584_663,
            kind="sequences",
        ),
        files={
            "molsets-0.3.1-py3-none-any.whl": (
                "7f4450e3ebecebe79c3a2a55950c93daddee071120daf64a163d03481e811d34",
                51_584_291,
            )
        },
        splits={"train": (), "test": (), "test_scaffolds": ()},
        ways=(w.Wheel("molsets", "0.3.1"),),
        records=_moses,
    ),
}

_FERRET = "usr/share/ferret-vis/data"
FIELDS = {
    "terrain": NamedSource(
        card=DataCard(
            name="terrain",
            description="heights of land and sea floor of the whole earth, one for every 5 minutes of arc: 2161 x 4320",
            licence="public domain (NOAA)",
            origin="ETOPO5, NOAA National Geophysical Data Center, 1988, in Debian's ferret-datasets",
            citation="Data Announcement 88-MGG-02, Digital relief of the Surface of the Earth. NOAA, 1988",
            count=1,
            kind="fields",
        ),
        files={
            "etopo5.cdf": ("1455d5e5feebd183d0bef5538a750ca8a44801e1503f964df900831c224459ce", 37_394_632)
        },
        splits={"train": ("ROSE",)},
        ways=(w.Installed(f"/{_FERRET}"), w.DebianPackage("ferret-datasets", _FERRET)),
    ),
    "winds": NamedSource(
        card=DataCard(
            name="winds",
            description="monthly winds near the surface of the earth, 1982 to 1992, both components: 132 x 73 x 144",
            licence="public domain (U.S. Navy, NOAA)",
            origin="Fleet Numerical Oceanography Center, monthly means, in Debian's ferret-datasets",
            citation="Fleet Numerical Oceanography Center, surface winds 1982-1992, by way of NOAA PMEL (Ferret)",
            count=132,
            kind="fields",
        ),
        files={
            "monthly_navy_winds.cdf": (
                "225a9e4fed7bb1a7b558afb662abbe2dc5e3d3db4100fa019cb994f10b115faa",
                11_104_376,
            )
        },
        splits={"train": ("UWND", "VWND")},
        ways=(w.Installed(f"/{_FERRET}"), w.DebianPackage("ferret-datasets", _FERRET)),
    ),
}

SOURCES: dict[str, NamedSource] = {
    "digits": NamedSource(
        card=DataCard(
            name="digits",
            description="1,797 handwritten digits, 8×8, grey: the test part of the UCI optical recognition set",
            licence="CC-BY-4.0 (UCI); copy in scikit-learn under BSD-3-Clause",
            origin="E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998; 43 writers, by way of NIST",
            citation="Alpaydin, E. & Kaynak, C. (1998). Optical Recognition of Handwritten Digits. "
            "UCI Machine Learning Repository. https://doi.org/10.24432/C50P49",
            count=1797,
            size=(8, 8),
            channels=1,
            classes=tuple("0123456789"),
        ),
        files={
            "digits-images-idx3-ubyte": (
                "d224a90b51e21e5d1332d34effc46c3a7d6244906f07c292c24213770d11ca7b",
                115_024,
            ),
            "digits-labels-idx1-ubyte": (
                "ce71631c1f31ce56fa54f31d1d498fafacff59b001e6c30c4a5e29508aa277ad",
                1_805,
            ),
        },
        splits={"train": ("digits-images-idx3-ubyte", "digits-labels-idx1-ubyte")},
        ways=(w.ScikitLearn("digits-images-idx3-ubyte", "digits-labels-idx1-ubyte"),),
    ),
    "fashion-mnist": NamedSource(
        card=DataCard(
            name="fashion-mnist",
            description="70,000 pictures of clothing, 28×28, grey: 60,000 to train on and 10,000 to test on",
            licence="MIT (Expat)",
            origin="Zalando Research, 2017: product photographs of Zalando's shop, reduced to 28×28 grey",
            citation="Xiao, H., Rasul, K. & Vollgraf, R. (2017). Fashion-MNIST: a Novel Image Dataset for "
            "Benchmarking Machine Learning Algorithms. arXiv:1708.07747",
            count=70_000,
            size=(28, 28),
            channels=1,
            classes=(
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
        ),
        files={
            "train-images-idx3-ubyte": (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                47_040_016,
            ),
            "train-labels-idx1-ubyte": (
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                60_008,
            ),
            "t10k-images-idx3-ubyte": (
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                7_840_016,
            ),
            "t10k-labels-idx1-ubyte": (
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
                10_008,
            ),
        },
        splits={
            "train": (_FASHION[0].format("train"), _FASHION[1].format("train")),
            "test": (_FASHION[0].format("t10k"), _FASHION[1].format("t10k")),
        },
        ways=(
            w.Installed("/usr/share/datasets/fashion-mnist"),
            w.DebianPackage("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
            w.HubTable(
                "zalando-datasets/fashion_mnist",
                (
                    ("train", _FASHION[0].format("train"), _FASHION[1].format("train")),
                    ("test", _FASHION[0].format("t10k"), _FASHION[1].format("t10k")),
                ),
            ),
        ),
    ),
    "emoji": NamedSource(
        card=DataCard(
            name="emoji",
            description="3,786 emoji, 64×64, colour, with captions; one base in ten with all its variants held out",
            licence="Apache-2.0 (Noto Emoji drawings); MIT (emoji-data, emojibase)",
            origin="Google's Noto Emoji, in emoji-datasource-google 16.0.0; names and tags of Unicode's CLDR, in "
            "emojibase-data 17.0.0",
            citation="Google LLC, Noto Emoji, https://github.com/googlefonts/noto-emoji; "
            "Unicode CLDR, https://cldr.unicode.org",
            count=3786,
            size=(64, 64),
            channels=4,
            classes=(),
        ),
        files={
            "emoji-datasource-google-16.0.0.tgz": (
                "334f58688e07d8f886f58760d1d927d322416944c498573f88e6cd648264b2ee",
                80_819_712,
            ),
            _EMOJI[0]: _EMOJI[1],
        },
        splits={"train": (), "test": ()},
        ways=(w.NpmPackage((("emoji-datasource-google", "16.0.0"), ("emojibase-data", "17.0.0"))),),
        opens=open_google,
    ),
    "emoji-3d": NamedSource(
        card=DataCard(
            name="emoji-3d",
            description="3,372 emoji, 256×256, modelled in 3D, with captions; held out as in emoji",
            licence="MIT (Fluent Emoji; emojibase)",
            origin="Microsoft's Fluent Emoji, in @lobehub/fluent-emoji-3d 1.1.0; names and tags of Unicode's CLDR, in "
            "emojibase-data 17.0.0",
            citation="Microsoft Corporation, Fluent Emoji, https://github.com/microsoft/fluentui-emoji; "
            "Unicode CLDR, https://cldr.unicode.org",
            count=3372,
            size=(256, 256),
            channels=4,
            classes=(),
        ),
        files={
            "lobehub-fluent-emoji-3d-1.1.0.tgz": (
                "054eaceced8a6edd895f074f686f7dd3a51cbf6f34c8cc955a8be6dee477f971",
                20_314_112,
            ),
            _EMOJI[0]: _EMOJI[1],
        },
        splits={"train": (), "test": ()},
        ways=(w.NpmPackage((("@lobehub/fluent-emoji-3d", "1.1.0"), ("emojibase-data", "17.0.0"))),),
        opens=open_fluent,
    ),
    **TEXTS,
    **FIELDS,
    **{name: NamedSource(DataCard(name=name, **card), **rest) for name, (card, rest) in SOUNDS.items()},
}
