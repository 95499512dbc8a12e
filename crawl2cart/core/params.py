"""The parameters: read once from params.yaml, checked in words, frozen.

Every key is declared here with its unit, and an unknown, missing or ill-typed one stops the stage by name before
anything is written. A stage sees only what dvc.yaml lists for it (`Listed`), so a result can not depend on a
parameter that DVC does not watch.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from crawl2cart.core.dvc_yaml import read_yaml
from crawl2cart.core.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
NAMES = ("cpu", "smoke", "gpu")


class Section(BaseModel):
    """A mapping of params.yaml. Keys may not be missing, unknown or changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def which_files(value: object) -> int | float | str:
    """Checks `download.files`: a number, a range such as "100-119", a share of all, or "profile"."""
    match value:
        case bool():
            pass
        case int() if value >= 1:
            return value
        case float() if 0 < value < 1:
            return value
        case "profile":
            return value
        case str() if (ends := re.fullmatch(r"(\d+)-(\d+)", value)) and int(ends[1]) <= int(
            ends[2]
        ):
            return value
    raise ValueError(
        "should be a number of files (3), a range counted from 0 (100-119), a share of all files (0.001) or `profile`"
    )


class DownloadScale(Section):
    source: Literal["embedded", "files", "commoncrawl"]
    files: Count


class Download(Section):
    source: Literal["profile", "embedded", "files", "commoncrawl"]
    paths: str
    pages_per_file: Count
    crawl: Annotated[str, Field(pattern=r"^CC-MAIN-\d{4}-\d{2}$")]
    kind: Literal["warc", "wet"]
    files: Annotated[int | float | str, PlainValidator(which_files)]
    seed: Annotated[int, Field(ge=0)]
    urls: str
    index_filters: str
    max_records: Count
    base: Annotated[str, Field(pattern=r"^(https?|s3)://[^/\s]+")]
    index: Annotated[str, Field(pattern=r"^https?://[^/\s]+")]
    user_agent_contact: Annotated[str, Field(pattern=r"^[ -~]*$")]
    connections: Annotated[int, Field(ge=1, le=4)]
    seconds_between_requests: Annotated[float, Field(ge=0)]
    read_timeout: Positive
    max_attempts: Count

    def at(self, scale: DownloadScale) -> "Download":
        """The same with what the profile has where this says `profile`."""
        return self.model_copy(
            update={
                name: getattr(scale, name)
                for name in ("source", "files")
                if getattr(self, name) == "profile"
            }
        )


class MinHash(Section):
    ngram: Count
    bands: Count
    rows: Count
    threshold: Share
    memory_gib: Positive


class Decontamination(Section):
    ngram: Count
    min_ngram: Count


class Filter(Section):
    engine: Literal["native", "ray"]
    ray_address: Annotated[str, Field(min_length=1)]
    workers: Count
    blocked_hosts: Annotated[str, Field(min_length=1)]
    max_url_words: Annotated[int, Field(ge=0)]
    max_page_bytes: Count
    max_page_nodes: Count
    extractor: Literal["cascade", "resiliparse", "trafilatura"]
    languages: Annotated[str, Field(pattern="^[a-z]{2,3}(, ?[a-z]{2,3})*$")]
    language_threshold: Share
    word_tokenizer: Literal["whitespace", "datatrove"]
    min_words: Count
    max_words: Count
    min_mean_word_length: Positive
    max_mean_word_length: Positive
    max_symbols_per_word: Share
    max_bullet_lines: Share
    max_ellipsis_lines: Share
    min_alphabetic_words: Share
    min_stop_words: Annotated[int, Field(ge=0, le=8)]
    max_duplicate_lines: Share
    max_duplicate_paragraphs: Share
    max_duplicate_line_characters: Share
    max_duplicate_paragraph_characters: Share
    max_top_2gram_characters: Share
    max_top_3gram_characters: Share
    max_top_4gram_characters: Share
    max_duplicate_5gram_characters: Share
    max_duplicate_6gram_characters: Share
    max_duplicate_7gram_characters: Share
    max_duplicate_8gram_characters: Share
    max_duplicate_9gram_characters: Share
    max_duplicate_10gram_characters: Share
    max_lorem_ipsum: Annotated[int, Field(ge=0)]
    max_curly_brackets: Annotated[int, Field(ge=0)]
    min_sentences: Annotated[int, Field(ge=0)]
    min_punctuated_lines: Share
    max_short_lines: Share
    max_repeated_line_characters: Share
    max_lines_per_word: Share
    min_function_words: Share
    min_joined_words: Share
    max_adult_words: Share
    max_legal_phrases: Share
    topic_filter: Literal["all", "shopping"]
    topic_threshold: Share
    minhash: MinHash
    repeated_line_pages: Annotated[int, Field(ge=2)]
    repeated_line_letters: Count
    decontamination: Decontamination
    rejects_per_reason: Count
    validation_share: Annotated[float, Field(gt=0, lt=0.5)]


class Encode(Section):
    vocab_size: Annotated[int, Field(ge=256)]


class Loop(Section):
    optimizer: Literal["adamw", "muon"]
    schedule: Literal["cosine", "wsd"]
    sharded: bool
    weight_decay: Annotated[float, Field(ge=0)]
    adam_beta1: Share
    adam_beta2: Share
    grad_clip: Positive
    warmup_ratio: Share
    min_lr_ratio: Share


class Baseline(Section):
    learning_rate: Positive


class Recurrent(Section):
    learning_rate: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]


class GptOss(Section):
    learning_rate: Positive
    router_aux_loss_coef: Annotated[float, Field(ge=0)]
    router_z_loss_coef: Annotated[float, Field(ge=0)]


class Pretrain(Section):
    loop: Loop
    mlp: Baseline
    rnn: Recurrent
    lstm: Recurrent
    gru: Recurrent
    gpt_oss: GptOss


class Weights(Section):
    """How often each of several is drawn: as often as its weight has to the sum of all."""

    @model_validator(mode="after")
    def some_weight(self) -> "Weights":
        if not any(self.model_dump().values()):
            raise ValueError("at least one of them should be above 0")
        return self


class Intents(Weights):
    model_config = ConfigDict(serialize_by_alias=True)  # `return` is no name in Python

    search: NotNegative
    facts: NotNegative
    compare: NotNegative
    recommend: NotNegative
    stock: NotNegative
    price: NotNegative
    order_status: NotNegative
    cancel: NotNegative
    return_: Annotated[float, Field(ge=0, alias="return")]
    exchange: NotNegative
    address: NotNegative
    warranty: NotNegative
    policy: NotNegative
    gift: NotNegative
    complaint: NotNegative
    unanswerable: NotNegative
    out_of_scope: NotNegative


class Registers(Weights):
    brief: NotNegative
    warm: NotNegative
    formal: NotNegative
    plain: NotNegative


class BuildSft(Section):
    multi_turn_ratio: Share
    intent_weights: Intents
    train_intent_weights: Intents
    style_weights: Registers
    max_characters: Count
    teacher: Literal["none", "openai"]
    teacher_model: str
    teacher_wordings: Annotated[int, Field(ge=0)]
    teacher_dialogues: Annotated[int, Field(ge=0)]
    teacher_input_price: NotNegative
    teacher_output_price: NotNegative
    teacher_budget: Positive
    teacher_connections: Count


class LossWeights(Section):
    reply: Positive
    arguments: Positive
    tool_choice: Positive


class Midtrain(Section):
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    grad_clip: Positive
    warmup_ratio: Share
    min_lr_ratio: Share
    replay_ratio: Share
    loss_weights: LossWeights
    curriculum_ratio: Share
    truncated_per_full: Annotated[int, Field(ge=0)]
    randomize_entities: Share
    randomize_categories: Share
    guide_weight: Annotated[float, Field(ge=0)]
    idle_weight: Annotated[float, Field(ge=0)]


class Sft(Section):
    learning_rate: Positive
    lora_rank: Count
    lora_alpha: Count
    warmup_ratio: Share


class BuildPrefs(Section):
    samples: Annotated[int, Field(ge=2)]
    temperature: Positive
    top_p: Share
    max_new_tokens: Count
    min_score_margin: Share
    max_reference_ratio: Annotated[float, Field(ge=0, lt=1)]
    feedback: str
    judge: Literal["none", "openai"]
    judge_model: str
    judge_input_price: NotNegative
    judge_output_price: NotNegative
    judge_budget: Positive


class Dpo(Section):
    loss_type: Literal["sigmoid", "apo_zero", "ipo", "sigmoid_norm"]
    beta: Positive
    learning_rate: Positive
    warmup_ratio: Share
    lora_rank: Count
    lora_alpha: Count
    sft_weight: Annotated[float, Field(ge=0)]


class Router(Section):
    C: Positive
    abstain_threshold: Share


class Demo(Section):
    openai_model: str
    input_price: NotNegative
    output_price: NotNegative
    log_text: bool
    constrained: bool
    max_query_chars: Count
    rate_limit_per_minute: Count
    max_concurrency: Count
    max_queue: Count
    max_sessions: Count


class Evaluate(Section):
    max_new_tokens: Count
    temperature: Positive
    models: str


class Requirements(Section):
    memory_gib: Count
    card_gib: Annotated[int, Field(ge=0)]
    disk_gib: Count
    minutes: Count


class PretrainScale(Section):
    context: Count
    batch_tokens: Count
    max_steps: Count
    eval_interval: Count
    eval_tokens: Count
    compile: bool


class MlpSize(Section):
    context_size: Count
    embedding_size: Count
    hidden_size: Count


class RecurrentSize(Section):
    hidden_size: Count
    num_layers: Count
    bptt_length: Count


class GptOssSize(Section):
    num_layers: Count
    hidden_size: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    intermediate_size: Count
    num_experts: Count
    experts_per_token: Count
    sliding_window: Count
    max_position_embeddings: Count
    rope_factor: Annotated[float, Field(ge=1)]


class Models(Section):
    mlp: MlpSize
    rnn: RecurrentSize
    lstm: RecurrentSize
    gru: RecurrentSize
    gpt_oss: GptOssSize


class BuildSftScale(Section):
    train_dialogues: Count
    validation_dialogues: Count
    test_dialogues: Count
    safety_dialogues: Count


class MidtrainScale(Section):
    base_model: str
    revision: str
    batch_tokens: Count
    max_steps: Count
    eval_interval: Count


class TrlScale(Section):
    max_steps: Count
    batch_size: Count
    max_length: Count
    eval_samples: Count


class BuildPrefsScale(Section):
    prompts: Count
    batch_size: Count


class EvaluateScale(Section):
    batch_size: Count
    turns: Count
    plans: Count


class Profile(Section):
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    threads: Count
    num_processes: Count
    dollars_per_hour: NotNegative
    requirements: Requirements
    download: DownloadScale
    pretrain: PretrainScale
    models: Models
    build_sft: BuildSftScale
    midtrain: MidtrainScale
    sft: TrlScale
    build_prefs: BuildPrefsScale
    dpo: TrlScale
    evaluate: EvaluateScale

    @model_validator(mode="after")
    def processes_fit(self) -> "Profile":
        """Every process gets as many threads as the others; several on one card would share its memory."""
        if self.threads % self.num_processes:
            raise ValueError(
                f"{self.threads} threads can not be shared equally by {self.num_processes} processes. Set `num_processes` to a number "
                "that divides `threads`"
            )
        if self.device == "cuda" and self.num_processes > 1:
            raise ValueError(
                "`num_processes` are for a CPU. Set it to 1; on several cards start a stage with torchrun (scale/README.md)"
            )
        return self


class Profiles(Section):
    cpu: Profile
    smoke: Profile
    gpu: Profile


class Params(Section):
    """The whole of params.yaml."""

    profile: str
    seed: Annotated[int, Field(ge=0)]
    download: Download
    filter: Filter
    encode: Encode
    pretrain: Pretrain
    build_sft: BuildSft
    midtrain: Midtrain
    sft: Sft
    build_prefs: BuildPrefs
    dpo: Dpo
    router: Router
    demo: Demo
    evaluate: Evaluate
    profiles: Profiles

    def get(self, key: str) -> object:
        """The value under a dotted key of params.yaml, sections as plain mappings. Raises UserError if there is none."""
        value: object = self
        for word in key.replace("${profile}", self.profile).split("."):
            if not hasattr(value, word):
                raise UserError(
                    f"dvc.yaml lists the parameter {key}, which params.yaml does not have."
                )
            value = getattr(value, word)
        return value.model_dump() if isinstance(value, BaseModel) else value


class Listed:
    """The part of the parameters that dvc.yaml lists for one stage; reading any other raises AttributeError.

    `profiles.<active>.x` is read as `.profile.x`.
    """

    def __init__(self, section: BaseModel, keys: tuple[str, ...], above: str = ""):
        self._section, self._keys, self._above = section, keys, above

    def __getattr__(self, name: str) -> object:
        section = self._section
        if isinstance(section, Params) and name == "profile":
            keys = tuple(
                key.removeprefix(f"profiles.{section.profile}.")
                for key in self._keys
                if key.startswith(f"profiles.{section.profile}.")
            )
            return Listed(getattr(section.profiles, section.profile), keys, "profile.")
        whole = name in self._keys
        inside = tuple(
            key.removeprefix(f"{name}.") for key in self._keys if key.startswith(f"{name}.")
        )
        if not whole and not inside:
            raise AttributeError(
                f"parameter {self._above}{name} is not listed under `params:` of this stage in dvc.yaml"
            )
        value = getattr(section, name)
        return value if whole else Listed(value, inside, f"{self._above}{name}.")


def read_params(path: Path) -> Params:
    """Reads and checks params.yaml. Raises UserError naming each bad key, what it is and what it should be."""
    raw = read_yaml(path)
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, fault['loc']))}: {explain(fault)}" for fault in error.errors()
        ]
        raise UserError(
            f"{path.name} is not valid:\n" + "\n".join(lines) + "\nNothing was run."
        ) from error
    if params.profile not in NAMES:
        raise UserError(
            f"{path.name}: profile: {params.profile} is not one of the profiles ({', '.join(NAMES)}). "
            "Nothing was run."
        )
    return params


def explain(fault: dict) -> str:
    match fault["type"]:
        case "extra_forbidden":
            return "no such key; is it misspelt?"
        case "missing":
            return "this key is missing"
        case "value_error" if isinstance(
            fault["input"], dict
        ):  # of a section: what does not go together
            return str(fault["ctx"]["error"])
        case _:
            return f"{fault['msg'][0].lower()}{fault['msg'][1:]}, but it is {fault['input']!r}"
