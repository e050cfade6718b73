"""Jinja's immutable sandbox with limits on time and memory.

Jinja's sandbox restricts attributes and mutation but not time and memory: `range` in `range`, a macro that
calls itself, `'x' * 10**9`, `|center(10**9)` or `~` in a loop can hang a machine or fill its memory. Here every loop
iteration, call, filter, test, comparison and operator is charged to one `Budget`, and large results are estimated
before they are created. No signals or timers are used, so it works in any thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import update_wrapper
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls  # noqa: N812
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from .limits import Budget, LimitError, budget, filter_limits, format_limits, method_limits, operator_limits

# Filters that chat templates do not need and whose cost is hard to bound.
_REMOVED_FILTERS = ("urlize", "pprint", "xmlattr", "striptags", "wordwrap", "wordcount", "filesizeformat")
_KEPT_GLOBALS = ("range", "dict", "cycler", "joiner")
_STRING_METHODS = (
    "capitalize casefold center count endswith expandtabs find format format_map index isalnum isalpha isascii"
    " isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip"
    " partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines"
    " startswith strip swapcase title upper zfill"
)
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STRING_METHODS.split()),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    int: frozenset({"bit_length", "is_integer"}),
    float: frozenset({"is_integer"}),
}
_CALLABLES = (Macro, LoopContext, BlockReference, Undefined, Cycler, Joiner)


class RefusalError(jinja2.TemplateError):
    """A template called `raise_exception`; the message is the template's."""


class SandboxEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates, set up as in transformers, within a budget."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControls], finalize=_write, cache_size=0
        )
        for name in _REMOVED_FILTERS:
            self.filters.pop(name, None)
        self.filters["tojson"] = _tojson
        self.filters = {name: _guarded_filter(name, function) for name, function in self.filters.items()}
        self.tests = {name: _guarded_test(function) for name, function in self.tests.items()}
        kept: dict[str, Any] = {name: self.globals[name] for name in _KEPT_GLOBALS}
        kept |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "namespace": TemplateNamespace}
        self.globals: dict[str, Any] = kept
        self._functions = frozenset(id(value) for value in kept.values())

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Compile the template with its loops, literals, slices, `~` and comparisons charged to the budget."""
        return super()._generate(_Instrument().visit(source), *args, **kwargs)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Raise SecurityError at once; Jinja would print the value as an empty string."""
        raise jinja2.exceptions.SecurityError(
            f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe."
        )

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandboxed `str.format`, with its cost checked before it runs."""
        inner = super().wrap_str_format(value)
        if inner is None:
            return None
        text = value.__self__

        def wrapper(*args: Any, **kwargs: Any) -> str:
            format_limits(text, (*args, *kwargs.values()), "{")
            return budget().admit(inner(*args, **kwargs))

        self_call = update_wrapper(wrapper, inner)
        self_call.macllm_allowed = True  # type: ignore[attr-defined]
        return self_call

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call an allowed function, charged to the budget. Raises SecurityError for others."""
        spent = budget()
        spent.step()
        if getattr(__obj, "__self__", None) is __self:  # added by _Instrument; Jinja passes further keywords
            return __obj(*args)
        name, target = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        if not __self._may_call(__obj, name, target):
            raise jinja2.exceptions.SecurityError(f"{name or type(__obj).__name__!r} may not be called by a template.")
        if isinstance(target, str):
            args = method_limits(target, name, args)
        with spent.deeper():
            return spent.admit(super().call(__context, __obj, *args, **kwargs))

    def _may_call(self, obj: Any, name: str, target: Any) -> bool:
        if isinstance(obj, _CALLABLES) or id(obj) in self._functions or getattr(obj, "macllm_allowed", False):
            return True
        if isinstance(target, LoopContext | Cycler | Joiner):
            return True
        return any(isinstance(target, kind) and name in names for kind, names in _METHODS.items())

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operator's result, with its size checked before it is computed."""
        operator_limits(operator, left, right)
        return budget().admit(super().call_binop(context, operator, left, right))

    def step(self, written: int) -> str:
        """Charge one loop iteration whose body has `written` literal characters."""
        budget().step(written)
        return ""

    def checked(self, value: Any) -> Any:
        """Check the size of a literal container or an operand of a comparison, and return it."""
        spent = budget()
        spent.step()
        return spent.admit(value)

    def concatenated(self, *values: Any) -> str:
        """The result of the operator `~`."""
        spent = budget()
        texts = [_write(value) for value in values]
        spent.allow_text(sum(map(len, texts)))
        return spent.admit("".join(map(str, texts)))

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """The result of `value[start:stop:step]`."""
        return budget().admit(value[start:stop:step])


class TemplateNamespace(Namespace):
    """A namespace without underscored names whose printed form omits its values (it may contain itself)."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold the underscored name {name!r}.")


class Generation(Extension):
    """Jinja block `{% generation %}` … `{% endgeneration %}`: records the span of the assistant's text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.CallBlock:
        """Parse the block to a call block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        scopes: list[nodes.Expr] = [nodes.ContextReference(), nodes.DerivedContextReference()]
        call = nodes.Call(nodes.EnvironmentAttribute("noted"), scopes, [], None, None)
        block = nodes.CallBlock(call, [], [], body)
        block.set_lineno(line)
        return block

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        environment.extend(noted=_noted)


def _noted(context: Context, inner: Context, caller: Macro) -> str:
    """The text of a block; `inner` has the variables of the loops and macros around it, too."""
    text = caller()
    own = (value for name, value in inner.get_all().items() if context.get(name) is not value)
    budget().mark(text, own)
    return text


_noted.macllm_allowed = True  # type: ignore[attr-defined]


class _Instrument(NodeTransformer):
    """Adds a budget step to every loop and routes growing operations through the environment."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        written = sum(len(data.data) for body in (node.body, node.else_) for part in body for data in _data(part))
        self.generic_visit(node)
        step = nodes.ExprStmt(_call("step", nodes.Const(written), line=node.lineno))
        node.body.insert(0, step.set_lineno(node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802
        self.generic_visit(node)
        return _call("concatenated", *node.nodes, line=node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        self.generic_visit(node)
        node.expr = _call("checked", node.expr, line=node.lineno)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Call:  # noqa: N802
        self.generic_visit(node)
        return _call("checked", node, line=node.lineno)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Call:  # noqa: N802
        self.generic_visit(node)
        return _call("checked", node, line=node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _call("checked", node, line=node.lineno) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = [part or nodes.Const(None) for part in (node.arg.start, node.arg.stop, node.arg.step)]
        return _call("sliced", node.node, *ends, line=node.lineno)


def _data(node: nodes.Node) -> Iterable[nodes.TemplateData]:
    return [node] if isinstance(node, nodes.TemplateData) else node.find_all(nodes.TemplateData)


def _call(name: str, *args: nodes.Expr, line: int) -> nodes.Call:
    call = nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)
    call.set_lineno(line)
    return call


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    def guarded(*args: Any, **kwargs: Any) -> Any:
        spent = budget()
        spent.step()
        values, kwargs = filter_limits(name, list(args[first:]), kwargs)
        return spent.admit(function(*args[:first], *values, **kwargs))

    return update_wrapper(guarded, function)


def _guarded_test(function: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget().step()
        return function(*args, **kwargs)

    return update_wrapper(guarded, function)


def _write(value: Any) -> Any:
    """The printed text of an expression, charged to the budget."""
    spent = budget()
    if not isinstance(value, str):
        value = str(spent.admit(value))
    spent.step(len(value))
    return value


def _raise_exception(message: Any = None) -> None:
    raise RefusalError(message)


def _strftime_now(form: str) -> str:
    digits = sum(char.isdigit() for char in form)
    if len(form) > 1000 or digits > 8:  # a C library takes a width: %1000000000d
        raise LimitError("a date format may have 1000 characters and 8 digits")
    return (budget().now or datetime.now()).strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a model to read: unlike Jinja's own filter it escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


__all__ = ["Budget", "LimitError", "RefusalError", "SandboxEnvironment"]
