"""Which hand-ins are alike, and in what: every two of them by what was read of each.

The lines, above which a likeness is shown, are measured by tests/grading/measurements/calibrate_compare.py: see
docs/teacher.md.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Iterable, Iterator, Mapping, Sequence

import numpy as np

from ..files.items import LORAS, shown
from ..files.lora_likeness import cosines
from .facts import Facts
from .given import handed_out, our_code, our_prose
from .likeness import LINE, AlikePair, Comparison, Likeness
from .pictures import Gallery, Thumbnail, is_flat, is_one_of
from .texts import BETWEEN, Text, code, in_common, most_for, often, prose

# Measured with tests/grading/measurements/calibrate_compare.py; see docs/teacher.md.
LORA_LINE, PICTURE_LINE = 0.7, 0.995
SAME_NOISE = 0.985  # what pictures of one prompt from the same noise often have
# What is so near a picture that was handed out may be it, cropped or drawn again.
GIVEN_LINE = 0.97
# Letters in common beyond what everybody has: two sentences of prose; of code half of five usual solutions.
PROSE_LINE, CODE_LINE = 150, 400
# What run records call the data that the assignment brings along.
GIVEN_DATA = ("sample_data", "rendered", "fill50k")
MAX_PICTURES, MAX_NAMES = 6, 5
LEAST_SHOWN = 0.2  # of a pair that has something else above the line
SAMPLES = (
    "Both reports show the assignment's sample pictures: two students who run the given script on them with its own "
    "seed get the same LoRA on the same kind of machine."
)
GROUP = "Usual where they ran the given script with its own seed on the sample data: ask the others which they used."
NO_SAMPLES = (
    "Usual where both ran the given script with its own seed on the same pictures, such as the sample data; their "
    "reports do not both show these. Two trainings with other seeds do not come so near each other."
)
HONEST = {
    "picture": "Usual for training pictures that both took from the same public source, and for pictures that the same "
    "LoRA drew. Pictures that were handed out, and discs, are not compared.",
    "report text": "Usual for a quotation, or a text that both took from the same source. What stands in the "
    "assignment, and in many reports, is not counted.",
    "TODO text": "Usual where both followed the same book, forum or assistant: there are not many ways to write five "
    "lines. The assignment's, the library's and what many have is not counted.",
    "run record": "Usual for runs of the given script on the sample data: then only the same flags were used.",
    "file": "Usual for a file that both took from the same place.",
}


@dataclass(frozen=True)
class Finding:
    """A likeness of the hand-ins with these numbers."""

    first: int
    second: int
    likeness: Likeness


def relative(value: float, line: float, most: float = 1.0, least: float = 0.0) -> float:
    """A measure's strength: 0 at the least, a half at its line, 1 at the most that it can be."""
    if value < line:
        return LINE * max(0.0, value - least) / (line - least)
    return LINE + (1 - LINE) * min(1.0, (value - line) / (most - line))


def in_png(thumbnail: Thumbnail) -> str:
    file = io.BytesIO()
    thumbnail.picture().save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class Compare:
    """The hand-ins by number, with their names; `work` has what `facts` wrote of their LoRAs."""

    def __init__(self, facts: Mapping[str, Facts], work: Path) -> None:
        self.names = list(facts)
        self.facts = list(facts.values())
        self.work = work
        self.groups: list[str] = []
        given = handed_out()
        own, self.shows_samples = [], []
        for one in self.facts:
            pictures = [Thumbnail.of(pixels) for pixels in one.thumbnails() if not is_flat(pixels)]
            mine = [picture for picture in pictures if not is_one_of(picture, given, GIVEN_LINE)]
            self.shows_samples.append(len(mine) < len(pictures))
            own.append(mine)
        self.gallery = Gallery.of(own)

    def findings(self) -> Iterator[Finding]:
        """All likenesses, below the line, too; those that say nothing are left out."""
        yield from self.loras()
        yield from self.pictures()
        yield from self.texts("report text", [prose(one.text) for one in self.facts], our_prose(), PROSE_LINE)
        todos = [code(BETWEEN.join(one.todos[todo] for todo in sorted(one.todos))) for one in self.facts]
        yield from self.texts("TODO text", todos, our_code(), CODE_LINE)
        yield from self.records()
        yield from self.files()

    # LoRAs

    def loras(self) -> Iterator[Finding]:
        places = [(i, name) for i, one in enumerate(self.facts) for name in LORAS if name in one.loras]
        for base in sorted({self.facts[i].loras[name].base for i, name in places}):
            own = [(i, name) for i, name in places if self.facts[i].loras[name].base == base]
            table = cosines([self.work / self.facts[i].loras[name].canonical for i, name in own])
            common = self.common_loras(own, table)
            for (row, (first, one)), (column, (second, other)) in combinations(enumerate(own), 2):
                if first != second and table[row, column] > 0 and not {row, column} <= common:
                    yield Finding(first, second, self.lora(first, one, second, other, float(table[row, column])))

    def common_loras(self, own: Sequence[tuple[int, str]], table: np.ndarray) -> set[int]:
        """Those that are like the LoRAs of so many hand-ins that no pair of these says more than the group does."""
        owners = np.array([i for i, _ in own])
        common = {row for row, line in enumerate(table) if self.is_common(owners[line >= LORA_LINE])}
        if common:
            names = ", ".join(sorted({self.names[own[row][0]] for row in common}))
            self.groups.append(f"LoRAs that many hand-ins have alike, and no pairs are shown for: {names}. {GROUP}")
        return common

    def is_common(self, owners: np.ndarray) -> bool:
        return len(set(owners.tolist())) > most_for(len(self.facts))

    def lora(self, first: int, one: str, second: int, other: str, cosine: float) -> Likeness:
        mine, theirs = self.facts[first].loras[one], self.facts[second].loras[other]
        names = one if one == other else f"{one} of the first and {other} of the second"
        if mine.file == theirs.file:
            what = f"{names}: the same file."
        elif mine.weights == theirs.weights:
            what = f"{names}: the same matrices, to the bit, in two different files."
        else:
            ranks = f"rank {mine.rank}" if mine.rank == theirs.rank else f"ranks {mine.rank} and {theirs.rank}"
            what = f"{names}: what they add to the weights has a cosine of {cosine:.3f} ({ranks})."
        honest = SAMPLES if self.shows_samples[first] and self.shows_samples[second] else NO_SAMPLES
        return Likeness("LoRA", relative(cosine, LORA_LINE), what, honest)

    # Pictures

    def pictures(self) -> Iterator[Finding]:
        for (first, second), found in self.gallery.alike(PICTURE_LINE, most_for(len(self.facts))).items():
            best = found[0].correlation
            same = [one for one in found if one.correlation >= PICTURE_LINE]
            what = f"Two pictures resemble each other, by a correlation of {best:.3f}."
            if same:
                what = f"{f'{len(same)} pictures' if len(same) > 1 else 'A picture'} of one report in the other."
            shown = [
                (f"{self.names[owner]}: correlation {one.correlation:.3f}", in_png(self.gallery.pictures[place]))
                for one in same[:MAX_PICTURES]
                for owner, place in ((first, one.first), (second, one.second))
            ]
            strength = relative(best, PICTURE_LINE, least=SAME_NOISE)
            yield Finding(first, second, Likeness("picture", strength, what, HONEST["picture"], pictures=tuple(shown)))

    # Texts

    def texts(self, kind: str, texts: Sequence[Text], ours: set[str], line: int) -> Iterator[Finding]:
        left_out = ours | often(texts)
        owners: dict[str, list[int]] = {}
        for i, text in enumerate(texts):
            for gram in text.fingerprints().keys() - left_out:
                owners.setdefault(gram, []).append(i)
        for first, second in dict.fromkeys(pair for own in owners.values() for pair in combinations(own, 2)):
            shared = in_common(texts[first], texts[second], left_out)
            what = f"{shared.letters} characters in common, spaces not counted, beyond what is in many hand-ins."
            strength = relative(shared.letters, line, most=4 * line)
            yield Finding(first, second, Likeness(kind, strength, what, HONEST[kind], shared.passages))

    # Run records and files

    def records(self) -> Iterator[Finding]:
        for (first, second), digests in equal([one.records for one in self.facts]).items():
            names = [self.facts[first].records[digest] for digest in digests]
            on_own = not all(any(given in name.lower() for given in GIVEN_DATA) for name in names)
            what = f"The same trainings, by their records: {'; '.join(sorted(names))}."
            yield Finding(first, second, Likeness("run record", 0.6 if on_own else 0.4, what, HONEST["run record"]))

    def files(self) -> Iterator[Finding]:
        for (first, second), digests in equal([one.files for one in self.facts]).items():
            names = sorted({self.facts[first].files[digest] for digest in digests})
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            what = f"The same files: {', '.join(map(shown, names[:MAX_NAMES]))}{more}."
            yield Finding(first, second, Likeness("file", 0.8, what, HONEST["file"]))


def equal(own: Sequence[Mapping[str, str]]) -> dict[tuple[int, int], list[str]]:
    """The digests that each two hand-ins have in common, but those that many have."""
    owners: dict[str, list[int]] = {}
    for i, one in enumerate(own):
        for digest in one:
            owners.setdefault(digest, []).append(i)
    found: dict[tuple[int, int], list[str]] = {}
    for digest, having in owners.items():
        for pair in combinations(having, 2) if len(having) <= most_for(len(own)) else ():
            found.setdefault(pair, []).append(digest)
    return found


def below_line(findings: Iterable[Finding], names: Sequence[str]) -> dict[str, str]:
    """By kind a sentence about the strongest likeness below the line."""
    best: dict[str, Finding] = {}
    for one in findings:
        kind = one.likeness.kind
        if one.likeness.strength < LINE and (kind not in best or best[kind].likeness.strength < one.likeness.strength):
            best[kind] = one
    return {kind: f"{names[one.first]} and {names[one.second]}: {one.likeness.what}" for kind, one in best.items()}


def compare(facts: Mapping[str, Facts], work: Path) -> Comparison:
    """All pairs with something above the line; what they have in common below it is shown with them."""
    compared = Compare(facts, work)
    findings = list(compared.findings())
    by_pair: dict[tuple[int, int], list[Likeness]] = {}
    for one in findings:
        if one.likeness.strength >= LEAST_SHOWN:
            by_pair.setdefault((one.first, one.second), []).append(one.likeness)
    pairs = [
        AlikePair(compared.names[a], compared.names[b], tuple(sorted(own, key=lambda one: -one.strength)))
        for (a, b), own in by_pair.items()
        if max(one.strength for one in own) >= LINE
    ]
    pairs.sort(key=lambda pair: (-pair.weight(), pair.first, pair.second))
    notes = {name: one.notes for name, one in facts.items() if one.notes}
    return Comparison(len(facts), tuple(pairs), below_line(findings, compared.names), notes, tuple(compared.groups))
