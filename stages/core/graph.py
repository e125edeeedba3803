"""The graph of nodes: order, validation, and the selection grammar.

Grammar of a selection (what `--select` and the UI's `select` take): terms separated by commas or spaces.
`full` is every node; `name` a node, or every node of a stage; `name+` it and all that follow from it; `+name` it and
all that it follows from; `+name+` both.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from stages.core.errors import ConfigError
from stages.core.stage import Stage

Node = Stage[Any]


class Pipeline:
    """A validated, ordered set of nodes. Raises ValueError at construction when the declaration is broken."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes: dict[str, Node] = {}
        self._parents: dict[str, tuple[str, ...]] = {}
        self._children: dict[str, list[str]] = {}
        for node in nodes:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", node.name):
                raise ValueError(f"node name {node.name!r}: use lower-case letters, digits and underscores")
            if node.name in self.nodes or node.name == "full":
                raise ValueError(f"node name {node.name!r} is used twice or reserved")
            self._parents[node.name], self._children[node.name] = node.parents, []
            for parent in self._parents[node.name]:
                if parent not in self.nodes:
                    raise ValueError(f"node {node.name} reads from {parent}, which is not declared before it")
                self._children[parent].append(node.name)
            self.nodes[node.name] = node

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def __contains__(self, name: object) -> bool:
        return name in self.nodes

    def under(self, configs: Mapping[str, Any], given: Collection[str] = ()) -> Pipeline:
        """The pipeline as these configurations wire it: without the edges that nothing is read through. Raises
        ConfigError for an edge that nothing is written to. given: nodes whose result is there already, whatever it was
        made from: they read nothing.
        """
        pipeline = Pipeline(node.given() if node.name in given else node.under(configs[node.name]) for node in self)
        for node in pipeline:
            for source in (source for sources in node.wires.values() for source in sources):
                producer = source.node
                if setting := producer.unwritten(configs[producer.name]).get(source.port):
                    raise ConfigError(
                        f"node {node.name} reads {source.port} of {producer.name}, which does not write it: set"
                        f" {producer.name}.{setting}"
                    )
        return pipeline

    def ancestors(self, *names: str) -> set[str]:
        """Every node that one of `names` follows from. Each edge is gone along once, however many names there are."""
        return _reached(self._parents, names)

    def descendants(self, *names: str) -> set[str]:
        """Every node that follows from one of `names`."""
        return _reached(self._children, names)

    def select(self, selection: str | Iterable[str]) -> list[Node]:
        """Resolve a selection to nodes in pipeline order. Raises ConfigError for an unknown term or an empty list."""
        terms = re.split(r"[\s,]+", selection) if isinstance(selection, str) else list(selection)
        chosen, upwards, downwards = set[str](), set[str](), set[str]()
        for term in filter(None, terms):
            named = self._named(term)
            chosen |= named
            upwards |= named if term.startswith("+") else set()
            downwards |= named if term.endswith("+") else set()
        chosen |= self.ancestors(*upwards) | self.descendants(*downwards)
        if not chosen:
            raise ConfigError("select is empty: give 'full', or node names such as 'dedup_text' or 'pretrain_1+'")
        return [node for node in self if node.name in chosen]

    def _named(self, term: str) -> set[str]:
        """The nodes that a term names itself."""
        if term == "full":
            return set(self.nodes)
        match = re.fullmatch(r"\+?([a-z][a-z0-9_]*)\+?", term)
        name = match.group(1) if match else term
        named = {name} if name in self.nodes else {n.name for n in self if n.stage == name}
        if match is None or not named:
            close = difflib.get_close_matches(name, [*self.nodes, *{n.stage for n in self}, "full"], n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; nodes: {', '.join(self.nodes)}"
            raise ConfigError(f"no node or stage '{term}'{hint}")
        return named


def _reached(edges: Mapping[str, Iterable[str]], names: Iterable[str]) -> set[str]:
    """What edges lead to from these names."""
    reached: set[str] = set()
    queue = [other for name in names for other in edges[name]]
    while queue:
        if (name := queue.pop()) not in reached:
            reached.add(name)
            queue.extend(edges[name])
    return reached
