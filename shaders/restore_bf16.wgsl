// Y = X back from bf16 pairs: the counterpart of capture_bf16.
// One invocation unpacks four values.
// grid: ceil_div(d4, 64), rows
// use: step, pack_bf16
struct Params {
  rows: u32,
  d4: u32,
}
@group(0) @binding(0) var<storage, read> x: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= params.d4 || id.y >= step.counts[params.rows] {
    return;
  }
  let at = id.y * params.d4 + id.x;
  y[at] = unpack_bf16(x[at]);
}
