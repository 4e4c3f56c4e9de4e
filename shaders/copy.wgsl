// Y = X: as much memory is read as written, and nothing else is done.
// One invocation copies every GROUPS-th block of four values.
// grid: min(ceil_div(n4, 64), GROUPS)
struct Params {
  n4: u32,
}
const GROUPS: u32 = 16384u;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(
  @builtin(global_invocation_id) id: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
) {
  for (var i = id.x; i < params.n4; i += groups.x * 64u) {
    y[i] = x[i];
  }
}
