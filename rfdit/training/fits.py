"""Refusals of objectives that do not fit the conditions or the data of a run."""

from rfdit.batch import Batch
from rfdit.conditioning import Conditioner
from rfdit.objective.needs import ComparesPairs, GuidesTarget, HasTeacher
from rfdit.protocols import DropsParts


def guides_target(objective: object) -> bool:
    """True for an objective whose target is guided."""
    return isinstance(objective, GuidesTarget) and objective.guided


def check_conditions(conditioner: Conditioner, objective: object) -> None:
    """Raises ValueError for conditions that are dropped where the objective needs them, or not where it needs that."""
    if guides_target(objective):
        if not conditioner.drop:
            raise ValueError(
                "objective guides its target away from the null condition, which conditioner.drop=0 does not train; "
                "give conditioner.drop=0.1, or an objective whose target is not guided"
            )
        if isinstance(conditioner.encoder, DropsParts) and conditioner.encoder.drop:
            raise ValueError(
                "objective guides its target for samples with a whole condition, and text_encoder.drop drops parts of "
                "it; give text_encoder.drop=null, or an objective whose target is not guided"
            )
    if isinstance(objective, HasTeacher) and conditioner.drop:
        raise ValueError(
            f"conditioner.drop={conditioner.drop} drops conditions under which the teacher is asked; give "
            "conditioner.drop=0"
        )


def check_pairs(batch: Batch, objective: object) -> None:
    """Raises ValueError for pairs of images under an objective of single ones, and the other way round."""
    compares = isinstance(objective, ComparesPairs)
    if compares and batch.rejected is None:
        raise ValueError(
            f"objective={type(objective).__name__} compares the two images of a pair, and the data has single ones; "
            "use data=preferences data.shards=..."
        )
    if batch.rejected is not None and not compares:
        raise ValueError(
            f"data has pairs of images, and objective={type(objective).__name__} trains on single ones; use "
            "objective=dpo, or data.decoder.rejected=null to train on the preferred images alone"
        )
