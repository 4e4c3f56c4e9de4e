// Y = X m / (1 - p), m = 1 where the value's random number is at least p; ADD accumulates into Y.
// The mask is a hash of (step key, site, index): nothing is stored, and the gradient is the same operation.
// One invocation computes four values.
// use: step, flat, elements, random
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

fn element(at: u32) {
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
