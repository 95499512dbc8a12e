"""Check the configuration that a model is made from."""

from collections.abc import Iterable, Mapping


def complete_config(model: str, config: Mapping, required: Iterable[str], **defaults) -> dict:
    """Return a copy of config with defaults filled in, or raise ValueError for a missing key.

    Keys that the model does not know (bptt_length, which belongs to training) stay in the copy.
    """
    if missing := [key for key in required if key not in config]:
        raise ValueError(f"The config of {model} lacks {', '.join(missing)}. Add it.")
    return {**defaults, **config}
