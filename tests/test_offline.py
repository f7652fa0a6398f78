"""Bytes of the kernels of a compiled program, counted from its text (benchmarks/offline.py)."""

import re

import jax
import jax.numpy as jnp
import pytest

from scripts import script

PROGRAM = """
HloModule step

%fused (p: f32[12,4,8], i: s32[]) -> f32[4,8] {
  %p = f32[12,4,8]{2,1,0} parameter(0)
}

%body (state: (s32[], f32[4,8], f32[12,4,8])) -> (s32[], f32[4,8], f32[12,4,8]) {
  %state = (s32[], f32[4,8]{1,0}, f32[12,4,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %stack = f32[12,4,8]{2,1,0} get-tuple-element(%state), index=2
  ROOT %add_fusion.1 = f32[4,8]{1,0} fusion(%stack, %i), kind=kLoop, calls=%fused
}

ENTRY %main (a: bf16[4,8], b: f32[12,4,8]) -> f32[4,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = f32[12,4,8]{2,1,0} parameter(1)
  %convert_fusion = f32[4,8]{1,0} fusion(%a), kind=kLoop, calls=%fused
  ROOT %loop = (s32[], f32[4,8]{1,0}, f32[12,4,8]{2,1,0}) while(%b), body=%body, backend_config={"known_trip_count":{"n":"12"}}
}
"""


@pytest.fixture(scope="module")
def offline(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        yield script("offline")


def test_a_kernel_in_a_loop_counts_each_pass_and_reads_one_slice_of_a_stack(offline):
    found = {kernel.name: kernel for kernel in offline.kernels(PROGRAM)}
    assert found["add_fusion.1"].calls == 12
    assert found["add_fusion.1"].size == 4 * 8 * 4 + 4 * 8 * 4 + 4  # the answer, a slice of the stack, the number of the pass
    assert found["convert_fusion"].size == 4 * 8 * (2 + 4)
    assert len(found) == 2


def test_bytes_of_a_program_of_this_machine_are_its_arrays(offline):
    compiled = jax.jit(lambda a, b: a @ b).lower(jnp.zeros((64, 32)), jnp.zeros((32, 16))).compile()
    text = compiled.as_text()
    assert text is not None and re.search(r"dot|custom-call", text)
    assert sum(kernel.size for kernel in offline.kernels(text)) == 4 * (64 * 32 + 32 * 16 + 64 * 16)
