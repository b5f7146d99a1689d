"""The trunk of a network: the tensors that every path from the loss to the first layer runs through.

What a residual connection bypasses is a branch. Told from the autograd graph itself, not from names.
"""

from collections.abc import Iterable
from typing import Any


def trunk(root: Any, sources: Iterable[Any]) -> set[Any]:
    """The nodes that lie on every path from ``root`` to a source (cut vertices of the graph between them).

    In a topological order of the nodes between the two, a node is on every path exactly when no edge jumps
    over it. Linear in the size of the graph.

    Args:
        root: ``grad_fn`` of the loss.
        sources: ``grad_fn`` of the layers' outputs in execution order: the first that the loss reaches is taken.

    Returns:
        Empty if no source is reached from ``root``.
    """
    order = _topological(root)
    reached = set(order)
    source = next((s for s in sources if s in reached), None)
    if source is None:
        return set()
    # Leaving out the side paths (weights, other inputs): only what leads to the source.
    leads: set[Any] = set()
    for node in reversed(order):
        if node is source or any(n in leads for n, _ in node.next_functions if n is not None):
            leads.add(node)
    between = [node for node in order if node in leads]
    position = {node: i for i, node in enumerate(between)}
    jumps = [0] * (len(between) + 1)
    for node in between:
        if node is source:
            continue
        for following, _ in node.next_functions:
            if following in leads:
                jumps[position[node] + 1] += 1
                jumps[position[following]] -= 1
    found, open_ = set(), 0
    for i, node in enumerate(between):
        open_ += jumps[i]
        if open_ == 0:
            found.add(node)
        if node is source:
            break
    return found


def _topological(root: Any) -> list[Any]:
    """Every node reachable from ``root``, each before those it depends on."""
    done: list[Any] = []
    seen = {root}
    stack = [(root, iter(root.next_functions))]
    while stack:
        node, following = stack[-1]
        for child, _ in following:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append((child, iter(child.next_functions)))
                break
        else:
            done.append(node)
            stack.pop()
    return done[::-1]
