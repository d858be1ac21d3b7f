"""The reader of partitioned programs, on text."""

import pytest

from trol_jax.sharding import hlo

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
TEXT = """HloModule jit_f, num_partitions=8

%add.clone (x.3: bf16[], y.1: bf16[]) -> bf16[] {
  %x.3 = bf16[] parameter(0)
  %y.1 = bf16[] parameter(1)
  ROOT %add.5 = bf16[] add(%x.3, %y.1)
}

%inner (p: (s32[], bf16[2,64])) -> (s32[], bf16[2,64]) {
  %p = (s32[], /*index=1*/bf16[2,64]{1,0}) parameter(0)
  %h = bf16[2,64]{1,0} get-tuple-element(%p), index=1
  %w = bf16[32,64]{1,0} constant({...})
  %all-gather = bf16[64,64]{1,0} all-gather(%w), channel_id=1, replica_groups={{0,2},{4,6},{1,3},{5,7}}, dimensions={0}, metadata={op_name="jit(f)/while/body/dot_general"}
  %dot = bf16[2,64]{1,0} dot(%h, %all-gather), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(f)/dot"}
  %all-reduce = bf16[2,64]{1,0} all-reduce(%dot), channel_id=3, replica_groups=[4,2]<=[8], to_apply=%add.clone
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %t = (s32[], bf16[2,64]{1,0}) tuple(%i, %all-reduce)
}

%less (p.1: (s32[], bf16[2,64])) -> pred[] {
  %p.1 = (s32[], bf16[2,64]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%p.1), index=0
  %three = s32[] constant(3)
  ROOT %lt = pred[] compare(%j, %three), direction=LT
}

%outer (q: (s32[], bf16[2,64])) -> (s32[], bf16[2,64]) {
  %q = (s32[], bf16[2,64]{1,0}) parameter(0)
  ROOT %while.1 = (s32[], bf16[2,64]{1,0}) while(%q), condition=%less, body=%inner
}

ENTRY %main (a: (s32[], bf16[2,64]), g: f32[64,8]) -> f32[16,8] {
  %a = (s32[], bf16[2,64]{1,0}) parameter(0)
  %g = f32[64,8]{1,0} parameter(1)
  %while = (s32[], bf16[2,64]{1,0}) while(%a), condition=%less, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %sum = f32[64,8]{1,0} all-reduce(%g), channel_id=4, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add.clone
  %zero = s32[] constant(0)
  %alone = f32[64,8]{1,0} all-reduce(%g), replica_groups=[8,1]<=[8], to_apply=%add.clone
  %shift = f32[64,8]{1,0} collective-permute(%g), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  ROOT %own = f32[16,8]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={16,8}
}
"""  # noqa: E501 (as XLA writes it)


def test_collectives_have_kind_axes_loops_and_bytes():
    found = {each.kind: each for each in hlo.Program(TEXT).collectives(MESH)}
    gather, reduce = found["all-gather"], found["all-reduce"]
    assert (gather.axes, gather.group, gather.loops, gather.launches) == (("fsdp",), 2, (5, 3), 15)
    assert gather.size == 64 * 64 * 2 and gather.wire == 15 * 64 * 64 * 2 / 2
    assert gather.place == "jit(f)/while/body/dot_general"
    assert (reduce.axes, reduce.size, reduce.wire) == (("tensor",), 256, 15 * 256)
    shift = found["collective-permute"]
    assert (shift.axes, shift.wire) == (("tensor",), 64 * 8 * 4)


def test_a_sum_of_which_each_device_takes_its_part_is_scattered():
    found = [each for each in hlo.Program(TEXT).collectives(MESH) if each.kind == "reduce-scatter"]
    (scattered,) = found  # and the group of one device sends nothing
    assert (scattered.axes, scattered.group, scattered.wire) == (("data", "fsdp"), 4, 64 * 8 * 4 * 3 / 4)


def test_a_gather_of_what_a_loop_does_not_change_is_told():
    weight = "  %w = bf16[32,64]{1,0} constant({...})"
    changed = TEXT.replace(weight, "  %w = bf16[32,64]{1,0} reshape(%h)")
    assert [hlo.Program(text).collectives(MESH)[0].kind for text in (TEXT, changed)] == ["all-gather"] * 2
    assert [hlo.Program(text).collectives(MESH)[0].invariant for text in (TEXT, changed)] == [True, False]


def test_two_gathers_of_one_array_are_one():
    line = next(line for line in TEXT.splitlines() if " all-gather(" in line)
    again = line.replace("%all-gather =", "%again =").replace("channel_id=1", "channel_id=9").replace("dot_g", "other")
    assert len(hlo.Program(TEXT.replace(line, f"{line}\n{again}")).collectives(MESH)) == 4
    assert len(hlo.Program(TEXT.replace(line, f"{line}\n{again.replace('(%w)', '(%h)')}")).collectives(MESH)) == 5


def test_a_sum_of_which_a_larger_part_is_kept_is_told():
    text = TEXT.replace("%own = f32[16,8]{1,0} dynamic", "%own = f32[32,8]{1,0} dynamic")
    (found,) = [each for each in hlo.Program(text).collectives(MESH) if each.cut > 1]
    assert (found.kind, found.group, found.cut) == ("all-reduce", 4, 2)


def test_sums_that_are_only_added_are_told():
    line = next(line for line in TEXT.splitlines() if "%all-reduce = " in line)
    more = [
        line.replace("%all-reduce =", "%other =").replace("(%dot)", "(%h)").replace("channel_id=3", "channel_id=8"),
        "  %both = bf16[2,64]{1,0} add(%h, %all-reduce)",
        "  %all = bf16[2,64]{1,0} add(%both, %other)",
    ]
    text = TEXT.replace(line, "\n".join([line, *more])).replace("tuple(%i, %all-reduce)", "tuple(%i, %all)")
    (found,) = [each for each in hlo.Program(text).collectives(MESH) if each.apart]
    assert (found.kind, found.axes, found.launches) == ("all-reduce", ("tensor",), 15)
    for used in ("tuple(%other, %all)", "tuple(%all-reduce, %all)"):  # on its own too
        kept = text.replace("tuple(%i, %all)", used)
        assert not any(each.apart for each in hlo.Program(kept).collectives(MESH))


def test_flops_are_multiplied_by_loops():
    assert hlo.flops(hlo.Program(TEXT).products()) == 15 * 2 * 2 * 64 * 64


def test_convolutions_count():
    line = "  %c = f32[2,4,4,8]{3,2,1,0} convolution(%x, %k), window={size=3x3}, dim_labels=b01f_01io->b01f"
    each = hlo._instruction(line)
    assert hlo._flops(each, "f32[2,6,6,5]{3,2,1,0}", "f32[3,3,5,8]{3,2,1,0}") == 2 * (2 * 4 * 4 * 8) * (3 * 3 * 5)


@pytest.mark.parametrize(
    "text, groups",
    [
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x={}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'b'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b':(2)2}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("replica_groups={{0,4},{1,5}}, x={}", [[0, 4], [1, 5]]),
    ],
)
def test_groups(text, groups):
    assert hlo._groups(text) == groups


def test_groups_that_are_of_no_axes():
    assert hlo._axes([[0, 1, 2], [3, 4, 5]], MESH) == ("?",)
    assert hlo._axes([list(range(8))], MESH) == ("data", "fsdp", "tensor")


def test_the_digest_tells_what_is_sent_and_not_from_where():
    found = hlo.Program(TEXT).collectives(MESH)
    renamed = hlo.Program(TEXT.replace("jit(f)", "jit(g)")).collectives(MESH)
    other = hlo.Program(TEXT.replace('"n":"5"', '"n":"6"')).collectives(MESH)
    assert hlo.digest(found) == hlo.digest(renamed) != hlo.digest(other)


def test_small_and_packed_dtypes():
    assert hlo.nbytes("u4[3,5]{1,0}") == 8
    assert hlo.nbytes("(bf16[2,3], /*index=1*/pred[], s32[4])") == 12 + 1 + 16
    assert hlo.dims("f32[]") == [("f32", [])]


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.Program("hello")
