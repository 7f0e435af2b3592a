"""What one client's reply can do at most: counts and scores that can be, a cap on its weight, a bound on its update.

Norm clipping is that of Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019,
arXiv:1911.07963: an update, the model that a client sends less the one that it started from, is scaled
down to the length C (`clip-norm`) if it is longer. Length is the L2 norm of all tensors that are sent, together, in
float64. What a client started from is `Method.references`: what it was sent, and its last model for what it was not.

What follows for everybody else. Let b be a bad client, which may send anything, and compare what another client i
starts from in the next round with what it would start from if b had sent back what it started from, with as many
examples. All norms are L2; "group l" means a layer group's part; rounding to float32 (2^-24 of the model) comes on top.

    fedavg, fedprox, fedper, fedrep, fedtransfer   p_b C, with p_b b's share of the examples (`max-examples-per-client`
        caps it). What i keeps, such as FedRep's head, does not move.
    clustered   p_b C if i is of b's group, with p_b b's share of the examples of that group in the round; else nothing.
    ditto   p_b C for the global model w. The private model v_i starts where it was; the slope of its proximal term
        moves by at most lambda p_b C at the same v_i.
    fedala   p_b C for the global model w, and p_b C + |w - w_i| for what i starts from, with w the global model without
        the update and |w - w_i| the norm over the last `fedala.layers` layer groups alone. There i starts between w and
        its own w_i, and learns how far between by looking at w: how far the update turns that is not bounded by C, but
        the weights stay in [0, 1].
    pfedla   max_l alpha_i^{l,b} C: the hypernetwork of i learns from the models that were
        mixed, and so not yet from b's; alpha_i is the same in both cases. With factorised heads as for fedham, since
        b's update has turned the embeddings of peers, which all share: those of layer l, together, by at most
        eta_h |a_bl| C D_l in a round (softmax, no momentum), with a_bl what b's own head gives.
    fedham, amn, fedaghn   sqrt(sum_l (t_l D_l)^2) + max_l A_i^{l,b} C. A_i are the weights that i has without the
        update, t_l half the L1 distance to those that it has with it (at most 1), D_l the diameter of group l of the
        pool with it. Weights are chosen by looking at models, or at updates, so the update also turns attention, and
        how far is not bounded by C. But what i starts from stays in the convex hull of the pool, of which one model is
        b's, and that is within C of what b started from.
    fedtp   p_b C for what is averaged. The hypernetwork's parameters phi move by eta p_b |J_b^T d| <= eta p_b |J_b| C,
        with J_b the Jacobian of b's tensors in phi and |d| <= C its clipped update: the step is linear in the clients'
        slopes. What is generated for i moves by |J_i J_b^T| eta p_b C to first order, with J_i between the two phi.
        The embedding of i does not move.
    pfedhn   phi moves by eta |J_b^T d| / n <= eta |J_b| C / n, with n clients in the cohort, and by less where
        `pfedhn.max-norm` shortens the gradient; what is generated for i as with fedtp. The embedding of i moves only
        where the gradient is shortened, and then by less than its own step.
    fedselect   q C, with q the largest share that b has of the samples of those who share a weight: p_b where all do, 1
        where nobody else does. Where b calls a weight personal it has no say. Which weights i keeps does not move, but
        it looks at how far training took its weights, from where the mean was.
    local   nothing: no client hears of another.

What is not in this list is said in a line of the method's card, in `fedham_flwr/algorithms`.

With other settings under `server.` what is said of a mean is said of something else. `server.optimizer="momentum"` with
rate eta multiplies p_b C by eta in this round, and the update goes on: by eta beta^k in the k-th round after, so by
eta / (1 - beta) in all. With adam, yogi and adagrad the step is no linear function of the update, and p_b C bounds
nothing; adam moves each number by at most 2.35 eta in a round with the default decays (`core/server_optimizers.py`),
whoever sends what. With the robust rules of `core/aggregation.py` and few enough bad clients, each number lies between
honest ones (median, trimmed mean), or the model is within D sqrt((n - f - 2) / (n - 2 f - 2)) of an honest one (Krum;
of multi-Krum each model that is averaged), with D the largest distance between two honest models: also without
`clip-norm`. With it D is at most 2 C.

In all rounds together a client can go C further each time: the bound is on a round. Against the round in which b had
not replied at all, a mean differs by at most 2 p_b C. Without `clip-norm` a mean goes wherever one client wants it;
then only what would break arithmetic is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedham_flwr.core.parameters import Params
from fedham_flwr.core.threads import one_thread
from fedham_flwr.federation.messages import Upload
from fedham_flwr.training.metrics import known

MOST_EXAMPLES = 2**53
"""No data set has more samples, and a float64, in which shares are computed, holds every whole number up to here."""
MOST_NORM = 1e8
"""Length of a model beyond which it is refused. Servers compare models by inner products, in pieces in float32, and
Adam's second moments hold squares of such products: (2 MOST_NORM^2)^2 is 4e32, and float32 ends at 3.4e38. No network
that computes in float32 comes near it: its activations would overflow before."""
ROUNDING = 1e-6
"""By which a score may be outside of its range."""
VARIANCES = "running_var"
"""Last part of the names of torch's running variances, whose square root is taken."""


def check_report(upload: Upload) -> None:
    """Refuse counts that no data set has, scores that cannot be, and times that cannot be.

    Raises:
        ValueError: the first fault.
    """
    if upload.examples > MOST_EXAMPLES:
        raise ValueError(f"the example count is {upload.examples}, wanted at most {MOST_EXAMPLES}")
    for row in upload.rows:
        what = f"the score {row.metric} on {row.split} is {row.value}"
        if not math.isfinite(row.value):
            raise ValueError(what)
        least, most = known(row.metric).least, known(row.metric).most
        if not least - ROUNDING <= row.value <= most + ROUNDING:
            wanted = f"{least:g} to {most:g}" if most < math.inf else f"at least {least:g}"
            raise ValueError(f"{what}, wanted {wanted if least > -math.inf else f'at most {most:g}'}")
        if not 1 <= row.n <= MOST_EXAMPLES:
            raise ValueError(f"the sample count of {row.split} is {row.n}, wanted 1 to {MOST_EXAMPLES}")
    for purpose, seconds in upload.seconds.items():
        if not 0 <= seconds < math.inf:
            raise ValueError(f"the seconds of {purpose} are {seconds}, wanted a time")


def well_sized(params: Mapping[str, Tensor]) -> bool:
    """Whether tensors are finite and together no longer than `MOST_NORM`, by one look at all of them."""
    floating = [tensor for tensor in params.values() if tensor.dtype == torch.float32]
    if len(floating) != len(params):
        return False
    return math.hypot(*(float(torch.linalg.vector_norm(tensor)) for tensor in floating)) <= MOST_NORM


def check_size(params: Mapping[str, Tensor], sized: bool = False) -> None:
    """Refuse finite tensors with which arithmetic would break: a model that is too long, or a negative variance.

    Args:
        params: float32 tensors without NaN and infinity.
        sized: they are known to be `well_sized`.

    Raises:
        ValueError: the first fault.
    """
    # In float32, which may overflow to infinity and is then refused, too.
    lengths = {} if sized else {name: float(torch.linalg.vector_norm(tensor)) for name, tensor in params.items()}
    if lengths and not math.hypot(*lengths.values()) <= MOST_NORM:
        name = max(lengths, key=lambda one: lengths[one])
        raise ValueError(
            f"the norm of the model is {math.hypot(*lengths.values()):.2g}, most of it in {name}: wanted at most "
            f"{MOST_NORM:g}; where training diverges, lower learning-rate, or scale values that are learned to about 1"
        )
    for name, tensor in params.items():
        if name.rpartition(".")[2] == VARIANCES and bool((tensor < 0).any()):
            raise ValueError(f"{name} holds a negative variance")


def capped(upload: Upload, most: int) -> Upload:
    """The reply with an example count of at most so many.

    Args:
        upload: a client's.
        most: `max-examples-per-client`; 0 for no cap.
    """
    if not 0 < most < upload.examples:
        return upload
    return dataclasses.replace(upload, examples=most, uncapped=upload.examples)


def length(params: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """The L2 norm of params - reference over all tensors together, in float64.

    Args:
        params: tensors.
        reference: of the same names and shapes; others in it do not count.
    """
    with one_thread():  # the order of a sum does not depend on the number of threads
        squares = [(tensor.double() - reference[name].double()).square_().sum() for name, tensor in params.items()]
    return math.sqrt(math.fsum(map(float, squares)))


def clip(params: Params, reference: Mapping[str, Tensor], most: float) -> Params:
    """The params, moved towards the reference until they are no further from it than `most`.

    Computed in float64 and rounded to the dtype of the params: the distance is then at most `most` and 2^-24 of the
    norm of the params for float32.

    Args:
        params: finite tensors.
        reference: as for `length`.
        most: `clip-norm`, > 0.

    Returns:
        New tensors; the very params if they are near enough.
    """
    away = length(params, reference)
    if away <= most:
        return params
    clipped = {}
    for name, tensor in params.items():
        start = reference[name].double()
        clipped[name] = (tensor.double() - start).mul_(most / away).add_(start).to(tensor.dtype)
    return clipped
