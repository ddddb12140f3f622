"""Steps of serving compiled for a GPU and a TPU that are not here, where the extra ``aot`` is installed."""

import json
import os
import subprocess
import sys

import pytest

from colossus.engine.compiler import installed

COMPILERS = {"gpu": "cuda", "tpu": "tpu"}
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_gpu_autotune_level=0", "COLOSSUS_KERNELS": "off", "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TF_CPP_MIN_LOG_LEVEL": "1",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "cache", "weights", "attention"),
    [
        ("gpu", "bfloat16", "bfloat16", "gpu"),
        ("gpu", "int8", "int8", "gpu"),
        ("gpu", "float32", "float32", "gpu"),
        ("tpu", "bfloat16", "bfloat16", "tpu"),
        ("tpu", "float32", "int8", "tpu"),
        ("tpu", "int8", "bfloat16", "plain"),
    ],
)
def test_a_step_compiles_and_copies_no_cache(platform, cache, weights, attention):
    """Decoding, and rows of both kinds."""
    if not installed(COMPILERS[platform]):
        pytest.skip("colossus[aot] is not installed")
    command = [sys.executable, "-m", "tests.nn.compile_paged", platform, cache, weights]
    run = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    for program in json.loads(run.stdout.splitlines()[-1]):
        assert program["attention"] == attention
        assert program["kernels"] == (0 if attention == "plain" else 2)
        assert program["aliased_bytes"] >= program["cache_bytes"]
    decoding, _ = json.loads(run.stdout.splitlines()[-1])
    if platform == "gpu":
        assert decoding["temporaries_bytes"] < decoding["weights_bytes"] / 8, "a weight is written out before it is used"
