"""sentence-transformers: `encode` with the folder's prompts.

Releases 3 and 5 are judged on transformers 4, release 6 on transformers 5.
"""

from trainer.export.clients.finding import Client
from trainer.export.clients.plain import RULES_4, RULES_5
from trainer.export.clients.sentence_files import (
    old_pooling_file,
    old_types,
    pooling_mode,
    pooling_prompt,
    prompts,
    unit_norm,
)
from trainer.export.clients.tokens import (
    lower_case,
    outer_blanks,
    padding_side,
    plain_limit,
    sentence_limit,
)

NAME = "sentence-transformers"
FILES = (pooling_mode, pooling_prompt, prompts, sentence_limit, lower_case, unit_norm)
# it pools by the mask, and sets the limit of the tokenizer itself
OWN = (padding_side, plain_limit)
READ_4 = tuple(rule for rule in RULES_4 if rule not in OWN)
READ_5 = tuple(rule for rule in RULES_5 if rule not in OWN)

SENTENCE_3 = Client(
    name=NAME,
    version="3",
    rules=(
        old_types("refused", "It has no such class."),
        old_pooling_file,
        *FILES,
        outer_blanks,
        *READ_4,
    ),
)
SENTENCE_5 = Client(name=NAME, version="5", rules=(*FILES, *READ_4))
SENTENCE_6 = Client(name=NAME, version="6", rules=(*FILES, *READ_5))
