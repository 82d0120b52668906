"""What an input may end in: success, or one message that says what was expected; nothing else.

It must not know what is read.
"""

from collections.abc import Callable, Sequence

LONGEST_MESSAGE = 4000
"""Characters of an error that a terminal should have to show."""


def message_of(error: Exception) -> str:
    """The message of a TrainerError as the command line shows it.

    Raises:
        AssertionError: it is not one line of a sensible length that says what was expected.
    """
    from trainer.cli import shown
    from trainer.errors import TrainerError

    assert isinstance(error, TrainerError)
    text = shown(error)
    assert error.exit_code == 2, text
    assert text.isprintable(), ascii(text)
    assert "; expected " in text, text
    assert len(text) < LONGEST_MESSAGE, text[:200]
    return text


def _errors(calls: Sequence[Callable[[], object]]) -> list[Exception]:
    """Make all calls; the TrainerErrors that they end in."""
    from trainer.errors import TrainerError

    errors: list[Exception] = []
    for call in calls:
        try:
            call()
        except TrainerError as error:
            try:
                message_of(error)
            except AssertionError as fault:
                raise fault from error
            errors.append(error)
    return errors


def all_of(*calls: Callable[[], object]) -> None:
    """Make all calls; the first TrainerError is raised after the last one."""
    for error in _errors(calls):
        raise error


def any_of(*calls: Callable[[], object]) -> None:
    """Make all calls; the first TrainerError is raised if no call succeeds."""
    errors = _errors(calls)
    if len(errors) == len(calls):
        raise errors[0]
