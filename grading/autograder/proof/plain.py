"""Is what stands between the banners plain: the same operations on the same names, whenever it runs?

The proof (see `prove.py`) looks at a few steps of training and concludes from them about all. That is sound only
for a text that cannot behave otherwise later: without state, without chance, without a branch that depends on numbers.
Such texts are told here by what may stand in them, and by nothing that they do. What is not listed here is no fault:
that text is trained to its end.

TODO (1) and (2) run while the model is built, before the first step, and no number of steps reaches them; so they may
branch. What they could leave behind for later is a hook, a class, a patched method: no such name may stand in them.
TODO (3), (4-1) and (4-2) run in every step. What they keep must be made in the same run of the text, and the only
questions that they may ask are whether there is a ControlNet and whether a name is None.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from ...files.items import TASK_1
from ...handed_out.banners import TODO_FILES, fill, find_places, read_code
from ..student_code import ROOT
from .grammar import ALWAYS, DECODER, ENCODER, GRAMMARS, IMPORTS, METHODS, WEIGHTS, WHILE_BUILDING, WORDS, Grammar

# What finds an attribute by a word, and what makes a list longer.
BY_WORD, LONGER = ("getattr", "setattr"), ("append", "extend")


def unusual(parts: Mapping[str, str], task_1: Path = ROOT / TASK_1) -> str | None:
    """What stands in one of the texts, by TODO number, that a plain one does not have, as half a sentence; or None.

    Args:
        task_1: the folder of the code that the texts are put into.
    """
    for name, todos in TODO_FILES.items():
        own = read_code(task_1 / name)
        around_own = rest_of(own, todos)
        try:
            texts, around = taken_apart(fill(own, {todo: parts[todo] for todo in todos}), todos)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return f"{name} with TODO ({'), ('.join(todos)}) is no Python"
        if around != around_own:
            return f"TODO ({'), ('.join(todos)}) changes what stands around it"
        for todo in todos:
            found = next(Reader(GRAMMARS[todo], texts[todo]).faults(), None)
            if found:
                return f"TODO ({todo}) has {found}"
    return None


@lru_cache(maxsize=4)
def rest_of(source: str, todos: Sequence[str]) -> str:
    return taken_apart(source, todos)[1]


def taken_apart(source: str, todos: Sequence[str]) -> tuple[dict[str, ast.Module], str]:
    """The statements of each text as Python reads them where they stand, and all the rest of the file in one word.

    A text that ends the function it stands in, say, makes another rest.
    """
    places = find_places(source, todos)
    lines = {todo: (place.opening.line, place.closing.line) for todo, place in places.items()}
    texts = {todo: ast.Module([], []) for todo in todos}
    tree = ast.parse(source)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        for block in ("body", "orelse", "finalbody"):
            statements = getattr(node, block, None)
            if isinstance(statements, list):
                setattr(node, block, [one for one in statements if not moved(one, lines, texts)])
        waiting += ast.iter_child_nodes(node)
    return texts, ast.dump(tree)


def moved(statement: ast.stmt, lines: Mapping[str, tuple[int, int]], texts: Mapping[str, ast.Module]) -> bool:
    """Puts a statement that stands between two banners to that text; whether it was one."""
    for todo, (first, last) in lines.items():
        if first < statement.lineno and (statement.end_lineno or 0) < last:
            texts[todo].body.append(statement)
            return True
    return False


class Reader:
    """Reads one text: what its names stand for, and then each of its nodes."""

    def __init__(self, grammar: Grammar, tree: ast.Module) -> None:
        self.grammar = grammar
        self.nodes = list(ast.walk(tree))
        # An operator has no line of its own: that of the sum it stands in, the first if there are several.
        self.lines: dict[int, int] = {}
        for node in self.nodes:
            for child in ast.iter_child_nodes(node):
                self.lines.setdefault(id(child), getattr(child, "lineno", self.lines.get(id(node), 0)))
        functions = [node for node in self.nodes if isinstance(node, (ast.FunctionDef, ast.Lambda))]
        self.functions = {node.name for node in functions if isinstance(node, ast.FunctionDef)}
        self.arguments = {node.arg for node in self.nodes if isinstance(node, ast.arg)}
        self.classes = {node.name for node in self.nodes if isinstance(node, ast.ClassDef)}
        self.called = {id(node.func) for node in self.nodes if isinstance(node, ast.Call)}
        self.stored = {node.id for node in self.nodes if is_stored(node)}
        self.imported = {a.asname or a.name for n in self.nodes if isinstance(n, ast.ImportFrom) for a in n.names}
        self.made_here = self.names_of_new_things()
        self.words = self.names_of_words()

    def names_of_new_things(self) -> set[str]:
        """Names that stand for nothing but lists, tuples and sums that this run of the text has made.

        Only these may be changed in place: everything else could be there in the next step as well.
        """
        own = (self.grammar.names & {"sample", "down_block_res_samples"}) | self.stored
        plain = {id(name): value for name, value in self.plain_assignments()}
        for node in self.nodes:
            if is_stored(node) and not is_new(plain.get(id(node))):
                own.discard(node.id)
        return own - self.arguments

    def plain_assignments(self) -> Iterator[tuple[ast.Name, ast.expr]]:
        """The names that a value is given to as it is, and those of `name += value`."""
        for node in self.nodes:
            if isinstance(node, ast.Assign):
                yield from ((target, node.value) for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name):
                yield node.target, node.value
            elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                yield node.target, ast.List([], ast.Load())

    def names_of_words(self) -> set[str]:
        """Names that stand for nothing but words of a list that is written out in the text."""
        displays = {name.id for name, value in self.plain_assignments() if is_words(value)}
        displays -= {name.id for name, value in self.plain_assignments() if not is_words(value)} | self.arguments
        loops = [node for node in self.nodes if isinstance(node, (ast.For, ast.comprehension))]
        over_words = {
            id(loop.target)
            for loop in loops
            if is_words(loop.iter) or (isinstance(loop.iter, ast.Name) and loop.iter.id in displays)
        }
        found = {node.id for node in self.nodes if is_stored(node) and id(node) in over_words}
        others = {node.id for node in self.nodes if is_stored(node) and id(node) not in over_words}
        return found - others - self.arguments

    def faults(self) -> Iterator[str]:
        kinds = WHILE_BUILDING if self.grammar.building else ALWAYS
        for node in self.nodes:
            if not isinstance(node, kinds):
                yield f"`{type(node).__name__}` in line {self.lines.get(id(node), 0)}"
            check = getattr(self, f"check_{type(node).__name__.lower()}", None)
            fault = check(node) if check else None
            if fault:
                yield f"{fault} in line {self.lines.get(id(node), 0)}"

    def check_name(self, node: ast.Name) -> str | None:
        known = self.grammar.names | self.grammar.callables | self.stored | self.arguments | self.functions
        if node.id not in known | self.imported | self.classes:
            return f"the name `{node.id}`"
        if node.id in BY_WORD and id(node) not in self.called:
            return f"`{node.id}` by another name"
        fixed = {"is_controlnet", "self", "cls", "torch", "nn", "F", "unet", *self.grammar.callables}
        if not isinstance(node.ctx, ast.Load) and node.id in fixed | self.functions | self.imported:
            return f"another meaning of `{node.id}`"
        return None

    def check_arg(self, node: ast.arg) -> str | None:
        known = self.grammar.names | self.grammar.callables | self.functions | self.imported
        return f"another meaning of `{node.arg}`" if node.arg in known else None

    def check_attribute(self, node: ast.Attribute) -> str | None:
        if node.attr not in self.grammar.attributes:
            return f"`.{node.attr}`"
        if not isinstance(node.ctx, ast.Load) and not self.may_set(node):
            return f"a new `.{node.attr}`"
        return self.must_be_new(node.value) if node.attr in LONGER else None

    def may_set(self, node: ast.Attribute) -> bool:
        """Weights of a model that is being built; not the attribute of a class, which all its objects have."""
        root = node.value
        while isinstance(root, (ast.Attribute, ast.Subscript)):
            root = root.value
        classes = {"nn", "torch", *self.grammar.callables, *self.imported, *self.classes}
        known = isinstance(root, ast.Name) and root.id not in classes
        return self.grammar.building and node.attr in WEIGHTS and known

    def check_assign(self, node: ast.Assign) -> str | None:
        """A function as a weight could be called later, when nobody reads it as part of this text any more."""
        functions = isinstance(node.value, ast.Lambda) or (
            isinstance(node.value, ast.Name) and node.value.id in self.functions | self.imported
        )
        sets = any(isinstance(one, ast.Attribute) for target in node.targets for one in ast.walk(target))
        return "a function that is kept" if functions and sets else None

    def check_subscript(self, node: ast.Subscript) -> str | None:
        return None if isinstance(node.ctx, ast.Load) else self.must_be_new(node.value)

    def check_augassign(self, node: ast.AugAssign) -> str | None:
        return self.must_be_new(node.target)

    def must_be_new(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Name) and node.id in self.made_here:
            return None
        return "a change of something that it has not made"

    def check_constant(self, node: ast.Constant) -> str | None:
        value = node.value
        if isinstance(value, str):
            known = value in WORDS or any(n.value is node for n in self.nodes if isinstance(n, ast.Expr))
        else:
            known = value is None or value in (0, 1) or (type(value) is int and 0 <= value <= 32)
        return None if known else f"the constant {value!r:.40}"

    def check_call(self, node: ast.Call) -> str | None:
        called = node.func
        if not isinstance(called, ast.Name):
            return None if isinstance(called, (ast.Attribute, ast.Subscript)) else "a call of what has no name"
        if called.id in BY_WORD:
            return self.check_attribute_by_word(called.id, node.args)
        return None

    def check_attribute_by_word(self, function: str, args: list[ast.expr]) -> str | None:
        """getattr and setattr of modules, by words that stand in the text; setattr of copies only."""
        if len(args) != (2 if function == "getattr" else 3):
            return f"`{function}` with other arguments"
        word = args[1]
        if not (is_words(ast.Tuple([word], ast.Load())) or (isinstance(word, ast.Name) and word.id in self.words)):
            return f"`{function}` by a name that is not written out"
        copies = [arg for arg in args[2:] if isinstance(arg, ast.Call) and isinstance(arg.func, ast.Name)]
        if [arg for arg in args[2:] if arg not in copies] or {copy.func.id for copy in copies} - {"deepcopy"}:
            return "`setattr` of something that is no copy"
        return None

    def check_keyword(self, node: ast.keyword) -> str | None:
        return None if node.arg in self.grammar.keywords else f"the argument `{node.arg}`"

    def check_importfrom(self, node: ast.ImportFrom) -> str | None:
        known = all((node.module, alias.name) in IMPORTS and not alias.asname for alias in node.names)
        return None if known and not node.level else "an import"

    def check_arguments(self, node: ast.arguments) -> str | None:
        return "arguments with defaults" if node.defaults or node.kw_defaults or node.kwarg else None

    def check_classdef(self, node: ast.ClassDef) -> str | None:
        """A convolution that starts otherwise, and does what every convolution does."""
        methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
        others = [one for one in node.body if not isinstance(one, (ast.FunctionDef, ast.Pass))]
        plain = [ast.unparse(base) for base in node.bases] == ["nn.Conv2d"] and not node.keywords
        if not plain or node.decorator_list or others or methods - METHODS or node.name in self.stored | self.arguments:
            return f"a class `{node.name}` that is more than a convolution with other weights"
        return None

    def check_functiondef(self, node: ast.FunctionDef) -> str | None:
        inner = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        taken = self.grammar.names | self.grammar.callables | self.imported | {"deepcopy"}
        if node.decorator_list or node.name in inner | taken:
            return f"a function `{node.name}` that is decorated, calls itself or takes a name that is there"
        return None

    def check_if(self, node: ast.If) -> str | None:
        return None if self.grammar.building or is_structural(node.test) else "a branch"

    check_ifexp = check_if

    def check_comprehension(self, node: ast.comprehension) -> str | None:
        return None if self.grammar.building or all(map(is_structural, node.ifs)) else "a condition"

    def check_compare(self, node: ast.Compare) -> str | None:
        return None if self.grammar.building or is_structural(node) else "a comparison"

    def check_boolop(self, node: ast.BoolOp) -> str | None:
        return None if self.grammar.building or is_structural(node) else "`and` or `or` of values"

    def check_withitem(self, node: ast.withitem) -> str | None:
        return None if ast.unparse(node) == "torch.no_grad()" else "a `with` of something else"


def is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)


def is_new(value: ast.expr | None) -> bool:
    """Whether an expression makes a new list, tuple or sum."""
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id in ("list", "tuple")
    return isinstance(value, (ast.List, ast.Tuple, ast.ListComp, ast.BinOp))


def is_words(value: ast.expr) -> bool:
    """Whether it is a tuple or list of module names, written out."""
    return isinstance(value, (ast.Tuple, ast.List)) and all(
        isinstance(item, ast.Constant) and item.value in ENCODER | DECODER for item in value.elts
    )


def is_structural(test: ast.expr) -> bool:
    """Whether a question is about what there is, and not about numbers: `is_controlnet`, `name is None`, and both."""
    if isinstance(test, ast.BoolOp):
        return all(map(is_structural, test.values))
    if isinstance(test, ast.Name):
        return test.id == "is_controlnet"
    is_none = isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and len(test.ops) == 1
    return is_none and isinstance(test.comparators[0], ast.Constant) and test.comparators[0].value is None
