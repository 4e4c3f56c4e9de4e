// What a subgroup is on this adapter: drivers report a range, and kernels are written for one size.
// One invocation writes how many run with it, its number among them, and the local index of the
// first of them; `size` is what the adapter says.
// grid: 2
const LANES: u32 = 64u;

@group(0) @binding(0) var<storage, read_write> seen: array<vec4<u32>>;

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
  @builtin(subgroup_size) size: u32,
  @builtin(subgroup_invocation_id) number: u32,
) {
  let running = subgroupAdd(1u);
  let first = subgroupBroadcastFirst(lane);
  seen[group.x * LANES + lane] = vec4<u32>(size, running, number, first);
}
