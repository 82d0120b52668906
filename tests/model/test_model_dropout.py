"""Dropout within attention, whose masks cannot belong to a text."""

import pytest
import torch
from transformers import AutoModel, BertConfig, PretrainedConfig, Qwen3Config

from tests.support import tiny
from trainer.model.dropout import DropoutKeys, KeyedDropout, key_dropouts, leave_attention_whole


def bert(attention: float) -> BertConfig:
    return tiny.bert_config(hidden_dropout_prob=0.1, attention_probs_dropout_prob=attention)


def qwen3(attention: float) -> Qwen3Config:
    return tiny.qwen3_config(attention_dropout=attention)


@pytest.mark.parametrize("config", [bert(0.2), qwen3(0.2)], ids=["bert", "qwen3"])
def test_two_passes_agree_once_attention_is_whole(config: PretrainedConfig) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(config).train()
    keys = key_dropouts(model)
    keys.text_B = torch.tensor([3, 4])
    texts = torch.randint(5, 20, (2, 7))

    def states() -> torch.Tensor:
        return model(input_ids=texts).last_hidden_state.detach()

    assert not torch.equal(states(), states())
    assert leave_attention_whole(model)
    assert torch.equal(states(), states())
    # dropout that belongs to the texts is still there
    kept = [one for one in model.modules() if isinstance(one, KeyedDropout) and one.p > 0]
    assert len(kept) == (5 if config.model_type == "bert" else 0)
    assert bool(kept) != torch.equal(states(), model.eval()(input_ids=texts).last_hidden_state)


def test_without_dropout_within_attention_nothing_is_changed() -> None:
    model = AutoModel.from_config(bert(0.0))
    assert isinstance(key_dropouts(model), DropoutKeys)
    assert not leave_attention_whole(model)
