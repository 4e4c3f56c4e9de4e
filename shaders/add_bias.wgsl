// Y += b, the same b for every row, from its vec4 `first` on.
// One invocation adds four values.
// use: step, flat, elements
struct Params {
  rows: u32,
  d4: u32, // vec4s in a row of y
  first: u32,
}
@group(0) @binding(0) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

fn element(at: u32) {
  y[at] += bias[params.first + at % params.d4];
}
