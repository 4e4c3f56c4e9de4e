"""Which pieces end a text or are special, whatever type a file gives them: llama.cpp's rules."""

import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# Pieces that end a turn, by the names models give them. Where a file names none, the first found
# is taken; llama.cpp takes any.
END_OF_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
)
END_OF_MESSAGE = "<|eom_id|>"
# At these, too, generation ends.
_ENDS = (
    *END_OF_TURN,
    END_OF_MESSAGE,
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)
# Parts of a file with a gap to fill in, by the key that may name each: the first found of a row.
_FILL_IN = {
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
FILL_IN_KEYS = tuple(_FILL_IN)
_FILL_IN_ENDS = ("fim_pad", "fim_rep", "fim_sep")
_CHANNELS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


def end_ids(ids: dict[str, int], types: np.ndarray, named: dict[str, int | None]) -> set[int]:
    """The ids at which generation ends; `types` (V,) is changed where a piece's text decides it.

    `ids` has the pieces; `named` what the file names: "eos", "eot", "eom" and FILL_IN_KEYS.
    """
    ends = {ids[piece] for piece in _ENDS if piece in ids}
    control = set(ends)
    for key, pieces in _FILL_IN.items():
        found = named[key]
        if found is None:
            found = next((ids[piece] for piece in pieces if piece in ids), None)
            control |= set() if found is None else {found}
        if found is not None and key in _FILL_IN_ENDS:
            ends.add(found)
    types[list(control)] = CONTROL
    types[[ids[piece] for piece in _CHANNELS if piece in ids]] = USER_DEFINED
    ends |= {i for i in (named["eos"], named["eot"], named["eom"]) if i is not None}

    def ending(*pieces: str) -> bool:
        return any(ids.get(piece) in ends for piece in pieces)

    called = ending("<|call|>", "<|calls|>")
    if called and ending("<|return|>", "<|flush|>") and ending("<|end|>"):  # it ends messages only
        ends.remove(ids["<|end|>"])
        types[ids["<|end|>"]] = USER_DEFINED
    if ending("<|tool_response>", "<|plamo:eos|>") and ending("</s>"):
        ends.remove(ids["</s>"])
        types[ids["</s>"]] = NORMAL
    return ends


def stripping(name: str, ids: dict[str, int], types: np.ndarray) -> list[int]:
    """The ids of special tokens that swallow the blanks behind them: those of Phi-3, which is told
    by the model's name alone.
    """
    if not any(part in name.lower() for part in ("phi-3", "phi3")):
        return []
    kept = {ids.get(piece) for piece in ("<unk>", "<s>", "<|endoftext|>")}
    special = np.flatnonzero(np.isin(types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
    return [i for i in special if i not in kept]
