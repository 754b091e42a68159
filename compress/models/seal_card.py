"""Accept edited cards: write the hash of `config.json` again.

python -m compress.models.seal_card DIRECTORY ...
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from compress.models.card import CARD_FORMAT, parse_card
from compress.models.serialization import CARD_FILE, CARD_HASH, read_card_file, write_card


def seal_card(directory: Path) -> None:
    """Replace the card of a model directory by the same one with its hash. Raises CompressError if it is no card."""
    path = Path(directory) / CARD_FILE
    content = read_card_file(path)
    content.pop(CARD_HASH, None)
    write_card(path.parent, replace(parse_card(content, path), format=CARD_FORMAT))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        seal_card(Path(name))
