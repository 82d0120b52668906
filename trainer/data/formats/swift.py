"""Rows of ms-swift: lists of chat messages, or `query, response, rejected_response`.

A system message is an instruction; it belongs to the recipe and is compared with it.
"""

from typing import Any

from trainer.data.fields import Row, RowError, check_text, shown
from trainer.data.formats.adapter import Adapter, ScoredPair
from trainer.data.formats.labels import PAIR_SCORES, check_positive, pair_score
from trainer.data.records import IrRecord

POSITIVES, NEGATIVES = "positive_messages", "negative_messages"
CHAT = "messages"


def parse_chat_ir(row: Row) -> IrRecord:
    """`{"messages": chat, "positive_messages": [chat, ...], "negative_messages": [chat, ...]}`.

    Raises:
        RowError: if a field is missing or wrong, a chat is not one message, or a label is 0.
    """
    positives = _chats(row, POSITIVES)
    if not positives:
        raise RowError(POSITIVES, "[]", "at least one list of messages")
    negatives = _chats(row, NEGATIVES) if row.has(NEGATIVES) else []
    check_positive(row, num_negatives=len(negatives))
    return IrRecord(
        query=_text(CHAT, row.items(CHAT)),
        positives=tuple(_text(f"{POSITIVES}[{i}]", chat) for i, chat in enumerate(positives)),
        negatives=row.kept(NEGATIVES, negatives, _text),
    )


def parse_chat_sts(row: Row) -> ScoredPair:
    """`{"messages": chat, "positive_messages": [chat], "label": number}`.

    Raises:
        RowError: if a field is missing or wrong, or there is not one text to compare.
    """
    others = _chats(row, POSITIVES)
    if len(others) != 1:
        raise RowError(POSITIVES, f"{len(others)} lists", "one, as a row is one pair")
    query = _text(CHAT, row.items(CHAT))
    return ScoredPair(query, _text(f"{POSITIVES}[0]", others[0]), pair_score(row))


def parse_ir(row: Row) -> IrRecord:
    """`{"query": str, "response": str, "rejected_response": str or [str, ...]}`.

    Raises:
        RowError: if a field is missing or wrong, or a label is 0.
    """
    negatives = row.one_negative("rejected_response")
    check_positive(row, num_negatives=len(negatives))
    return IrRecord(query=row.text("query"), positives=(row.text("response"),), negatives=negatives)


def parse_sts(row: Row) -> ScoredPair:
    """`{"query": str, "response": str, "label": number}`.

    Raises:
        RowError: if a field is missing or wrong.
    """
    return ScoredPair(row.text("query"), row.text("response"), pair_score(row))


def system_message(row: Row) -> str:
    """What the query's system message says, or the row's own field for it."""
    if row.has("system"):
        return str(row.values["system"])
    chat = row.values.get(CHAT)
    return _system(chat) if isinstance(chat, list) else ""


def passage_system_message(row: Row) -> str:
    """What the system message of the first positive says."""
    return next(map(_system, _chats(row, POSITIVES)), "") if row.has(POSITIVES) else ""


def _chats(row: Row, field: str) -> list[Any]:
    """A list of chats; a chat alone is a list of one."""
    chats = row.items(field)
    return [chats] if chats and isinstance(chats[0], dict) else chats


def _system(chat: Any) -> str:
    first = chat[0] if isinstance(chat, list) and chat else None
    is_system = isinstance(first, dict) and first.get("role") == "system"
    return str(first["content"]) if is_system and first is not None and "content" in first else ""


def _text(field: str, chat: Any) -> str:
    """The content of the one message that a chat has besides the system's."""
    if not isinstance(chat, list) or not all(isinstance(message, dict) for message in chat):
        raise RowError(field, shown(chat), "a list of messages")
    messages = [message for message in chat if message.get("role") != "system"]
    if len(messages) != 1:
        expected = "one message besides the system's, as an embedder reads one text"
        raise RowError(field, f"{len(messages)} messages", expected)
    return check_text(f"{field}.content", _content(messages[0].get("content")))


def _content(content: Any) -> Any:
    """The text of a message, which may be in parts that are all text."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    whole = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
    return "".join(map(str, texts)) if whole else content


ADAPTERS = (
    Adapter(
        name="swift",
        task="ir",
        columns=frozenset({CHAT, POSITIVES}),
        parse=parse_chat_ir,
        optional=(NEGATIVES, "label", "system"),
        instruction=system_message,
        passage_instruction=passage_system_message,
    ),
    Adapter(
        name="swift",
        task="ir",
        columns=frozenset({"query", "response"}),
        parse=parse_ir,
        optional=("rejected_response", "label", "system"),
        instruction=system_message,
    ),
    Adapter(
        name="swift",
        task="sts",
        columns=frozenset({CHAT, POSITIVES}),
        parse=parse_chat_sts,
        any_of=(PAIR_SCORES,),
        optional=("system",),
        instruction=system_message,
    ),
    Adapter(
        name="swift",
        task="sts",
        columns=frozenset({"query", "response"}),
        parse=parse_sts,
        any_of=(PAIR_SCORES,),
        optional=("system",),
        instruction=system_message,
    ),
)
