"""Parameters, memory and speed of a run before it starts. See conf/plan.yaml."""

import json
import sys
import tempfile

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rfdit.config.build import build, validate
from rfdit.config.command import command
from rfdit.cost.plan import make_plan
from rfdit.cost.plan_page import HEADER, page, row
from rfdit.finetune.adapt import choose_trained


@command("plan")
def _main(cfg: DictConfig) -> None:
    job = HydraConfig.get()
    for path in OmegaConf.missing_keys(cfg):
        if path.startswith(("data.", "init.")):  # a plan does not need the place of data and initial weights
            OmegaConf.update(cfg, path, "none")
    # A point of a sweep is named by what is swept; the other overrides are as they were typed.
    swept = [override for override in job.overrides.task if override not in sys.argv]
    config, adapter = validate(cfg), build(cfg.adapter)
    plan = make_plan(
        config,
        " ".join(swept if job.mode == RunMode.MULTIRUN else job.overrides.task),
        choose_trained=lambda network: choose_trained(network, adapter, config),
    )
    if cfg.json:
        print(json.dumps(plan.as_dict()), flush=True)
        return
    if job.mode != RunMode.MULTIRUN:
        print(page(plan), flush=True)
        return
    if job.job.num == 0:
        print(HEADER)
    print(row(plan), flush=True)


def main() -> None:
    """The program `rfdit plan`."""
    # Hydra makes a folder for every sweep; this one leaves nothing behind.
    with tempfile.TemporaryDirectory() as folder:
        sys.argv.append(f"hydra.sweep.dir={folder}")
        _main()
