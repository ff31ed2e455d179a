"""Binary trees over words out of the distances that an ON-LSTM gives them."""


def build_tree(distances, tokens):
    """Split before the largest distance, again and again, until single tokens are left.

    tree(d, x) = x for one token; else with i the first maximum of d: [tree(left of i), right], where right is x_i, or
    [x_i, tree(right of i)]; at i = 0 there is no left part, and the tree is right.

    Args:
        distances: one number per token, e.g. a row of what `bert4x.layers.ONLSTM` returns with `return_distances`,
            without that of a start token.
        tokens: list of as many tokens, of any type.
    Returns: nested lists of two; the token itself if there is one. Depth is bounded by memory only.
    Raises: ValueError for no tokens, or another number of distances.
    Source: arXiv:1810.09536 section 5.2; kexue.fm archives 6621.
    """
    tokens, distances = list(tokens), [float(d) for d in distances]
    if not tokens or len(tokens) != len(distances):
        raise ValueError(f"build_tree needs one distance per token; got {len(distances)} and {len(tokens)} tokens.")
    children, root = _children(distances), _largest_first(distances)
    left, right = children
    done = {}  # a stack of our own: sentences without end would exhaust Python's
    stack = [root]
    while stack:
        i = stack[-1]
        below = [j for j in (left[i], right[i]) if j is not None and j not in done]
        if below:
            stack.extend(below)
            continue
        stack.pop()
        tail = tokens[i] if right[i] is None else [tokens[i], done.pop(right[i])]
        done[i] = tail if left[i] is None else [done.pop(left[i]), tail]
    return done[root]


def _largest_first(distances):
    return distances.index(max(distances))


def _children(distances):
    """For each position the split on its left and on its right, None where there is none, in linear time."""
    left, right = [None] * len(distances), [None] * len(distances)
    path = []  # positions from the root to the last one seen, always to the right: distances do not rise
    for i, distance in enumerate(distances):
        under = None
        while path and distances[path[-1]] < distance:  # of equal ones the first stays above
            under = path.pop()
        left[i] = under
        if path:
            right[path[-1]] = i
        path.append(i)
    return left, right


def tree_text(tree):
    """A tree of strings in brackets: [a, [b, c]] -> "(a (b c))"."""
    parts, stack = [], [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend([")", *reversed(node), "("])
        else:
            parts.append(str(node))
    text = " ".join(parts)
    return text.replace("( ", "(").replace(" )", ")")
