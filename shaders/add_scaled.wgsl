// Y = A + factor B.
// One invocation adds four values.
// use: step, flat, elements
struct Params {
  rows: u32,
  d4: u32, // vec4s in a row
  factor: f32,
}
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

fn element(at: u32) {
  y[at] = a[at] + params.factor * b[at];
}
