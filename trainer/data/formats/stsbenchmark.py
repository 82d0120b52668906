"""STSbenchmark as its authors publish it (sts-train.csv): tab-separated, without a header."""

from trainer.data.formats.adapter import Adapter
from trainer.data.formats.sentence_transformers import parse_sts
from trainer.data.header import Headerless

COLUMNS = ("genre", "filename", "year", "old_index", "score", "sentence1", "sentence2")
"""Some rows have two more fields: where their texts come from, and under which licence."""

ADAPTERS = (
    Adapter(
        name="stsbenchmark",
        task="sts",
        columns=frozenset({"sentence1", "sentence2", "score"}),
        parse=parse_sts,
        is_found=False,
        headerless=Headerless(COLUMNS, is_plain=True),
    ),
)
