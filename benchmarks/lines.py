"""How much each kind of data adds: `python benchmarks/lines.py` prints the table of docs/domains.md.

Counted are lines of code, without blank lines, comments and docstrings, of the files that only this kind has: reading,
representing, showing and writing; the network, where it has one of its own; judging; the recipes. Catalogue entries and
the shared parts (records, sheets, Rows, readers) are not counted.
"""

from __future__ import annotations

import io
import tokenize
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "sfumato"
KINDS: dict[str, tuple[list[str], list[str], list[str], list[str]]] = {
    # kind: (domain, network, judging, recipes)
    "sequences": (
        ["sequences", "pieces", "motifs"],
        [],
        ["sequences", "motifs", "chemnet"],
        ["peptides", "moses", "dna"],
    ),
    "music": (["music", "midi", "musicxml"], [], ["music"], ["chorales"]),
    "molecule-leaves": (["molecule_leaves"], ["joint_egnn"], [], ["qm9-joint"]),
    "molecules": (["molecules", "bonds", "molecule_files"], ["egnn"], ["molecules"], ["qm9"]),
    "table": (["table"], [], ["table"], ["table"]),
    "captioned": (["captioned"], [], ["captioned"], ["emoji-joint"]),
    "fields": (["fields"], [], ["fields"], ["terrain", "winds"]),
    "series": (["series", "series_files"], [], ["series"], ["series"]),
    "shapes": (["shapes", "meshes"], [], ["shapes"], ["shapes"]),
    "motion": (["motion"], [], ["motion"], ["motion"]),
    "video": (["video"], ["video"], ["video"], ["emoji-video"]),
    "sounds": (["sounds", "spectra", "waves"], ["wave"], ["sounds"], ["sounds", "speech"]),
    "speech": (["speech", "alignment", "hearing"], [], ["speech"], ["speech-text"]),
}


def code_lines(path: Path) -> int:
    """Lines of a Python file that hold code."""
    found: set[int] = set()
    new_statement = True
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        kind = token.type
        if kind in (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            continue
        if kind == tokenize.NEWLINE:
            new_statement = True
            continue
        # a string that is a whole statement is a docstring
        alone = kind == tokenize.STRING and new_statement
        new_statement = False
        if not alone:
            found |= set(range(token.start[0], token.end[0] + 1))
    return len(found)


def table() -> str:
    """The table in Markdown, the smallest first."""
    rows = []
    for kind, (domain, network, judging, recipes) in KINDS.items():
        folders = (("domains", domain), ("networks", network), ("evaluation", judging))
        counts = [
            sum(code_lines(SOURCE / where / f"{name}.py") for name in names) for where, names in folders
        ]
        own = [f"`{name}`" for name in recipes]
        rows.append(
            (counts[0], f"| {kind} | {counts[0]} | {counts[1] or '–'} | {counts[2]} | {', '.join(own)} |")
        )
    head = ["| kind of data | read, represent, show, write | network | judge | recipes |", "| --- " * 5 + "|"]
    return "\n".join(head) + "\n" + "\n".join(row for _, row in sorted(rows)) + "\n"


if __name__ == "__main__":
    print(table(), end="")
