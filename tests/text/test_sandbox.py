from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from macllm.text import limits
from macllm.text.limits import Limits
from macllm.text.sandbox import SandboxEnvironment
from macllm.text.template import MAX_SOURCE, ChatTemplate, TemplateError

MESSAGES = [{"role": "user", "content": "hi"}]
GROW = "{% set ns = namespace(x=START) %}{% for i in range(99) %}{% set ns.x = STEP %}{% endfor %}"


def growing(start: str, step: str, then: str = "") -> str:
    return GROW.replace("START", start).replace("STEP", step) + then


ESCAPES = {
    "class": "{{ ''.__class__ }}",
    "mro": "{{ ''.__class__.__mro__ }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "subscript": "{{ ''['__class__'] }}",
    "map attribute": "{{ ['']|map(attribute='__class__')|list }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "init of a class": "{{ cycler.__init__.__globals__ }}",
    "context": "{{ self._TemplateReference__context }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m._environment }}",
    "loop": "{% for x in [1] %}{{ loop._iterator }}{% endfor %}",
    "namespace": "{{ namespace(__class__=1) }}",
    "namespace assignment": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update({'a': 1}) }}",
    "encode": "{{ 'x'.encode() }}",
    "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "translate": "{{ 'x'.translate({120: 'y'}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
}
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "empty loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops in a macro": "{% macro m() %}{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    "{% endmacro %}{% set x = m() %}",
    "range": "{% for a in range(10**9) %}{% endfor %}",
    "macro calling itself": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "macro calling itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "block calling itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "recursive loop": "{% for x in [[1] * 99999] * 3 recursive %}{{ loop(x) if x is iterable else '' }}zzz"
    "{% endfor %}{{ 'x' * 10**9 }}",
    "shared lists, compared": growing("[1]", "[ns.x, ns.x]", "{{ ns.x == ns.x }}"),
    "shared tuples, hashed": growing("(1,)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
    "search backwards": "{{ ('a' * 8000000).rfind('ab' + 'a' * 4000000) }}",
    "strip": "{{ ('a' * 8000000).strip('b' * 4000000) }}",
    "strip on the left": "{{ ('a' * 8000000).lstrip('b' * 4000000 ~ 'a') }}",
    "strip on the right": "{{ ('a' * 8000000).rstrip('b' * 4000000 ~ 'a') }}",
    "index backwards": "{{ ('a' * 8000000).rindex('ab' + 'a' * 4000000) }}",
    "split backwards": "{{ ('a' * 8000000).rsplit('ab' + 'a' * 4000000) }}",
    "part backwards": "{{ ('a' * 8000000).rpartition('ab' + 'a' * 4000000) }}",
    "trim": "{{ ('a' * 8000000)|trim('b' * 4000000) }}",
    "title": "{{ ('a ' * 3900000)|title }}",
    "sort": "{{ ('x ' * 900000).split(' ')|sort }}",
    "sum of lists": "{{ ([[1]] * 99999)|sum(start=[]) }}",
    "power": "{{ (10 ** 1000) ** 1000 }}",
    "squares": growing("3", "ns.x * ns.x"),
    "lipsum": "{{ lipsum(n=1000000000) }}",
}
HUGE = {
    "times": "{{ 'x' * 10**9 }}",
    "times, never written": "{% set x = 1000000000 * 'x' %}",
    "list times": "{% set x = [1] * 10**9 %}",
    "tilde": growing("'x'", "ns.x ~ ns.x"),
    "plus": growing("'x'", "ns.x + ns.x"),
    "lists": growing("[1]", "ns.x + ns.x"),
    "shared lists, written": growing("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
    "shared lists, as JSON": growing("[1]", "{'a': ns.x, 'b': ns.x}", "{{ ns.x|tojson }}"),
    "blocks": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set t %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = t %}{% endfor %}",
    "text of a loop": "{% set t %}{% for i in range(99999) %}" + "y" * 50_000 + "{% endfor %}{% endset %}",
    "text of a macro": "{% macro m() %}"
    + "y" * 50_000
    + "{% endmacro %}{% set t %}{% for i in range(99999) %}{{ m() }}"
    "{% endfor %}{% endset %}",
    "output": "{% for i in range(99999) %}" + "y" * 50_000 + "{% endfor %}",
    "many strings": "".join(f"{{% set a{i} = ('x' * 7000000)[1:] %}}" for i in range(20)),
    "center filter": "{{ 'x'|center(1000000000) }}",
    "center method": "{{ 'x'.center(1000000000) }}",
    "center by map": "{{ range(99999)|map('center', 7000000)|join }}",
    "zfill": "{{ 'x'.zfill(1000000000) }}",
    "rjust": "{{ 'x'.rjust(1000000000) }}",
    "ljust": "{{ 'x'.ljust(1000000000) }}",
    "ljust by name": "{{ ('x'|attr('ljust'))(1000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10**9, 1) }}",
    "percent filter": "{{ '%1000000000d'|format(1) }}",
    "percent many": "{{ ('%s' * 1000000) % (('x' * 1000000,) * 1000) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format nested": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "format many": "{{ ('{0}' * 1000000).format('x' * 1000000) }}",
    "indent": "{{ ('\n' * 1000000)|indent(1000) }}",
    "replace filter": "{{ ('x' * 1000000)|replace('x', 'y' * 1000000) }}",
    "replace method": "{{ ('x' * 1000000).replace('', 'y' * 1000000) }}",
    "join filter": "{{ range(99999)|join('x' * 1000000) }}",
    "join method": "{{ ('x' * 1000000).join(range(99999)|map('string')) }}",
    "split": "{{ ('x ' * 4000000).split(' ')|length }}",
    "list of characters": "{{ ('x' * 8000000)|list|length }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "JSON indent": "{{ 1|tojson(indent=1000000000) }}",
    "JSON separators": "{{ ([1] * 1000)|tojson(separators=['x' * 1000000, ':']) }}",
    "date": "{{ strftime_now('%1000000000d') }}",
    "deep": "{% set ns = namespace(x=[1]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "namespace in itself": "{% set ns = namespace() %}{% set ns.a = ns %}{% set ns.b = ns %}{{ ns }}{{ 'x' * 10**9 }}",
}
MALFORMED = {
    "unclosed": "{% if %}",
    "brackets": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "sums": "{{ " + "+".join("1" * 20_000) + " }}",
    "braces": "{" * 50_000,
    "ifs": "{% if 1 %}" * 3_000 + "{% endif %}" * 3_000,
    "fors": "{% for a in [1] %}" * 40 + "{% endfor %}" * 40,
    "too long": "x" * (MAX_SOURCE + 1),
    "unknown filter": "{{ 1|no_such_filter }}",
    "undefined call": "{{ nothing() }}",
    "undefined attribute": "{{ nothing.more }}",
    "division by zero": "{{ 1 / 0 }}",
    "bad types": "{{ 1 + 'x' }}",
}


def refuse(source: str) -> TemplateError:
    start = time.thread_time()
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render(MESSAGES)
    assert time.thread_time() - start < 2
    assert caught.value.cause
    assert "chat template" in caught.value.message
    return caught.value


@pytest.mark.parametrize("name", ESCAPES)
def test_escapes_from_the_sandbox_are_refused(name: str) -> None:
    refuse(ESCAPES[name])


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_templates_are_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "Limits", lambda: Limits(seconds=0.2))
    refuse(ENDLESS[name])


def test_the_time_limit_is_exact_and_processor_time_is_read_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, looks = [], []

    def clock() -> float:
        return 7 + len(steps) / 1024

    def processor() -> float:  # other programs have three quarters of it
        looks.append(1)
        return 3 + len(steps) / 4096

    def render() -> None:
        spent = limits.Budget(Limits(seconds=1.0), 0)
        while True:
            steps.append(1)
            spent.step()

    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=clock, thread_time=processor))
    with pytest.raises(limits.LimitError, match="longer than 1 s"):
        render()
    assert len(steps) == 4097
    assert len(looks) < 40


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_templates_are_a_template_error(name: str) -> None:
    refuse(MALFORMED[name])


def test_malformed_templates_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each form of the messages that a template may ask for."""
    sources = []
    parse = SandboxEnvironment._parse

    def counted(environment: SandboxEnvironment, source: str, *names: str | None) -> object:
        sources.append(source)
        return parse(environment, source, *names)

    monkeypatch.setattr(SandboxEnvironment, "_parse", counted)
    refuse(MALFORMED["unclosed"])
    assert sources == [MALFORMED["unclosed"]]


def test_templates_cannot_take_256_mib_of_memory() -> None:
    code = (
        "import resource, sys; sys.path.insert(0, 'tests/text'); from test_sandbox import HUGE, refuse\n"
        "refuse('{{ 1 + \"x\" }}'); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "for name in HUGE: print(name, refuse(HUGE[name]).cause)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *refusals, grown = done.stdout.splitlines()
    assert len(refusals) == len(HUGE)
    assert not [line for line in refusals if "MemoryError" in line]
    unit = 1024 if sys.platform == "linux" else 1
    assert int(grown) * unit < 256 << 20


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("{{ [1] * -400000 }}{{ -9999999 * 'x' }}", "[]"),
        ("{{ 'a b c'.rsplit(' ', 1) }}{{ ' x '.strip() }}", "['a b', 'c']x"),
        ("{{ '%05.1f|%s' % (2, [1]) }}{{ '{:>4}'.format('x') }}", "002.0|[1]   x"),
        ("{% macro m(n) %}{{ n }}{% endmacro %}{% for i in range(300) %}{{ m(0) }}{% endfor %}", "0" * 300),
        ("{{ 2 ** 100 }}{{ 'ab'|center(4) }}{{ {'a': [1]}|tojson(indent=1)|length }}", f"{2**100} ab 18"),
    ],
)
def test_small_results_of_limited_operations_are_rendered(source: str, written: str) -> None:
    assert ChatTemplate(source).render(MESSAGES) == written


def test_a_new_value_at_a_reused_address_is_weighed_again() -> None:
    spent = limits.Budget(Limits(), 0)
    for count in range(200):
        assert spent.weigh([0] * count) == (count + 1, 1)  # at the address of the list before it


def test_collections_of_garbage_are_not_charged() -> None:
    """Beside the rows of a large dataset one takes longer than a template may."""
    rows = [[number] for number in range(200_000)]
    spent = limits.Budget(Limits(seconds=0.1), 0)

    def work(of: Callable[[], object]) -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.3:
            of()

    work(gc.collect)
    spent.step()
    with pytest.raises(limits.LimitError, match="processor time"):
        work(spent.step)
    assert len(rows) == 200_000


def test_the_limits_hold_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "Limits", lambda: Limits(seconds=0.3))
    errors: list[TemplateError] = []
    thread = threading.Thread(target=lambda: errors.append(refuse(ENDLESS["empty loops"])))
    thread.start()
    thread.join()
    assert "processor time" in (errors[0].cause or "")


def test_a_refused_rendering_does_not_affect_the_next() -> None:
    chat = ChatTemplate("{% if messages[0].content == 'loop' %}{{ 'x' * 10**9 }}{% endif %}ok")
    with pytest.raises(TemplateError):
        chat.render([{"role": "user", "content": "loop"}])
    assert chat.render(MESSAGES) == "ok"
