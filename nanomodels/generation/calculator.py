"""nanochat's calculator: the model writes an expression, and its value is put into the text.

    <|python_start|>345*27<|python_end|>     the model's tokens
    <|output_start|>9315<|output_end|>       forced: the next tokens, whatever the model would say

The value of anything but arithmetic and "text".count("part") is None, and then nothing is forced.
Nothing is executed, and no name can be looked up. Which tokens are forced is as in nanochat
92d63d4 nanochat/engine.py. That file calls eval, after it has looked for forbidden words; it has no
% and no **, and takes the commas out of strings, too.
"""

import ast
import operator
import re
from collections import deque

MARKS = ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>")
LONGEST = 256  # characters of an expression
MOST_BRACKETS = 32  # Python's parser is slow in deep ones
LARGEST = 10**100  # numbers beyond it have no value
ARITHMETIC = re.compile(r"[0-9.+\-*/%() ]+")
# A string without escapes, in either quotes; one of the two groups has its text.
STRING = r"""(?:'([^'\\\n]*)'|"([^"\\\n]*)")"""
COUNT = re.compile(rf" *{STRING}\.count\( *{STRING} *\) *")


def power(base, exponent):
    """base ** exponent; OverflowError if it would take long, because it is far beyond LARGEST."""
    if abs(base) >= 2 and exponent > 332:  # 2**333 is beyond it
        raise OverflowError
    return base**exponent


OPERATIONS = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: power,
}


def calculate(expression):
    """The value of an expression, an int or a float; None if it has none.

    Commas in arithmetic are left out, as in 1,000 * 2.
    """
    if len(expression) > LONGEST or expression.count("(") > MOST_BRACKETS:
        return None
    if count := COUNT.fullmatch(expression):
        text, part = (group for group in count.groups() if group is not None)
        return text.count(part)
    arithmetic = expression.replace(",", "").strip(" ")
    if not ARITHMETIC.fullmatch(arithmetic):
        return None
    try:
        return value_of(ast.parse(arithmetic, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError):
        return None


def value_of(node):
    """The value of arithmetic, as ast parses it; ValueError or ArithmeticError if it has none."""
    if isinstance(node, ast.Constant):
        value = node.value
    elif isinstance(node, ast.UnaryOp):
        value = OPERATIONS[type(node.op)](value_of(node.operand))
    elif isinstance(node, ast.BinOp):
        value = OPERATIONS[type(node.op)](value_of(node.left), value_of(node.right))
    else:
        raise ValueError("no arithmetic")
    # "..." is a constant, a power can be complex, and a float can be infinite or no number.
    if not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        raise ValueError("no number, or too large")
    return value


class Parts:
    """Follows a text of nanochat token by token, through the parts of which it is made.

    kind: "text", "python" (an expression) or "python_output" (a result). tokens: those of the part
    so far. With another tokenizer, all is text.
    """

    def __init__(self, tokenizer):
        python, python_end, output, output_end = map(tokenizer.special_ids.get, MARKS)
        self.starts = {python: "python", output: "python_output"}
        self.ends = {"python": python_end, "python_output": output_end}
        self.kind, self.tokens = "text", []

    def push(self, token):
        """Add a token; return the tokens of the expression that it ends, or None."""
        if token in self.starts:
            self.kind, self.tokens = self.starts[token], []
        elif token == self.ends.get(self.kind):
            ended = self.tokens if self.kind == "python" else None
            self.kind, self.tokens = "text", []
            return ended
        else:
            self.tokens.append(token)


class Calculator:
    """Computes expressions in the texts of a nanochat model: generate(..., calculator=...).

    Raises ValueError for a tokenizer without nanochat's tokens for it; see `calculator_for`.
    """

    def __init__(self, tokenizer):
        for mark in MARKS:
            if mark not in tokenizer.special_ids:
                raise ValueError(f"this tokenizer has no {mark}; the calculator needs nanochat's")
        self.tokenizer = tokenizer

    def check(self, vocab_size):
        """Raise ValueError if the tokenizer has ids that a model with this vocabulary has not."""
        if self.tokenizer.vocab_size > vocab_size:
            raise ValueError(
                f"the calculator's tokenizer has {self.tokenizer.vocab_size} tokens, the model "
                f"{vocab_size}; give the tokenizer of the model's own folder"
            )

    def row(self):
        """The calculations of one row."""
        return Row(self)

    def result(self, tokens):
        """The ids to force after the expression `tokens`; [] if it has no value."""
        try:
            value = calculate(self.tokenizer.decode(tokens))
        except ValueError:  # an id that pads the model's vocabulary
            value = None
        if value is None:
            return []
        start, end = (self.tokenizer.special_ids[mark] for mark in MARKS[2:])
        return [start, *self.tokenizer.encode(str(value), add_bos=False), end]


class Row:
    """The calculations of one row."""

    def __init__(self, calculator):
        self.calculator = calculator
        self.parts, self.forced = Parts(calculator.tokenizer), deque()

    def next(self, token):
        """The row's next token: the forced one, or, if none is, `token`, which the model chose."""
        if self.forced:
            token = self.forced.popleft()
        if expression := self.parts.push(token):
            self.forced.extend(self.calculator.result(expression))
        return token


def calculator_for(tokenizer):
    """The Calculator of a nanochat tokenizer; None for any other."""
    return Calculator(tokenizer) if tokenizer.special_ids.keys() >= set(MARKS) else None
