"""The papers' equations once more: plain loops in float64 or exact decimals, from the formulas alone."""

import decimal
import math
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

_EXACT = decimal.Context(prec=120, Emin=-(10**9), Emax=10**9)
_HALF = Decimal("0.5")


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def exact_sigmoid(x: float) -> Decimal:
    return _EXACT.divide(Decimal(1), _EXACT.add(Decimal(1), _EXACT.exp(Decimal(-x))))


def logit_pool(a: float, b: float) -> float:
    """Eq. 2, second line, in 120 digits."""
    exp_a, exp_b = _EXACT.exp(Decimal(a)), _EXACT.exp(Decimal(b))
    with decimal.localcontext(_EXACT):
        return float(((2 * exp_a * exp_b + exp_a + exp_b) / (2 + exp_a + exp_b)).ln())


def jensen_shannon(p_logits: Array, q_logits: Array, both_outcomes: bool = True) -> float:
    """Eq. 1 of two vectors of Bernoulli variables in 120 digits: (KL(P||M) + KL(Q||M)) / 2."""
    total = Decimal(0)
    with decimal.localcontext(_EXACT):
        for p_logit, q_logit in zip(p_logits, q_logits, strict=True):
            p, q = exact_sigmoid(float(p_logit)), exact_sigmoid(float(q_logit))
            outcomes = [(p, q)]
            if both_outcomes:
                outcomes.append((exact_sigmoid(-float(p_logit)), exact_sigmoid(-float(q_logit))))
            for p_outcome, q_outcome in outcomes:
                mixture = (p_outcome + q_outcome) / 2
                total += _HALF * p_outcome * (p_outcome / mixture).ln()
                total += _HALF * q_outcome * (q_outcome / mixture).ln()
    return float(total)


def orthogonality(a: Array, b: Array) -> float:
    """Eq. 4: |<a, b>| / (||a|| ||b||)."""
    inner = sum(x * y for x, y in zip(a, b, strict=True))
    return float(abs(inner) / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b)))


def attend(
    ehr_distinct: Array,
    shared: Array,
    cxr_distinct: Array | None,
    query: Array,
    key: Array,
    value: Array,
) -> tuple[Array, Array]:
    """Eq. 5 to 8 of one patient: the final representations (C, D) and the weights (C, 3).

    The projections act on rows: W^Q (D, D), W^K (C, D, D), W^V (D, D).
    """
    dim, n_labels = len(shared), len(key)
    if cxr_distinct is None:
        q = (ehr_distinct + shared) @ query / 2
        stacked = np.stack([ehr_distinct, shared, np.full(dim, 1e3)])  # masked, whatever stands here
        mask = [1.0, 1.0, -math.inf]
    else:
        q = (ehr_distinct + shared + cxr_distinct) @ query / 3
        stacked = np.stack([ehr_distinct, shared, cxr_distinct])
        mask = [1.0, 1.0, 1.0]
    final, weights = np.zeros((n_labels, dim)), np.zeros((n_labels, 3))
    for c in range(n_labels):
        keys = stacked @ key[c]  # (3, D)
        scores = [(q @ keys[r] + mask[r]) / math.sqrt(dim) for r in range(3)]
        powers = [math.exp(score - max(scores)) for score in scores]
        weights[c] = [power / sum(powers) for power in powers]
        final[c] = weights[c] @ stacked @ value
    return final, weights


def cross_entropy(logits: Array, labels: Array) -> Array:
    """The summands of Eq. 9 and 11 (C,), with the sign that makes them losses."""
    losses = np.zeros(len(logits))
    for c, (logit, y) in enumerate(zip(logits, labels, strict=True)):
        losses[c] = -math.log(sigmoid(logit)) if y == 1 else -math.log(1 - sigmoid(logit))
    return losses


def attention_ranking(weights: Array, losses: Array, margin: float = 0.0) -> float:
    """Eq. 10 of one patient, weights and losses (C, 3), a term for each pair in the order of its losses."""
    total = 0.0
    for c in range(len(weights)):
        for i in range(3):
            for j in range(3):
                if i != j and losses[c, i] < losses[c, j]:
                    total += max(0.0, weights[c, j] - weights[c, i] + margin)
    return total / (2 * len(weights))


def lstm(xs: Array, w_input: Array, w_recurrent: Array, b_input: Array, b_recurrent: Array) -> Array:
    """Hidden states (T, H) of one layer reading (T, D); gates stacked as input, forget, cell, output."""
    width = w_recurrent.shape[1]
    hidden, cell, states = np.zeros(width), np.zeros(width), np.zeros((len(xs), width))
    for t, x in enumerate(xs):
        gates = w_input @ x + b_input + w_recurrent @ hidden + b_recurrent
        for k in range(width):
            enter, forget, leave = (sigmoid(gates[k + gate * width]) for gate in (0, 1, 3))
            cell[k] = forget * cell[k] + enter * math.tanh(gates[k + 2 * width])
            states[t, k] = leave * math.tanh(cell[k])
        hidden = states[t]
    return states
