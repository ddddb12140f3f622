"""A step of a paged decoder compiled for a chip that is not here: ``python -m tests.nn.compile_paged PLATFORM CACHE WEIGHTS``; says what it holds."""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from colossus.catalog.targets import load_target
from colossus.nn import sharding, target
from colossus.nn.decoder import init_params
from colossus.nn.paged import Batch, make_decoder
from colossus.spec.layout import Layout
from colossus.spec.model import ModelCard
from tests.nn.paging import greedy_step

CARD = ModelCard(vocab_size=512, num_layers=2, model_dim=1024, num_heads=16, num_kv_heads=4, head_dim=64, ffn_dim=2048, sliding_window_tokens=200)


def devices(platform: str) -> Any:
    if platform == "gpu":
        return topologies.get_topology_desc("", platform="cuda", topology="1x1x1", target_config=load_target("h200-sxm")).devices
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices


def compile_step(platform: str, cache: str, weights: str, num_tokens: int, num_rows: int) -> dict[str, Any]:
    mesh = sharding.make_mesh(Layout(), devices(platform))
    there = jax.NamedSharding(mesh, jax.P())
    abstract = partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there))
    with target.tracing_for(platform):
        decoder = make_decoder(jax.tree.map(np.asarray, init_params(CARD, jax.random.key(0))), CARD, weights=weights, cache=cache)
        pages = jax.eval_shape(partial(decoder.empty_pages, 256))
        shapes = ((num_tokens,), (num_tokens,), (num_rows + 1,), (num_rows,), (num_rows, 40))
        batch = Batch(*(jax.ShapeDtypeStruct(shape, jnp.int32, sharding=there) for shape in shapes))
        with jax.set_mesh(mesh):
            traced = greedy_step(decoder, donate_argnums=1).trace(abstract(decoder.weights), abstract(pages), batch)
            program = traced.lower(lowering_platforms=("cuda" if platform == "gpu" else "tpu",)).compile()
    memory = program.memory_analysis()
    return {
        "attention": decoder.attention.name,
        "kernels": len(re.findall(r'custom_call_target="(?:__gpu\$xla\.gpu\.triton|tpu_custom_call)"', program.as_text())),
        "cache_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pages)),
        "aliased_bytes": memory.alias_size_in_bytes,
        "temporaries_bytes": memory.temp_size_in_bytes,
        "weights_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(decoder.weights)),
    }


if __name__ == "__main__":
    platform, cache, weights = sys.argv[1:]
    print(json.dumps([compile_step(platform, cache, weights, *sizes) for sizes in ((8, 8), (64, 8))]))
