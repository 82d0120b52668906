"""Which key of config.json a client reads for open attention, by family; it knows no weights."""

from collections.abc import Iterator, Mapping

from trainer.export.clients.finding import Finding, Rule
from trainer.export.clients.folder import CONFIG, ExportFolder

CAUSAL, OPEN = "is_causal", "use_bidirectional_attention"


def attention_by(keys: Mapping[str, str], *, others: str | None) -> Rule:
    """A rule: the key that a client reads must say what was trained.

    Args:
        keys: the key by model type.
        others: the key of all other decoders; None: their attention is always causal.
    """

    def rule(folder: ExportFolder) -> Iterator[Finding]:
        if not folder.is_decoder:
            return
        key, opened = keys.get(folder.model_type, others), folder.trained.opened
        if key is None:
            if opened:
                yield _never_open(folder)
            return
        value = folder.config.get(key)
        reads_open = value is False if key == CAUSAL else value is True
        if reads_open != opened:
            yield Finding(
                file=CONFIG,
                field=key,
                found=value,
                expected=(key == OPEN) == opened,
                why=f"It lets tokens see {'both ways' if reads_open else 'backwards only'}.",
            )

    return rule


def _never_open(folder: ExportFolder) -> Finding:
    """For a client that has no open attention for this family."""
    return Finding(
        file=CONFIG,
        field=CAUSAL,
        found=folder.config.get(CAUSAL),
        expected="a family whose open attention this client has",
        why=f"It reads no such key for {folder.model_type}: tokens see backwards only.",
    )
