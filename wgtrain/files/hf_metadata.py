"""The settings of a config.json -> the metadata of a GGUF, as llama.cpp's converter writes it.

Where transformers knows something that GGUF has no key for, the key begins with `wgtrain.`, and is
an obstacle to a file for others.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wgtrain.files.hf_config import Settings
from wgtrain.files.hf_rope import Rope
from wgtrain.files.known_keys import OWN_NO_ROPE, OWN_SCALE, OWN_TRUNCATE, OWN_WINDOWED

# Architectures whose windows llama.cpp knows, and every how many layers it has none by itself.
_PATTERNS = {"gemma2": 2, "gemma3": 6, "olmo2": 4}
_NO_ROPE_EVERY = 4  # of smollm3 in llama.cpp
SHARED = "expert_shared_feed_forward_length"  # of a class whose modules are `shared_mlp`
# Those whose converter writes no rope.freq_base, and no size of heads, unless it must.
_SHORT = ("gemma", "gemma2", "stablelm")


@dataclass(frozen=True)
class Translation:
    """For an `architecture`, a GGUF's metadata below its name and `wgtrain.`; tensors that
    the folder has as numbers in its configuration.

    `obstacles`: why llama.cpp would compute something else of a file with these. `notes`: where
    it does so for long rows alone.
    """

    architecture: str
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    obstacles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def translate(s: Settings) -> Translation:
    """The translation of one model's settings."""
    return _Translator(s).run()


class _Translator:
    def __init__(self, s: Settings) -> None:
        self.s, self.architecture = s, s.kind.architecture
        if s.whole == "mistral3" and not s.raw.get("architectures"):
            self.architecture = "mistral3"
        self.found: dict[str, Any] = {}
        self.extra: dict[str, Any] = {}
        self.result = Translation(self.architecture)

    def run(self) -> Translation:
        s, put = self.s, self.put
        put("block_count", s["num_hidden_layers"])
        put("context_length", s["max_position_embeddings"])
        put("embedding_length", s["hidden_size"])
        put("feed_forward_length", s["intermediate_size"])
        put("attention.head_count", s["num_attention_heads"])
        put("attention.head_count_kv", s["num_key_value_heads"])
        eps = "layer_norm_rms_epsilon" if s.kind.eps == "rms_norm_eps" else "layer_norm_epsilon"
        put(f"attention.{eps}", s[s.kind.eps])
        self.heads()
        self.rope(s.ropes[0])
        self.windows()
        self.others()
        metadata = {f"{self.architecture}.{key}": value for key, value in self.found.items()}
        self.result.metadata.update(metadata | self.extra)
        return self.result

    def put(self, key: str, value: Any) -> None:
        """A float has the bits that the file will hold."""
        self.found[key] = float(np.float32(value)) if type(value) is float else value

    def heads(self) -> None:
        """Sizes of heads: where the class has a setting, or they do not follow from the width."""
        s, name = self.s, self.s.name
        known = name in ("llama", "mistral", "ministral3", "qwen3", "qwen3_vl_text", "glm4")
        known = known or name.startswith("gemma")
        given = s.raw.get("head_dim") is not None and self.architecture not in ("granite", "phi3")
        follows = s.head_size == s["hidden_size"] // s["num_attention_heads"]
        if known or (given and self.architecture != "stablelm") or not follows:
            self.put("attention.key_length", s.head_size)
            self.put("attention.value_length", s.head_size)
        if self.architecture in ("llama", "mistral3", "smollm3", "granite"):
            self.put("vocab_size", s["vocab_size"])
            self.put("rope.dimension_count", s.head_size)
        if s.kind.partial:
            self.put("rope.dimension_count", s.rotary)

    def rope(self, rope: Rope) -> None:
        if self.architecture not in _SHORT or rope.theta != 10_000:
            self.put("rope.freq_base", rope.theta)
        if self.s.kind.nested:
            self.put("rope.freq_base_swa", self.s.ropes[1].theta)
        if rope.sections:
            self.put("rope.dimension_sections", np.array(rope.sections, np.int32))
        if rope.type == "linear":
            self.put("rope.scaling.type", "linear")
            self.put("rope.scaling.factor", rope.numbers["factor"])
        elif rope.type == "yarn":
            self.yarn(rope)
        elif rope.type == "llama3":
            self.result.tensors["rope_freqs.weight"] = rope.divisors(self.s.rotary)
        if self.architecture == "phi3":
            original = (
                rope.original
                if rope.type == "longrope"
                else self.s.values["original_max_position_embeddings"]
            )
            self.put("rope.scaling.original_context_length", original)
        if rope.type == "longrope":
            self.put("rope.scaling.attn_factor", float(rope.magnitude))
            for name, factors in (("long", rope.long), ("short", rope.short)):
                self.result.tensors[f"rope_factors_{name}.weight"] = np.array(factors, np.float32)

    def yarn(self, rope: Rope) -> None:
        n = rope.numbers
        self.put("rope.scaling.type", "yarn")
        self.put("rope.scaling.factor", n["factor"])
        self.put("rope.scaling.original_context_length", rope.original)
        for ours, theirs in (
            ("attn_factor", "attention_factor"),
            ("beta_fast", "beta_fast"),
            ("beta_slow", "beta_slow"),
        ):
            if theirs in n:
                self.put(f"rope.scaling.yarn_{ours}", n[theirs])
        usual = rope.plain_magnitude
        if self.architecture == "mistral3":
            if "mscale_all_dim" in n:
                self.put("rope.scaling.yarn_log_multiplier", n["mscale_all_dim"])
                usual = _default_mistral3(rope)
            if "llama_4_scaling_beta" in n:
                self.put("attention.temperature_scale", n["llama_4_scaling_beta"])
        elif (n.get("beta_fast", 32.0), n.get("beta_slow", 1.0)) != (32.0, 1.0):
            betas = f"beta_fast {n.get('beta_fast', 32.0):g}, beta_slow {n.get('beta_slow', 1.0):g}"
            self.obstacle(f"yarn with {betas}: llama.cpp takes 32 and 1")
        if abs(rope.magnitude / usual - 1) > 1e-6:
            self.put("rope.scaling.yarn_attn_factor", float(rope.magnitude))
            self.obstacle(
                f"yarn with an attention factor of {rope.magnitude:g}: llama.cpp takes {usual:g}"
            )
        if not rope.truncate:
            self.extra[OWN_TRUNCATE] = False
            self.obstacle("yarn with truncate false: llama.cpp rounds where its ramp ends")

    def windows(self) -> None:
        s, window = self.s, self.s.values.get("sliding_window")
        if self.architecture == "phi3":
            self.put("attention.sliding_window", window or 0)
            if window:
                self.note(window)
            return
        if window is None:
            return
        self.put("attention.sliding_window", window)
        pattern = np.array(s.windowed)
        if s.name == "olmo3":
            self.put("attention.sliding_window_pattern", pattern)
        elif every := _PATTERNS.get(self.architecture):
            if list(s.windowed) != [bool((i + 1) % every) for i in range(len(pattern))]:
                self.put("attention.sliding_window_pattern", pattern)
        else:
            if not all(s.windowed):
                self.extra[OWN_WINDOWED] = pattern
            self.note(window)

    def others(self) -> None:
        s, name = self.s, self.architecture
        if name == "granite":
            for key, setting in (
                ("attention.scale", "attention_multiplier"),
                ("embedding_scale", "embedding_multiplier"),
                ("residual_scale", "residual_multiplier"),
                ("logit_scale", "logits_scaling"),
            ):
                self.put(key, s[setting])
            if s.kind.shared:
                self.stateless()
        elif name in ("gemma2", "gemma3"):
            self.gemma()
        elif name == "smollm3":
            usual = [i for i in range(s["num_hidden_layers"]) if (i + 1) % _NO_ROPE_EVERY == 0]
            if list(s.no_rope) != usual:
                self.extra[OWN_NO_ROPE] = np.array(s.no_rope, np.int32)
                self.obstacle(
                    f"layers {list(s.no_rope)} without a rotary embedding: llama.cpp leaves it "
                    f"out in every {_NO_ROPE_EVERY}th"
                )
        elif name == "stablelm":
            self.put("use_parallel_residual", s["use_parallel_residual"])
        elif name == "qwen3vl":
            indexes = s.vision.get("deepstack_visual_indexes")
            self.put("n_deepstack_layers", len(indexes) if isinstance(indexes, list) else 0)

    def stateless(self) -> None:
        """What such a model says of states and experts that it does not have."""
        s, put = self.s, self.put
        put("rope.scaling.finetuned", s["position_embedding_type"] == "rope")
        put("expert_count", 0)
        put("expert_used_count", 0)
        put(SHARED, s["intermediate_size"])
        layers = np.full(s["num_hidden_layers"], s["num_key_value_heads"], np.int32)
        put("attention.head_count_kv", layers)
        put("ssm.conv_kernel", s["mamba_d_conv"])
        put("ssm.state_size", s["mamba_d_state"])
        put("ssm.group_count", s["mamba_n_groups"])
        put("ssm.inner_size", s["mamba_expand"] * s["hidden_size"])
        put("ssm.time_step_rank", s["mamba_n_heads"])

    def gemma(self) -> None:
        s, cap = self.s, "attn_logit_softcapping"
        for key in (cap, "final_logit_softcapping"):
            value = s.values.get(key)
            if value is not None:
                self.put(key, value)
            elif self.architecture == "gemma2":  # where a missing key means the usual one
                self.put(key, 0.0)
                self.obstacle(f"{key} null: llama.cpp caps always")
        scalar = float(s["query_pre_attn_scalar"])
        large = (self.architecture, s["num_hidden_layers"]) in (("gemma2", 46), ("gemma3", 62))
        usual = s["hidden_size"] / s["num_attention_heads"] if large else s.head_size
        if scalar != usual:
            self.extra[OWN_SCALE] = float(np.float32(scalar**-0.5))
            self.obstacle(
                f"query_pre_attn_scalar {scalar:g}: llama.cpp takes {usual:g} for a model of this "
                "shape"
            )

    def obstacle(self, text: str) -> None:
        self.result.obstacles.append(text)

    def note(self, window: int) -> None:
        self.result.notes.append(window_note(window))


def window_note(window: int) -> str:
    """What a person is told of a model's window that llama.cpp does not know."""
    return (
        f"llama.cpp passes over this model's window of {window} tokens: the same up to that "
        "length, not beyond"
    )


def _default_mistral3(rope: Rope) -> float:
    """The magnitude that llama.cpp computes of the keys of a mistral3."""
    numbers = {key: n for key, n in rope.numbers.items() if key != "attention_factor"}
    return Rope("yarn", rope.theta, numbers | {"mscale": 1.0}).magnitude
