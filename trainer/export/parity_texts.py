"""The texts of `parity.json`: fixed, and of every kind that readers of a model get wrong.

They neither begin nor end in blanks, which some clients strip, and their marks have no composed
form, because some clients do not compose them. No word of them is a special token of a known
vocabulary: clients disagree on such words within a text, whatever the folder says.
"""

TEXTS = (
    "The ferry to the northern islands leaves at seven and returns before dark.",
    "x",
    "Which valve is closed first when the pressure falls?",
    "?",
    "one\u00a0two\u2003three   four      five",
    "first line\n\n\tsecond line, indented\r\n\r\n\t\tthird line",
    "\u6e2f\u53e3\u7684\u706f\u5854\u5728\u96fe\u4e2d\u95ea\u70c1\uff0c\u8239\u5458\u4eec"
    "\u7b49\u5f85\u9ece\u660e\u3002\u706f\u53f0\u306f\u9759\u304b\u3060\u3002\ub4f1\ub300",
    "\u0627\u0644\u0645\u064a\u0646\u0627\u0621 \u0647\u0627\u062f\u0626 \u0627\u0644\u0644"
    "\u064a\u0644\u0629 \u05d4\u05e0\u05de\u05dc \u05e9\u05e7\u05d8 \u05d4\u05dc\u05d9\u05dc"
    "\u05d4 (harbour)",
    "x\u0304 + q\u0303 = m\u0302, \u0915\u094d\u0937\u0947\u0924\u094d\u0930, \u1780\u17b6\u179a",
    "\U0001f6a2 sails \U0001f468\u200d\U0001f469\u200d\U0001f467 aboard \U0001f1eb\U0001f1ee "
    "\U0001f44d\U0001f3fd fine",
    "<|not_a_token|> <end-of-words/> [MASKED] {{user}} ### Reply: are plain words here.",
    "3.14159 1,000,000 -7e-12 0x1F 2026-11-29T08:15:00Z 007 \u00bd \u2167",
    "def area(r: float) -> float:\n    return 3.0 * r ** 2  # rough\n\nprint(area(2.5))",
    "SELECT name, COUNT(*) FROM ships WHERE speed >= 12 GROUP BY name;",
    "{\"port\": \"north\", \"open\": true, \"berths\": [1, 2, 3], \"note\": null}",
    "HOW LOUD IS A FOGHORN? how loud is a foghorn? How Loud Is A Foghorn?",
    "na\u00efve caf\u00e9 \u0141\u00f3d\u017a Stra\u00dfe \u0130stanbul \u00c5ngstr\u00f6m "
    "\u0416\u0443\u043a \u03b4\u03b5\u03bb\u03c4\u03b1",
    "Honorificabilitudinitatibusantidisestablishmentarianismfloccinaucinihilipilification",
    "https://example.org/harbour/map?zoom=12&layer=depth#berth-7 mail: office@example.org",
    "\u201cTides,\u201d she wrote \u2014 \u2018never late\u2019 \u2026 \u2022 5 \u2264 6 "
    "\u2260 7 \u2192 8",
    "The pilot boards two miles out. He asks for the draught, the last port and the number of "
    "crew, and enters them in a book that nobody reads. Then he takes the wheel, because the "
    "channel moves every winter and the charts are older than the sand.",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "A ship, a shop; a shape, a sharp reply, and ships again.",
)  # fmt: skip
"""Some more than are used: a tokenizer that has no token for one of them gets the next."""
NUM_TEXTS = 20
"""Texts of a file, the one that is cut among them."""
LONGEST_TOKENS = 4096
"""The longest text of a file: a model that takes more is compared up to here."""


def cut_text(max_tokens: int) -> str:
    """A text of more words than `max_tokens`, so that readers must cut it."""
    words = (f"mark {n} of the long way round," for n in range(max_tokens // 7 + 2))
    return " ".join(words).rstrip(",") + "."


def ordered_texts(max_tokens: int) -> list[str]:
    """Candidates in order of use; the one that is cut is the third."""
    texts = list(TEXTS)
    texts.insert(2, cut_text(max_tokens))
    return texts
