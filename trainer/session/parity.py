"""What the trained model makes of the texts of `parity.json`, and what clients will make of it.

It must not write the export.
"""

import logging
from pathlib import Path

from trainer.errors import TrainerError
from trainer.export.clients.folder import TOKENIZER
from trainer.export.clients.table import read_clients
from trainer.export.embedder_files import max_tokens
from trainer.export.folder import ADAPTER_FOLDER
from trainer.export.parity_file import PARITY, Parity
from trainer.export.parity_make import ParityModel, make_parity
from trainer.export.prompts import prompts_of
from trainer.export.sentence_files import with_benchmark_names
from trainer.session.open import Session

logger = logging.getLogger(__name__)

END_TOKEN_PLACE = f"{TOKENIZER}: post_processor"
"""Where an end token stands that a converter does not know."""


def parity_of_session(session: Session) -> Parity | None:
    """Token ids and vectors of the texts, by the model as it is on all ranks now.

    They are made under the smaller of the limits of training and of the export.

    Returns:
        The same on all ranks; None, with a warning, if the tokenizer takes none of the texts.
    Collective: yes.
    """
    recipe = session.recipe
    trained = max(recipe.data.query_max_tokens, recipe.data.passage_max_tokens)
    made_of = ParityModel(
        prompts=with_benchmark_names(prompts_of(recipe)),
        encoder=session.encoder,
        max_tokens=min(trained, max_tokens(recipe)),
        pooling=recipe.model.pooling,
        attention=recipe.model.attention,
        dtype=recipe.model.dtype,
    )
    parity = make_parity(
        made_of,
        session.built.grad_cache,
        session.ranks,
        chunk_tokens=recipe.engine.max_tokens_per_chunk,
    )
    if parity is None:
        logger.warning("%s: not written; the tokenizer has no tokens for its texts", PARITY)
    return parity


def warn_of_clients(model: Path) -> None:
    """Log each client that would embed otherwise than the trainer without an error of its own.

    A converter that does not know the end token is told of, too: the recipe chooses that token.

    Args:
        model: an exported folder, perhaps with that of an adapter inside.

    Collective: no; on the first rank.
    """
    for folder in (model, model / ADAPTER_FOLDER):
        if not (folder / "modules.json").is_file():
            continue
        try:
            results = read_clients(folder)
        except (TrainerError, OSError) as error:
            logger.warning("%s: clients not checked: %s", folder, error)
            continue
        for result in results:
            if result.outcome == "different":
                logger.warning("%s: %s would embed otherwise without an error: %s",
                               folder, result.label, result.reason)  # fmt: skip
            elif result.field == END_TOKEN_PLACE:
                logger.warning("%s: %s would refuse it: %s", folder, result.label, result.reason)
