// Y = A + B.
// One invocation adds four values.
// grid: ceil_div(d4, 64), rows
// use: step
struct Params {
  rows: u32,
  d4: u32,
}
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= params.d4 || id.y >= step.counts[params.rows] {
    return;
  }
  let at = id.y * params.d4 + id.x;
  y[at] = a[at] + b[at];
}
