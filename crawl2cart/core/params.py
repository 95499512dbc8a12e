"""Read params.yaml, check each value against the model of its section, and freeze the result.

Every package owns the pydantic models of its sections, beside the code that reads them. This module
only assembles them. A stage imports and checks the sections that dvc.yaml lists for it, and no
others. So a new parameter of the filter does not change the code that `midtrain` depends on, and no
result depends on a parameter that DVC does not watch.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from crawl2cart.core.dvc_yaml import read_yaml
from crawl2cart.core.errors import UserError
from crawl2cart.core.renamed_params import RENAMED

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

PROFILES = ("cpu", "smoke", "gpu")
# Where the model of each section is defined: module:class, imported when the section is read.
SECTIONS = {
    "download": "crawl2cart.crawl.download.params:Download",
    "filter": "crawl2cart.crawl.params:Filter",
    "encode": "crawl2cart.lm.params:Encode",
    "pretrain": "crawl2cart.lm.params:Pretrain",
    "build_sft": "crawl2cart.dialogues.params:BuildSft",
    "midtrain": "crawl2cart.lm.params:Midtrain",
    "sft": "crawl2cart.preferences.params:Sft",
    "build_prefs": "crawl2cart.preferences.params:BuildPrefs",
    "dpo": "crawl2cart.preferences.params:Dpo",
    "router": "crawl2cart.router.params:Router",
    "demo": "crawl2cart.demo.params:Demo",
    "evaluate": "crawl2cart.evaluation.params:Evaluate",
}
# The same for the sections of each profile.
PROFILE_SECTIONS = {
    "download": "crawl2cart.crawl.download.params:DownloadScale",
    "pretrain": "crawl2cart.lm.params:PretrainScale",
    "models": "crawl2cart.lm.params:Models",
    "build_sft": "crawl2cart.dialogues.params:BuildSftScale",
    "midtrain": "crawl2cart.lm.params:MidtrainScale",
    "sft": "crawl2cart.preferences.params:TrlScale",
    "build_prefs": "crawl2cart.preferences.params:BuildPrefsScale",
    "dpo": "crawl2cart.preferences.params:TrlScale",
    "evaluate": "crawl2cart.evaluation.params:EvaluateScale",
}


class Section(BaseModel):
    """A mapping of params.yaml. Keys may not be missing, unknown or changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Requirements(Section):
    memory_gib: Count
    card_gib: Annotated[int, Field(ge=0)]
    disk_gib: Count
    minutes: Count


class Profile(Section):
    """What every stage reads of a profile. `read_params` adds the sections in PROFILE_SECTIONS."""

    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    threads: Count
    num_processes: Count
    dollars_per_hour: NotNegative
    requirements: Requirements

    @model_validator(mode="after")
    def processes_fit(self) -> "Profile":
        """Check that processes share the threads equally and that one card has one process."""
        if self.threads % self.num_processes:
            raise ValueError(
                f"{self.num_processes} processes cannot share {self.threads} threads equally. "
                "Set `num_processes` to a number that divides `threads`"
            )
        if self.device == "cuda" and self.num_processes > 1:
            raise ValueError(
                "`num_processes` above 1 is for a CPU. Set it to 1; for several cards start "
                "a stage with torchrun (scale/README.md)"
            )
        return self


class Params(Section):
    """The whole of params.yaml. `read_params` adds `profiles` and the sections in SECTIONS."""

    profile: Literal[PROFILES]
    seed: Annotated[int, Field(ge=0)]

    @property
    def active_profile(self) -> Profile:
        return getattr(self.profiles, self.profile)

    def get(self, key: str) -> object:
        """Return the value under a dotted key of params.yaml, a section as a plain mapping.

        Raises UserError if params.yaml has no such key.
        """
        value: object = self
        for name in key.split("."):
            if not hasattr(value, name):
                raise UserError(
                    f"dvc.yaml lists the parameter {key}, which params.yaml does not have."
                )
            value = getattr(value, name)
        return value.model_dump() if isinstance(value, BaseModel) else value


class Listed:
    """The parameters that dvc.yaml lists for one stage. Reading any other raises AttributeError.

    `profiles.<active>.x` is read as `.profile.x`.
    """

    def __init__(self, section: BaseModel, keys: tuple[str, ...], prefix: str = ""):
        self._section, self._keys, self._prefix = section, keys, prefix

    def __getattr__(self, name: str) -> object:
        section = self._section
        if isinstance(section, Params) and name == "profile":
            inside = keys_inside(self._keys, f"profiles.{section.profile}")
            return Listed(section.active_profile, inside, "profile.")
        inside = keys_inside(self._keys, name)
        if name not in self._keys and not inside:
            raise AttributeError(
                f"parameter {self._prefix}{name} is not listed under `params:` of this stage "
                "in dvc.yaml"
            )
        value = getattr(section, name)
        return value if name in self._keys else Listed(value, inside, f"{self._prefix}{name}.")


def keys_inside(keys: Iterable[str], section: str) -> tuple[str, ...]:
    """Return those of the dotted keys that lie in a section, without its name."""
    prefix = f"{section}."
    return tuple(key.removeprefix(prefix) for key in keys if key.startswith(prefix))


def listed_sections(keys: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the entries of SECTIONS and of PROFILE_SECTIONS that dotted keys lie in or contain."""
    paths = [key.split(".") for key in keys]
    of_profile = {name for path in paths if path[0] == "profiles" for name in path[2:3]}
    if any(path[0] == "profiles" and len(path) == 2 for path in paths):  # a whole profile
        of_profile |= PROFILE_SECTIONS.keys()
    top_level = {path[0] for path in paths}
    return frozenset(top_level & SECTIONS.keys()), frozenset(of_profile & PROFILE_SECTIONS.keys())


def section_modules(keys: Iterable[str]) -> set[str]:
    """Return the modules that define the sections of these dotted keys."""
    top_level, of_profile = listed_sections(keys)
    places = [SECTIONS[name] for name in top_level] + [
        PROFILE_SECTIONS[name] for name in of_profile
    ]
    return {place.split(":")[0] for place in places}


@cache
def params_model(top_level: frozenset[str], of_profile: frozenset[str]) -> type[Params]:
    """Assemble the model of params.yaml. Sections that are not named stay unchecked mappings."""

    def fields(table: dict[str, str], names: frozenset[str]) -> dict[str, tuple[type, object]]:
        return {name: (load(table[name]) if name in names else dict, ...) for name in table}

    def load(place: str) -> type[Section]:
        module, name = place.split(":")
        return getattr(import_module(module), name)

    profile = create_model("Profile", __base__=Profile, **fields(PROFILE_SECTIONS, of_profile))
    profiles = create_model("Profiles", __base__=Section, **dict.fromkeys(PROFILES, (profile, ...)))
    sections = fields(SECTIONS, top_level)
    return create_model("Params", __base__=Params, profiles=(profiles, ...), **sections)


def read_params(path: Path, keys: Iterable[str] | None = None) -> Params:
    """Read and check params.yaml.

    keys: dotted keys; only the sections they lie in are checked (default: all sections).
    Raises UserError that names each bad key, its value and what it should be.
    """
    raw = read_yaml(path)
    if keys is None:
        sections = frozenset(SECTIONS), frozenset(PROFILE_SECTIONS)
    else:
        sections = listed_sections(keys)
    try:
        return params_model(*sections).model_validate(raw)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {explain(e)}" for e in error.errors()]
        message = "\n".join([f"{path.name} is not valid:", *lines, "Nothing was run."])
        raise UserError(message) from error


def explain(error: dict) -> str:
    """Say what is wrong with one value. error: an entry of `ValidationError.errors()`."""
    match error["type"]:
        case "extra_forbidden":
            *section, name = map(str, error["loc"])
            if renamed := new_name(".".join(section), name):
                return f"this parameter is now called {renamed}"
            return "there is no such parameter; is it misspelled?"
        case "missing":
            return "this parameter is missing"
        case "value_error" if isinstance(error["input"], dict):  # values that do not go together
            return str(error["ctx"]["error"])
        case _:
            return f"{error['msg'][0].lower()}{error['msg'][1:]}, but it is {error['input']!r}"


def current_name(key: str) -> str:
    """Return the current name of a dotted parameter, whether it was renamed or not."""
    path: list[str] = []
    for name in key.split("."):
        renamed = new_name(".".join(path), name)
        path = renamed.split(" ")[0].split(".") if renamed else [*path, name]
    return ".".join(path)


def new_name(section: str, name: str) -> str | None:
    """Return the dotted new name of a parameter that was renamed, None if it was not."""
    for pattern, names in RENAMED.items():
        if fnmatchcase(section, pattern) and name in names:
            return f"{section}.{names[name]}"
    return None
