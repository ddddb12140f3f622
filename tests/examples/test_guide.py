"""docs/your-own-network.md: its code runs as it stands."""

import re

import pytest

from colossus.train.registry import load_file
from tests.examples.conftest import ROOT, environment

GUIDE = ROOT / "docs" / "your-own-network.md"


@pytest.fixture
def blocks():
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


def test_links_lead_somewhere():
    assert all((GUIDE.parent / link).exists() for link in re.findall(r"\]\(([^)#]+)\)", GUIDE.read_text()))


def test_its_job_is_valid(blocks, tmp_path):
    from colossus.cli.launch import load_any_job

    (tmp_path / "guide_job.py").write_text(blocks[0])
    job = load_any_job(tmp_path / "guide_job.py", ("options.width=8",), 2)
    assert (job.num_workers, job.options) == (2, {"width": 8})
    assert load_file(tmp_path / "guide_job.py").program(num_sequences=32, seed=0).dataset.num_validation_batches == 4


@pytest.mark.slow
def test_its_job_trains_and_its_weights_load(blocks, colossus, tmp_path):
    import subprocess
    import sys

    (tmp_path / "my_job.py").write_text(blocks[0])
    report = colossus(tmp_path / "my_job.py")
    assert report["final_validation_loss"] < 0.5 * report["final_metrics"]["mean_guess_error"]
    code = blocks[1] + "\nassert step == 200 and params['in'].shape == (4, 16)\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=True, timeout=300)
