"""Whether delimited files begin with the names of their columns; it must not read them."""

from dataclasses import dataclass
from typing import NamedTuple

from trainer.data.fields import shown
from trainer.errors import DataError
from trainer.recipe.schema import EvalSetRecipe, SourceRecipe

NUMBERED = "column_{}"
"""What columns are called where neither the file nor its format does, from 1."""


class Headerless(NamedTuple):
    """How the files of a format look that do not begin with the names of their columns."""

    names: tuple[str, ...]
    """Of the columns, in order."""
    is_plain: bool = False
    """Whether each line is a row of fields with tabs between them and plain quotes, which may have
    more fields than names; those are left out. Else the file itself shows how it is written."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What recipe and format say of the first row of delimited files."""

    owner: str = ""
    """Recipe key of the set, for messages; empty: files are no rows of records."""
    said: bool | None = None
    """`header` of the recipe."""
    headerless: Headerless | None = None
    """Of a format whose files have no header."""
    must_be_said: bool = False
    """Whether the format does not know the names of columns, so that any row could be a header."""

    @property
    def is_there(self) -> bool | None:
        """Whether the first row names the columns; None: nothing says it."""
        if self.said is not None:
            return self.said
        return None if self.must_be_said else self.headerless is None

    @property
    def is_plain(self) -> bool:
        """See `Headerless.is_plain`."""
        return self.headerless is not None and self.headerless.is_plain

    def names(self, num_fields: int) -> tuple[str, ...]:
        """Column names of a file without a header, whose first row has so many fields."""
        if self.headerless is not None:
            return self.headerless.names
        return tuple(NUMBERED.format(number) for number in range(1, num_fields + 1))

    @property
    def advice(self) -> str:
        """What to do where the first row was taken for a header, and may be none."""
        if not self.owner:
            return "Write a first line with the names of the columns"
        return f"If the first row is none, set {self.owner}.header=false"


def refuse_row_keys(recipe: SourceRecipe | EvalSetRecipe, *, owner: str) -> None:
    """Refuse keys that say how rows are read, where files are no rows of records.

    Args:
        recipe: of a BEIR folder.
        owner: its recipe key.

    Raises:
        DataError: if one is given.
    """
    if recipe.columns:
        raise DataError(
            f"{owner}.columns = {shown(recipe.columns)}; expected nothing for a BEIR folder, "
            "whose files have names of their own. Remove it."
        )
    if recipe.header is not None:
        raise DataError(
            f"{owner}.header = {str(recipe.header).lower()}; expected nothing for a BEIR folder, "
            "whose files begin with the names of their columns. Remove it."
        )
