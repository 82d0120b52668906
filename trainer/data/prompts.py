"""How an instruction is put before a text: one rule for training, evaluation and export."""

from trainer.errors import RecipeError

TEXT = "{text}"
INSTRUCTION = "{instruction}"


def prompt_prefix(template: str, instruction: str) -> str:
    """What stands before each text; nothing where there is no instruction.

    Args:
        template: ends in `{text}` and holds `{instruction}` once, as `data.prompt_template`.
        instruction: of one source and side, may be empty.

    Raises:
        RecipeError: if the template has another form.
    """
    head = template.removesuffix(TEXT)
    if head == template or TEXT in head or head.count(INSTRUCTION) != 1:
        raise RecipeError(
            f"recipe: data.prompt_template = {template!r}; expected {INSTRUCTION} once and {TEXT} "
            "once, at the end, as exported models keep a prompt before the text only. Rewrite it."
        )
    return head.replace(INSTRUCTION, instruction) if instruction else ""
