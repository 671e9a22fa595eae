"""Every kind of file that rfdit reads."""

from tests.system.drill.kind import Kind
from tests.system.drill.kinds import data, evaluation, models, outputs, runs, tables

KINDS: list[Kind] = [
    *models.KINDS,
    *runs.KINDS,
    *data.KINDS,
    *tables.KINDS,
    *evaluation.KINDS,
    *outputs.KINDS,
]
