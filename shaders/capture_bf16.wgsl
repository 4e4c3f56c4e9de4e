// Y = X rounded to bf16, in pairs: an activation kept for the backward pass in half the memory.
// One invocation packs four values.
// grid: min(ceil_div(rows * d4, FLAT), 65535), ceil_div(rows * d4, 65535 * FLAT)
// use: step, flat, pack_bf16
struct Params {
  rows: u32,
  d4: u32,
}
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec2<u32>>;
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
  y[at] = pack_bf16(x[at]);
}
