"""Write these functions; `python -m pytest exercises` says whether they are right.

In exercises 6 to 8, `model` has the `features`, `head`, `mask_id` and `config` of the real network,
and `mdlm.sampling` offers `predict` and `fill`. Every call of the network serves all rows. Random
numbers come from `generator`, so that a run can be repeated.
"""


def alpha_cubic(t):
    """1. The schedule alpha_t = (1 - t)^3. t: a tensor of times in (0, 1) -> the same shape."""
    raise NotImplementedError


def weight_cubic(t):
    """1. Its weight in the loss, w_t = -alpha'_t / (1 - alpha_t). t: a tensor -> the same shape."""
    raise NotImplementedError


def expected_calls(n_masks, alpha):
    """2. In how many of the steps, on average, something is unmasked and the network has to run.

    alpha: (T + 1,) float64, the values of alpha_t before and after each of the T steps, from 0 up
    to 1. n_masks: the number of tokens. Returns a number of at most T.
    """
    raise NotImplementedError


def drop_improbable(p, epsilon):
    """3. Probabilities p (..., V) without the tokens below `epsilon`, summing to 1 again.

    If a row has nothing but such tokens, its most probable one stays. Does not change `p` itself.
    """
    raise NotImplementedError


def bound_from_counts(mean_nats):
    """4. The NELBO of a text from its cross-entropies at every number of masks.

    mean_nats: (L,), for k = 1..L the *mean* cross-entropy of one masked token when k are masked.
    (Mind the difference to S_k of the guide's section 5, the sum over the k tokens.) Returns nats.
    """
    raise NotImplementedError


def mixture_nats(nats):
    """5. -log of a text's probability under "draw one of K orders, then write in that order".

    nats: (K,) float64, -log p of the text in each order. Their mean is the NELBO's estimate; the
    result is never larger. It is still a bound: by Jensen, its mean over random choices of the K
    orders is at least -log p of the text, which it approaches as K grows. It must not overflow
    when nats are in the thousands. Returns nats.
    """
    raise NotImplementedError


def left_to_right(model, z, generator):
    """6. Fill the masks of z (B, L) one after the other from the left. Returns a new (B, L).

    Given tokens stay, and the network sees them from the first call on.
    """
    raise NotImplementedError


def in_blocks(model, z, block, steps, generator):
    """7. Ancestral sampling in `steps` steps, in the first `block` places, then in the next, ...

    z: (B, L), the last block may be shorter. The network always sees all of z, also the masks and
    the given tokens to the right. Returns a new (B, L).
    """
    raise NotImplementedError


def correct(model, z, n, generator):
    """8. Correct finished texts: n times, mask one random place of each text and draw it again.

    z: (B, L) without masks. Each row has its own place. Returns a new (B, L).
    """
    raise NotImplementedError


def shuffled(x, generator):
    """9. Another Sudoku grid made from one. x: (81,) tokens, ord("1") to ord("9"), row by row.

    Everything that keeps the rules and needs no search, each at random: rows change places within
    their band of three, bands change places, so do columns and stacks, and the digits are renamed.
    Returns (81,), and leaves x as it is.
    """
    raise NotImplementedError
