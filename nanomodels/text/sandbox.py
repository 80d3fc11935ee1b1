"""jinja2's sandbox, with an end to the time and the memory that a chat template can take.

jinja2 keeps a template from the system, not from 'a' * 10**9 or from loops within loops. Here each
step that can take time or make something large first calls `spend`: loops, calls, filters,
operators, texts that are joined, and what is written. A list within a list is counted with all that
is in it, so that none can double its size again and again.
"""

import functools
import re
import threading
import time

from jinja2 import TemplateRuntimeError, nodes
from jinja2.filters import make_attrgetter
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

# Of this thread's CPU, and 10 µs for each character of the messages. Templates take milliseconds
# and less than 1 µs a character; a chat is rendered several times (plain_chat.py).
SECONDS = 1.0
ROOM = 16_000_000  # characters, and 1,000 for each of the messages
NUMBER = 10_000  # the largest width, indent or precision
# Filters that take seconds for a large text, or more for nested values.
SLOW = {"pprint", "striptags", "title", "urlize", "wordcount", "wordwrap", "xmlattr"}
SIZED = {"batch", "center", "indent", "round", "slice", "tojson"}  # their numbers are sizes
WIDTH = re.compile(r"%[^%a-zA-Z]*(?:\*|\d{5})|\{[^{}]*(?:\{|\d{5})")


class Runaway(TemplateRuntimeError):
    """The template takes too long or makes too much."""


class Bounds(NodeTransformer):
    """Puts the filters `bounded`, `steps` and `weighed` into a template."""

    def visit_Concat(self, node):
        self.generic_visit(node)
        node.nodes = [filtered(part, "bounded") for part in node.nodes]
        return node

    def visit_For(self, node):
        self.generic_visit(node)
        node.iter = filtered(node.iter, "steps")
        return node

    def visit_List(self, node):
        self.generic_visit(node)
        constant = all(isinstance(part, nodes.Const) for part in node.iter_child_nodes())
        stored = getattr(node, "ctx", "load") == "store"
        return node if constant or stored else filtered(node, "weighed")

    visit_Tuple = visit_Dict = visit_List


def filtered(node, name):
    if isinstance(node, nodes.Const):
        return node
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """Call `start` before a template is compiled or rendered in this thread."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options):
        super().__init__(finalize=self.bounded, **options)
        self.now = threading.local()
        del self.globals["lipsum"]
        self.filters |= {"bounded": self.bounded, "steps": self.steps, "weighed": self.weighed}
        self.limit_filters()

    def start(self, size):
        """Begin a rendering whose messages have so many characters."""
        self.now.room = ROOM + 1000 * size
        self.now.end = time.thread_time() + SECONDS + size / 100_000

    def spend(self, size=0):
        """Take room for so many characters. Raise Runaway if there is no more room, or time."""
        self.now.room -= size
        if self.now.room < 0:
            raise Runaway("it makes a text that is too large")
        if time.thread_time() > self.now.end:
            raise Runaway("it takes too long")

    def _parse(self, source, name, filename):
        return Bounds().visit(super()._parse(source, name, filename))

    def bounded(self, value):
        """Return the value; spend room for its text."""
        self.spend(self.weigh(value))
        return value

    weighed = bounded

    def weigh(self, value):
        """The number of characters in a value and all that is in it, about."""
        if isinstance(value, str | bytes):
            return len(value)
        size, rest = 0, [value]
        while rest:
            value = rest.pop()
            size += len(value) if isinstance(value, str | bytes) else 8
            if isinstance(value, dict):
                rest += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple | set | frozenset):
                rest += value
            if size > self.now.room or len(rest) > self.now.room:
                return size + len(rest)
        return size

    def steps(self, items):
        """Yield the items of a loop."""
        for item in items:
            self.spend()
            yield item

    def concat(self, parts):
        """Join what a block, a macro or the template has written."""
        parts = [*parts]
        self.spend(sum(map(len, parts)))
        return "".join(parts)

    def call_binop(self, context, operator, left, right):
        self.spend(self.product(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def product(self, operator, left, right):
        """About how many characters the result of an operator has."""
        if operator == "%" and isinstance(left, str | bytes):
            return self.format_size(left, right)
        if all(isinstance(value, int) for value in (left, right)):
            bits = left.bit_length(), right.bit_length()
            size = bits[0] * abs(right) if operator == "**" else sum(bits)
            if size > 100_000:  # numbers of more than 4,300 digits cannot be shown
                raise Runaway("it makes a number that is too large")
            return 0
        sizes = [len(value) if hasattr(value, "__len__") else 0 for value in (left, right)]
        if operator == "*":
            times = max([value for value in (left, right) if isinstance(value, int)], default=0)
            return sum(sizes) * times
        return sum(sizes)

    def format_size(self, text, *values):
        """About how many characters a format has with these values."""
        shown = text.decode("latin-1") if isinstance(text, bytes) else text
        if WIDTH.search(shown):
            raise Runaway("it formats a text with a very large width")
        return len(shown) + (shown.count("%") + shown.count("{")) * self.weigh([*values])

    def call(self, context, function, *args, **kwargs):
        method = getattr(function, "__wrapped__", function)  # jinja2 wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(function, LoopContext) and args:  # a recursive loop
            args = (self.steps(args[0]), *args[1:])
        if isinstance(owner, str | bytes | int | float):
            args = tuple([*each] if is_iterator(each) else each for each in args)
            self.spend(self.method_size(owner, name, [*args, *kwargs.values()]))
        elif not isinstance(function, Macro | LoopContext):
            self.spend(self.weigh([*args, *kwargs.values()]))  # dict(a=x, b=x), namespace(a=x)
        found = super().call(context, function, *args, **kwargs)
        self.spend(len(found) if isinstance(found, str | bytes | list) else 1)
        return found

    def method_size(self, owner, name, args):
        """About how many characters a method of a text or a number makes."""
        number = max([value for value in args if isinstance(value, int)], default=0)
        if name in ("center", "ljust", "rjust", "zfill", "to_bytes"):
            return number
        if name == "expandtabs":
            return len(owner) * number
        if name in ("format", "format_map"):
            return self.format_size(owner, *args)
        if name == "replace" and len(args) > 1:
            return len(owner) + owner.count(args[0]) * len(args[1])
        if name == "translate":
            return len(owner) * self.weigh(args)
        if name == "join":
            return self.weigh(args) + len(owner) * sum(map(len, args))
        return 0

    def limit_filters(self):
        for name, function in self.filters.items():
            if name not in ("bounded", "steps", "weighed"):
                self.filters[name] = self.limit(name, function)

    def limit(self, name, function):
        """Return a filter that spends room before it runs."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def limited(*args, **kwargs):
            before, value, rest = args[:first], args[first], args[first + 1 :]
            every = [*rest, *kwargs.values()]
            if name in SIZED and any(isinstance(n, int) and abs(n) > NUMBER for n in every):
                raise Runaway(f"the filter {name} has a number over {NUMBER:,}")
            if is_iterator(value):
                value = [*self.steps(value)]
            size = self.weigh(every)
            if name in SLOW and self.weigh(value) > 100_000:
                raise Runaway(f"the filter {name} takes a text of more than 100,000 characters")
            if name == "join":
                attribute = kwargs.get("attribute", rest[1] if len(rest) > 1 else None)
                if attribute is not None:
                    value = [*map(make_attrgetter(self, attribute), value)]
                    kwargs, rest = {"d": kwargs.get("d", rest[0] if rest else "")}, ()
                size = self.weigh(value) + size * len(value) if hasattr(value, "__len__") else size
            elif name == "replace" and len(every) > 1:
                size += str(value).count(str(every[0])) * len(str(every[1]))
            elif name == "format":
                size = self.format_size(str(value), *every)
            elif name in ("batch", "slice"):
                size *= NUMBER
            elif name in ("string", "tojson", "sum", "sort", "unique"):
                indent = max([n for n in every if isinstance(n, int)], default=0)
                size += self.weigh(value) * (1 + indent)
            elif name in ("indent", "center"):
                size += len(str(value)) * max([1, *(n for n in every if isinstance(n, int))])
            self.spend(size)
            return function(*before, value, *rest, **kwargs)

        return limited


def is_iterator(value):
    return hasattr(value, "__next__")
