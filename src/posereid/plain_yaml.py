"""YAML from strangers: plain values only, and no more of them than the text itself could hold."""

from collections import Counter
from typing import Any

import yaml

from posereid.messages import shown

_LONGEST_NUMBER = 100
_TAG = "tag:yaml.org,2002:"
_PLAIN = frozenset(_TAG + name for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge"))


def plain_yaml(text: str, most: int) -> Any:
    """The one document of a YAML text, made of mappings, lists, text, numbers, booleans and null; None without any.

    What is anything else is refused before it is built: other types, a value inside itself, a field twice, and
    aliases that stand for more than ``most`` characters once they are written out. Raises :class:`yaml.YAMLError`,
    and as PyYAML does ValueError, LookupError or ArithmeticError for a tag that its text does not suit and
    RecursionError for lists in lists.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _require_plain(node, most, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _require_plain(node: yaml.Node, most: int, known: dict[int, int]) -> int:
    """How many characters a node stands for: a few aliases of aliases can stand for gigabytes.

    ``known`` has the nodes that were counted, by ``id``, and 0 for those that are being counted.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise _refused(node, "a value that holds itself")
        return known[id(node)]
    known[id(node)] = 0
    if node.tag not in _PLAIN:
        kind = shown(node.tag.removeprefix(_TAG))
        raise _refused(node, f"a value of the type {kind}, which no recipe holds; put text into quotes")
    size = 1
    if isinstance(node, yaml.MappingNode):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if keys and keys.most_common(1)[0][1] > 1:
            raise _refused(node, f"the field {shown(keys.most_common(1)[0][0])} twice")
        size += sum(_require_plain(part, most, known) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_require_plain(part, most, known) for part in node.value)
    else:
        size += len(node.value)
        if size > _LONGEST_NUMBER and node.tag in (f"{_TAG}int", f"{_TAG}float"):
            raise _refused(node, f"a number of {len(node.value)} characters")
    if size > most:
        raise _refused(node, f"aliases that stand for more than {most:,} characters")
    known[id(node)] = size
    return size


def _refused(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=f"found {problem}", problem_mark=node.start_mark)
