"""Open a run: tokenizer, model, engine and data plan, loaded and checked; it must not train."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from trainer.checkpoint.base_identity import check_dtypes, check_recorded_base, identify_base
from trainer.checkpoint.manifest import BaseIdentity
from trainer.data.plan import DataPlan
from trainer.data.planned import plan_of
from trainer.data.teacher import check_widths, teacher_size
from trainer.data.tokens import TextEncoder
from trainer.distributed.agree import on_all_ranks
from trainer.distributed.group import Ranks
from trainer.engine.build import Built, build
from trainer.export.adapter import check_exportable
from trainer.memory.gather import choose_passes
from trainer.merge.model_place import place_of_model
from trainer.model.backbone import check_backbone, load_config
from trainer.model.limits import num_token_ids
from trainer.preflight.checks import RunData
from trainer.preflight.deepspeed_dict import check_deepspeed
from trainer.preflight.encoder import open_encoder
from trainer.preflight.hosts import check_hosts, describe_adapter, describe_base
from trainer.preflight.trained_tokens import with_token_ids
from trainer.recipe.adapter_folder import find_adapter_folder
from trainer.recipe.resolve import Resolved, resolve
from trainer.recipe.schema import ModelRecipe, Recipe
from trainer.run_folder.layout import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Session:
    """A loaded run."""

    recipe: Recipe
    """Checked."""
    data: RunData
    """Sources and evaluation sets, opened before the group was joined."""
    ranks: Ranks
    """This process; its group is up."""
    built: Built
    """The sharded model."""
    tokenizer: PreTrainedTokenizerFast
    """Of the base."""
    encoder: TextEncoder
    """The tokenizer as the recipe uses it."""
    plan: DataPlan
    """Which rows each step trains on, where the run begins with this recipe."""
    base: BaseIdentity | None
    """What adapters belong to; None where all parameters are trained."""
    named: tuple[str, ...] = ()
    """Keys that may differ from a run that is continued."""

    @property
    def folder(self) -> RunFolder:
        """The run's output folder."""
        return RunFolder(Path(self.recipe.output_dir).expanduser())


def open_session(
    recipe: Recipe, data: RunData, ranks: Ranks, *, named: Sequence[str] = ()
) -> Session:
    """Load tokenizer and model and make the engine.

    Args:
        recipe: checked.
        data: opened and checked.
        ranks: this process.
        named: keys that may differ from a run that is continued.
    Collective: yes.
    """
    path = _place_of_base(recipe.model, ranks)
    resolved = resolve(recipe, world_size=ranks.world_size)
    check_deepspeed(resolved.deepspeed, file=recipe.engine.deepspeed)
    check_dtypes(path, recipe.model.revision)
    config = load_config(recipe.model, path)
    num_ids = num_token_ids(check_backbone(recipe, path, config, download=True))
    check_widths(data.sources, recipe, hidden_size=config.get_text_config().hidden_size)
    tokenizer, encoder = open_encoder(recipe, path, num_ids=num_ids)
    parts = describe_base(path, config) | describe_adapter(recipe.model)
    check_hosts(recipe, data.sources, parts, ranks)
    if recipe.model.lora is not None:
        check_exportable(recipe, config)
    base = _identify(recipe.model, path, ranks) if recipe.model.lora else None
    by_id = with_token_ids(recipe, tokenizer, num_ids=num_ids)
    size = teacher_size(data.sources, recipe)
    built = _build(by_id, path, config, resolved, ranks, size)
    plan = plan_of(recipe, data.sources)
    return Session(
        recipe=recipe,
        data=data,
        ranks=ranks,
        built=built,
        tokenizer=tokenizer,
        encoder=encoder,
        plan=plan,
        base=base,
        named=tuple(named),
    )


def _place_of_base(model: ModelRecipe, ranks: Ranks) -> str:
    """Folder or hub id of the base; the first rank of each host unpacks or merges it.

    Collective: yes.
    """
    first_of_host = int(os.environ.get("LOCAL_RANK", "0")) == 0

    def place() -> str | None:
        return place_of_model(model) if first_of_host else None

    on_all_ranks(place, ranks)
    return place_of_model(model)


def _identify(model: ModelRecipe, path: str, ranks: Ranks) -> BaseIdentity:
    """What adapters belong to; that of a folder that is trained on is the one it names.

    Collective: yes.
    """
    found = find_adapter_folder(model.path)
    name = model.path if found is None else path
    base = identify_base(name, path, ranks, revision=model.revision)
    if found is not None and model.adapter == "continue":
        check_recorded_base(found.folder, base)
    return base


def _build(
    recipe: Recipe,
    path: str,
    config: PretrainedConfig,
    resolved: Resolved,
    ranks: Ranks,
    size: int | None,
) -> Built:
    """Choose how the passes run, then load the model for that, with a layer to a teacher's size."""
    passes = choose_passes(
        recipe, config, resolved.deepspeed, world_size=ranks.world_size, teacher_size=size
    )
    logger.info("%d ranks on %s, gather: %s", ranks.world_size, ranks.device.type, passes.gather)
    return build(
        recipe,
        model_path=path,
        config=dict(resolved.deepspeed),
        gather=passes.gather,
        ranks=ranks,
        keep_graph_tokens=passes.keep_graph_tokens,
        whole_graphs=passes.whole_graphs,
        teacher_size=size,
    )
