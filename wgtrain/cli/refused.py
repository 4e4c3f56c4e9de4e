"""What is said of a command line that cannot be read, and what would be right in its place."""

import difflib
from collections.abc import Collection

import click

from wgtrain.cli.options import dashes
from wgtrain.train.spellings import called, nearest

# Command -> what other programs call it: llama.cpp, Ollama, mlx-lm, Axolotl, LLaMA-Factory, TRL.
_ELSEWHERE = {
    "train": "finetune fine-tune sft lora tune",
    "generate": "complete completion infer inference predict ask",
    "chat": "run talk",
    "serve": "server api",
    "eval": "evaluate perplexity test compare",
    "merge": "fuse export merge-lora merge_and_unload export-lora",
    "modelfile": "ollama create",
    "convert": "convert_hf_to_gguf convert-hf-to-gguf",
    "doctor": "devices info gpus",
}
# Options that say what people write without one.
_FILES = (("--model", "FILE"), ("--adapter", "A"), ("--data", "FILE"))
_TEXTS = (("--message", "TEXT"), ("--prompt", "TEXT"))


def refusal(error: click.ClickException) -> str:
    """What is wrong with a command line, in a line."""
    words = error.format_message().rstrip(".")
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return words
    if isinstance(error, click.NoSuchOption):
        return _no_such_option(error, error.ctx)
    place = f"{error.ctx.command_path} --help"
    if isinstance(error, click.MissingParameter) and isinstance(error.param, click.Option):
        option = error.param
        what = (option.help or "").rstrip(".")
        if what[1:2].islower():
            what = what[0].lower() + what[1:]
        return f"{option.opts[0]} {option.metavar}: needed; {what}"
    if words.startswith("Got unexpected extra argument"):
        known = {name for parameter in error.ctx.command.params for name in parameter.opts}
        files = " ".join(f"{name} {value}" for name, value in _FILES if name in known)
        texts = " or ".join(f"{name} {value}" for name, value in _TEXTS if name in known)
        hints = [f"files are named by {files}"] * bool(files) + [f"texts by {texts}"] * bool(texts)
        return "; ".join([words, *hints])
    return words if words.endswith("?") else f"{words}; {place} tells what there is"


def no_such_command(name: str, known: Collection[str]) -> str:
    """Which command is meant by one that is none."""
    names = {other: ours for ours, others in _ELSEWHERE.items() for other in others.split()}
    names |= {ours: ours for ours in known}
    near = difflib.get_close_matches(name.lower(), names, 1, 0.75)
    words = f"No such command '{name}'"
    return f"{words}; did you mean wgtrain {names[near[0]]}?" if near else words


def _no_such_option(error: click.NoSuchOption, ctx: click.Context) -> str:
    """Which option is meant by one that a command does not have."""
    command = ctx.command
    for argument in command.params:
        if isinstance(argument, click.Argument) and error.option_name == f"--{argument.name}":
            place = f"wgtrain {command.name} {str(argument.name).upper()}"
            return f"No such option {error.option_name}; it stands by itself: {place}"
    options = [name for option in command.params for name in option.opts if name.startswith("--")]
    known = [name[2:].replace("-", "_") for name in options]
    words = f"No such option {error.option_name}"
    find = nearest if error.option_name.startswith("--") else called
    near = find(error.option_name, known)
    if near is None:
        return f"{words}; {ctx.command_path} --help lists them"
    return f"{words}; did you mean {dashes(near)}?"
