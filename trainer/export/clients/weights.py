"""Names of classes and tensors, and modes of files, as clients read them; no tensor is read."""

from collections.abc import Collection, Iterator

from trainer.checkpoint.dense_files import dense_weights
from trainer.export.clients.finding import Finding, Rule
from trainer.export.clients.folder import CONFIG, ExportFolder

CLASSES = {
    "bert": "BertModel",
    "camembert": "CamembertModel",
    "distilbert": "DistilBertModel",
    "eurobert": "EuroBertModel",
    "gemma": "GemmaModel",
    "gemma2": "Gemma2Model",
    "gemma3_text": "Gemma3TextModel",
    "gpt_neox": "GPTNeoXModel",
    "granite": "GraniteModel",
    "llama": "LlamaModel",
    "mistral": "MistralModel",
    "modernbert": "ModernBertModel",
    "mpnet": "MPNetModel",
    "nomic_bert": "NomicBertModel",
    "olmo2": "Olmo2Model",
    "phi": "PhiModel",
    "phi3": "Phi3Model",
    "qwen2": "Qwen2Model",
    "qwen3": "Qwen3Model",
    "qwen3_moe": "Qwen3MoeModel",
    "roberta": "RobertaModel",
    "smollm3": "SmolLM3Model",
    "xlm-roberta": "XLMRobertaModel",
}
"""The class whose tensors an export holds, by model type."""
PREFIX = "model."
"""Before the names of a decoder's tensors in files of models with a head."""
OTHERS_READ = 0o004
"""Bit of a mode."""


def architecture(folder: ExportFolder) -> str | None:
    """The class that config.json names."""
    found = folder.config.get("architectures")
    return str(found[0]) if isinstance(found, list) and found else None


def right_class(why: str, *, with_head: bool) -> Rule:
    """A rule: the class is that of the tensors.

    Args:
        why: what the client does with another one.
        with_head: whether the class with a head is taken too.
    """

    def rule(folder: ExportFolder) -> Iterator[Finding]:
        expected, found = CLASSES.get(folder.model_type), architecture(folder)
        if expected is None or folder.adapter is not None:
            return
        taken = {expected}
        if with_head or any(name.startswith(PREFIX) for name in folder.tensor_names):
            # `LlamaModel` and `Gemma3TextModel` have `LlamaForCausalLM` and `Gemma3ForCausalLM`
            taken.add(expected.removesuffix("Model").removesuffix("Text") + "ForCausalLM")
            taken.add(expected.removesuffix("Model") + "ForMaskedLM")
        if found not in taken:
            yield Finding(
                file=CONFIG, field="architectures", found=found, expected=expected, why=why,
                effect="refused",
            )  # fmt: skip

    return rule


def known_types(types: Collection[str]) -> Rule:
    """A rule: the client has code for the model type."""

    def rule(folder: ExportFolder) -> Iterator[Finding]:
        if folder.config and folder.model_type not in types:
            yield Finding(
                file=CONFIG, field="model_type", found=folder.model_type,
                expected=f"one of {', '.join(sorted(types))}", why="It has no code for it.",
                effect="refused",
            )  # fmt: skip

    return rule


def needed_keys(keys: dict[str, tuple[str, ...]]) -> Rule:
    """A rule: config.json has the keys that a client cannot do without, by model type."""

    def rule(folder: ExportFolder) -> Iterator[Finding]:
        for key in keys.get(folder.model_type, ()):
            if folder.config.get(key) is None:
                yield Finding(
                    file=CONFIG, field=key, found=None, expected="a value",
                    why="It cannot read a config without it.", effect="refused",
                )  # fmt: skip

    return rule


def whole_weights(folder: ExportFolder) -> Iterator[Finding]:
    """For clients that read no adapters."""
    if folder.adapter is not None:
        yield Finding(
            file="adapter_config.json", field="base_model_name_or_path",
            found=folder.adapter.get("base_model_name_or_path"), expected="merged weights",
            why="It reads whole models only; set checkpoint.export to merged.", effect="refused",
        )  # fmt: skip


def readable(folder: ExportFolder) -> Iterator[Finding]:
    """A server under another user can read the weights wherever it can read the config."""
    others = [file for file in folder.path.glob("*.json") if file.stat().st_mode & OTHERS_READ]
    for file in (*sorted(folder.path.glob("*.safetensors")), *dense_weights(folder.path)):
        mode = file.stat().st_mode & 0o777
        if others and not mode & OTHERS_READ:
            yield Finding(
                file=file.relative_to(folder.path).as_posix(), field="mode",
                found=f"{mode:04o}", expected="0644",
                why="A server under another user cannot open it.", effect="refused",
            )  # fmt: skip
