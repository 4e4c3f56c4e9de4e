"""Which chat template the conversations of a run go through, with which variables, on which day."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from wgtrain.chat.bounded import ChatTemplate
from wgtrain.data.tokenizer import Tokenizer
from wgtrain.errors import OptionError
from wgtrain.files.source import shown

CHATML = "chatml"
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = ("keep", "merge")
# What a conversation itself gives a template.
_OWN = ("messages", "tools", "add_generation_prompt")
# What templates write for single tokens, whatever the model.
_LIKE_A_TOKEN = re.compile(
    r"<\|[^\s<>|]{1,60}\|>|<｜[^\s<>｜]{1,60}｜>|</?s>|<(?:bos|eos|start_of_turn|end_of_turn)>"
    r"|<\|turn>|<turn\|>"
)


@dataclass(frozen=True)
class Templating:
    """How conversations become text.

    `template` is the source of one that replaces the model's, or "chatml", and `label` what
    messages call it; `args` are more variables for it; with `system` "merge" a system text goes
    in front of the user's next turn; `now` is the day of templates that write one. Where they were
    not `asked` for, but come with a model or an adapter, they may have nothing to do.
    """

    template: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    system: str = "keep"
    now: datetime = field(default_factory=lambda: datetime.now().replace(microsecond=0))
    label: str = ""
    asked: bool = field(default=True, compare=False)

    def __post_init__(self) -> None:
        if self.system not in SYSTEM:
            raise OptionError(f"system is {self.system!r}; one of {', '.join(SYSTEM)}")
        check_arguments(self.args, "template_args")

    @property
    def name(self) -> str:
        """What messages call a template that replaces the model's."""
        if self.label:
            return self.label
        return CHATML if self.template == CHATML else "the text given"

    @property
    def source(self) -> str | None:
        """The text of that template."""
        return _CHATML if self.template == CHATML else self.template

    def sources(self, tokenizer: Tokenizer) -> Mapping[str, str]:
        """The templates by name; none where conversations are to be written plainly."""
        return tokenizer.chat_templates if self.source is None else {"default": self.source}

    def open(self, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template, None where there is none; FileError if it does not compile, OptionError for
        arguments that it does not read.
        """
        sources = self.sources(tokenizer)
        if not sources:
            return None
        own = self.template is None
        end = last_token(tokenizer)
        template = ChatTemplate(
            sources,
            tokens=tokenizer.special_tokens,
            stops=[tokenizer.pieces[i] for i in tokenizer.stop_ids],
            end=end,
            now=self.now,
            label="the model's chat template" if own else f"the chat template {self.name}",
        )
        if wrong := unread(self.args, template, tokenizer):
            template.close()
            raise wrong
        return template

    def check_plain(self, chats: int, name: str) -> None:
        """OptionError for settings asked for that did nothing: no template ran over the rows of
        `name`, of which `chats` are conversations.
        """
        if not self.asked:
            return
        given = {"chat_template": self.template and self.name, "template_args": dict(self.args)}
        if not chats:
            given["system"] = self.system if self.system != "keep" else None
        why = "the model has no chat template" if chats else f"{name} has no conversations"
        for option, value in given.items():
            if value:
                raise OptionError(f"{option} = {shown(value)}: {why}")

    def record(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """All that the text of conversations follows from, beside the model: what `load_dataset`
        takes, as JSON.
        """
        texts = self.sources(tokenizer).values()
        dated = any("strftime_now" in text for text in texts)
        found = {
            "chat_template": self.source,
            "template_args": dict(self.args),
            "system": self.system if self.system != "keep" else None,
            "now": self.now.isoformat() if dated else None,
        }
        return {key: value for key, value in found.items() if value}


def looks_like_source(text: str) -> bool:
    """Whether a text is a template itself, not the name of a file or of a template."""
    return "{{" in text or "{%" in text


def last_token(tokenizer: Tokenizer) -> str | None:
    """What ends an answer that a template leaves open at the end of a conversation."""
    i = tokenizer.eos_id if tokenizer.eot_id is None else tokenizer.eot_id
    return None if i is None else tokenizer.pieces[i]


def check_arguments(args: Any, name: str) -> None:
    """OptionError for what are no variables of a template."""
    if not isinstance(args, Mapping):
        raise OptionError(f"{name} = {shown(args)}: allowed is an object, of names and values")
    for key in args:
        if not isinstance(key, str) or not key.isidentifier() or key in _OWN:
            what = "comes from the row" if key in _OWN else "is no name of a variable"
            raise OptionError(f"{name}: {shown(key)} {what}")


def unread(
    args: Mapping[str, Any], template: ChatTemplate, tokenizer: Tokenizer
) -> OptionError | None:
    """The error for variables that a template does not read."""
    names = [name for name in args if name not in template.variables]
    if not names:
        return None
    return OptionError(
        f"template_args = {', '.join(map(shown, names))}: the chat template does not read it; it "
        f"reads {', '.join(_foreign(template.variables, tokenizer)) or 'nothing'}"
    )


def foreign_tokens(
    text: str, templating: Templating, tokenizer: Tokenizer, given: Any, known: dict[str, bool]
) -> OptionError | None:
    """The error for a template in the place of the model's that wrote, in `text`, what looks like a
    special token and is none of the vocabulary's, and did not stand in what it was `given`, JSON.

    `known` keeps what was looked at before.
    """
    found = dict.fromkeys(_LIKE_A_TOKEN.findall(text))
    for piece in found:
        if piece not in known:
            known[piece] = len(tokenizer.encode(piece, special=True)) == 1
    missing = [piece for piece in found if not known[piece]]
    if missing:
        texts = list(all_texts(given))
        missing = [piece for piece in missing if not any(piece in one for one in texts)]
    if not missing:
        return None
    return OptionError(
        f"chat_template = {templating.name}: it writes {' '.join(missing)}, not single tokens of "
        f"the vocabulary of {tokenizer.name}: a template for this model is needed"
    )


def all_texts(value: Any) -> Iterator[str]:
    """All texts in a value of JSON, with the names of fields: whoever asks may choose these too."""
    open_ = [value]
    while open_:
        item = open_.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list | tuple):
            open_ += item
        elif isinstance(item, dict):
            open_ += [*item, *item.values()]


def _foreign(variables: list[str], tokenizer: Tokenizer) -> list[str]:
    """The variables that a caller may set."""
    given = {*_OWN, *tokenizer.special_tokens, "documents", "raise_exception", "strftime_now"}
    given |= {"namespace", "dict", "range", "cycler", "joiner", "bos_token", "eos_token"}
    return [name for name in variables if name not in given]
