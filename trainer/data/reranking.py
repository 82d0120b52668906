"""Held-out queries with the texts that are ranked for each: sets of reranking.

Rows hold them as texts. MTEB's newer sets are BEIR folders with one part more, `top_ranked`, which
names the candidates of each query by their ids.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from trainer.data.beir import BeirFolder, open_folder, read_gains
from trainer.data.fields import BlankTextError, Row, RowError, shown
from trainer.data.header import refuse_row_keys
from trainer.data.held_out_records import Candidates
from trainer.data.held_out_source import folder_of, open_table_source, origin_of, owner_of, split_of
from trainer.data.layouts import SetFolder, short_name
from trainer.data.qrels import QUERY_NAMES
from trainer.data.scan import parsed_rows
from trainer.data.tables import CORPUS, Table, table_of
from trainer.errors import DataError
from trainer.recipe.eval_kinds import RERANKING
from trainer.recipe.schema import DataRecipe, EvalSetRecipe

RANKED = "top_ranked"
"""The part of a folder that names candidates."""
CANDIDATES = "corpus-ids"
"""Its column of their ids."""


@dataclass(frozen=True, kw_only=True)
class RerankingSet:
    """Queries with candidates of their own."""

    kind: ClassVar[str] = RERANKING.name
    rows: tuple[Candidates, ...]
    """A query with its candidates [Q]."""

    def asked(self) -> Iterator[str]:
        """See `EvalSet.asked`."""
        return (row.asked() for row in self.rows)


def open_reranking(recipe: EvalSetRecipe, data: DataRecipe) -> RerankingSet:
    """A file of queries with positives and negatives, or a folder of MTEB, every row checked.

    Raises:
        DataError: if a file is missing, a row is malformed, no row has something to rank, or a
            candidate is not in the corpus; names file and line.
    """
    folder = folder_of(recipe, data)
    if folder is not None and folder.part((CORPUS,), split_of(recipe)):
        return _open_folder(recipe, folder, skip=data.on_bad_row == "skip")
    source = open_table_source(recipe, data)
    return RerankingSet(rows=tuple(source.record(row) for row in range(len(source))))


def _open_folder(recipe: EvalSetRecipe, folder: SetFolder, *, skip: bool) -> RerankingSet:
    """Corpus, queries and judgements with the candidates that are named.

    Raises:
        DataError: if a part is missing, a row is malformed, an id is unknown, or a judged query has
            no candidates.
    """
    refuse_row_keys(recipe, owner=owner_of(recipe))
    files = folder.part((RANKED,), split_of(recipe))
    if not files:
        raise DataError(
            f"{owner_of(recipe)}: {origin_of(recipe)}, without {RANKED}; expected the candidates "
            f"of each query beside its corpus (looked for {folder.path / RANKED}.jsonl). Add the "
            "file, or change task to ir to search the whole corpus."
        )
    beir = open_folder(folder, split_of(recipe), skip=skip)
    gains = read_gains(beir, split_of(recipe), skip=skip)
    table = table_of(files)
    found: dict[str, Candidates] = {}
    for row, (query, candidates) in parsed_rows(table, _parser(beir, table, gains), skip=skip):
        if query in found:
            fault = RowError("query-id", shown(query), "a new id")
            raise table.error(row, fault, "Write the candidates of a query into one row.")
        if candidates is not None:
            found[query] = candidates
    _check_ranked(table, found, () if skip else gains)
    return RerankingSet(rows=tuple(found.values()))


def _check_ranked(table: Table, found: Mapping[str, Candidates], judged: Iterable[str]) -> None:
    """Every judged query has candidates, and some candidate answers one.

    Raises:
        DataError: if one has none, or nothing is left to find.
    """
    for query in judged:
        if query not in found:
            raise DataError(
                f"{table.name}: query-id = without {shown(query)}; expected the candidates of "
                "every query that is judged. Add a row for it, or remove its judgements."
            )
    if not any(one.positives for one in found.values()):
        raise DataError(
            f"{table.name}: {CANDIDATES} = none that is judged above 0; expected some candidate "
            "that answers its query. Check that candidates and judgements belong together."
        )


def _parser(
    beir: BeirFolder, table: Table, gains: Mapping[str, Mapping[str, int]]
) -> Callable[[int], tuple[str, Candidates | None]]:
    """A function from a row to a query's id and candidates; None for a query that is not judged."""

    def parse(index: int) -> tuple[str, Candidates | None]:
        row = table.row(index)
        query = row.identifier(row.first(QUERY_NAMES))
        texts = {name: beir.documents.text(field, name) for name, field in _names(row)}
        if query not in gains:
            return query, None
        judged = {name: gain for name, gain in gains[query].items() if gain > 0}
        place = beir.query_ids.row("query-id", query, short_name(beir.queries.files[0].name))
        if beir.query_ids.is_blank(place):
            raise BlankTextError("query-id", shown(query), "a query with text")
        answers = [name for name in texts if name in judged]
        return query, Candidates(
            query=beir.query(place),
            positives=tuple(texts[name] for name in answers),
            negatives=tuple(text for name, text in texts.items() if name not in judged),
            gains=tuple(judged[name] for name in answers),
            missed=tuple(gain for name, gain in judged.items() if name not in texts),
        )

    return parse


def _names(row: Row) -> list[tuple[str, str]]:
    """The ids of a row's candidates, each once, with their places in it.

    Raises:
        RowError: if there are none, or one is no id.
    """
    items = {f"{CANDIDATES}[{at}]": value for at, value in enumerate(row.items(CANDIDATES))}
    if not items:
        raise RowError(CANDIDATES, "[]", "at least one id")
    named = Row(items)
    return list({named.identifier(field): field for field in items}.items())
