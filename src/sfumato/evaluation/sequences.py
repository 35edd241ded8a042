"""How good sampled sequences are, by the standards of those who work with them.

    validity     share that is what it should be: of SMILES, that RDKit reads; of others, that is not empty
    uniqueness   share of the valid ones that are different, as canonical SMILES or as they are
    novelty      share of the different valid ones that the training set does not have
    length       Wasserstein-1 distance of lengths, in symbols, to the training set's
    agreement    share that a classifier, trained on real sequences, takes for the class that was asked for
    FCD          of SMILES, the distance of the valid ones to held-out ones in ChemNet's features (`chemnet`)
    recovery     of DNA with motifs, share that has the one that was asked for (`motifs`)

The classifier is a logistic regression over how often each symbol, pair of symbols and pair at a distance of 2 to 4
stands in a sequence; on held-out sequences, its own accuracy is the floor of its agreement. Of an alphabet of more than
64 symbols these are too many numbers, and agreement is not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sfumato.errors import MissingExtra
from sfumato.evaluation.measure import Measure, share
from sfumato.evaluation.motifs import has_motifs, motif_recovery

MOST_SYMBOLS = 64


def canonical(text: str) -> str | None:
    """A SMILES as RDKit writes it, None for one it cannot read. Raises MissingExtra without the extra "molecules"."""
    try:
        from rdkit import Chem, RDLogger  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("rdkit", "molecules") from None
    RDLogger.DisableLog("rdApp.*")  # pyright: ignore[reportAttributeAccessIssue]
    molecule = Chem.MolFromSmiles(text) if text else None
    return None if molecule is None else Chem.MolToSmiles(molecule)


def wasserstein() -> Any:
    """SciPy's Wasserstein-1 distance of two samples of numbers. Raises MissingExtra without it."""
    try:
        from scipy.stats import wasserstein_distance
    except ImportError:
        raise MissingExtra("scipy", "fields") from None
    return wasserstein_distance


def sequence_measures(
    domain: Any, texts: Sequence[str], asked: np.ndarray | None, train: Any, held: Any
) -> list[Measure]:
    """The measures of sampled `texts`. asked: the label of each, or None. train, held: `Examples` of the domain."""
    known = domain.text(train.raw)
    smiles = domain.dialect == "smiles"
    # real sequences are valid as they stand; which of them a sample is, is decided by how it is written canonically
    read = [canonical(text) if smiles else text or None for text in texts]
    valid = [text for text in read if text is not None]
    different = set(valid)
    before = (
        set(known)
        if not smiles
        else {canonical(text) for text in known}
        if len(known) <= 50_000
        else set(known)
    )
    found = [
        share("validity", len(valid), len(texts), note="RDKit reads it" if smiles else "not empty"),
        share("uniqueness", len(different), len(valid), note="of the valid"),
        share("novelty", len(different - before), len(different), note="of the different valid ones"),
        _lengths(domain, texts, known, domain.text(held.raw)),
    ]
    if smiles and len(valid) > 1:
        from sfumato.evaluation.chemnet import frechet_chemnet

        found.append(frechet_chemnet(valid, known, domain.text(held.raw)))
    if asked is not None and train.targets is not None:
        if len(domain.alphabet) <= MOST_SYMBOLS:
            found.append(_agreement(domain, texts, asked, train, held))
        if has_motifs(train):
            found.append(motif_recovery(domain, texts, asked, train, held))
    return found


def _lengths(domain: Any, texts: Sequence[str], known: Sequence[str], held: Sequence[str]) -> Measure:
    wasserstein_distance = wasserstein()
    a, b, c = (
        np.array([len(domain.cut(text)) for text in part], dtype=float) for part in (texts, known, held)
    )
    value = float(wasserstein_distance(a, b))
    draw = np.random.default_rng(0)
    spread = [wasserstein_distance(draw.choice(a, len(a)), b) for _ in range(50)]
    half = 1.96 * float(np.std(spread))
    floor = float(wasserstein_distance(c, b))
    return Measure(
        "length", value, max(value - half, 0.0), value + half, len(texts), "lower", floor, "in symbols"
    )


def counts(domain: Any, texts: Sequence[str], gaps: int = 4) -> np.ndarray:
    """How often each symbol and each pair at a distance of 1 to `gaps` stands in each text: its roots, (n, numbers)."""
    number = {symbol: k for k, symbol in enumerate(domain.alphabet)}
    size = len(number)
    found = np.zeros((len(texts), size + gaps * size**2), np.float32)
    for row, text in zip(found, texts, strict=True):
        symbols = [number[symbol] for symbol in domain.cut(text)]
        for k, a in enumerate(symbols):
            row[a] += 1
            for gap in range(1, gaps + 1):
                if k + gap < len(symbols):
                    row[size + (gap - 1) * size**2 + a * size + symbols[k + gap]] += 1
    return np.sqrt(found)


def _agreement(domain: Any, texts: Sequence[str], asked: np.ndarray, train: Any, held: Any) -> Measure:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtra("scikit-learn", "sequences") from None
    judge = LogisticRegression(C=0.05, max_iter=500)
    judge.fit(counts(domain, domain.text(train.raw)), train.targets)
    right: Any = judge.predict(counts(domain, domain.text(held.raw))) == held.targets
    agreed: Any = judge.predict(counts(domain, texts)) == asked
    note = f"a classifier that is right on {right.mean():.1%} of held-out sequences"
    return share("agreement", int(agreed.sum()), len(texts), float(right.mean()), note)
