// totals.loss += sum_c (m[c] + log total[c] - l[target[c]]), totals.count += C.
// One workgroup does it all, in a fixed order.
// grid: 1
// use: step, reduce, running, control
struct Params {
  rows: u32,
}
@group(0) @binding(0) var<storage, read> running: array<Running>;
@group(0) @binding(1) var<storage, read_write> totals: Totals;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
  let rows = step.counts[params.rows];
  var sum = 0.0;
  for (var i = lane; i < rows; i += LANES) {
    let state = running[i];
    sum += state.highest + log(state.total) - state.target_logit;
  }
  sum = workgroup_sum(lane, sum);
  if lane == 0u {
    totals.loss += sum;
    totals.count += rows;
  }
}
