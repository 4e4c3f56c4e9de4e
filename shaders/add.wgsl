// Y = A + B.
// One invocation adds four values.
// grid: min(ceil_div(rows * d4, FLAT), 65535), ceil_div(rows * d4, 65535 * FLAT)
// use: step, flat
struct Params {
  rows: u32,
  d4: u32,
}
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(FLAT)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let at = flat_index(group, lane);
  if at >= step.counts[params.rows] * params.d4 {
    return;
  }
  y[at] = a[at] + b[at];
}
