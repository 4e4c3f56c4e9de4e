"""config.json -> GGUF metadata: both spellings, the defaults of transformers' classes, and what
llama.cpp's converter wrote of the same configurations (scripts/evidence.d/converter.py asks it
again).
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

import hf_models
import numpy as np
import pytest

from wgtrain.errors import FileError
from wgtrain.files.hf_config import read_settings
from wgtrain.files.hf_metadata import Translation, translate
from wgtrain.files.hf_types import REFUSED, TYPES, WHOLES

CONVERTED = json.loads((Path(__file__).parent / "hf_converted.json").read_text())
# What this program writes beside it, which llama.cpp does not read.
OURS: dict[str, dict[str, Any]] = {
    "mistral": {"llama.attention.sliding_window": 8},
    "qwen2-window": {
        "qwen2.attention.sliding_window": 8,
        "wgtrain.attention.window_pattern": [False] * 3 + [True] * 5,
    },
    "gemma2-scalar": {"wgtrain.attention.scale": 24**-0.5},
    "starcoder2": {"starcoder2.attention.sliding_window": 8},
}


def written(name: str) -> dict[str, Any]:
    """config.json as transformers writes it."""
    settings: dict[str, Any] = json.loads(hf_models.hf_config(name).to_json_string())
    return settings


def translated(settings: dict[str, Any]) -> Translation:
    return translate(read_settings(settings, "x/config.json"))


def plain(value: Any) -> Any:
    """A value of metadata as JSON has it; floats with the bits that a file holds."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return float(np.float32(value)) if isinstance(value, float) else value


def plains(values: dict[str, Any]) -> dict[str, Any]:
    return {key: plain(value) for key, value in values.items()}


def same(a: Translation, b: Translation) -> bool:
    arrays = a.tensors.keys() == b.tensors.keys() and all(
        np.array_equal(a.tensors[key], b.tensors[key]) for key in a.tensors
    )
    return (arrays, a.architecture, plains(a.metadata)) == (
        True,
        b.architecture,
        plains(b.metadata),
    )


@pytest.mark.oracle
@pytest.mark.parametrize("name", hf_models.MODELS)
def test_as_the_converter(name: str) -> None:
    found = translated(written(name))
    expected = CONVERTED[name]
    assert found.architecture == expected["architecture"]
    assert plains(found.metadata) == plains(expected["metadata"] | OURS.get(name, {}))
    assert {key: v.tolist() for key, v in found.tensors.items()} == {
        key: np.array(v, np.float32).tolist() for key, v in expected["tensors"].items()
    }


@pytest.mark.oracle
@pytest.mark.parametrize("name", hf_models.MODELS)
def test_the_spelling_of_the_hub(name: str) -> None:
    new = written(name)
    old = hf_models.as_on_the_hub(new)
    assert "rope_parameters" not in {**old, **old.get("text_config", {})}
    assert same(translated(old), translated(new))


@pytest.mark.oracle
@pytest.mark.parametrize("name", hf_models.MODELS)
def test_every_key_may_be_missing(name: str) -> None:
    """A configuration without a key is that which transformers completes."""
    import transformers

    whole = hf_models.as_on_the_hub(written(name))
    places: list[tuple[str, ...]] = [()] if "text_config" not in whole else [(), ("text_config",)]
    differ = 0
    for place in places:
        part = whole
        for step in place:
            part = part[step]
        for key in part:
            if key in ("model_type", "text_config", "vision_config", "architectures"):
                continue
            reduced = copy.deepcopy(whole)
            inner = reduced
            for step in place:
                inner = inner[step]
            del inner[key]
            try:
                config = transformers.AutoConfig.for_model(**copy.deepcopy(reduced))
                completed = json.loads(config.to_json_string(use_diff=False))
            except Exception as error:  # transformers cannot do without this one beside the others
                with pytest.raises(FileError):
                    translated(reduced)
                assert re.search(f"{key}|head|factor", str(error)), (key, error)
                continue
            try:
                expected = translated(completed)
            except FileError:
                with pytest.raises(FileError):
                    translated(reduced)
                continue
            ours = read_settings(reduced, "x")
            assert same(translate(ours), expected), key
            tied = config.tie_word_embeddings
            assert ours.tied == tied, key
            differ += not same(translate(ours), translated(whole))
    assert differ > 4, "removing keys changes what is read"


def test_every_type_is_tested() -> None:
    kinds = {kind for kind, _ in hf_models.MODELS.values()}
    texts = [given.get("text_config", {}) for _, given in hf_models.MODELS.values()]
    inner = {text.get("model_type") for text in texts}
    assert kinds | inner | {"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"} >= {
        *TYPES,
        *WHOLES,
    }
    assert not REFUSED.keys() & {*TYPES, *WHOLES}


JUNK: list[Any] = [
    *(None, True, 0, -1, 3, 10**400, 1e308, 1e-320, float("nan"), "", "yarn", [], [None]),
    *(["full_attention"] * 8, [1] * 9, {}, {"rope_type": "yarn"}, {"full_attention": 3}, 1 << 40),
]


def paths(settings: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in settings.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += paths(value, (*above, key))
    return found


@pytest.mark.oracle
@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", hf_models.MODELS)
def test_any_value_is_read_or_refused(name: str) -> None:
    """Each setting with some other values, a different part of them for each model."""
    new = written(name)
    start = list(hf_models.MODELS).index(name)
    refused = 0
    for settings in (new, hf_models.as_on_the_hub(new)):
        for i, path in enumerate(paths(settings)):
            for value in JUNK[(start + i) % 4 :: 4]:
                changed = copy.deepcopy(settings)
                inner = changed
                for key in path[:-1]:
                    inner = inner[key]
                inner[path[-1]] = copy.deepcopy(value)
                try:
                    translated(changed)
                except FileError as error:
                    refused += 1
                    assert len(str(error)) < 4000
    assert refused > 50
