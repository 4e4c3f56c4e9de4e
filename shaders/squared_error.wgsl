// totals.loss += sum_c mean_j (y[c, j] - desired[c, j])^2, totals.count += C.
// One workgroup does it all, in a fixed order.
// grid: 1
// use: step, reduce, control
struct Params {
  rows: u32, // which of step.counts
  d4: u32, // vec4s in a row
  factor: f32, // 1 / values in a row
}
@group(0) @binding(0) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> desired: array<vec4<f32>>; // (C, values); padding is equal in both
@group(0) @binding(2) var<storage, read_write> totals: Totals;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
  let rows = step.counts[params.rows];
  var sums = vec4<f32>(0.0);
  for (var i = lane; i < rows * params.d4; i += LANES) {
    let off = y[i] - desired[i];
    sums += off * off;
  }
  let sum = workgroup_sum(lane, dot(sums, vec4<f32>(1.0)));
  if lane == 0u {
    totals.loss += params.factor * sum;
    totals.count += rows;
  }
}
