"""Parameters that have a new name, so that an old params.yaml or `-S` gets an error that names it.

Each section of params.yaml (`*` for any profile) maps old names to new ones, both relative to the
section.
"""

RECURRENT = {"width": "hidden_size", "layers": "num_layers", "steps_back": "bptt_length"}
TRL = {"steps": "max_steps", "batch": "batch_size", "look_rows": "eval_samples"}

RENAMED = {
    "download": {
        "records": "max_records",
        "contact": "user_agent_contact",
        "stall_seconds": "read_timeout",
        "attempts": "max_attempts",
    },
    "filter": {
        "keep": "topic_filter",
        "min_topic": "topic_threshold",
        "compat": "word_tokenizer (`none` is now `whitespace`)",
        "near_words": "minhash.ngram",
        "near_bands": "minhash.bands",
        "near_rows": "minhash.rows",
        "near_similarity": "minhash.threshold",
        "near_memory_gib": "minhash.memory_gib",
        "contamination_words": "decontamination.ngram",
        "contamination_least_words": "decontamination.min_ngram",
    },
    "encode": {"ranks": "vocab_size"},
    "pretrain.loop": {
        "clip": "grad_clip",
        "warmup_share": "warmup_ratio",
        "final_share": "min_lr_ratio",
    },
    "pretrain.gpt_oss": {"balance": "router_aux_loss_coef", "z_loss": "router_z_loss_coef"},
    "build_sft": {
        "plan_share": "multi_turn_ratio",
        "intents": "intent_weights",
        "training_intents": "train_intent_weights",
        "registers": "style_weights",
    },
    "midtrain": {
        "clip": "grad_clip",
        "warmup_share": "warmup_ratio",
        "final_share": "min_lr_ratio",
        "web_share": "replay_ratio",
        "reply_weight": "loss_weights.reply",
        "call_weight": "loss_weights.arguments",
        "decision_weight": "loss_weights.tool_choice",
        "decision_share": "curriculum_ratio",
        "first_turns": "truncated_per_full",
        "renamed_share": "randomize_entities",
        "renamed_kinds_share": "randomize_categories",
    },
    "sft": {"warmup_share": "warmup_ratio"},
    "build_prefs": {"min_gap": "min_score_margin", "gold_share": "max_reference_ratio"},
    "dpo": {"warmup_share": "warmup_ratio"},
    "router": {"inverse_penalty": "C", "unclear_below": "abstain_threshold"},
    "demo": {
        "most_characters": "max_query_chars",
        "turns_per_minute": "rate_limit_per_minute",
        "answers_at_once": "max_concurrency",
        "answers_waiting": "max_queue",
        "conversations": "max_sessions",
    },
    "profiles.*.pretrain": {
        "tokens_per_step": "batch_tokens",
        "steps": "max_steps",
        "steps_per_look": "eval_interval",
        "look_tokens": "eval_tokens",
    },
    "profiles.*.models.mlp": {
        "window": "context_size",
        "embedding": "embedding_size",
        "hidden": "hidden_size",
    },
    "profiles.*.models.rnn": RECURRENT,
    "profiles.*.models.lstm": RECURRENT,
    "profiles.*.models.gru": RECURRENT,
    "profiles.*.models.gpt_oss": {
        "layers": "num_layers",
        "width": "hidden_size",
        "heads": "num_heads",
        "key_value_heads": "num_kv_heads",
        "head_size": "head_dim",
        "expert_width": "intermediate_size",
        "experts": "num_experts",
        "window": "sliding_window",
        "max_context": "max_position_embeddings",
    },
    "profiles.*.midtrain": {
        "tokens_per_step": "batch_tokens",
        "steps": "max_steps",
        "steps_per_look": "eval_interval",
    },
    "profiles.*.sft": TRL,
    "profiles.*.build_prefs": {"batch": "batch_size"},
    "profiles.*.dpo": TRL,
    "profiles.*.evaluate": {"batch": "batch_size"},
    "profiles.*": {"processes": "num_processes", "needs": "requirements"},
}
