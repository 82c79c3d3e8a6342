"""The tool behind the model's python calls: arithmetic and a few string methods, parsed, never
eval.

An expression is parsed with `ast` and walked through a whitelist, so that nothing that a model
writes is ever run as Python. Every size is bounded: an expression of any content returns at once.
"""

import ast
import math
import operator
import re
import warnings

MAX_CHARS = 300
MAX_BITS = 256  # of any integer on the way
MAX_TEXT = 1000  # characters of any string on the way
MAX_PLACES = 20  # digits that round() may be asked for

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
SIGNS = {ast.UAdd: operator.pos, ast.USub: operator.neg}
METHODS = {"count": 1, "find": 1, "replace": 2, "upper": 0, "lower": 0, "title": 0}  # arguments
TYPED_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-"})


class CalculatorError(ValueError):
    """An expression that is not arithmetic or a string method, is too large, or has no value."""


def evaluate(expression: str) -> str:
    """The value of `expression` as short text, or "error: ..."; never raises, never takes long.

    evaluate("48/2") is "24", evaluate("1,000 * 1.5") is "1500", evaluate("'strawberry'.count('r')")
    is "3", evaluate("1/0") is "error: division by zero".
    """
    try:
        return calculate(expression)
    except CalculatorError as error:
        return f"error: {error}"


def calculate(expression: str) -> str:
    """The value of `expression` as short text; raises CalculatorError, which says why there is
    none."""
    if len(expression) > MAX_CHARS:
        raise CalculatorError(f"{len(expression)} characters; at most {MAX_CHARS} are calculated")
    source = expression.strip()
    if "'" not in source and '"' not in source:
        source = source.translate(TYPED_SIGNS)
        if not re.search(r"[a-zA-Z]", source):  # in max(1,200) the comma separates
            source = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd literals such as '\d'
            tree = ast.parse(source, mode="eval")
        return as_text(value_of(tree.body))
    except CalculatorError:
        raise
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise CalculatorError(f"not an expression: {type(error).__name__}") from error
    except (ArithmeticError, ValueError, TypeError, IndexError) as error:
        raise CalculatorError(str(error)) from error


def as_text(value: int | float | str) -> str:
    """Integers without a point, other numbers to ten significant digits: 24.0 is "24", 1/3 is
    "0.3333333333"."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.10g}"
    return str(value)


def value_of(node: ast.expr) -> int | float | str:
    """The value of one parsed node, by the whitelist, within the bounds."""
    match node:
        case ast.Constant(value=int() | float() | str() as constant):
            value = constant
        case ast.UnaryOp(op=op, operand=operand) if type(op) in SIGNS:
            value = SIGNS[type(op)](number(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            value = binary(op, number(left), number(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            value = call_function(name, args)
        case ast.Call(func=ast.Attribute(value=owner, attr=name), args=args, keywords=[]):
            value = call_method(text(owner), name, args)
        case ast.Subscript(value=owner, slice=index):
            value = text(owner)[position(index)]
        case _:
            raise CalculatorError(f"{type(node).__name__} is not calculated")
    return bounded(value)


def binary(op: ast.operator, left: int | float, right: int | float) -> int | float:
    if isinstance(op, ast.Pow) and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right)
        if abs(left) > 1 and bits > MAX_BITS:  # checked before: 9**9**9 would fill the memory
            raise CalculatorError(f"a power of about {bits} bits; at most {MAX_BITS}")
    return OPERATORS[type(op)](left, right)


def call_function(name: str, args: list[ast.expr]) -> int | float:
    if name not in ("len", "abs", "round", "min", "max"):
        raise CalculatorError(f"{name}() is not calculated")
    if name == "len" and len(args) == 1:
        return len(text(args[0]))
    numbers = [number(arg) for arg in args]
    if name == "abs" and len(numbers) == 1:
        return abs(numbers[0])
    if name == "round" and 1 <= len(numbers) <= 2:
        places = numbers[1] if len(numbers) == 2 else 0
        if not isinstance(places, int) or abs(places) > MAX_PLACES:
            raise CalculatorError(f"round to {places} places; at most {MAX_PLACES}")
        return round(numbers[0], places)
    if name in ("min", "max") and len(numbers) >= 2:
        return min(numbers) if name == "min" else max(numbers)
    raise CalculatorError(f"{name}() of {len(args)} values is not calculated")


def call_method(owner: str, name: str, args: list[ast.expr]) -> int | str:
    if METHODS.get(name) != len(args):
        raise CalculatorError(f".{name}() of {len(args)} values is not calculated")
    return getattr(owner, name)(*[text(arg) for arg in args])


def position(index: ast.expr) -> int | slice:
    """An index or a slice of a string: 'abc'[0], 'abc'[::-1]."""
    if not isinstance(index, ast.Slice):
        return integer(index)
    parts = (index.lower, index.upper, index.step)
    return slice(*[None if part is None else integer(part) for part in parts])


def number(node: ast.expr) -> int | float:
    value = value_of(node)
    if isinstance(value, str):
        raise CalculatorError("a number was expected, a string was found")
    return value


def integer(node: ast.expr) -> int:
    value = value_of(node)
    if not isinstance(value, int):
        raise CalculatorError(f"an integer was expected, {type(value).__name__} was found")
    return value


def text(node: ast.expr) -> str:
    value = value_of(node)
    if not isinstance(value, str):
        raise CalculatorError("a string was expected, a number was found")
    return value


def bounded(value: int | float | str) -> int | float | str:
    """`value`, if it is of a type and size that is calculated with."""
    match value:
        case bool() | complex():
            raise CalculatorError(f"{type(value).__name__} is not calculated with")
        case int() if value.bit_length() > MAX_BITS:
            raise CalculatorError(f"an integer of {value.bit_length()} bits; at most {MAX_BITS}")
        case float() if not math.isfinite(value):
            raise CalculatorError(f"{value} is not a number to go on with")
        case str() if len(value) > MAX_TEXT:
            raise CalculatorError(f"a string of {len(value)} characters; at most {MAX_TEXT}")
    return value
