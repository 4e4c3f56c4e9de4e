// partials[i] = sum of squares of one slice of the gradient arena segment, in a fixed order.
// One workgroup, of at most GROUPS, sums the blocks of LANES vec4s that lie as many apart as there are workgroups.
// grid: min(GROUPS, ceil_div(n4, LANES))
// use: reduce
struct Params {
  n4: u32, // length of this segment / 4
  first: u32, // where this segment's partial sums begin
}
const GROUPS: u32 = 64u;
@group(0) @binding(0) var<storage, read> grads: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> partials: array<f32>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  var sum = 0.0;
  for (var i = group.x * LANES + lane; i < params.n4; i += groups.x * LANES) {
    let g = grads[i];
    sum += dot(g, g);
  }
  sum = workgroup_sum(lane, sum);
  if lane == 0u {
    partials[params.first + group.x] = sum;
  }
}
