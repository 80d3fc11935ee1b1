"""The notes and questions that nemotron-h-tiny learns from, made by code.

Notes are plain sentences in any order: facts of the kinds in `FACTS`, and filler around them. A
fact has slots, {name} or {number}; no two facts of one kind in the same notes share the value of a
slot, so each question has one answer. One name does occur in facts of several kinds.

    Nora keeps 4719 in the red box. The wind was cold at noon. Tom lives in Rome.
    What does Nora keep?
    (thinking)  The notes say: Nora keeps 4719 in the red box.
                It is 4719.

Part of the numbers and pairs of words is held out: it never stands in what is trained on.
"""

import zlib
from dataclasses import dataclass


def listed(text):
    """Split "a|b" into its parts."""
    return text.split("|")


NAMES = listed(
    "Anna|Ben|Clara|Daniel|Ella|Felix|Grace|Hugo|Ivy|Jack|Kate|Leo|Mia|Nora|Oscar|Paula|Rosa|Sam|"
    "Tom|Vera|Adam|Bella|Carl|Diana|Emil|Fiona|Greta|Henry|Iris|Jonas|Lucas|Maria|Noah|Olga|Peter|"
    "Robin|Sara|Theo|Victor|Wendy"
)
TOWNS = listed(
    "Paris|Rome|London|Berlin|Madrid|Oslo|Vienna|Prague|Athens|Dublin|Lisbon|Warsaw|Cairo|Tokyo|"
    "Delhi|Lima|Boston|Dallas|Denver|Geneva|Hamburg|Milan|Munich|Naples|Porto|Quito|Seoul|Sydney|"
    "Turin|Venice|York|Zurich|Bergen|Cork|Dover|Graz|Kiel|Leeds|Lyon|Nice"
)
COLOURS = listed("red|blue|green|yellow|white|black|brown|grey|pink|golden")
HOLDERS = listed("box|bag|drawer|jar|basket|chest")
QUALITIES = listed("silver|wooden|small|old|heavy|round|cheap|soft|long|new")
THINGS = listed("coin|ring|lamp|chair|spoon|clock|kite|drum|knife|mirror|carpet|bell")
PLACES = listed(
    "mill|bridge|church|harbour|museum|school|station|tower|garden|bakery|hotel|farm|bank|castle|"
    "library|theatre|factory|hospital|stadium|palace"
)

FILLER_SUBJECTS = listed(
    "The wind|The rain|The river|The sea|The market|The cat|The old dog|The night|The moon|"
    "The street|A bird|The garden gate|The train|The bus|The school bell|The kitchen|The snow|"
    "The road|Everybody|Nobody"
)
FILLER_PREDICATES = listed(
    "was cold|was late|was quiet|came back|was gone|slept|was busy|made a noise|was warm|"
    "looked different|was seen|did not move|waited|changed|was slow|went by"
)
FILLER_TIMES = listed(
    "in the morning|at noon|in the evening|all night|on Monday|on Friday|again|last week|all day|"
    "after the storm|for an hour|that day|as always|in spring"
)
NAMED_FILLERS = listed(
    "{name} went home early.|{name} was ill on Monday.|{name} had a cold.|{name} likes the sea.|"
    "{name} came too late.|{name} read a long book.|{name} slept all day.|{name} was very busy.|"
    "{name} sang a song.|{name} has two brothers."
)


@dataclass(frozen=True)
class Fact:
    """A kind of fact: its sentences, its slots, and (question, answer) pairs about it."""

    sentences: tuple
    slots: tuple
    questions: tuple


FACTS = {
    "keeps": Fact(
        ("{name} keeps {number} in the {holder}.",),
        ("name", "number", "holder"),
        (
            ("What does {name} keep?", "It is {number}."),
            ("What is in the {holder}?", "It is {number}."),
            ("Where does {name} keep it?", "In the {holder}."),
            ("Who has the {holder}?", "It is {name}."),
        ),
    ),
    "lives": Fact(
        ("{name} lives in {town}.",),
        ("name", "town"),
        (
            ("Where does {name} live?", "In {town}."),
            ("Who lives in {town}?", "It is {name}."),
        ),
    ),
    "bought": Fact(
        ("{name} bought the {thing}.",),
        ("name", "thing"),
        (
            ("What did {name} buy?", "The {thing}."),
            ("Who bought the {thing}?", "It is {name}."),
        ),
    ),
    "number": Fact(
        ("The number of the {place} is {number}.",),
        ("place", "number"),
        (("What is the number of the {place}?", "It is {number}."),),
    ),
}

UNKNOWN = "The notes do not say."
SMALL_TALK = (
    (
        listed("Hello!|Hi!|Hello|Hi there!|Good morning!"),
        "Hello! Give me notes, then ask.",
    ),
    (
        listed("Who are you?|What are you?|What is your name?"),
        "I am a tiny Nemotron-H. I find things in long notes.",
    ),
    (
        listed("What can you do?|How can you help me?|Help"),
        "Give me notes and ask: who, what or where.",
    ),
    (listed("Thank you!|Thanks!|Thank you"), "You are welcome!"),
    (listed("Goodbye!|Bye!|Bye"), "Goodbye!"),
)
LEADS = listed("Notes:|Notes:|Notes:|My notes:|Here are my notes:|Read this:")
SYSTEMS = listed("You answer questions about notes.|Answer from the notes.|Be brief.")


def is_held_out(value):
    """Whether a number or a pair of words is in the tenth that is held out."""
    return zlib.crc32(value.encode()) % 10 == 0


def draw(slot, random, held_out):
    """A value for a slot, of those to train on or, for numbers and pairs of words, held out."""
    if slot in LISTS:
        return random.choice(LISTS[slot])
    while True:
        value = MAKERS[slot](random)
        if is_held_out(value) == held_out:
            return value


LISTS = {"name": NAMES, "town": TOWNS, "place": PLACES}
MAKERS = {
    "number": lambda random: "".join(random.choice("0123456789") for _ in range(4)),
    "holder": lambda random: f"{random.choice(COLOURS)} {random.choice(HOLDERS)}",
    "thing": lambda random: f"{random.choice(QUALITIES)} {random.choice(THINGS)}",
}


class Notes:
    """Notes that grow sentence by sentence, and the questions that they answer."""

    def __init__(self, random, facts_share=0.5, kinds=tuple(FACTS)):
        self.random, self.facts_share, self.kinds = random, facts_share, kinds
        self.facts, self.held_out = [], []  # (kind, slots, sentence); those with held-out values
        self.taken = set()  # (kind, slot, value); numbers are unique in all the notes

    def fact(self, held_out=False, kind=None):
        """(kind, slots, sentence) with values that no other fact of its kind has, or None."""
        kind = kind or self.random.choice(self.kinds)
        slots, taken = {}, set()
        for slot in FACTS[kind].slots:
            for _ in range(1000):
                value = draw(slot, self.random, held_out)
                key = (None if slot == "number" else kind, slot, value)
                if key not in self.taken:
                    break
            else:
                return None
            slots[slot] = value
            taken.add(key)
        self.taken |= taken
        sentence = self.random.choice(FACTS[kind].sentences).format_map(slots)
        return kind, slots, sentence

    def sentence(self, held_out_share=0.0):
        """The next sentence: a fact, which is noted in `facts`, or filler."""
        random = self.random
        if random.random() < self.facts_share:
            held_out = random.random() < held_out_share
            if fact := self.fact(held_out):
                (self.held_out if held_out else self.facts).append(fact)
                return fact[2]
        if random.random() < 0.2:
            return random.choice(NAMED_FILLERS).format(name=draw("name", random, False))
        parts = (FILLER_SUBJECTS, FILLER_PREDICATES, FILLER_TIMES)
        return " ".join(map(random.choice, parts)) + "."

    def ask(self, fact, which=None):
        """(question, reasoning, answer) about a fact of these notes."""
        kind, slots, sentence = fact
        questions = FACTS[kind].questions
        question, answer = questions[which] if which is not None else self.random.choice(questions)
        return question.format_map(slots), f"The notes say: {sentence}", answer.format_map(slots)

    def ask_unknown(self, held_out=False):
        """(question, reasoning, answer) about a fact that these notes do not have, or None."""
        fact = self.fact(held_out)
        return (self.ask(fact)[0], UNKNOWN, UNKNOWN) if fact else None


def small_talk(random):
    """(what the user says, reasoning, answer)."""
    said, answer = random.choice(SMALL_TALK)
    return random.choice(said), "This is small talk.", answer
