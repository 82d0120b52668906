"""The benchmark of adapters' memory describes both runs and its batch as it says."""

import argparse

import numpy as np

from tools.bench import lora_memory

ARGUMENTS = argparse.Namespace(
    model="unused", measure="lora", rank=4, batch=6, tokens=5, steps=2, vocabulary=50, gather="step"
)


def test_runs_differ_in_adapters_alone() -> None:
    with_adapters = lora_memory.make_recipe(ARGUMENTS)
    full = lora_memory.make_recipe(argparse.Namespace(**{**vars(ARGUMENTS), "measure": "full"}))
    assert with_adapters.model.lora.rank == 4
    assert full.model.lora is None
    assert (with_adapters.engine, with_adapters.train) == (full.engine, full.train)


def test_batch_has_a_positive_and_a_negative_for_each_query() -> None:
    batch = lora_memory.make_batch(ARGUMENTS, step=1)
    assert len(batch.texts.token_ids) == 3 * 6
    assert {len(ids) for ids in batch.texts.token_ids} == {5}
    assert sorted([*batch.query, *batch.passages.flatten()]) == list(np.arange(18))
