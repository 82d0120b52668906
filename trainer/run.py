"""Start here: arguments -> recipe -> checks -> build -> fit -> close; it holds no logic.

deepspeed trainer/run.py --recipe FILE [key.path=value ...] [--resume [--change key.path=value ...]]
"""

import sys

from trainer.checkpoint.changes import named_keys
from trainer.cli import (
    ending_with_code,
    launched_ranks,
    let_idle_threads_sleep,
    parse_arguments,
    set_up_logging,
)
from trainer.data.row_settings import with_row_settings
from trainer.preflight.checks import check_run
from trainer.preflight.continuation import continued_recipe, continued_run
from trainer.recipe.adapter_folder import with_adapter
from trainer.recipe.load import load_recipe


def main() -> int:
    """Do what the command line says and return the exit code."""
    arguments = parse_arguments(sys.argv[1:])
    set_up_logging()
    let_idle_threads_sleep()
    recipe = with_row_settings(
        with_adapter(load_recipe(arguments.recipe, arguments.overrides, arguments.changed_values))
    )
    named = named_keys(arguments.changes, recipe)
    resume = not arguments.selfcheck and (arguments.resume or recipe.resume == "auto")
    if resume:
        recipe = continued_recipe(recipe, named)
    if arguments.dry_run:
        from trainer.preflight.dry_run import dry_run

        return dry_run(recipe, arguments, named=named)
    any_folder = resume or arguments.selfcheck
    data = check_run(recipe, world_size=launched_ranks(), resume=any_folder)
    if resume:
        continued_run(recipe, data.sources, named)
    # torch, transformers and deepspeed are imported from here on
    if arguments.selfcheck:
        from trainer.session.selfcheck import selfcheck

        return selfcheck(recipe, data)
    from trainer.session.train import train

    return train(recipe, data, resume=resume, named=named)


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
