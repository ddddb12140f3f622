"""Text that looks like text, the same for the same seed."""

from __future__ import annotations

import random

WORDS = ["the", "sun", "moon", "and", "of", "tide", "rises", "falls", "over", "under", "every", "ship", "that", "sails", "home"]
WORDS += ["again", "naïve", "Größe", "船", "🌍", "def", "return"]


def prose(num_chars: int, seed: int = 0) -> str:
    """Text with lines and paragraphs, the same for the same seed."""
    draw = random.Random(seed)
    parts: list[str] = []
    length = 0
    while length < num_chars:
        word = f"{draw.choice(WORDS)}{draw.randrange(50) or ''}" + draw.choice("     ,\n.")
        parts.append(word)
        length += len(word)
    return "".join(parts)[:num_chars]
