"""Named sources of text, music, molecules and fields."""

from __future__ import annotations

from pathlib import Path

from sfumato.domains import ways as w
from sfumato.domains.cards import DataCard, NamedSource
from sfumato.domains.motifs import MOTIFS, WHEEL, motif_records
from sfumato.domains.records import Records, labelled, member


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
    "jaspar": NamedSource(
        card=DataCard(
            name="jaspar",
            description="24,000 made DNA sequences of 40 bases: each holds one site of one of 12 motifs of vertebrates",
            licence="CC-BY-4.0 (JASPAR); MIT (pyjaspar)",
            origin="drawn by sfumato: sites from frequency matrices of JASPAR 2026 (pyjaspar 4.0.0) in random bases; "
            "none of these sequences was seen in nature",
            citation="JASPAR 2026, https://jaspar.elixir.no, by way of pyJASPAR",
            count=24_000,
            classes=tuple(MOTIFS),
            kind="sequences",
        ),
        files={WHEEL: ("01b393f668c3cb552d3d58262a50005b1410e389e0a6bf5d570e976fbdaf01b3", 57_171_738)},
        splits={"train": ()},
        ways=(w.Wheel("pyjaspar", "4.0.0"),),
        records=motif_records,
    ),
}

MUSIC = {
    "chorales": NamedSource(
        card=DataCard(
            name="chorales",
            description="408 scores of Johann Sebastian Bach, all but a few of them chorales in four voices",
            licence="music: public domain; encodings: as music21's corpus states (music21 itself: BSD-3-Clause)",
            origin="the corpus of music21 10.5.1, its folder bach, MusicXML",
            citation="Cuthbert, M. S. & Ariza, C. (2010). music21: A Toolkit for Computer-Aided Musicology and "
            "Symbolic Music Data. ISMIR",
            count=408,
            kind="music",
        ),
        files={
            "music21-10.5.1-py3-none-any.whl": (
                "dc3309498c4c95cebdf8d4f20c868deb6b63bce1d929cad4f51a7ccc982987b1",
                20_118_992,
            )
        },
        splits={"train": ("music21/corpus/bach/",)},
        ways=(w.Wheel("music21", "10.5.1"),),
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

MOLECULES = {
    "qm9": NamedSource(
        card=DataCard(
            name="qm9",
            description="130,831 molecules of up to 9 atoms of C, N, O, F and their hydrogens: positions, properties",
            licence="CC0 (QM9, by way of figshare); table in qm9pack under MIT",
            origin="QM9, geometries and properties by density functional theory (B3LYP), in qm9pack 1.0.3",
            citation="Ramakrishnan, R., Dral, P. O., Rupp, M. & von Lilienfeld, O. A. (2014). Quantum chemistry "
            "structures and properties of 134 kilo molecules. Scientific Data 1:140022",
            count=130_831,
            kind="molecules",
        ),
        files={
            "qm9pack-1.0.3-py3-none-any.whl": (
                "1d88c2988007c6778e717ee3224cf511bd60e10732ebe3b7ed500ea5af05c9f0",
                103_712_597,
            )
        },
        splits={"train": ()},
        ways=(w.Wheel("qm9pack", "1.0.3"),),
    ),
}
