// The sum of squared_error  =>  dY = factor (Y - desired), factor = 2 / values in a row.
// One invocation computes four values.
// use: step, flat, elements
struct Params {
  rows: u32, // which of step.counts
  d4: u32, // vec4s in a row
  factor: f32,
}
@group(0) @binding(0) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> desired: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dy: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

fn element(at: u32) {
  dy[at] = params.factor * (y[at] - desired[at]);
}
