"""Rules of clients: a sound export is equal, and each planted fault is found by name."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.support.exported import MAX_TOKENS, edit, make_base, make_export
from trainer.errors import CheckpointError
from trainer.export.clients.finding import ClientResult
from trainer.export.clients.folder import read_export
from trainer.export.clients.llama_cpp import blanks, scaled_llama
from trainer.export.clients.rope import FULL, SLIDING, old_rope, trained_rope
from trainer.export.clients.table import CLIENTS, read_clients
from trainer.export.embedder_files import modules_of
from trainer.recipe.schema import ProjectionRecipe

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("made") / "base")


@pytest.fixture(scope="module")
def sound(base: Path) -> dict[str, Path]:
    """Exports by name; tests change copies of them."""
    models: dict[str, dict[str, Any]] = {
        "last": {},
        "mean": {"pooling": "mean"},
        "weighted": {"pooling": "weighted_mean"},
        "projected": {"projection": ProjectionRecipe(size=12)},
        "open": {"attention": "bidirectional"},
    }
    return {n: make_export(base, base.parent / n, **model) for n, model in models.items()}


def results(folder: Path) -> dict[str, ClientResult]:
    return {client.key: client.read(read_export(folder)) for client in CLIENTS}


@pytest.mark.parametrize(
    ("name", "others"),
    [
        # this vocabulary is one that the converter was not told of
        ("last", {"llama.cpp": "refused"}),
        ("mean", {"sglang": "different"}),
        (
            "weighted",
            {"tei": "refused", "vllm": "refused", "sglang": "different", "llama.cpp": "refused"},
        ),
        ("projected", {"sglang": "different", "llama.cpp": "refused"}),
        (
            "open",
            {
                "transformers-4": "refused",
                "sentence-transformers-5": "refused",
                "sentence-transformers-3": "refused",
                "sglang": "different",
                "llama.cpp": "refused",
            },
        ),
    ],
)
def test_a_sound_export_is_read_alike(
    sound: dict[str, Path], name: str, others: dict[str, str]
) -> None:
    found = {key: result.outcome for key, result in results(sound[name]).items()}
    assert {key: outcome for key, outcome in found.items() if outcome != "equal"} == others


def test_a_converter_leaves_the_dense_layer_out(sound: dict[str, Path]) -> None:
    (client,) = (client for client in CLIENTS if client.name == "llama.cpp")
    found = {finding.why: finding for finding in client.findings(read_export(sound["projected"]))}
    finding = found["The converter writes no dense layer."]
    assert (finding.effect, finding.place) == ("different", "modules.json: type")


def in_config(**values: Any) -> Change:
    return in_file("config.json", **values)


def in_file(name: str, **values: Any) -> Change:
    """A change that sets keys, or takes those away whose value is None."""

    def change(content: dict[str, Any]) -> None:
        content |= values
        for key in [key for key, value in values.items() if value is None]:
            del content[key]

    return lambda folder: edit(folder / name, change)


def in_prompts(change: Callable[[dict[str, str]], object]) -> Change:
    name = "config_sentence_transformers.json"
    return lambda folder: edit(folder / name, lambda content: change(content["prompts"]))


def without_end(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda content: content.update(post_processor=None))


def of_llama_class(folder: Path) -> None:
    in_file("tokenizer_config.json", tokenizer_class="LlamaTokenizer", bos_token="<unk>")(folder)


def with_mode(folder: Path) -> None:
    (folder / "model.safetensors").chmod(0o600)


def other_types(folder: Path) -> None:
    def change(content: list[dict[str, str]]) -> None:
        content[1]["type"] = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"

    edit(folder / "modules.json", change)


def other_dense(folder: Path) -> None:
    def change(content: list[dict[str, str]]) -> None:
        content[2]["type"] = "sentence_transformers.base.modules.dense.Dense"

    edit(folder / "modules.json", change)


def private_dense(folder: Path) -> None:
    (folder / "2_Dense" / "model.safetensors").chmod(0o600)


def no_norm(folder: Path) -> None:
    edit(folder / "modules.json", lambda content: content.pop())


def plain_format(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


POOLING = "1_Pooling/config.json"
SENTENCE = "sentence_bert_config.json"
TOKENS = "tokenizer_config.json"
PROMPTS = "config_sentence_transformers.json"
OTHER_POOLING = {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 70.0}
FAULTS: list[tuple[str, str, Change, str, str, str]] = [
    # name, export, change, client, outcome, place
    ("rope of one form", "last", in_config(rope_theta=None), "transformers-4", "different",
     "config.json: rope_theta"),
    ("rope of one form on a server", "last", in_config(rope_theta=None), "vllm", "different",
     "config.json: rope_theta"),
    ("scaling of one form", "last", in_config(rope_parameters=YARN), "sentence-transformers-5",
     "different", "config.json: rope_scaling"),
    ("scaling that is not read", "last", in_config(rope_parameters=YARN), "tei", "different",
     "config.json: rope_scaling"),
    ("stale scaling", "last", in_config(rope_scaling={"type": "linear", "factor": 2.0}),
     "transformers-5", "different", "config.json: rope_scaling"),
    ("no end token", "last", without_end, "transformers-5", "different",
     "tokenizer.json: post_processor"),
    ("no end token on a server", "last", without_end, "tei", "different",
     "tokenizer.json: post_processor"),
    ("no end token by class", "last", of_llama_class, "transformers-4", "different",
     "tokenizer_config.json: add_eos_token"),
    ("end token off", "last", in_file(TOKENS, add_bos_token=False), "sentence-transformers-6",
     "different", "tokenizer_config.json: add_eos_token"),
    ("is_causal missing", "open", in_config(is_causal=None), "transformers-5", "different",
     "config.json: is_causal"),
    ("is_causal missing for a converter", "open", in_config(is_causal=None), "vllm", "different",
     "config.json: is_causal"),
    ("the other key missing", "open", in_config(use_bidirectional_attention=None), "tei",
     "different", "config.json: use_bidirectional_attention"),
    ("opened", "last", in_config(is_causal=False), "sentence-transformers-6", "different",
     "config.json: is_causal"),
    ("open without a refusal", "open", plain_format, "sentence-transformers-5", "different",
     "config.json: is_causal"),
    ("prompt renamed", "last", in_prompts(lambda p: p.update(search=p.pop("query"))),
     "sentence-transformers-6", "different", f"{PROMPTS}: prompts.query"),
    ("prompt lost", "last", in_prompts(lambda p: p.pop("query")), "mteb", "different",
     f"{PROMPTS}: prompts.query"),
    ("prompt without mteb's name", "last", in_prompts(lambda p: p.pop("STS")), "mteb", "different",
     f"{PROMPTS}: prompts.STS"),
    ("prompt for all", "last", in_file(PROMPTS, default_prompt_name="query"),
     "sentence-transformers-3", "different", f"{PROMPTS}: default_prompt_name"),
    ("other pooling", "last", in_file(POOLING, **OTHER_POOLING), "sentence-transformers-6",
     "different", f"{POOLING}: pooling_mode_lasttoken"),
    ("other pooling on a server", "last", in_file(POOLING, **OTHER_POOLING), "tei", "different",
     f"{POOLING}: pooling_mode_lasttoken"),
    ("other pooling in a converter", "mean", in_file(POOLING, pooling_mode_mean_tokens=False),
     "llama.cpp", "different", f"{POOLING}: pooling_mode_mean_tokens"),
    ("pooling by a word", "last", in_file(POOLING, pooling_mode="lasttoken",
     pooling_mode_cls_token=None), "tei", "refused", f"{POOLING}: pooling_mode_cls_token"),
    ("other weights", "weighted", in_file(POOLING, pooling_mode_weightedmean_tokens=False,
     pooling_mode_mean_tokens=True), "sentence-transformers-6", "different",
     "1_Pooling/config.json: pooling_mode_weightedmean_tokens"),
    ("type of the dense layer", "projected", other_dense, "vllm", "different",
     "modules.json: [2].type"),
    ("type of the dense layer on another server", "projected", other_dense, "tei", "different",
     "modules.json: [2].type"),
    ("mode of the dense layer", "projected", private_dense, "vllm", "refused",
     "2_Dense/model.safetensors: mode"),
    ("pooling without the prompt", "mean", in_file(POOLING, include_prompt=False),
     "sentence-transformers-5", "different", f"{POOLING}: include_prompt"),
    ("unknown pooling key", "last", in_file(POOLING, embedding_dimension=32),
     "sentence-transformers-3", "refused", f"{POOLING}: embedding_dimension"),
    ("shorter", "last", in_file(SENTENCE, max_seq_length=7), "sentence-transformers-6", "different",
     f"{SENTENCE}: max_seq_length"),
    ("longer", "last", in_file(SENTENCE, max_seq_length=77), "sentence-transformers-3", "different",
     f"{SENTENCE}: max_seq_length"),
    ("shorter on a server", "last", in_file(SENTENCE, max_seq_length=7), "vllm", "different",
     f"{SENTENCE}: max_seq_length"),
    ("no limit", "last", in_file(SENTENCE, max_seq_length=None), "tei", "refused",
     f"{SENTENCE}: max_seq_length"),
    ("no limit of the tokenizer", "last", in_file(TOKENS, model_max_length=10**30),
     "transformers-5", "different", f"{TOKENS}: model_max_length"),
    ("ignored file", "last", in_file(SENTENCE, do_lower_case=None), "vllm", "different",
     f"{SENTENCE}: do_lower_case"),
    ("lower case", "last", in_file(SENTENCE, do_lower_case=True), "sentence-transformers-6",
     "different", f"{SENTENCE}: do_lower_case"),
    ("left", "last", in_file(TOKENS, padding_side="left"), "transformers-5", "different",
     f"{TOKENS}: padding_side"),
    ("new class", "last", in_file(TOKENS, tokenizer_class="TokenizersBackend"), "transformers-4",
     "refused", f"{TOKENS}: tokenizer_class"),
    ("other architecture", "last", in_config(architectures=["LlamaModel"]), "vllm", "refused",
     "config.json: architectures"),
    ("head that is not there", "last", in_config(architectures=["Qwen3ForCausalLM"]), "llama.cpp",
     "refused", "config.json: architectures"),
    ("classifier", "last", in_config(architectures=["Qwen3ForSequenceClassification"]), "tei",
     "refused", "config.json: architectures"),
    ("mode", "last", with_mode, "sglang", "refused", "model.safetensors: mode"),
    ("end tokens", "last", in_config(eos_token_id=[2, 3]), "tei", "refused",
     "config.json: eos_token_id"),
    ("types of modules", "mean", other_types, "vllm", "different", "modules.json: type"),
    ("types of modules for old releases", "last", other_types, "sentence-transformers-3", "refused",
     "modules.json: [1].type"),
    ("no norm", "last", no_norm, "sentence-transformers-6", "different", "modules.json: type"),
    ("unknown to servers", "last", in_config(model_type="phi3"), "tei", "refused",
     "config.json: model_type"),
    ("newer family", "last", in_config(model_type="qwen3_5_text"), "transformers-4", "refused",
     "config.json: model_type"),
    ("window", "last", in_config(use_sliding_window=True), "tei", "refused",
     "config.json: use_sliding_window"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("export", "change", "client", "outcome", "place"),
    [fault[1:] for fault in FAULTS],
    ids=[fault[0] for fault in FAULTS],
)
def test_a_planted_fault_is_found(
    sound: dict[str, Path], tmp_path: Path, export: str, change: Change, client: str,
    outcome: str, place: str,
) -> None:  # fmt: skip
    folder = tmp_path / "model"
    shutil.copytree(sound[export], folder)
    change(folder)
    result = results(folder)[client]
    assert (result.outcome, result.field) == (outcome, place)
    assert result.reason is not None
    assert place in result.reason
    assert "expected" in result.reason


def test_other_ids_are_found_by_text_and_position(sound: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound["last"], folder)

    def change(content: dict[str, Any]) -> None:
        content["texts"][4]["token_ids"][1] += 1

    edit(folder / "parity.json", change)
    result = results(folder)["transformers-5"]
    assert result.outcome == "different"
    assert "text 4, position 1: " in str(result.reason)


def test_a_folder_without_parity_is_read_too(sound: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound["open"], folder)
    (folder / "parity.json").unlink()
    in_config(use_bidirectional_attention=None)(folder)
    found = results(folder)
    assert found["transformers-5"].outcome == "equal"
    assert found["tei"].field == "config.json: use_bidirectional_attention"


def test_a_prompt_that_mteb_would_drop_is_found(sound: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound["last"], folder)
    (folder / "parity.json").unlink()
    in_prompts(lambda prompts: prompts.pop("STS"))(folder)
    result = results(folder)["mteb"]
    assert (result.outcome, result.field) == ("different", f"{PROMPTS}: prompts.sts")


def test_an_adapter_is_read_with_its_base(sound: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound["last"], folder)
    (folder / "config.json").unlink()
    adapter = {"base_model_name_or_path": str(sound["last"])}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    found = {key: result.outcome for key, result in results(folder).items()}
    assert found["transformers-4"] == found["sentence-transformers-6"] == "equal"
    assert (found["tei"], found["llama.cpp"], found["sglang"]) == (
        "refused",
        "refused",
        "different",
    )


def test_an_adapter_with_a_class_of_its_own_is_found(
    sound: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound["mean"], folder)
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    in_file(TOKENS, tokenizer_class="LlamaTokenizerFast")(folder)
    assert results(folder)["transformers-5"].outcome == "equal"
    pieces = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "split": False}
    in_file("tokenizer.json", pre_tokenizer=pieces)(folder)
    result = results(folder)["transformers-5"]
    assert (result.outcome, result.field) == ("different", f"{TOKENS}: tokenizer_class")


@pytest.mark.parametrize("key", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_either_key_opens_gemma(
    sound: dict[str, Path], tmp_path: Path, key: dict[str, bool]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound["open"], folder)
    in_config(is_causal=None, use_bidirectional_attention=None)(folder)
    in_config(model_type="gemma3_text", **key)(folder)
    assert results(folder)["transformers-5"].outcome == "equal"


def test_an_adapter_of_gemma_is_not_for_old_releases(
    sound: dict[str, Path], tmp_path: Path
) -> None:
    base, folder = tmp_path / "base", tmp_path / "model"
    shutil.copytree(sound["last"], base)
    in_config(model_type="gemma3_text", architectures=["Gemma3ForCausalLM"])(base)
    shutil.copytree(sound["last"], folder)
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    found = results(folder)
    assert found["sentence-transformers-5"].field == "adapter_config.json: base_model_name_or_path"
    assert found["sentence-transformers-6"].outcome == "equal"


def test_clients_are_chosen_by_name_or_release(sound: dict[str, Path]) -> None:
    chosen = read_clients(sound["last"], ["transformers-4", "tei"])
    assert [result.label for result in chosen] == ["transformers 4", "tei"]


def without_dense_config(folder: Path) -> None:
    modules = modules_of(ProjectionRecipe(size=8))
    (folder / "modules.json").write_text(json.dumps(modules))


def with_other_dense(folder: Path) -> None:
    without_dense_config(folder)
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text('{"out_features": 8}')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "modules.json").unlink(), r"modules.json = missing; expected an"),
        (lambda folder: (folder / "config.json").unlink(), r"config.json = missing; expected the"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config.json: content = not"),
        (in_config(hidden_size=64), r"settings.dimensions = 32; expected 64, the hidden_size"),
        (with_other_dense, r"settings.dimensions = 32; expected 8, the out_features of the dense"),
        (without_dense_config, r"2_Dense: config.json = missing; expected the settings"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), r"header = not readable"),
    ],
)  # fmt: skip
def test_what_is_no_export_is_refused(
    sound: dict[str, Path], tmp_path: Path, change: Change, message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound["open"], folder)
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        results(folder)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
GEMMA = {
    "model_type": "gemma3_text",
    "rope_parameters": {
        FULL: {"rope_type": "linear", "factor": 2.0, "rope_theta": 900.0},
        SLIDING: {"rope_type": "default", "rope_theta": 50.0},
    },
    "rope_theta": 900,
    "rope_scaling": {"type": "linear", "factor": 2},
    "rope_local_base_freq": 50,
}
FORMS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 500.0},
              "rope_theta": 500.0, "rope_scaling": LLAMA3},
    "gemma": GEMMA,
    "modernbert": {"model_type": "modernbert", "global_rope_theta": 700.0, "local_rope_theta": 80.0,
                   "rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 700.0},
                                       SLIDING: {"rope_type": "default", "rope_theta": 80.0}}},
    "defaults": {"model_type": "qwen2",
                 "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
}  # fmt: skip


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_both_forms_of_rope_are_the_same_numbers(config: dict[str, Any]) -> None:
    assert old_rope(config) == trained_rope(config)
    alone = copy.deepcopy(config)
    del alone["rope_parameters"]
    if len(alone) > 1:
        assert trained_rope(alone) == trained_rope(config)


def test_a_model_without_rope_has_none() -> None:
    assert trained_rope({"model_type": "bert", "hidden_size": 3}) is None


def test_the_limit_of_the_tests_is_that_of_the_export(sound: dict[str, Path]) -> None:
    parity = read_export(sound["last"]).parity
    assert parity is not None
    assert parity.settings.max_tokens == MAX_TOKENS
    lengths = [len(text.token_ids) for text in parity.texts]
    assert max(lengths) == MAX_TOKENS
    assert len(lengths) == 20
    assert {text.prompt_name for text in parity.texts} == {None, "query", "document", "sts"} | {
        "STS"
    }


def test_scaling_of_a_bare_llama_is_refused_by_the_converter(
    sound: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound["mean"], folder)
    scaled = {"rope_type": "llama3", "rope_theta": 70.0, "factor": 8.0}
    in_config(architectures=["LlamaModel"], model_type="llama", rope_parameters=scaled)(folder)
    found = list(scaled_llama(read_export(folder)))
    assert [finding.effect for finding in found] == ["refused"]


def test_blanks_in_a_row_are_found(sound: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound["mean"], folder)
    pieces = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}]}
    changes = {"model": {"type": "Unigram"}, "pre_tokenizer": pieces}
    in_file("tokenizer.json", **changes)(folder)
    in_file(TOKENS, clean_up_tokenization_spaces=False)(folder)
    (finding,) = blanks(read_export(folder))
    assert finding.field == "clean_up_tokenization_spaces"
    in_file(TOKENS, clean_up_tokenization_spaces=True)(folder)
    assert not list(blanks(read_export(folder)))


def test_old_weights_with_open_attention_must_be_exported_again(
    sound: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound["open"], folder)
    assert "export the model again" not in str(results(folder)["transformers-4"].reason)
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    found = results(folder)
    for client in ("transformers-4", "sentence-transformers-5", "sentence-transformers-3"):
        assert found[client].outcome == "different"
        assert str(found[client].reason).endswith(
            "export the model again, with weights that it refuses."
        )
    assert found["transformers-5"].outcome == "equal"
