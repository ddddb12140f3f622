"""Chat templates: a conversation as the one text that a model was trained to go on with (Jinja, from the model's own folder)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from colossus.spec.errors import ColossusError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For a model without a template of its own: plain ChatML, which says nothing that the messages do not say."""

_MAX_RENDER_S = 2.0
_MAX_TEXT_CHARACTERS = 16_000_000
_MAX_REPEATED = 1_000_000


class TemplateFault(ColossusError):
    """A chat template cannot be read, or refuses a conversation; says so in the template's own words where it has some."""


class ChatTemplate:
    """A model's chat template, compiled once, run in a sandbox with the helpers that ``transformers`` gives its templates.

    A template reads only what it is given. One that does not end within ``max_render_s`` or that grows its text without measure
    is stopped.
    """

    def __init__(self, source: str | None, *, special_tokens: Mapping[str, str] | None = None, max_render_s: float = _MAX_RENDER_S) -> None:
        self.is_default = source is None
        self.source = CHATML if source is None else source
        self._special = dict(special_tokens or {})
        self._max_render_s = max_render_s
        environment = _Environment()
        try:
            self._template = environment.from_string(self.source)
            variables = meta.find_undeclared_variables(environment.parse(self.source))
        except (TemplateSyntaxError, RecursionError, SyntaxError) as error:
            raise TemplateFault(f"the model's chat template cannot be read: {error}", hint="give a folder with another chat_template.jinja") from None
        self.knows_tools = "tools" in variables

    def render(self, messages: Sequence[Mapping[str, Any]], /, **variables: Any) -> str:
        """The conversation as text. ``variables`` are the template's others: tools, documents, add_generation_prompt and its own."""
        limit = _END_S.set(time.monotonic() + self._max_render_s)
        try:
            return _join(self._template.generate(self._special | variables | {"messages": messages}))
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise TemplateFault(f"the model's chat template refuses these messages: {error or type(error).__name__}") from None
        finally:
            _END_S.reset(limit)


def _join(pieces: Iterator[str]) -> str:
    parts, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > _MAX_TEXT_CHARACTERS:
            raise TemplateFault(f"the model's chat template writes more than {_MAX_TEXT_CHARACTERS} characters")
        parts.append(piece)
        _check_time()
    return "".join(parts)


_END_S: ContextVar[float] = ContextVar("_END_S", default=float("inf"))
"""When the rendering that runs in this context must end, on ``time.monotonic``'s clock."""


def _check_time() -> None:
    if time.monotonic() > _END_S.get():
        raise TemplateFault("the model's chat template does not end in time")


def _within_time(items: Any) -> Iterator[Any]:
    """The items of a loop, as long as there is time."""
    for item in items:
        _check_time()
        yield item


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with what templates of Hugging Face folders count on, and an eye on the clock."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _to_json
        self.filters[_WATCHED] = _within_time
        self.filters[_CONCATENATED] = _concatenated
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            if not loop.recursive:
                loop.iter = nodes.Filter(loop.iter, _WATCHED, [], [], None, None, lineno=loop.lineno)
        tree = _Concatenations().visit(tree)
        assert isinstance(tree, nodes.Template)
        return tree

    def call(self, *arguments: Any, **keywords: Any) -> Any:
        """Refuses enormous widths and counts, and to go on for ever."""
        _check_time()
        if any(isinstance(value, int) and value > _MAX_REPEATED for value in (*arguments, *keywords.values())):
            raise SecurityError(f"a chat template calls nothing with numbers above {_MAX_REPEATED}")
        return super().call(*arguments, **keywords)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuses to build enormous texts and numbers."""
        if operator == "**" and (abs(left) > _MAX_REPEATED or abs(right) > 64):
            raise SecurityError(f"{left} ** {right} is not computed in a chat template")
        if operator == "%" and isinstance(left, str) and any(len(width) > 4 for width in re.findall(r"\d+", left)):
            raise SecurityError("a chat template formats nothing wider than 9999")
        sizes = [len(value) for value in (left, right) if isinstance(value, (str, list, tuple))]
        if operator == "+" and sum(sizes) > _MAX_TEXT_CHARACTERS:
            raise SecurityError(f"a chat template joins nothing to more than {_MAX_TEXT_CHARACTERS}")
        counts = [value for value in (left, right) if isinstance(value, int)]
        if operator == "*" and sizes and counts and sizes[0] * counts[0] > _MAX_REPEATED:
            raise SecurityError(f"a text of {sizes[0]} is not repeated {counts[0]} times in a chat template")
        return super().call_binop(context, operator, left, right)


_WATCHED = "_within_time"
_CONCATENATED = "_concatenated"


class _Concatenations(NodeTransformer):
    """``a ~ b``, which Jinja shows to no sandbox, as a filter that looks at sizes."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802 (Jinja's name)
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes, lineno=node.lineno), _CONCATENATED, [], [], None, None, lineno=node.lineno)


def _concatenated(parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    if sum(map(len, texts)) > _MAX_TEXT_CHARACTERS:
        raise SecurityError(f"a chat template joins nothing to more than {_MAX_TEXT_CHARACTERS} characters")
    return "".join(texts)


class _Generation(Extension):
    """``{% generation %}`` marks what a model is trained on; when serving, what stands in it is plain text."""

    tags = {"generation"}  # noqa: RUF012 (what Jinja reads)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    """JSON as people write it: Jinja's own filter escapes what HTML would misread."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
