"""The sentences of the demo corpus: a small grammar, and which split may hold a sentence."""

import hashlib
import random
import re

HELD_OUT_SHARE = 0.05  # of the sentences, for dev and for test each

# Left out: two sounds for one spelling ("close"), two spellings for one sound ("four"). Without them a
# recogniser can reach zero. 144 words; every sentence has three to nine.
SENTENCES = [
    "please {do} the {adjective} {thing} {when}",
    "{name} {did} the {adjective} {thing} {where}",
    "{name} {did} the {thing} {where} {when}",
    "can you {do} {number} {adjective} {things} {when}",
    "don't {do} the {thing} {where}",
    "the {adjective} {animal} {acts} {where} {when}",
    "the {animal} {acts} {when}",
    "{name} {acts} {when}",
    "{name} and i will {do} the {thing} {when}",
    "{name} has {number} {adjective} {things}",
    "where is my {adjective} {thing}",
    "let's {do} {number} {adjective} {things} for {name}",
    "it's {weather} {where} {when}",
    "we {did} {number} {things} {where}",
    "did {name} {do} your {adjective} {thing} {when}",
    "there are {number} {things} {where} {when}",
]
WORDS = {
    "name": "anna, ben, clara, david, emma, henry, julia, oscar, peter, sophie",
    "do": "borrow, bring, carry, clean, draw, find, hide, keep, move, paint, sell, wash",
    "did": "borrowed, carried, cleaned, dropped, found, lost, painted, remembered, wanted, washed",
    "adjective": "broken, empty, golden, green, heavy, little, old, purple, red, silver, wooden, yellow",
    "thing": "basket, blanket, boat, bottle, door, kettle, ladder, lamp, letter, piano, table, window",
    "things": "apples, candles, cookies, flowers, lemons, stones",
    "animal": "cat, dog, horse, lion, rabbit, turtle",
    "acts": "hides, jumps, plays, sings, sleeps, waits",
    "weather": "raining, snowing, cold, dark, quiet, warm",
    "number": "three, five, six, seven, nine, ten, eleven, twelve",
    "where": "{near} the {place}",
    "near": "behind, beside, inside, near, under",
    "place": "bridge, church, forest, garden, kitchen, library, market, river, school, station",
    "when": "at {number}, at {number}, on {day}, every {part}, this {part}, before lunch, after dinner, "
    "again, now, today, tomorrow, tonight",
    "day": "monday, friday, saturday, sunday",
    "part": "morning, evening, winter, summer",
}


def draw_sentence(rng: random.Random) -> str:
    """Draws a sentence, in lower case, from the grammar, which has 4.7 million."""

    def fill(slot: re.Match) -> str:
        return expand(rng.choice(WORDS[slot[1]].split(", ")))

    def expand(text: str) -> str:
        return re.sub(r"{(\w+)}", fill, text)

    return expand(rng.choice(SENTENCES))


def split_of(sentence: str) -> str:
    """Names the only split that may hold `sentence`, which is the same in every corpus."""
    share = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:4], "big") / 2**32
    return "dev" if share < HELD_OUT_SHARE else "test" if share < 2 * HELD_OUT_SHARE else "train"


def draw_sentence_of(split: str, rng: random.Random) -> str:
    """Draws until a sentence belongs to `split`: about 20 draws for dev and for test."""
    while split_of(sentence := draw_sentence(rng)) != split:
        pass
    return sentence
