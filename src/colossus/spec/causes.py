"""What a run's time went to: one name for productive time, and one for each way of losing it."""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """Where a moment of wall time went; the order is the order of a run's life."""

    PRODUCTIVE = "productive"
    INIT_DATA = "init_data"
    INIT_START = "init_start"
    INIT_STATE = "init_state"
    INIT_COMPILE = "init_compile"
    DATA_WAIT = "data_wait"
    CHECKPOINT = "checkpoint"
    EVALUATION = "evaluation"
    BAD_STEPS = "bad_steps"
    LOST_WORK = "lost_work"
    DETECT = "detect"
    RESTART = "restart"
    RESTORE = "restore"
    RECOMPILE = "recompile"
    STRAGGLER = "straggler"
    POWER_CAP = "power_cap"
    FEWER_NODES = "fewer_nodes"
    WAIT_NODES = "wait_nodes"
    PLANNED_STOP = "planned_stop"
    OTHER = "other"


CAUSES: tuple[Cause, ...] = tuple(Cause)
BADPUT: tuple[Cause, ...] = CAUSES[1:]

LABELS: dict[Cause, str] = {
    Cause.PRODUCTIVE: "productive steps",
    Cause.INIT_DATA: "preparing data",
    Cause.INIT_START: "starting workers",
    Cause.INIT_STATE: "making the state",
    Cause.INIT_COMPILE: "compiling",
    Cause.DATA_WAIT: "waiting for data",
    Cause.CHECKPOINT: "checkpoints",
    Cause.EVALUATION: "evaluation",
    Cause.BAD_STEPS: "bad steps",
    Cause.LOST_WORK: "lost work",
    Cause.DETECT: "detecting faults",
    Cause.RESTART: "restarting",
    Cause.RESTORE: "restoring",
    Cause.RECOMPILE: "compiling again",
    Cause.STRAGGLER: "slow chips",
    Cause.POWER_CAP: "power caps",
    Cause.FEWER_NODES: "fewer nodes",
    Cause.WAIT_NODES: "waiting for nodes",
    Cause.PLANNED_STOP: "planned stops",
    Cause.OTHER: "other",
}

MEANINGS: dict[Cause, str] = {
    Cause.PRODUCTIVE: "steps that count, each once, without their waits",
    Cause.INIT_DATA: "reading, tokenising and packing the corpus before the first step",
    Cause.INIT_START: "launch, imports and joining before the first step",
    Cause.INIT_STATE: "drawing the first weights and optimizer state",
    Cause.INIT_COMPILE: "compiling before the first step",
    Cause.DATA_WAIT: "steps that stood still for their batch",
    Cause.CHECKPOINT: "steps that stood still for a checkpoint, and the last save",
    Cause.EVALUATION: "validation loss, and checks for silent corruption",
    Cause.BAD_STEPS: "steps whose update the guard skipped",
    Cause.LOST_WORK: "steps done twice, and steps that a fault cut short",
    Cause.DETECT: "from a fault to its detection",
    Cause.RESTART: "from detection to a gang that has joined",
    Cause.RESTORE: "reading the state back",
    Cause.RECOMPILE: "compiling in a gang formed anew",
    Cause.STRAGGLER: "steps that waited for the slowest chip or for a congested network",
    Cause.POWER_CAP: "steps slowed because the site could not draw more",
    Cause.FEWER_NODES: "steps slowed because the gang ran with fewer nodes than planned",
    Cause.WAIT_NODES: "standing still until enough nodes were back from repair, or power was",
    Cause.PLANNED_STOP: "standing still for maintenance: firmware, configuration, data",
    Cause.OTHER: "between steps: logging, one step's profile, shutdown, and what nothing names",
}
