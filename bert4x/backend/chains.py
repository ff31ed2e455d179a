"""Linear chains of labels: sum over all paths, score of one path, best paths. The CRF and the MEMM are made of them."""

from keras import ops

from bert4x.backend import runtime

_LEAST = 1e-30  # share below which a step's transition does not fall, so that no sum is 0
_NEVER = -1e30  # score of a path that does not exist


def log_partition(scores, trans, mask):
    """log Z, the log of the sum of exp(score) over all paths, in nats.

    a_1 = h_1, a_t[j] = h_t[j] + log sum_i exp(a_(t-1)[i] + A[i, j]), log Z = log sum_j exp(a_n[j]).

    It is computed with probabilities that are normalised at each step, so that a step is one small matrix product, and
    the gradient (the marginals) by the same recursion from the other end. Exact as long as the transitions differ by
    less than 60 nats; a transition that is worse than that counts as one of -69 nats.

    Shapes: scores float [B, T, L], trans float [L, L] (from, to), mask bool [B, T], right padding only; returns [B].
    """
    counts = ops.expand_dims(ops.transpose(mask), -1)
    steps = ops.cast(counts[..., 0], scores.dtype)

    @runtime.with_gradient
    def value(scores, trans):
        # Any shift is right, so these are constants.
        top = ops.stop_gradient(ops.max(scores, axis=-1, keepdims=True))
        highest = ops.stop_gradient(ops.max(trans))
        emitted = ops.transpose(ops.exp(scores - top), (1, 0, 2))
        moves = ops.exp(trans - highest)
        forward = _forward(emitted, moves, counts)
        shifts = ops.transpose(top[..., 0]) * steps
        total = ops.sum(ops.log(ops.sum(forward, axis=-1)) * steps + shifts, axis=0)
        total = total + highest * ops.maximum(ops.sum(steps, axis=0) - 1.0, 0.0)

        def gradient(upstream):
            weights = ops.expand_dims(steps * upstream, -1)
            backward = _backward(emitted, moves, counts)
            return _expected_counts(forward, backward, emitted, moves, weights)

        return total, gradient

    return value(scores, trans)


def _forward(emitted, moves, counts):
    """a_t up to a factor: sums over the labels before t. Time first: [T, B, L]."""

    def step(before, given):
        here, real = given[..., :-1], given[..., -1:] > 0
        before = _normalized(before)
        after = ops.where(real, ops.maximum(ops.matmul(before, moves), _LEAST) * here, before)
        return after, after

    _, after = ops.scan(step, emitted[0], _next(emitted, counts))
    return ops.concatenate([emitted[:1], after[:-1]], axis=0)


def _backward(emitted, moves, counts):
    """Sums over the labels after t, up to a factor, [T, B, L]."""
    backwards = ops.transpose(moves)

    def step(after, given):
        here, real = given[..., :-1], given[..., -1:] > 0
        after = _normalized(after)
        before = ops.where(real, ops.maximum(ops.matmul(after * here, backwards), _LEAST), after)
        return before, before

    _, before = ops.scan(step, ops.ones_like(emitted[0]), _next(emitted, counts), reverse=True)
    return before


def _next(x, counts):
    """What belongs to the step after each, [T, B, L], and whether it counts, as the last column; zeros after the last.

    With the zeros a loop over it has at least one step. In one tensor, since Keras' scan on TensorFlow takes only one
    where the length is not known.
    """
    x = ops.concatenate([x, ops.cast(counts, x.dtype)], axis=-1)
    return ops.concatenate([x[1:], ops.zeros_like(x[:1])], axis=0)


def _normalized(x):
    return x / ops.sum(x, axis=-1, keepdims=True)


def _expected_counts(forward, backward, emitted, moves, weights):
    """Gradients of log Z: how often each label is expected at each step, and each transition, times the weights."""
    forward, onward = _normalized(forward), _normalized(backward * emitted)
    labels = _normalized(forward * _normalized(backward)) * weights
    onward = onward[1:]
    shares = ops.sum(ops.matmul(forward[:-1], moves) * onward, axis=-1, keepdims=True)
    onward = onward * weights[1:] / ops.maximum(shares, _LEAST)
    return ops.transpose(labels, (1, 0, 2)), ops.einsum("tbi,tbj->ij", forward[:-1], onward) * moves


def neighbours(mask):
    """Whether the step before each, and the step after it, counts: two masks like the one given, bool [B, T]."""
    none = ops.zeros_like(mask[:, :1])
    return ops.concatenate([none, mask[:, :-1]], axis=1), ops.concatenate([mask[:, 1:], none], axis=1)


def path_scores(scores, trans, labels, mask):
    """Score of one path per row: sum of h_t[y_t] and of A[y_(t-1), y_t] over the steps that count.

    Shapes: scores [B, T, L], trans [L, L], labels int [B, T] (arbitrary where masked), mask bool [B, T]; returns [B].
    """
    labels = ops.where(mask, labels, 0)
    real = ops.cast(mask, scores.dtype)
    emitted = ops.take_along_axis(scores, ops.expand_dims(labels, -1), axis=-1)[..., 0]
    moved = ops.take(ops.reshape(trans, (-1,)), labels[:, :-1] * trans.shape[0] + labels[:, 1:])
    return ops.sum(emitted * real, axis=1) + ops.sum(moved * real[:, 1:], axis=1)


def best_paths(scores, trans, mask, count=1):
    """The `count` paths of the highest score, best first; of equal ones that with the smaller last label, and so on.

    Viterbi's recursion with the K best ways into each label: state l K + r is the way of rank r into label l.

    Shapes: scores [B, T, L], trans [L, L], mask bool [B, T], right padding only; returns paths int32 [B, K, T], 0 where
        masked, and their scores [B, K]; a path that does not exist, as K > L^n, has the score -1e30.
    """
    counts = ops.transpose(mask)[..., None]
    scores = ops.transpose(scores, (1, 0, 2))
    width = scores.shape[-1]
    stay = ops.reshape(ops.arange(width * count, dtype="int32"), (1, width, count))

    def step(carry, given):
        ways, here, real = carry[0], given[..., :-1], given[..., -1:, None] > 0
        arrivals = ops.reshape(ways[..., None] + trans[:, None, :], (-1, width * count, width))
        values, origins = _highest(arrivals, count)
        values = ops.where(real, ops.transpose(values, (0, 2, 1)) + here[..., None], ways)
        state = values, ops.where(real, ops.transpose(origins, (0, 2, 1)), stay)
        return state, state

    others = ops.full_like(ops.repeat(scores[0][..., None], count, axis=-1)[..., 1:], _NEVER)
    first = ops.concatenate([scores[0][..., None], others], axis=-1)
    start = first, ops.zeros_like(ops.cast(first, "int32")) + stay
    (ways, _), (_, origins) = ops.scan(step, start, _next(scores, counts))
    values, ends = _highest(ops.reshape(ways, (-1, width * count, 1)), count)
    states = _traced(ops.reshape(origins, (ops.shape(origins)[0], -1, width * count)), ends[..., 0])
    paths = ops.transpose(states // count, (1, 2, 0))
    return ops.where(ops.expand_dims(mask, 1), paths, 0), values[..., 0]


def _highest(x, count):
    """The `count` largest values along axis 1 and where they are, the first of equal ones first."""
    # Sorting keeps equal values in order on all backends, top_k does not.
    places = ops.argmax(x, axis=1, keepdims=True) if count == 1 else ops.argsort(-x, axis=1)[:, :count]
    return ops.take_along_axis(x, places, axis=1), ops.cast(places, "int32")


def _traced(origins, ends):
    """States of the paths that end in `ends` [B, K], where origins [T, B, L K] tells what preceded; [T, B, K]."""

    def step(state, origin):
        before = ops.take_along_axis(origin, state, axis=1)
        return before, before

    return ops.scan(step, ends, origins, reverse=True)[1]
