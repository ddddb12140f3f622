"""The compiled kernels against plain JAX in float64, their fallback, and their build."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colossus.nn import kernels
from colossus.nn.kernels import build
from colossus.nn.kernels.reference import attention_with_lse
from tests.nn.decoders import quick_jit

needs_library = pytest.mark.skipif(kernels.unavailable() is not None, reason=f"no kernels: {kernels.unavailable()}")

ATTENTION = [  # B, T, H, KV, D, causal, window
    (2, 64, 2, 2, 64, True, None),
    (1, 1, 2, 1, 8, True, None),
    (1, 37, 4, 2, 24, True, None),
    (2, 300, 4, 1, 80, True, 50),
    (1, 130, 2, 2, 13, False, None),
    (1, 257, 3, 3, 128, True, 1),
    (1, 97, 2, 1, 256, True, 96),
    (1, 200, 6, 3, 16, False, None),
]


def normal(seed, *shapes, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def value_and_cotangents(f, cotangent, *args):
    out, vjp = jax.vjp(f, *args)
    return (out, *vjp(jnp.asarray(cotangent, out.dtype)))


def in_float64(f, *args):
    """f of the arguments in float64, as NumPy arrays."""
    with jax.enable_x64(True):
        return [np.asarray(x) for x in quick_jit(f)(*(np.asarray(a, np.float64) for a in args))]


def assert_close(got, wanted, tolerance=5e-6):
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == np.float32
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1.0)


@needs_library
@pytest.mark.parametrize(("batch", "length", "heads", "kv_heads", "dim", "causal", "window"), ATTENTION)
def test_attention_and_gradients_are_those_of_the_formula(batch, length, heads, kv_heads, dim, causal, window):
    q, k, v, d_o = normal(0, *[(batch, length, h, dim) for h in (heads, kv_heads, kv_heads, heads)])
    options = {"scale": dim**-0.5, "causal": causal, "window": window}
    exact = lambda *qkv: attention_with_lse(*qkv, **options)[0]
    got = jax.jit(functools.partial(value_and_cotangents, functools.partial(kernels.attention, **options)))(d_o, q, k, v)
    assert_close(got, in_float64(functools.partial(value_and_cotangents, exact), d_o, q, k, v))


@needs_library
def test_attention_shows_a_nan_only_to_later_blocks_and_large_scores_do_not_overflow():
    q, k, v = normal(1, *[(1, 256, 1, 16)] * 3)
    k[0, 200, 0, 3] = np.nan
    out = np.asarray(kernels.attention(q, k, v, scale=0.25))
    assert np.isnan(out[0, 200:]).all() and not np.isnan(out[0, :96]).any()
    assert np.isfinite(kernels.attention(1e4 * q, np.nan_to_num(k), v, scale=1.0)).all()


@needs_library
def test_a_policy_that_saves_the_named_residuals_runs_the_forward_once():
    q, k, v = normal(2, *[(1, 32, 2, 16)] * 3)
    save = jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse")
    f = jax.checkpoint(lambda *qkv: kernels.attention(*qkv, scale=0.25).sum(), policy=save)
    text = jax.jit(jax.grad(f, argnums=(0, 1, 2))).lower(q, k, v).compile().as_text()
    assert text.count('custom_call_target="colossus_attention_forward"') == 1
    assert text.count('custom_call_target="colossus_attention_backward"') == 1


SHARDED = """
import functools, jax, numpy as np
from jax.sharding import PartitionSpec as P
from colossus.nn import kernels

q, k, v, w = [np.random.default_rng(0).standard_normal(s).astype(np.float32) for s in [(2, 300, 2, 16)] * 3 + [(32, 24)]]
mesh = jax.make_mesh((2,), ("dp",), axis_types=(jax.sharding.AxisType.Auto,))

def f(q, k, v, w):
    o = kernels.attention(kernels.swiglu(q, k), k, v, scale=0.25)
    return kernels.rms_norm(kernels.linear(o.reshape(2 // n, 300, 32), w), w[0], 1e-5)

def gradients(f):
    return jax.jit(jax.grad(lambda *args: (f(*args) ** 3).sum(), argnums=(0, 1, 2, 3)))(q, k, v, w)

n = 1
whole = gradients(f)
n = 2
split = gradients(jax.shard_map(f, mesh=mesh, in_specs=(P("dp"), P("dp"), P("dp"), P()), out_specs=P("dp")))
for a, b in zip(whole, split):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
"""


@needs_library
def test_kernels_inside_shard_map_give_the_gradients_of_the_whole_and_share_the_thread_pool():
    process = run_python(SHARDED, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err


@needs_library
@pytest.mark.parametrize(("leading", "inputs", "outputs"), [((2, 37), 40, 64), ((5,), 3, 1), ((1, 130), 801, 405), ((700,), 33, 390)])
def test_linear_and_gradients_are_those_of_the_product(leading, inputs, outputs):
    x, w, dy = normal(4, (*leading, inputs), (inputs, outputs), (*leading, outputs))
    got = jax.jit(functools.partial(value_and_cotangents, kernels.linear))(dy, x, w)
    assert_close(got, in_float64(functools.partial(value_and_cotangents, lambda x, w: x @ w), dy, x, w))


def norm_formula(x, scale):
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * scale


def swiglu_formula(gate, up):
    return gate / (1 + jnp.exp(-gate)) * up


def rope_formula(x, cos, sin):
    turned = (x[..., : x.shape[-1] // 2] + 1j * x[..., x.shape[-1] // 2 :]) * (cos + 1j * sin)[:, :, None]
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


@needs_library
@pytest.mark.parametrize(("kernel", "formula", "shapes"), [
    (functools.partial(kernels.rms_norm, epsilon=1e-5), norm_formula, [(2, 70, 384), (384,)]),
    (functools.partial(kernels.rms_norm, epsilon=1e-5), norm_formula, [(5, 13), (13,)]),
    (kernels.swiglu, swiglu_formula, [(3, 1024), (3, 1024)]),
    (kernels.swiglu, swiglu_formula, [(5, 7), (5, 7)]),
])  # fmt: skip
def test_elementwise_kernels_and_gradients_are_those_of_the_formula(kernel, formula, shapes):
    dy, *args = normal(5, shapes[0], *shapes)
    got = jax.jit(functools.partial(value_and_cotangents, kernel))(dy, *args)
    assert_close(got, in_float64(functools.partial(value_and_cotangents, formula), dy, *args))


@needs_library
@pytest.mark.parametrize(("heads", "dim", "table_batch"), [(3, 64, 1), (2, 10, 2)])
def test_rope_and_its_gradient_turn_pairs(heads, dim, table_batch):
    x, dy, angles = normal(6, *[(2, 9, heads, dim)] * 2, (table_batch, 9, dim // 2))
    cos, sin = np.cos(angles), np.sin(angles)
    got = jax.jit(functools.partial(value_and_cotangents, lambda x: kernels.rope(x, cos, sin)))(dy, x)
    assert_close(got, in_float64(lambda dy, x, c, s: value_and_cotangents(lambda x: rope_formula(x, c, s), dy, x), dy, x, cos, sin))


@needs_library
@pytest.mark.parametrize(("tokens", "dim", "vocabulary"), [(7, 16, 5), (600, 40, 4097), (130, 24, 640)])
def test_cross_entropy_and_gradients_are_those_of_the_formula(tokens, dim, vocabulary):
    x, w, weights = normal(7, (tokens, dim), (dim, vocabulary), (tokens,))
    targets = np.random.default_rng(8).integers(0, vocabulary, tokens).astype(np.int32)

    def exact(x, w):
        return jnp.sum(weights * -jax.nn.log_softmax(x @ w)[jnp.arange(tokens), targets])

    f = lambda x, w: kernels.cross_entropy(x, w, targets, weights)
    got = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(x, w)
    wanted = in_float64(lambda x, w: jax.tree.leaves(jax.value_and_grad(exact, argnums=(0, 1))(x, w)), x, w)
    assert_close(jax.tree.leaves(got), wanted, tolerance=1e-5)
    np.testing.assert_allclose(jax.jit(f)(x, w), wanted[0], rtol=1e-5)


@needs_library
def test_a_nan_reaches_every_result_that_depends_on_it():
    x, w = normal(9, (4, 32), (32, 40))
    x[2, 5] = np.nan
    rows = lambda y: np.isnan(np.asarray(y)).any(axis=-1).tolist()
    assert rows(kernels.linear(x, w)) == rows(kernels.rms_norm(x, w[:, 0], 1e-5)) == rows(kernels.swiglu(x, x))
    assert rows(kernels.linear(x, w)) == [False, False, True, False]
    assert np.isnan(kernels.cross_entropy(x, w, np.zeros(4, np.int32), np.ones(4, np.float32)))


@pytest.mark.parametrize(("shapes", "options", "word"), [
    ([(1, 4, 3, 8), (1, 4, 2, 8), (1, 4, 2, 8)], {}, "dividing"),
    ([(1, 4, 2, 8), (1, 5, 2, 8), (1, 5, 2, 8)], {}, "takes q"),
    ([(1, 4, 2, 8)] * 3, {"causal": False, "window": 3}, "window=3"),
])  # fmt: skip
def test_attention_refuses_shapes_it_cannot_mean(shapes, options, word):
    with pytest.raises(ValueError, match=word):
        kernels.attention(*normal(0, *shapes), scale=1.0, **options)


def run_python(code, **environment):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_switched_off_it_is_plain_jax():
    code = (
        "import numpy as np, jax; from colossus.nn import kernels; q = np.ones((1, 4, 2, 8), np.float32);"
        "f = jax.jit(lambda q: kernels.attention(q, q, q, scale=1.0));"
        "assert 'colossus_attention' not in f.lower(q).as_text(); assert abs(f(q) - 1).max() < 1e-6; print(kernels.unavailable())"
    )
    process = run_python(code, COLOSSUS_KERNELS="off")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "COLOSSUS_KERNELS=off" in out


def test_without_a_compiler_it_says_so_once_and_works(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    monkeypatch.setenv("COLOSSUS_CACHE_DIR", str(tmp_path))
    build.library.cache_clear()
    try:
        assert "no-such-compiler" in build.library().reason
        assert "no-such-compiler" in build.library().reason
    finally:
        build.library.cache_clear()
    assert len(caplog.records) == 1


def fake_compiler(path, body, version="1.0"):
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo {path.name} {version} && exit\n{body}\n')
    path.chmod(0o755)
    return str(path)


def test_when_one_compiler_fails_the_next_is_tried(tmp_path, monkeypatch):
    broken = fake_compiler(tmp_path / "broken", "exit 1")
    working = fake_compiler(tmp_path / "working", 'for made; do :; done; echo library > "$made"', version="2.0")
    monkeypatch.setattr(build, "COMPILERS", (broken, working))
    assert build.build(tmp_path / "cache").read_text() == "library\n"


def test_a_failed_build_is_tried_again_only_by_another_compiler(tmp_path, monkeypatch):
    body = f"echo tried >> {tmp_path}/log; echo no such builtin >&2; exit 1"
    names = [fake_compiler(tmp_path / name, body) for name in ("g++", "c++")]  # one compiler by two names
    sources = build._sources("*.cc")[:1]  # each is compiled for itself
    monkeypatch.setattr(build, "_sources", lambda pattern: sources if pattern == "*.cc" else [])
    monkeypatch.setattr(build, "COMPILERS", tuple(names))
    reasons = {build.build(tmp_path / "cache").reason for _ in range(2)}
    assert len(reasons) == 1 and "no such builtin" in reasons.pop()
    assert (tmp_path / "log").read_text() == "tried\n"
    fake_compiler(tmp_path / "g++", body, version="1.1")
    monkeypatch.setattr(build, "COMPILERS", tuple(names[:1]))
    assert "no such builtin" in build.build(tmp_path / "cache").reason
    assert (tmp_path / "log").read_text() == "tried\ntried\n"


@pytest.mark.slow
@needs_library
def test_two_processes_that_start_together_build_one_library(tmp_path):
    code = "from colossus.nn.kernels.build import library; print(library()._name)"
    both = [run_python(code, COLOSSUS_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    outs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert outs[0][0] == outs[1][0]
    assert len(list((tmp_path / "kernels").glob("*.so"))) == 1


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize(("arch", "instructions"), [("x86-64", "sse2"), ("haswell", "avx2")])
def test_products_and_gradients_are_right_at_every_width_of_vectors(arch, instructions):
    """The tests of linear, cross entropy and one attention again, in a process whose kernels are built for another CPU."""
    about = Path("/proc/cpuinfo")
    if not about.exists() or instructions not in about.read_text().split():
        pytest.skip(f"this CPU cannot run {arch}")
    chosen = "gradients_are_those_of and (linear or cross_entropy or (attention and 300))"
    process = run_python(f"import pytest; raise SystemExit(pytest.main([{__file__!r}, '-k', {chosen!r}]))", COLOSSUS_KERNELS_ARCH=arch)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "skipped" not in out, out + err


REPEATED = """
import functools, jax, jax.numpy as jnp, numpy as np
from colossus.nn import kernels

normal = lambda *shapes: [np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in shapes]
cross_entropy = functools.partial(kernels.cross_entropy, targets_n=np.arange(700) % 640, weights_n=np.ones(700, np.float32))
for name, kernel, args in [
    ("rms_norm", functools.partial(kernels.rms_norm, epsilon=1e-5), normal((8192, 1024), (1024,))),
    ("linear", kernels.linear, normal((700, 130), (130, 390))),
    ("swiglu", kernels.swiglu, normal((512, 512), (512, 512))),
    ("attention", functools.partial(kernels.attention, scale=0.2), normal((1, 300, 6, 24), (1, 300, 3, 24), (1, 300, 3, 24))),
    ("cross_entropy", cross_entropy, normal((700, 48), (48, 640))),
]:
    both = jax.jit(lambda *args: jax.value_and_grad(lambda *args: jnp.sum(kernel(*args) ** 2), argnums=tuple(range(len(args))))(*args))
    results = {b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(both(*args))) for _ in range(50)}
    assert len(results) == 1, f"{name}: {len(results)} results of 50 equal calls"
"""


@pytest.mark.slow
@needs_library
def test_four_threads_repeat_every_result_bit_for_bit():
    process = run_python(REPEATED, NPROC="4", XLA_FLAGS="")  # NPROC: how many threads XLA has
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
