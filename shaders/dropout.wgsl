// Y = X m / (1 - p), m = 1 where the value's random number is at least p; ADD accumulates into Y.
// The mask is a hash of (step key, site, index): nothing is stored, and the gradient is the same operation.
// One invocation computes four values.
// grid: min(ceil_div(rows * d4, FLAT), 65535), ceil_div(rows * d4, 65535 * FLAT)
// use: step, flat, random
struct Params {
  rows: u32,
  d4: u32,
  site: u32, // which dropout of the model this is
  threshold: u32, // p * 2^24, compared with the upper 24 bits
  scale: f32, // 1 / (1 - p)
}
const ADD: bool = false;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
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
  let key = mix_bits(step.dropout_key ^ params.site);
  var mask: vec4<f32>;
  for (var i = 0u; i < 4u; i++) { // unroll
    mask[i] = select(0.0, params.scale, (random_bits(key, 4u * at + i) >> 8u) >= params.threshold);
  }
  if ADD {
    y[at] += x[at] * mask;
  } else {
    y[at] = x[at] * mask;
  }
}
