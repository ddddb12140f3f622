"""``colossus bench`` against a scripted server: what is printed, written and refused."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from colossus.cli.main import cli
from colossus.report.load_plots import charts, svgs
from colossus.serve.load.errors import ServerError
from colossus.spec.load import LoadTest
from tests.serve.scripted import Script, serving


def bench(*arguments: str):
    return CliRunner().invoke(cli, ["bench", *arguments], catch_exceptions=True)


@pytest.fixture(scope="module")
def script():
    with serving(Script(gap_s=0.001)) as running:
        yield running


def test_a_sweep_prints_a_table_and_every_percentile(script):
    done = bench(script.url, "--concurrency", "1,3", "--requests", "6", "--output-tokens", "4", "--slo", "ttft=0.5,tpot=0.1")
    assert done.exit_code == 0, done.output
    for words in ("output tokens/s at", "1 client", "3 clients", "goodput/s", "TTFT p50 / p99", "p95", "warm-up requests", "The client took"):
        assert words in done.stdout


def test_json_page_plots_and_samples_tell_the_same(script, tmp_path):
    names = {"--html": "load.html", "--plots": "plots", "--samples": "samples.jsonl"}
    places = [part for option, name in names.items() for part in (option, str(tmp_path / name))]
    done = bench(script.url, "--rate", "100,200", "--requests", "8", "--output-tokens", "3", "--json", *places)
    assert done.exit_code == 0, done.output
    test = LoadTest.from_data(json.loads(done.stdout), origin="stdout")
    assert [point.num_completed for point in test.points] == [8, 8]
    assert [point.offered_requests_per_s for point in test.points] == [100, 200]
    page = (tmp_path / "load.html").read_text()
    assert "200 requests/s" in page and "<script src" not in page and "http-equiv" not in page
    drawn = {path.stem for path in (tmp_path / "plots").glob("*.svg")}
    assert drawn == {name for name, _ in charts(test)} and {"throughput", "ttft-by-load", "ttft-spread", "itl-spread", "in-flight"} <= drawn
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 16 and all(len(line["texts_s"]) == 3 for line in lines)


def test_another_servers_result_stands_beside(script, tmp_path):
    load = ("--concurrency", "1,2", "--requests", "2", "--warmup", "0", "--output-tokens", "3")
    other = tmp_path / "other.json"
    other.write_text(bench(script.url, *load, "--json").stdout)
    done = bench(script.url, *load, "--beside", f"theirs={other}", "--html", str(tmp_path / "load.html"), "--plots", str(tmp_path / "plots"))
    assert done.exit_code == 0, done.output
    assert len(re.findall(r"^[12] clients? +theirs ", done.stdout, re.MULTILINE)) == 2
    assert "theirs" in (tmp_path / "load.html").read_text() and "Beside others" in (tmp_path / "load.html").read_text()
    assert "theirs" in (tmp_path / "plots" / "ttft-p99-beside.svg").read_text()
    test = LoadTest.from_data(json.loads(other.read_text()), origin="other")
    again = bench(script.url, *load[:-1], "4", "--beside", f"{test.model}={other}")
    assert f"{test.model}, now " in again.stdout and f"{test.model} was asked for something else" in again.stdout
    assert "two results are called 'other'" in bench(script.url, "--beside", str(other), "--beside", str(other)).output


@pytest.mark.parametrize(("text", "words"), [(None, "No such file"), ("{", "is no result of 'colossus bench URL --json'"), ("{}", "is no result of")])
def test_what_is_no_result_is_refused(script, tmp_path, text, words):
    other = tmp_path / "other.json"
    if text is not None:
        other.write_text(text)
    done = bench(script.url, "--beside", str(other))
    assert done.exit_code != 0 and words in done.output + str(done.exception)


def test_a_trace_is_played_at_its_times(script, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"at_s": 0.2 * number, "prompt_tokens": 40, "output_tokens": 4}) + "\n" for number in range(4)))
    done = bench(script.url, "--trace", str(trace), "--time-scale", "0.5", "--length-scale", "0.5", "--json", "--warmup", "0")
    assert done.exit_code == 0, done.output
    [point] = json.loads(done.stdout)["points"]
    assert point["num_output_tokens"] == 8 and point["num_prompt_tokens"] == 80 and 0.3 <= point["wall_s"] < 3


def test_failed_requests_are_shown_by_kind():
    with serving(Script(fail={1: 429})) as refusing:
        done = bench(refusing.url, "--concurrency", "1", "--requests", "3", "--warmup", "0", "--output-tokens", "2")
    assert done.exit_code == 0 and "1 x 429" in done.stdout


def test_a_test_without_an_answer_is_shown_and_fails():
    with serving(Script(fail=dict.fromkeys(range(9), 429))) as refusing:
        done = bench(refusing.url, "--concurrency", "1", "--requests", "2", "--warmup", "1", "--output-tokens", "2")
    assert done.exit_code == 1 and "2 requests failed" in done.stdout and "1 warm-up request before each load is left out" in done.stdout
    assert isinstance(done.exception, ServerError) and "every request failed (1 client: 2 x 429)" in str(done.exception)


def test_clients_lie_along_powers_of_two(script):
    done = bench(script.url, "--concurrency", "1,8,64", "--requests", "2", "--warmup", "0", "--output-tokens", "2", "--json")
    drawn = dict(svgs(charts(LoadTest.from_data(json.loads(done.stdout), origin="stdout"))))["throughput"]
    at = [float(re.search(rf'x="([\d.]+)"[^>]*>{clients}</text>', drawn).group(1)) for clients in (1, 8, 64)]
    assert at[1] - at[0] == pytest.approx(at[2] - at[1], abs=0.2) and "log_x" in drawn


def test_a_model_is_no_address():
    done = bench("smollm2")
    assert done.exit_code == 2 and "is no address" in done.output and "colossus serve smollm2" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--concurrency", "0"], "above 0"),
        (["--concurrency", "a"], "commas between"),
        (["--rate", "nan"], "above 0"),
        (["--rate", "1", "--concurrency", "1"], "exclude each other"),
        (["--slo", "ttl=1"], "valid: ttft, tpot, e2e"),
        (["--slo", "ttft=x"], "seconds"),
    ],
)
def test_wrong_usage_is_told_in_words(arguments, words):
    done = bench("http://127.0.0.1:9", *arguments)
    assert done.exit_code == 2 and words in done.output
