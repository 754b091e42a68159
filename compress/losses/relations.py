"""Losses between the relations of two networks' embeddings of images; rows of any width, computed in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from compress.losses import logits
from compress.losses.logits import Scalar

MIN_SQUARED_DISTANCE = 1e-12  #: rows closer than this coincide: they have no direction, and no gradient


def distance(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n e"]) -> Scalar:
    """Mean over all pairs (i, j) of smooth_l1(ψ_s − ψ_t), ψ = ‖r_i − r_j‖ in units of its mean over i ≠ j; >= 0.

    Invariant to motion, reflection and scale. L_RKD-D of RKD (Park et al., CVPR 2019); smooth_l1 is their Huber loss.

    Raises:
        ValueError: For fewer than two rows.
    """
    return F.smooth_l1_loss(_distances(student.float()), _distances(teacher.float()))


def angle(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n e"]) -> Scalar:
    """Mean over all triples (i, j, k) of smooth_l1(ψ_s − ψ_t), ψ the cosine of the angle at r_i between r_j and r_k.

    In [0, 1.5]; invariant to motion, reflection and scale. L_RKD-A of RKD (Park et al., CVPR 2019). Memory:
    n² · max(d, n) numbers.
    """
    return F.smooth_l1_loss(_cosines(student.float()), _cosines(teacher.float()))


def _distances(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    n = len(rows)
    if n < 2:
        raise ValueError(f"found {n} rows, expected two or more")
    squared = (rows[:, None] - rows).square().sum(2).clamp_min(MIN_SQUARED_DISTANCE)
    distances = squared.sqrt() * (1 - torch.eye(n, device=rows.device))
    return distances / (distances.sum() / (n * (n - 1)))


def _cosines(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n n n"]:
    """Return [i, j, k]: the cosine of the angle at row i between rows j and k; 0 if one coincides with row i."""
    offset = rows - rows[:, None]
    squared = offset.square().sum(2, keepdim=True)
    unit = torch.where(
        squared > MIN_SQUARED_DISTANCE, offset / squared.clamp_min(MIN_SQUARED_DISTANCE).sqrt(), 0.0
    )  # fmt: skip
    return unit @ unit.mT


def cosine_similarity(changed: Float[Tensor, "m d"], original: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
    """Cosine of each embedding of a transformed image with each one of an original, in [-1, 1].

    The contrastive task of SSKD (Xu et al., ECCV 2020).
    """
    return F.normalize(changed.float()) @ F.normalize(original.float()).mT


def select_rows(rows: Float[Tensor, "n c"], truth: Int64[Tensor, " n"], fraction: float) -> Bool[Tensor, " n"]:
    """Select all rows with the true entry as the largest, and the `fraction` of the others that ranks it highest.

    The fraction is rounded down. The ranking by error level of SSKD's selective transfer.
    """
    rank = (rows > rows.gather(1, truth[:, None])).sum(1)
    wrong = (rank > 0).sum()
    position = rank.argsort(stable=True).argsort()  # of each row among all, the best first
    return position < len(rows) - wrong + (wrong * fraction).floor()


def selected_kl(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], selected: Bool[Tensor, " n"], T: float = 1.0
) -> Scalar:
    """`logits.kl` with its mean over the selected rows alone, in nats; >= 0, and 0 if none is selected.

    Other rows are replaced by the teacher's and contribute 0, so shapes do not depend on the selection. SSKD's L_T (of
    logits) and L_ss (of similarities).
    """
    rows = torch.where(selected[:, None], student.float(), teacher.float())
    return logits.kl(rows, teacher, T) * len(selected) / selected.sum().clamp_min(1)
