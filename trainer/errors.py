"""Errors that end a command with one message; it must not import anything of this project."""


class TrainerError(Exception):
    """A mistake of the user, reported in one message without a traceback.

    The message names the place, what was found, what was expected and what to do:
    `recipes/a.yaml: train.max_steps = -3; expected an integer of at least 1. Set it to 1 or more.`
    """

    exit_code = 2
    reported = False
    """Whether another rank reports it."""


class RecipeError(TrainerError):
    """A recipe, an override, a ds_config or a path they name is wrong."""


class DataError(TrainerError):
    """A data file or one of its rows is wrong; the message names file, line and field."""


class ObjectiveError(TrainerError):
    """Tensors or numbers given to a loss do not fit together."""


class CheckpointError(TrainerError):
    """A checkpoint, an export or a merge input is missing, damaged or of another model."""


class HostError(TrainerError):
    """The hosts of a run are not about to run the same thing."""


class StepError(TrainerError):
    """Training cannot go on: a non-finite loss or gradient, or a rank that failed."""

    exit_code = 1
