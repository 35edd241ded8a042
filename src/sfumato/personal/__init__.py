"""Making a model one's own with a few pictures: low-rank updates, new classes, new words.

    adapter = fresh(network, base, rank=8)          an update of rank 8 that is still zero
    attach(network, adapter)                        beside the layers, to be trained
    trained = read(network.state_dict(), adapter)
    merge(network, [(trained, 0.7)])                into the weights

`sfumato finetune` does all of it; `Model.with_adapters` puts what was learned to use.
"""

from .adapter import Adapter
from .layers import attach, check_made_for, fresh, grow, merge, read, rooms, settle, unmerge
from .words import Speller, place, spoken, text_width

__all__ = [
    "Adapter",
    "Speller",
    "attach",
    "check_made_for",
    "fresh",
    "grow",
    "merge",
    "place",
    "read",
    "rooms",
    "settle",
    "spoken",
    "text_width",
    "unmerge",
]
