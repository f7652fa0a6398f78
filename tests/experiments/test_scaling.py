"""What a step sends, as counted in the text of its program; the table of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from eqx_shortcut import sharding
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.objectives import FlowMatching
from scripts import script

collectives = script("collectives")
imagenet = script("imagenet")
scaling = script("scaling")

EIGHT_DEVICES = True
TRIPS, WIDTH = 5, 16


def read(function, *arguments: jax.Array) -> list[Any]:
    return collectives.read(jax.jit(function).lower(*arguments).compile().as_text() or "")


def test_collectives_in_loops_are_counted_once_a_trip_with_bytes_and_devices():
    """A gather of weights inside of hosts in each of 5 trips, then a sum of gradients over both hosts."""
    mesh = sharding.make_mesh(data=2, fsdp=4)
    put = lambda array, *spec: jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))  # noqa: E731
    x, w = put(jnp.ones((8, WIDTH)), ("data", "fsdp")), put(jnp.ones((TRIPS, WIDTH, WIDTH)), None, "fsdp")

    def chain(x, w):
        def trip(x, w):
            whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(x @ whole), None

        return jax.lax.scan(trip, x, w)[0].sum()

    gathered, summed = read(chain, x, w)
    assert (gathered.kind, gathered.times, gathered.size) == ("all-gather", TRIPS, 4 * WIDTH**2)
    assert sorted(gathered.groups) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert gathered.crosses(2) and not gathered.crosses(4)
    assert (summed.kind, summed.place, summed.times, summed.size) == ("all-reduce", "main", 1, 4)
    assert summed.groups == ((0, 1, 2, 3, 4, 5, 6, 7),) and summed.crosses(4)


PROGRAM = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%until (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]{0}) parameter(0)
  %end = s32[] constant(7)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %end), direction=LT
}

%inner (q: (s32[], f32[4])) -> (s32[], f32[4]) {
  %q = (s32[], f32[4]{0}) parameter(0)
  %v = f32[4]{0:T(128)} get-tuple-element(%q), index=1
  %go = (f32[4]{0:T(128)}, f32[16]{0}) all-gather-start(%v), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %end.1 = f32[16]{0} all-gather-done(%go)
  %part = f32[1]{0} reduce-scatter(%v), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %t = (s32[], f32[4]{0}) tuple(%i, %v)
}

%outer (r: (s32[], f32[4])) -> (s32[], f32[4]) {
  %r = (s32[], f32[4]{0}) parameter(0)
  %w = (s32[], f32[4]{0}) while(%r), condition=%until, body=%inner
  ROOT %moved = bf16[3,2]{1,0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %loop = (s32[], f32[4]{0}) while(%init), condition=%cond, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %all = (f32[4]{0}, /*index=1*/pred[2]{0}) all-reduce(%x, %y), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
}
"""


def test_nested_loops_multiply_and_each_way_to_write_groups_is_read():
    found = [(one.kind, one.times, one.size, one.groups[0]) for one in collectives.read(PROGRAM)]
    assert found == [
        ("all-gather", 21, 64, (0, 2, 4, 6)),
        ("reduce-scatter", 21, 16, (0, 1, 2, 3)),
        ("collective-permute", 3, 12, (0, 1)),
        ("all-reduce", 1, 18, (0, 2, 4, 6)),
    ]


def test_a_loop_that_does_not_say_how_often_it_runs_is_refused():
    endless = PROGRAM.replace("constant(7)", "parameter(1)")
    with pytest.raises(ValueError, match="the loop around all-gather in inner does not say how often it runs"):
        collectives.read(endless)


def test_a_row_of_the_table_is_what_eight_devices_hold_and_send():
    """FSDP: an eighth of each kernel; the weights gathered in each of two passes."""
    network = DiTConfig(hidden=32, depth=3, heads=2, patch=16)
    settings = dataclasses.replace(imagenet.B, network=network, batch=64, objective=FlowMatching())
    sizes = {"data": 1, "fsdp": 8, "tensor": 1}
    row = scaling.compiled(settings, sizes, host=8)
    like = jax.eval_shape(lambda key: network.build((32, 32, 4), 1000, key=key), jax.random.key(0))
    kernels = [getattr(like.blocks, name).kernel for name in ("modulation", "qkv", "out", "up", "down")]
    held = row["bytes_a_device"]
    assert held["weights"] == held["average"] and held["moments"] == pytest.approx(2 * held["weights"], rel=0.01)
    blocks, whole = (sum(4 * leaf.size for leaf in leaves) for leaves in (kernels, jax.tree.leaves(like)))
    assert blocks / 8 < held["weights"] < blocks / 8 + whole - blocks
    sent = row["collectives"]
    assert sent["all-gather"]["count"] == 2 * network.depth * len(kernels) + 7, "each pass; once those outside the blocks"
    assert 2 * blocks < sent["all-gather"]["bytes"] < 2 * blocks + whole - blocks
    assert all(kind["bytes_between_hosts"] == 0 for kind in sent.values()), "eight devices are one host"
    line = scaling.table([{"network": "b", "objective": "flow-matching", "devices": 8, "mesh": sizes, **row}]).splitlines()[-1]
    assert line.startswith("| B/2 | flow-matching | 8 | 1 x 8 x 1 |") and f"{sent['all-gather']['count']} all-gather" in line
    np.testing.assert_array_less(0, held["temporaries"])
