"""The templates of a model: one for all conversations, or another for those with tools."""

from collections.abc import Iterable, Mapping
from typing import Any

from wgtrain.chat.rendered import Message, Rendered, Variables
from wgtrain.chat.template import Broken, Template
from wgtrain.errors import FileError


class Templates:
    """`sources` are templates by name: "default", and maybe "tool_use"; `label` is what messages
    call them, the rest as for `Template`.
    """

    def __init__(self, sources: Mapping[str, str], label: str, **settings: Any) -> None:
        try:
            self._all = {name: Template(source, **settings) for name, source in sources.items()}
        except Broken as error:
            raise FileError(f"{label} is broken: {error}") from error

    @property
    def variables(self) -> list[str]:
        """All names that they read from outside."""
        return sorted({name for one in self._all.values() for name in one.variables})

    def render(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        prompt: bool = False,
        args: Variables | None = None,
    ) -> str:
        """As `Template.render`."""
        return self._of(tools).render(messages, tools, prompt, args)

    def split(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        args: Variables | None = None,
        typed: Iterable[str] = (),
    ) -> Rendered:
        """As `Template.split`."""
        return self._of(tools).split(messages, tools, args, typed)

    def _of(self, tools: list[Any] | None) -> Template:
        return self._all["default" if tools is None or "tool_use" not in self._all else "tool_use"]
