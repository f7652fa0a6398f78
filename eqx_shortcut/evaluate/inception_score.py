"""The Inception Score: how sure, and how varied, the classes of images are."""

import numpy as np
from jaxtyping import Float


def inception_score(logits: Float[np.ndarray, "count classes"], *, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over `splits` parts of `exp(mean KL(p(y|x) || p(y)))`, between 1 and the classes.

    The parts are contiguous and p(y) is the mean of their own p(y|x): shuffle the logits first unless their order is random.
    Raises ValueError if a logit is not finite, or if there are fewer rows than splits. Source: Salimans et al. (2016),
    section 4, in float64 from logits as torch-fidelity computes it.
    """
    from scipy.special import log_softmax, logsumexp

    if not 1 <= splits <= len(logits):
        raise ValueError(f"{len(logits)} images cannot be cut into {splits} splits: use 1 to {len(logits)}")
    if not np.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinity: a score of them means nothing; look at the samples")
    scores = []
    for i in range(splits):
        part = logits[i * len(logits) // splits : (i + 1) * len(logits) // splits]
        given = log_softmax(part.astype(np.float64), axis=1)
        marginal = logsumexp(given, axis=0) - np.log(len(part))
        scores.append(np.exp(np.sum(np.exp(given) * (given - marginal), axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
