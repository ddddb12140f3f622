"""Simulations made up for tests of words and pages: seeded, sums that hold, any number of replicas."""

from __future__ import annotations

import random
from typing import Any

from colossus.spec.causes import Cause
from colossus.spec.faults import Duration
from colossus.spec.scenario import CheckpointScenario, MoneyScenario, PowerScenario, Recovery, RecoveryScenario, Scenario, StragglerScenario, Tier
from colossus.spec.simulation import Bill, Course, NodeState, SimulatedIncident, Simulation, Tally

DAY_S = 86400.0
CAUSES = {"gpu": 0.38, "hbm3_memory": 0.2, "software_bug": 0.16, "network_switch_or_cable": 0.11, "host_maintenance": 0.1, "silent_data_corruption": 0.05}
LOSSES = (Cause.INIT_START, Cause.CHECKPOINT, Cause.LOST_WORK, Cause.DETECT, Cause.RESTART, Cause.RESTORE, Cause.STRAGGLER, Cause.WAIT_NODES)


def scenario(**changes: Any) -> Scenario:
    second = Duration(mean_s=60.0)
    return Scenario(
        name="a test",
        horizon_s=54 * DAY_S,
        seed=7,
        faults="llama-3",
        recovery=RecoveryScenario(
            kind=Recovery.HOT, num_spares=16, swap=second, start=second, compile=second, drain_window_s=7 * DAY_S, drain_repair=second,
            evict_slow=True, evict_detect=second, sdc_check_s=1.0,
        ),
        checkpoint=CheckpointScenario(
            interval_s="daly", state_bytes_per_parameter=14.0, storage_bytes_per_s=2e12, storage_bytes_per_s_per_node=4e10, blocked_fraction=0.1,
            memory=Tier.PEER, memory_bytes_per_s_per_node=2e11,
        ),
        stragglers=StragglerScenario(jitter_fraction=0.01, congestion_fraction=0.02, diurnal_fraction=0.01),
        power=PowerScenario(outside_swing_c=6.0, outside_season_c=10.0, limit_w=31e6),
        money=MoneyScenario(depreciation_s=4 * 365 * DAY_S, building_depreciation_s=15 * 365 * DAY_S, building_usd_per_w=10.0, staff_usd_per_s_per_node=1e-4,
                            maintenance_fraction=0.02),
    ).model_copy(update=changes)  # fmt: skip


def tally(seed: int, *, wall_s: float = 54 * DAY_S, num_faults: int = 400, done: bool = False, num_nodes: int = 3072) -> Tally:
    draw = random.Random(seed)
    weights = [draw.uniform(0.5, 1.5) for _ in LOSSES]
    lost_s = wall_s * draw.uniform(0.06, 0.1) * (num_faults / 400 if num_faults else 0)
    badput = {cause: lost_s * weight / sum(weights) for cause, weight in zip(LOSSES, weights, strict=True)}
    goodput_s = wall_s - sum(badput.values())
    drawn = draw.choices(list(CAUSES), list(CAUSES.values()), k=num_faults)
    found = {cause: drawn.count(cause) for cause in CAUSES if cause in drawn}
    steps = int(goodput_s / 4.0)
    shares = {NodeState.WORKING: 0.62, NodeState.STANDING: 0.047, NodeState.SPARE: 0.3, NodeState.REPAIR: 0.013, NodeState.UNUSED: 0.02}
    return Tally(
        seed=seed, wall_s=wall_s, done=done, goodput_s=goodput_s, badput_s=badput, steps=steps, lost_steps=num_faults * 30, tokens=steps * 16.8e6,
        time_to_train_s=wall_s * 60 / 54 * draw.uniform(0.98, 1.03), interruptions=found, faults={name: round(1.4 * times) for name, times in found.items()},
        num_checkpoints=3000, node_s={state: share * num_nodes * wall_s for state, share in shares.items()},
        bill=Bill(
            it_j=20e6 * wall_s, site_j=26e6 * wall_s, mean_w=26e6, peak_w=30.2e6, swing_w=9e6, ramp_w_per_s=2.4e6, carbon_kg_co2e=1.4e7,
            parts_usd={"chips": 5.1e7, "network": 8e6, "building": 3e6, "energy": 2.6e6, "staff": 9e5, "maintenance": 1.2e6}, total_usd=6.67e7,
            usd_per_million_tokens=0.34, lost_hour_usd=51000.0, rent_usd=9.1e7,
        ),
    )  # fmt: skip


def course(one: Tally, *, num_bins: int = 360, num_nodes: int = 3072) -> Course:
    draw = random.Random(one.seed)
    bad = {cause: [max(0.0, draw.gauss(seconds / one.wall_s, 0.3 * seconds / one.wall_s)) for _ in range(num_bins)] for cause, seconds in one.badput_s.items()}
    good = [1 - sum(values[index] for values in bad.values()) for index in range(num_bins)]
    repair = [draw.uniform(20, 60) for _ in range(num_bins)]
    nodes = {
        NodeState.WORKING: [2048 * share for share in good],
        NodeState.STANDING: [2048 * (1 - share) for share in good],
        NodeState.REPAIR: repair,
        NodeState.SPARE: [num_nodes - 2048 - out for out in repair],
    }
    power = [26e6 * (0.4 + 0.6 * share) + draw.gauss(0, 2e5) for share in good]
    shares = {Cause.PRODUCTIVE: good} | bad
    return Course(bin_s=one.wall_s / num_bins, shares=shares, nodes=nodes, site_w=power, steps_per_s=[share / 4 for share in good])


def incidents(one: Tally) -> list[SimulatedIncident]:
    draw = random.Random(one.seed + 1)
    causes = [cause for cause, times in one.interruptions.items() for _ in range(times)]
    times = sorted(draw.uniform(0, one.wall_s) for _ in causes)
    draw.shuffle(causes)
    return [
        SimulatedIncident(
            time_s=at, cause=cause, component="software" if "software" in cause else "gpu", effect="crash", node=draw.randrange(2048), action="reform",
            reason="a spare takes its place", lost_steps=draw.randrange(90), lost_s=draw.uniform(0, 360), detect_s=draw.expovariate(1 / 120),
            wait_s=0.0, start_s=draw.uniform(30, 300), restore_s=draw.uniform(10, 60), compile_s=draw.uniform(0, 60), source="peer memory",
        )
        for at, cause in zip(times, causes, strict=True)
    ]  # fmt: skip


def simulation(*, num_replicas: int = 1, seed: int = 7, **changes: Any) -> Simulation:
    tallies = [tally(seed + index, num_faults=400 + 3 * index) for index in range(num_replicas)]
    return Simulation(
        name="llama-3.1-405b", machine="Meta's 24k H100 cluster", chip="h100-sxm", num_chips=24576, num_nodes=3072, num_job_chips=16384, num_job_nodes=2048,
        layout="pp 16 x dp 128 x tp 8, 16 microbatches of 1, ZeRO 1, remat none", step_s=4.0, parts_s={"gemm": 2.5, "attention": 0.4, "tp": 0.6, "bubble": 0.5},
        tokens_per_step=16777216, num_steps=1_200_000, plan_s=4.8e6, model_flop_per_token=2.5e12, peak_flop_per_s=16384 * 9.89e14, scenario=scenario(),
        fault_profile="llama-3", tallies=tallies, course=course(tallies[0]), incidents=incidents(tallies[0]),
        chosen={"checkpoint.interval_s": "every 9 min 40 s: the optimum for 1.2 s blocked per save and a failure every 3 h"}, notes=["a note"],
    ).model_copy(update=changes)  # fmt: skip


def quiet(**changes: Any) -> Simulation:
    """Nothing happens."""
    one = tally(1, num_faults=0).model_copy(update={"badput_s": {}, "goodput_s": 54 * DAY_S, "bill": None})
    calm = Course(bin_s=DAY_S, shares={Cause.PRODUCTIVE: [1.0] * 54}, nodes={NodeState.WORKING: [2048.0] * 54}, site_w=[], steps_per_s=[0.25] * 54)
    return simulation(tallies=[one], course=calm, incidents=[], chosen={}, notes=[]).model_copy(update=changes)
