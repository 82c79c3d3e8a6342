"""The tool behind the model's python calls: arithmetic and a few string methods, without eval.

An expression is parsed with `ast` and walked through a whitelist, so that nothing that a model
writes is run as Python. Every size is bounded, so that any expression returns at once.
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

NUMBER = (int, float)
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
FUNCTIONS = {  # what they take, and how many of it
    "abs": (abs, NUMBER, [1]),
    "len": (len, str, [1]),
    "max": (max, NUMBER, range(2, MAX_CHARS)),
    "min": (min, NUMBER, range(2, MAX_CHARS)),
    "round": (round, NUMBER, [1, 2]),
}
SIGNS = {ast.UAdd: operator.pos, ast.USub: operator.neg}
METHODS = {"count": 1, "find": 1, "join": 1, "replace": 2}  # of strings, and their arguments
METHODS |= {"lower": 0, "strip": 0, "title": 0, "upper": 0}
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
    """As `evaluate`, but raises CalculatorError where there is no value. Integers have no point,
    other numbers ten significant digits: 24.0 is "24", 1/3 is "0.3333333333"."""
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
        value = value_of(tree.body)
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise CalculatorError(f"not an expression: {type(error).__name__}") from error
    except (ArithmeticError, ValueError, TypeError, IndexError) as error:
        raise CalculatorError(str(error)) from error
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.10g}"
    return str(value)


def value_of(node: ast.expr, wanted: type | tuple[type, ...] = (int, float, str)):
    """The value of one node, by the whitelist, of a wanted type and within the bounds."""
    match node:
        case ast.Constant(value=int() | float() | str() as constant):
            value = constant
        case ast.UnaryOp(op=op, operand=operand) if type(op) in SIGNS:
            value = SIGNS[type(op)](value_of(operand, NUMBER))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            left, right = value_of(left, NUMBER), value_of(right, NUMBER)
            if isinstance(op, ast.Pow) and isinstance(left, int) and isinstance(right, int):
                bits = left.bit_length() * abs(right)
                if abs(left) > 1 and bits > MAX_BITS:  # before: 9**9**9 would fill the memory
                    raise CalculatorError(f"a power of about {bits} bits; at most {MAX_BITS}")
            value = OPERATORS[type(op)](left, right)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if (
            name in FUNCTIONS and len(args) in FUNCTIONS[name][2]
        ):
            function, kind, _ = FUNCTIONS[name]
            values = [value_of(arg, kind) for arg in args]
            if name == "round" and len(values) == 2 and abs(values[1]) > MAX_PLACES:
                raise CalculatorError(f"round to {values[1]} places; at most {MAX_PLACES}")
            value = function(*values)
        case ast.Call(func=ast.Attribute(value=owner, attr=name), args=args, keywords=[]) if (
            METHODS.get(name) == len(args)
        ):
            value = getattr(value_of(owner, str), name)(*[value_of(arg, str) for arg in args])
        case ast.Subscript(value=owner, slice=ast.Slice(lower=lower, upper=upper, step=step)):
            parts = [None if part is None else value_of(part, int) for part in (lower, upper, step)]
            value = value_of(owner, str)[slice(*parts)]
        case ast.Subscript(value=owner, slice=index):
            value = value_of(owner, str)[value_of(index, int)]
        case _:
            raise CalculatorError(f"{ast.unparse(node)} is not calculated")
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise CalculatorError(f"{type(value).__name__} is not calculated with here")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise CalculatorError(f"an integer of {value.bit_length()} bits; at most {MAX_BITS}")
    if isinstance(value, float) and not math.isfinite(value):
        raise CalculatorError(f"{value} is not a number to go on with")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise CalculatorError(f"a string of {len(value)} characters; at most {MAX_TEXT}")
    return value
