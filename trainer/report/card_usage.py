"""The sections of a model card that say how to use the model; the Python in them is run by tests.

Prompts, pooling and limits are those of the exported folder.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from trainer.recipe.schema import MEANS
from trainer.recipe.tasks import TASKS
from trainer.report.card_facts import CardFacts
from trainer.report.exported import ExportedFolder
from trainer.report.markdown import block, code, table

QUESTIONS = ["How do I reset my password?"]
PASSAGES = ["Open Settings and choose Reset password.", "Invoices are under Billing."]
"""Texts of the examples."""
POOLING_CODE = {
    "last": "pooled = hidden[torch.arange(len(texts)), mask.sum(1) - 1]",
    "mean": "weights = mask.unsqueeze(-1).to(hidden.dtype)\n"
    "pooled = (hidden * weights).sum(1) / weights.sum(1)",
    "weighted_mean": "weights = (mask * torch.arange(1, mask.shape[1] + 1)).unsqueeze(-1).float()\n"
    "pooled = (hidden * weights).sum(1) / weights.sum(1)",
    "cls": "pooled = hidden[:, 0]",
}
"""From `hidden` [B, L, D] and `mask` [B, L] to [B, D]; texts are padded on the right."""
WITHOUT_PROMPT = """\
ids = tokenizer(prompt)["input_ids"] if prompt else []
num_prompt = len(ids) - sum(one in tokenizer.all_special_ids for one in ids[-1:])
mask[:, :num_prompt] = 0  # the prompt is read, but not pooled"""

Example = tuple[str, str]
"""Name of a prompt, and the variable that holds texts for it."""


def usage(facts: CardFacts) -> list[str]:
    """All sections on usage, as Markdown."""
    exported = facts.exported
    if not exported.is_embedder:
        return [
            "## Usage",
            "The folder has weights and no `modules.json`: it does not say how its hidden states "
            "become one vector. Load it with transformers, and pool as in training.",
        ]
    parts = ["## Usage", *_sentence_transformers(facts), *_transformers(facts)]
    parts += [*_servers(facts), *_shorter(facts)]
    return [*parts, *_prompts(exported), *_parity(exported)]


def _examples(facts: CardFacts) -> Iterator[list[Example]]:
    """For each task, its prompts with texts: two sides, or one whose texts are compared."""
    for task in facts.tasks:
        names = [name for name in TASKS[task].prompts if name in facts.exported.prompts]
        if len(names) > 1:
            yield [(names[0], "questions"), (names[1], "passages")]
        elif names:
            yield [(names[0], "passages")]


def _texts() -> list[str]:
    """Lines that define the texts of the examples."""
    return [f"questions = {_literal(QUESTIONS)}", f"passages = {_literal(PASSAGES)}"]


def _variable(name: str) -> str:
    return re.sub(r"\W", "_", f"{name}_vectors")


def _encoding(examples: Sequence[Example], call: str) -> list[str]:
    """Lines that embed the texts of one task.

    Args:
        examples: of the task.
        call: with `{texts}` and `{name}`.
    """
    return [
        f"{_variable(name)} = {call.format(texts=texts, name=name)}" for name, texts in examples
    ]


def _literal(value: object) -> str:
    """A text, list or mapping of texts as Python and JSON both write it."""
    return json.dumps(value, ensure_ascii=False)


def _sentence_transformers(facts: CardFacts) -> list[str]:
    exported = facts.exported
    lines = _with_sentence_transformers(facts, "", "")
    packages = "sentence-transformers peft" if exported.is_adapter else "sentence-transformers"
    install = block(f"pip install {packages}", "bash")
    return ["### sentence-transformers", install, block("\n".join(lines), "python")]


def _with_sentence_transformers(facts: CardFacts, loading: str, encoding: str) -> list[str]:
    """Lines that embed with sentence-transformers.

    Args:
        facts: of the card.
        loading: further arguments of the model, each behind a comma.
        encoding: further arguments of `encode`, likewise.
    """
    exported = facts.exported
    trust = ", trust_remote_code=True" if exported.runs_code else ""
    lines = [
        "from sentence_transformers import SentenceTransformer",
        "",
        f"model = SentenceTransformer({_literal(exported.place)}{loading}{trust})",
        "",
        *_texts(),
    ]
    for examples in _examples(facts):
        lines += _encoding(examples, f'model.encode({{texts}}, prompt_name="{{name}}"{encoding})')
        first, last = (_variable(one[0]) for one in (examples[0], examples[-1]))
        lines.append(f"print(model.similarity({first}, {last}))")
    return lines


def _shorter(facts: CardFacts) -> list[str]:
    """How to ask for vectors that are cut; none where the whole vector alone was trained."""
    if not facts.shorter:
        return []
    size, sizes = facts.shorter[0], ", ".join(f"{one:,}" for one in facts.shorter)
    lines = _with_sentence_transformers(
        facts, f", truncate_dim={size}", ", normalize_embeddings=True"
    )
    parts = [
        "### Shorter vectors",
        f"The first numbers of a vector were trained as vectors too: {sizes}. Cut it there and "
        "scale it to norm 1 again.",
        block("\n".join(lines), "python"),
    ]
    if facts.exported.dims and _is_served(facts.exported):
        asked = _asked(facts) | {"dimensions": size}
        parts += [
            f"vLLM and SGLang take the trained sizes as `dimensions`. Text Embeddings Inference "
            f"takes `dimensions` of any size; use these: {sizes}.",
            block(_curl("8000/v1/embeddings", asked), "bash"),
        ]
    return parts


def _transformers(facts: CardFacts) -> list[str]:
    if facts.exported.pooling is None:
        return []
    lines = [
        *_loading(facts.exported),
        *_dense(facts.exported),
        "",
        "",
        *_function(facts.exported),
        "",
        "",
    ]
    used = {name: facts.exported.prompts[name] for task in _examples(facts) for name, _ in task}
    lines += [f"prompts = {_literal(used)}", *_texts()]
    for examples in _examples(facts):
        lines += _encoding(examples, 'embed({texts}, prompts["{name}"])')
        first, last = (_variable(one[0]) for one in (examples[0], examples[-1]))
        lines.append(f"print({first} @ {last}.T)")
    return ["### transformers", block("\n".join(lines), "python")]


def _loading(exported: ExportedFolder) -> list[str]:
    """Lines that make `tokenizer` and `model`."""
    trust = ", trust_remote_code=True" if exported.runs_code else ""
    lines = ["import torch"]
    lines += ["from peft import PeftConfig, PeftModel"] if exported.is_adapter else []
    lines += ["from safetensors.torch import load_file"] if exported.dense else []
    lines += [
        "from transformers import AutoModel, AutoTokenizer",
        *(["from transformers.utils.hub import cached_file"] if exported.dense else []),
        "",
        f"place = {_literal(exported.place)}",
        f"tokenizer = AutoTokenizer.from_pretrained(place{trust})",
    ]
    if not exported.is_adapter:
        return [*lines, f"model = AutoModel.from_pretrained(place{trust}).eval()"]
    return [
        *lines,
        "config = PeftConfig.from_pretrained(place)",
        "base = AutoModel.from_pretrained(",
        f"    config.base_model_name_or_path, revision=config.revision{trust}",
        ")",
        "model = PeftModel.from_pretrained(base, place).eval()",
    ]


def _function(exported: ExportedFolder) -> list[str]:
    """Lines that define `embed`."""
    limit = f", max_length={exported.max_tokens}" if exported.max_tokens else ""
    steps = [
        "texts = [prompt + text for text in texts]",
        f"batch = tokenizer(texts, padding=True, truncation=True{limit},",
        '                  padding_side="right", return_tensors="pt")',
        'mask = batch["attention_mask"]',
        "with torch.inference_mode():",
        '    hidden = model(input_ids=batch["input_ids"], attention_mask=mask)[0]',
    ]
    if exported.pooling in MEANS and not exported.include_prompt:
        steps += WITHOUT_PROMPT.splitlines()
    steps += POOLING_CODE[exported.pooling or ""].splitlines()
    vectors = _vectors(exported)
    if exported.is_normalized:
        vectors = f"torch.nn.functional.normalize({vectors}, dim=-1)"
    return ["def embed(texts, prompt):", *(f"    {line}" for line in steps),
            f"    return {vectors}"]  # fmt: skip


def _vectors(exported: ExportedFolder) -> str:
    """The expression that makes vectors of `pooled`."""
    if exported.dense is None:
        return "pooled.float()"
    bias = ', dense.get("linear.bias")' if exported.dense.get("bias") is not False else ""
    linear = f'torch.nn.functional.linear(pooled.float(), dense["linear.weight"]{bias})'
    name = str(exported.dense.get("activation_function")).rpartition(".")[2]
    return linear if name == "Identity" else f"torch.nn.{name}()({linear})"


def _dense(exported: ExportedFolder) -> list[str]:
    """Lines that read the dense layer behind the pooling into `dense`."""
    if exported.dense is None:
        return []
    name = _literal(f"{exported.dense_path}/model.safetensors")
    return [
        f"file = cached_file(place, {name})",
        "dense = {name: tensor.float() for name, tensor in load_file(file).items()}",
    ]


def _servers(facts: CardFacts) -> list[str]:
    exported = facts.exported
    if exported.is_adapter:
        return [
            "### vLLM and Text Embeddings Inference",
            "Serve merged weights: beside an adapter these servers do not read the files that hold "
            "pooling and prompts. Train with `checkpoint.export: merged` or `both`, or call "
            "`model.merge_and_unload()`.",
        ]
    if (why := _unserved(exported)) is not None:
        other = f"{why} Use sentence-transformers or transformers."
        return ["### vLLM and Text Embeddings Inference", other]
    place, name = shlex.quote(exported.place), _first_prompt(facts)
    trust = " --trust-remote-code" if exported.runs_code else ""
    serve = f"vllm serve {place} --runner pooling{trust} --port 8000"
    named: dict[str, object] = {"inputs": QUESTIONS, "truncate": True}
    named |= {"prompt_name": name} if name in exported.prompts else {}
    router = f"text-embeddings-router --model-id {place} --port 8080"
    return [
        "### vLLM",
        block(f"{serve}\n{_curl('8000/v1/embeddings', _asked(facts))}", "bash"),
        "The prompt is part of each text.",
        "### Text Embeddings Inference",
        block(f"{router}\n{_curl('8080/embed', named)}", "bash"),
        "The server puts the prompt before each text. With its OpenAI route, do that yourself.",
    ]


def _unserved(exported: ExportedFolder) -> str | None:
    """Why servers do not pool as this model was trained; None where they do."""
    if exported.pooling == "weighted_mean":
        return "These servers have no mean weighted by position, by which this model pools tokens."
    if not exported.include_prompt and any(exported.prompts.values()):
        return (
            "These servers pool the tokens of a prompt too, and this model was trained without "
            "them."
        )
    return None


def _is_served(exported: ExportedFolder) -> bool:
    """Whether servers read pooling and prompts of this folder as it was trained."""
    return not exported.is_adapter and _unserved(exported) is None


def _asked(facts: CardFacts) -> dict[str, object]:
    """The body of a request to a route as OpenAI has it."""
    exported = facts.exported
    prompt = exported.prompts.get(_first_prompt(facts), "")
    return {"model": exported.place, "input": [prompt + text for text in QUESTIONS]}


def _first_prompt(facts: CardFacts) -> str:
    return next((examples[0][0] for examples in _examples(facts)), "")


def _curl(route: str, body: Mapping[str, object]) -> str:
    """A request; run it in a second shell, when the server is up."""
    sent = shlex.quote(_literal(body))
    return f"curl http://localhost:{route} -H 'Content-Type: application/json' -d {sent}"


def _prompts(exported: ExportedFolder) -> list[str]:
    names: dict[str, list[str]] = {}
    for name, prompt in exported.prompts.items():
        names.setdefault(prompt, []).append(code(name))
    if not names:
        return []
    rows = [(", ".join(its), _shown(prompt)) for prompt, its in names.items()]
    return [
        "### Prompts",
        table(("name", "put before a text"), rows, num_names=2),
        "sentence-transformers takes a prompt by its name. For other clients, put it before the "
        "text as it stands here, blanks included.",
    ]


def _shown(prompt: str) -> str:
    """A prompt with its blanks visible, or the word for none."""
    return code(_literal(prompt)) if prompt else "nothing"


def _parity(exported: ExportedFolder) -> list[str]:
    if not exported.has_parity:
        return []
    return [
        "`parity.json` holds texts with their token ids and vectors. A client that gives other "
        "vectors for them reads this model in another way than it was trained."
    ]
