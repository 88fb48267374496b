"""Memories as people write them, a question for each, and sets of a memory among others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """A memory, and a question that it answers."""

    text: str
    question: str
    answer: str
    """The word or words that a right answer has. Several ways to write it are parted by |."""

    def is_answered(self, reply: str) -> bool:
        return any(way in reply.lower() for way in self.answer.lower().split("|"))


@dataclass(frozen=True, slots=True)
class Case:
    """A question, and the passages that were recalled for it: its own note among others."""

    note: Note
    passages: tuple[Note, ...]

    def is_right(self, reply: str) -> bool:
        """Whether the reply has the answer, and the answer of no other note."""
        others = (each for each in self.passages if each is not self.note)
        return self.note.is_answered(reply) and not any(other.is_answered(reply) for other in others)


NOTES = (
    Note("The code of the north gate is 4071.", "What is the code of the north gate?", "4071"),
    Note("Mara's dog is called Pepper.", "What is the name of Mara's dog?", "Pepper"),
    Note("The spare key is kept in the blue drawer.", "Where is the spare key kept?", "blue drawer"),
    Note("The Halden project is led by Ines Okafor.", "Who leads the Halden project?", "Okafor"),
    Note("The weekly meeting of the lab is on Thursday.", "On which day does the lab meet?", "Thursday"),
    Note(
        "The printer of the office is named Walrus.",
        "What is the printer called?",
        "Walrus",
    ),
    Note("Jonas is allergic to walnuts.", "What is Jonas allergic to?", "walnut"),
    Note("The backup of the archive starts at 02:30.", "When does the archive's backup start?", "2:30"),
    Note("The Kestrel was built in the yard of Brenholm.", "Where was the Kestrel built?", "Brenholm"),
    Note("The tower clock of Selby is seven minutes slow.", "How slow is Selby's clock?", "seven|7 min"),
    Note("Priya drinks her coffee with oat milk.", "What does Priya take in her coffee?", "oat milk"),
    Note("The password of the guest network is tulip-garden.", "What is the guest password?", "tulip-garden"),
    Note("The invoice of Larkin & Co. was 1,840 euros.", "How much was Larkin's invoice?", "1,840"),
    Note("Our office in Tampere has 23 desks.", "How many desks are in the Tampere office?", "23"),
    Note("The old bridge was closed because of rust.", "Why was the old bridge closed?", "rust"),
    Note("Tomas plays the cello in the town orchestra.", "Which instrument does Tomas play?", "cello"),
    Note("The first edition of the atlas is in room 12.", "In which room is the atlas?", "12"),
    Note("The delivery of the timber was moved to 9 May.", "When will the timber come?", "9 May"),
    Note("The Ostrava line is served by tram 8.", "Which tram serves the Ostrava line?", "8"),
    Note("Helga's bakery sells rye bread on Mondays only.", "What does Helga sell on Mondays?", "rye"),
    Note("The reading lamp needs a bulb of type E14.", "Which bulb does the reading lamp need?", "E14"),
    Note("The hut at Gray Pass has 18 beds.", "How many beds has the hut at Gray Pass?", "18"),
    Note("The choir sings in the church of Saint Alban.", "Where does the choir sing?", "Alban"),
    Note("Omar's motorcycle is dark green.", "What colour is Omar's motorcycle?", "green"),
    Note("The lease of the warehouse ends in October.", "When does the warehouse's lease end?", "October"),
    Note("The chess club is chaired by Ruth Adeyemi.", "Who chairs the chess club?", "Adeyemi"),
    Note("The server Juniper was replaced by Magnolia.", "Which server replaced Juniper?", "Magnolia"),
    Note("The well in the courtyard is 31 metres deep.", "How deep is the well in the courtyard?", "31"),
    Note(
        "Lena's train leaves from platform 5.", "From which platform does Lena's train leave?", "platform 5"
    ),
    Note("The flour is in the cellar, behind the barrels.", "Where is the flour?", "cellar"),
    Note("The lighthouse of Korv flashes every six seconds.", "How often does Korv flash?", "six|6 s"),
    Note("The contract with Belmar was signed in Lisbon.", "Where was Belmar's contract signed?", "Lisbon"),
    Note("The violin of the museum was made by Aldo Ferri.", "Who made the museum's violin?", "Ferri"),
    Note("Sven keeps bees and eleven hens.", "How many hens does Sven keep?", "eleven|11"),
    Note("The alarm of the vault is switched off with a key card.", "What stops the alarm?", "card"),
    Note("Nadia's flight to Oslo lands at 17:45.", "When does Nadia's flight land?", "17:45"),
    Note("The red boat belongs to the Mertens family.", "Who owns the red boat?", "Mertens"),
    Note("The garden's roses are watered by Viktor.", "Who waters the roses?", "Viktor"),
    Note("The recipe for the soup asks for fennel.", "Which vegetable does the soup need?", "fennel"),
    Note("The tax office moved to Mill Street.", "In which street is the tax office?", "Mill"),
)


def cases(count: int, others: int, seed: int) -> list[Case]:
    """Sets of passages in any order, one for each of the first `count` notes.

    others: how many other notes are beside a question's own. The same arguments give the same cases.
    """
    rng = random.Random(f"recall-prompt-{seed}")
    return [_case(rng, note, [each for each in NOTES if each is not note], others) for note in NOTES[:count]]


def _case(rng: random.Random, note: Note, pool: Sequence[Note], others: int) -> Case:
    # Another note's answer may stand in this note or its question by chance, as `8` stands in `18`.
    fitting = [each for each in pool if not each.is_answered(note.text + note.question)]
    shown = [note, *rng.sample(fitting, others)]
    rng.shuffle(shown)
    return Case(note, tuple(shown))
