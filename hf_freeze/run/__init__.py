"""Config in, result out: the only modules that know all the others."""

from hf_freeze.plan.table import LayoutTable, PlanTable
from hf_freeze.run.checking import check
from hf_freeze.run.costing import plan_cost, priced_plan, rival_plan
from hf_freeze.run.planning import layout, plan
from hf_freeze.run.training import Run, RunResult, newest_checkpoint, train
from hf_freeze.training.uploading import CONFIG_FILE

__all__ = [
    "CONFIG_FILE",
    "LayoutTable",
    "PlanTable",
    "Run",
    "RunResult",
    "check",
    "layout",
    "newest_checkpoint",
    "plan",
    "plan_cost",
    "priced_plan",
    "rival_plan",
    "train",
]
