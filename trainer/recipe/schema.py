"""What a recipe may say: every key, its type, default and bounds; it must not read files.

Bounds are enforced by `trainer.recipe.typed`. Each task's own section stands in its file
(`trainer.recipe.ir` and others); defaults live in these files and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from trainer.recipe.checkpoint import CheckpointRecipe
from trainer.recipe.eval_kinds import eval_kind_names
from trainer.recipe.fields import OneOf, SectionsByName, bounded
from trainer.recipe.kind import TaskSettings
from trainer.recipe.mine import MineRecipe
from trainer.recipe.tasks import default_pattern, task_names, task_schemas

Task = Annotated[str, OneOf(task_names)]
"""Name of a kind of task, as in `trainer.recipe.tasks`."""
EvalKindName = Annotated[str, OneOf(eval_kind_names)]
"""Name of an evaluation kind, as in `trainer.recipe.eval_kinds`."""
Pooling = Literal["last", "mean", "weighted_mean", "cls"]
MEANS: tuple[Pooling, ...] = ("mean", "weighted_mean")
"""Poolings over many tokens, which can leave the instruction out."""
Attention = Literal["causal", "bidirectional"]
DType = Literal["float32", "bfloat16"]
Schedule = Literal["alternate", "proportional", "temperature"]
Gather = Literal["auto", "step", "layer", "chunk"]
Kernels = Literal["auto", "none"]
AUTO: Literal["auto"] = "auto"
"""Left to the memory plan."""


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """Low-rank adapters instead of full fine-tuning (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = bounded(16, low=1)
    """Inner size of each adapter."""
    alpha: float = bounded(32.0, above=0)
    """Scale numerator: the update is alpha / rank * B A (alpha / sqrt(rank) with `rslora`)."""
    dropout: float = bounded(0.0, low=0, high=0.99)
    """Probability of zeroing an adapter's input."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names, or ends of names, of the modules that get an adapter, as peft's `target_modules`:
    linear modules, those of GPT-2, and embeddings. `all-linear` is all but embeddings."""
    modules_to_save: tuple[str, ...] = ()
    """Ends of names of modules that are trained whole beside the adapters and saved with them, as
    peft's: `norm` is every module whose name ends so, `input_layernorm` too."""
    trainable_tokens: tuple[str | int, ...] = ()
    """Tokens whose rows of the embedding are trained beside the adapters, as peft's
    `trainable_token_indices`: ids, or tokens as the tokenizer has them, such as `<|embed|>`. With
    `targets: []` nothing else is trained."""
    rslora: bool = False
    """Scale by 1 / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732)."""
    dora: bool = False
    """Weight-decomposed adapters (Liu et al. 2024, arXiv:2402.09353)."""


@dataclass(frozen=True, kw_only=True)
class MatryoshkaRecipe:
    """Every term but `embedding_distillation` on leading parts of the vector (arXiv:2205.13147)."""

    dims: tuple[int, ...]
    """Sizes of the parts, descending; the first should be that of the whole vector."""
    weights: tuple[float, ...] | None = None
    """Weight of each part's loss; null: 1 for each."""


@dataclass(frozen=True, kw_only=True)
class ProjectionRecipe:
    """A trained dense layer between pooling and unit norm, as sentence-transformers' `Dense`."""

    size: int = bounded(low=1, required=True)
    """Elements of a vector."""
    bias: bool = False
    """Whether a trained vector is added."""
    activation: Literal["none", "tanh"] = "none"
    """What each element passes through at the end."""


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The backbone and how it becomes an embedder."""

    path: str
    """Folder, hub id, GGUF file, or folder of a peft adapter (see `adapter`); of a Python package
    `package:NAME/FOLDER` or `package:NAME/FILE.gguf`. A GGUF file is unpacked into the cache, once.
    """
    pooling: Pooling = "last"
    """What stands for the text: the last real token, the mean of tokens, their mean weighted by
    position (Muennighoff 2022, arXiv:2202.08904), or the first token."""
    attention: Attention = "causal"
    """Mask of a decoder; an encoder is always bidirectional and says `bidirectional`."""
    end_token: str | None = None
    """Special token that ends each text in place of the tokenizer's; null: the tokenizer's own end
    token, put after texts where `pooling` is `last` and no special token ends them yet."""
    dtype: DType = "float32"
    """Dtype of weights and activations; must agree with the ds_config. Losses are float32."""
    gradient_checkpointing: bool = False
    """Recompute layer activations in the backward pass."""
    dropout: float | None = bounded(None, low=0, high=0.99)
    """Overrides every dropout probability of the backbone's config; null keeps the config's."""
    projection: ProjectionRecipe | None = None
    """A dense layer behind the pooling, trained in full beside adapters too; null: the pooled state
    is the vector."""
    matryoshka: MatryoshkaRecipe | None = None
    """Vectors that can be cut; null: only the whole vector is trained."""
    lora: LoraRecipe | None = None
    """Adapters; null trains all parameters."""
    adapter: Literal["continue", "merge"] | None = None
    """Of an adapter's folder as `path`: `continue` trains the adapter on, whose settings `lora` has
    or leaves out; `merge` adds it to its base and trains all weights, or adapters of their own.
    Null: `continue` where there is `lora`."""
    trust_remote_code: bool = False
    """Run code that comes with the model; needs `revision`."""
    revision: str | None = None
    """Commit of a hub model."""


@dataclass(frozen=True, kw_only=True)
class SubsetRecipe:
    """The part of the rows that a run trains on, of every source or of one."""

    fraction: float = bounded(above=0, high=1, required=True)
    """Share of the rows of a source, rounded, one row at least."""
    seed: int = bounded(0, low=0)
    """Which rows: another seed takes others, whatever the run's own seed is."""


@dataclass(frozen=True, kw_only=True)
class SourceRecipe:
    """One data set of one task."""

    name: str
    """Unique among the sources; appears in metrics and plans."""
    task: Task
    """Kind of its rows: queries with positives and negatives, pairs with a score, or texts with
    labels."""
    path: str | None = None
    """File, folder or glob, or its address on an object store, such as `s3://BUCKET/FILE.jsonl`;
    relative to `data.root`. Exactly one of `path` and `hub`."""
    hub: str | None = None
    """Data set of the Hugging Face hub: its id, or `ID:CONFIGURATION`. One with configurations
    `corpus` and `queries` is read as a BEIR folder."""
    split: str = "train"
    """Split of a hub set, or of the qrels of a BEIR folder."""
    stream: bool = False
    """Read the rows of the set of `hub` once into a file of the cache, rather than download and
    convert its files: for sets that can only be streamed, or are too large for both."""
    format: str | None = None
    """Name of a data format; null finds it by the columns."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns of another name than the format reads, such as `{sentence1: left, score: value}`."""
    header: bool | None = None
    """Whether the first row of a CSV or TSV file names its columns; null: as the format has it.
    Without a header columns are called `column_1`, `column_2` and so on, for `columns` and
    `by-order`."""
    query_instruction: str = ""
    """Put before queries, before both texts of an STS pair, or before labelled texts."""
    passage_instruction: str = ""
    """Put before passages, or before `label_texts`; not for steps that have neither."""
    weight: float = bounded(1.0, above=0)
    """Share of the task's steps under `alternate`; factor on the share otherwise."""
    global_batch_size: int | None = bounded(None, low=1)
    """Rows of a step of this source, in place of its task's `global_batch_size`; null: as there."""
    negatives: int | None = bounded(None, low=0)
    """Hard negatives per query in a step of this source, in place of `tasks.ir.negatives`, or of
    `tasks.labels.negatives`; null: as there. Not for `sts`."""
    in_batch: bool | Literal["positives", "positives_only"] | None = None
    """Candidates of a step of this source, in place of `tasks.ir.in_batch`; null: as there. False,
    for rows whose passages answer other rows: then `tasks.ir.directions`, and `hardness` of others'
    negatives, do not count. A path ending in `no_in_batch_neg` means false (FlagEmbedding)."""
    length_buckets: int | None = bounded(None, low=1)
    """Buckets of length of this source, in place of `data.length_buckets`; null: as there; 1: its
    steps hold texts of any length. Not for `labels`."""
    row_settings: bool = False
    """Take from the rows of FlagEmbedding what they carry: `prompt` as `query_instruction`, and by
    `type` as `passage_instruction` too, or fewer `negatives`. The rows of a source must agree."""
    score_range: tuple[float, float] | None = None
    """Lowest and highest STS score of the file; null: found from the data (0..1 or 0..5)."""
    label_texts: dict[str, str] | str | None = None
    """Text of every label, as a mapping or a JSON file that holds one, relative to `data.root`:
    what texts are compared with; null: with each other. Only for `labels`."""
    teacher_embeddings: str | None = None
    """Folder with a teacher's vector of every text of the source, for `embedding_distillation` and
    `mask.guide` of its task; relative to `data.root`. Null: its steps go without."""
    subset: SubsetRecipe | None = None
    """Train on a part of it, in place of `data.subset`; null: as there. Not for `labels`."""


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Sources and the order in which steps visit them."""

    sources: tuple[SourceRecipe, ...]
    """At least one."""
    root: str = "."
    """Folder, or address of one, that relative source and evaluation paths start from."""
    schedule: Schedule = "alternate"
    """`alternate` follows `pattern`; `proportional` follows sizes; `temperature` flattens them."""
    pattern: dict[str, int] = field(default_factory=default_pattern)
    """Steps of each task in one round of `alternate`."""
    temperature: float = bounded(2.0, above=0)
    """T of `temperature`: share of a source ~ size^(1/T)."""
    query_max_tokens: int = bounded(512, low=2)
    """Longest query or STS text, tokens with instruction and end token; longer ones are cut."""
    passage_max_tokens: int = bounded(512, low=2)
    """Longest passage, tokens with instruction and end token."""
    prompt_template: str = "{instruction}{text}"
    """How an instruction and a text are joined."""
    pool_instruction: bool = True
    """Whether pooling by a mean includes the instruction's tokens."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a malformed row, or skip it (more than 1% skipped stops the run)."""
    subset: SubsetRecipe | None = None
    """Train on a part of every source; null: on all rows. Not for `labels`."""
    mix: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Sources of one task whose rows share steps, as `NAME: [SOURCE, SOURCE]`. They take the turns
    that they would have had apart, and each gives its share of the rows of every step. Their steps
    must have the same settings. Not for `labels`."""
    length_buckets: int | None = bounded(None, low=1)
    """Sort the rows of each source into so many buckets of equal size, by the bytes of the longest
    text that is no hard negative, and draw each step from one bucket; null: from all rows. Not for
    `labels`."""
    mine: MineRecipe | None = None
    """Search hard negatives again between steps; null: the rows keep their own."""
    overlap: Literal["warn", "error", "drop"] | None = None
    """Compare what rows ask with what evaluation sets ask, word by word and by MinHash: tell of
    those that are equal or nearly so, refuse them, or leave them out. Null: only texts that are
    equal in every character are told of."""
    workers: int = bounded(2, low=0)
    """Processes per rank that make batches ahead; 0 makes them in the training process."""
    tokens: Literal["auto", "ahead", "on_the_fly"] = "auto"
    """Tokenise a source once for all runs and read its ids from the cache (`ahead`), or in every
    step; batches are the same. `auto`: ahead from 100,000 rows on, and with 8 ranks or more."""


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """Length of the run and the optimizer; exactly one of `max_steps` and `epochs`."""

    max_steps: int | None = bounded(None, low=1)
    """Optimizer steps."""
    epochs: float | None = bounded(None, above=0)
    """Run until every source was seen this many times."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) or plain SGD."""
    learning_rate: float = bounded(1e-5, above=0)
    """Peak rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after warmup."""
    warmup_ratio: float = bounded(0.05, low=0, high=1)
    """Share of the steps over which the rate rises linearly from 0."""
    min_learning_rate_ratio: float = bounded(0.0, low=0, high=1)
    """Where the decay would arrive after the last step, as a share of the peak."""
    max_grad_norm: float = bounded(1.0, low=0)
    """Gradient clipping by global L2 norm; 0 switches it off."""
    weight_decay: float = bounded(0.01, low=0)
    """Decoupled weight decay; not on biases, norms and other one-dimensional parameters."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's moments."""
    epsilon: float = bounded(1e-8, above=0)
    """Adam's epsilon."""
    max_skipped_steps: int = bounded(0, low=0)
    """Steps of the run that may pass without an update because loss or gradient is not finite."""


@dataclass(frozen=True, kw_only=True)
class EngineRecipe:
    """How a step is computed; changes speed and memory, never the numbers."""

    deepspeed: str = "zero3_fp32.json"
    """A file of `ds_configs/`, or a path."""
    max_tokens_per_chunk: int = bounded(16_384, low=1)
    """Padded tokens of one forward on one rank."""
    keep_graph_tokens: int | Literal["auto"] | None = bounded(AUTO, low=0)
    """Padded tokens of a rank whose graph is kept, so that they run forward once; `auto`: what the
    memory plan finds room for; null: what costs no memory, one chunk, or none with `layer`."""
    memory_fraction: float = bounded(0.8, above=0, high=1)
    """Share of the memory that a rank may use, of its GPU or of the machine, up to which `auto`
    keeps graphs."""
    gather: Gather = "auto"
    """ZeRO-3 gathers once per `step`, per `layer` and direction, or per `chunk`; `auto` chooses."""
    attention_kernel: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """`auto`: the fastest that the model has: flash attention on a GPU, else a kernel of torch."""
    kernels: Kernels = "auto"
    """`auto`: Liger's fused norm, rotary embedding and SwiGLU on a GPU, where liger-kernel is
    installed and knows the model, and oneDNN's float32 products on a CPU, where they are faster
    than MKL's; `none`: those of transformers and torch."""
    share_prefix: Literal["auto", "off"] = "auto"
    """`auto`: texts of a chunk that begin with the same tokens, such as an instruction, run these
    once, where the model allows it and it is less work; exact."""
    timeout_minutes: float = bounded(30.0, above=0)
    """How long a rank waits for the others in a collective before the run ends."""


@dataclass(frozen=True, kw_only=True)
class EvalSetRecipe:
    """One held-out set."""

    name: str
    """Unique among the sets; key in `eval.jsonl`."""
    task: EvalKindName
    """Evaluation kind, which decides the layout and the metrics; it need not be trained."""
    path: str | None = None
    """File, or BEIR folder (`ir`), or folder with train.jsonl and test.jsonl (`classification`);
    relative to `data.root`. Exactly one of `path` and `hub`."""
    hub: str | None = None
    """Data set of the Hugging Face hub: its id, or `ID:CONFIGURATION`."""
    split: str | None = None
    """Which qrels of a BEIR folder, and which of files that are named by splits, are scored;
    null: `dev`, or `test` of `classification`, whose classifiers learn from `train`."""
    format: str | None = None
    """Name of a data format; null finds it."""
    columns: dict[str, str] = field(default_factory=dict)
    """As in training."""
    header: bool | None = None
    """As in training."""
    query_instruction: str = ""
    """Put before queries, or before all texts of a kind without passages; as in training. Exported
    as the prompt of the kind, unless the kind is a task that has a source."""
    passage_instruction: str = ""
    """Put before passages, of `ir` and `reranking` alone; exported likewise."""
    score_range: tuple[float, float] | None = None
    """As in training."""


@dataclass(frozen=True, kw_only=True)
class EvalRecipe:
    """Evaluation during training, and at both ends."""

    every_steps: int | None = bounded(None, low=1)
    """Null: only before the first and after the last step."""
    sets: tuple[EvalSetRecipe, ...] = ()
    """None: no evaluation."""
    best_metric: str | None = None
    """`SET.METRIC` such as `stsb.spearman`, `mean` of each set's first metric, or `mean_of_kinds`,
    which averages the sets of a kind first: the checkpoint of the best evaluation is kept besides
    `checkpoint.keep`, and exported as `model/`."""
    patience: int | None = bounded(None, low=1)
    """Evaluations in a row without a better `best_metric` after which the run ends; null: never."""


@dataclass(frozen=True, kw_only=True)
class ExportRecipe:
    """What the exported model says to those that load it."""

    max_tokens: int | None = bounded(None, low=2)
    """Longest text that clients embed, tokens with prompt and end token; longer ones are cut there.
    At least the two limits of `data`, at most the model's positions; null: the longer of the two
    limits."""


@dataclass(frozen=True, kw_only=True)
class LogRecipe:
    """Where numbers go besides `metrics.jsonl` and TensorBoard."""

    wandb_project: str | None = None
    """Weights & Biases project; null: not used. Needs the `wandb` extra."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run."""

    name: str
    """Name of the run in logs and reports."""
    output_dir: str
    """Folder of the run; must be new or empty unless resumed."""
    model: ModelRecipe
    """Backbone."""
    data: DataRecipe
    """Sources and their order."""
    tasks: Annotated[Mapping[str, TaskSettings], SectionsByName(task_schemas)]
    """Batch and loss of each task; a task with a source must be given."""
    train: TrainRecipe
    """Length and optimizer."""
    engine: EngineRecipe = field(default_factory=EngineRecipe)
    """Chunks, sharding."""
    eval: EvalRecipe = field(default_factory=EvalRecipe)
    """Held-out sets."""
    checkpoint: CheckpointRecipe = field(default_factory=CheckpointRecipe)
    """Saving."""
    export: ExportRecipe = field(default_factory=ExportRecipe)
    """What clients are told."""
    log: LogRecipe = field(default_factory=LogRecipe)
    """Trackers."""
    seed: int = bounded(42, low=0, high=(1 << 63) - 1)
    """Root of all randomness; a date or a Unix time will do."""
    resume: Literal["never", "auto"] = "never"
    """`auto` continues the newest valid checkpoint of `output_dir`, as `--resume` does."""
