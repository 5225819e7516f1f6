"""Text in common: by winnowing, whatever spaces, line ends and capitals are, and without what everybody has.

Winnowing keeps some of a text's k-grams, such that of two texts with a passage of WINDOW + k - 1 characters in common
both keep one of it (Schleimer, Wilkerson and Aiken, 2003, https://doi.org/10.1145/872757.872770). The `copydetect`
package does it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Iterable, Sequence
from zlib import crc32

import numpy as np

# Characters of a fingerprint, without spaces: in prose about five words, in code less than a line.
PROSE_GRAM, CODE_GRAM = 24, 16
WINDOW = 8
BETWEEN = "\0"  # stands between parts of a text that have nothing to do with each other
MAX_PASSAGES, MAX_SHOWN = 3, 240
# Of hand-ins, and of all: see `most_for`.
COMMON_COUNT, COMMON_SHARE = 6, 0.1


@dataclass(frozen=True)
class Text:
    """A text as it is compared: `letters` without what does not count, `places` where each stands in `original`."""

    original: str
    letters: str
    places: tuple[int, ...]
    gram: int

    def fingerprints(self) -> dict[str, list[int]]:
        """The k-grams that winnowing selects, with where they begin in `letters`."""
        return selected(self.letters, self.gram)

    def grams(self) -> set[str]:
        """All k-grams: what is not counted must be known wherever the selection falls."""
        return {self.letters[i : i + self.gram] for i in range(len(self.letters) - self.gram + 1)}


@lru_cache(maxsize=4096)
def selected(letters: str, gram: int) -> dict[str, list[int]]:
    from copydetect.utils import winnow  # brings matplotlib along, which takes a second

    found: dict[str, list[int]] = {}
    if len(letters) < gram:
        return found
    # Python's own hash of a text, which the package takes, is another one at every start.
    hashes = np.array([crc32(letters[i : i + gram].encode()) for i in range(len(letters) - gram + 1)])
    for place in winnow(hashes, WINDOW, remove_duplicates=False)[1].tolist():
        fingerprint = letters[place : place + gram]
        if BETWEEN not in fingerprint:
            found.setdefault(fingerprint, []).append(place)
    return found


def reduced(original: str, counts: Callable[[str], bool], gram: int) -> Text:
    letters, places = [], []
    for place, character in enumerate(original):
        for plain in unicodedata.normalize("NFKC", character).casefold():
            if counts(plain):
                letters.append(plain)
                places.append(place)
    return Text(original, "".join(letters), tuple(places), gram)


def prose(original: str) -> Text:
    """A text of which only letters and digits count."""
    return reduced(original, str.isalnum, PROSE_GRAM)


def code(original: str) -> Text:
    """A text of which all but spaces counts, names and comments too."""
    return reduced(original, lambda character: not character.isspace(), CODE_GRAM)


def often(texts: Iterable[Text]) -> set[str]:
    """The fingerprints that so many texts have that no two of them are alike by these."""
    texts = list(texts)
    counts = Counter(gram for text in texts for gram in text.fingerprints())
    return {gram for gram, count in counts.items() if count > most_for(len(texts))}


def most_for(hand_ins: int) -> float:
    """What more of so many hand-ins have than this is no sign that two of them have it from each other."""
    return max(COMMON_COUNT, COMMON_SHARE * hand_ins)


@dataclass(frozen=True)
class Shared:
    """How many letters of the first text the second has too, and the longest passages, as they stand in the first."""

    letters: int
    passages: tuple[str, ...]


def in_common(first: Text, second: Text, left_out: set[str]) -> Shared:
    """What two texts have in common beyond the k-grams that are left out."""
    known = second.fingerprints().keys() - left_out
    starts = sorted(place for gram, places in first.fingerprints().items() if gram in known for place in places)
    covered = np.zeros(len(first.letters) + 1, np.int8)
    for start in starts:
        covered[start : start + first.gram] = 1
    edges = np.flatnonzero(np.diff(covered, prepend=0))
    spans = sorted(zip(edges[::2].tolist(), edges[1::2].tolist()), key=lambda span: span[0] - span[1])
    passages = [first.original[first.places[begin] : first.places[end - 1] + 1] for begin, end in spans[:MAX_PASSAGES]]
    return Shared(int(covered.sum()), tuple(map(shortened, passages)))


def shortened(passage: str) -> str:
    plain = " ".join(passage.split())
    return plain if len(plain) <= MAX_SHOWN else f"{plain[:MAX_SHOWN]} ..."


def all_grams(texts: Sequence[Text]) -> set[str]:
    return set().union(*(text.grams() for text in texts)) if texts else set()
