// One vocabulary chunk of softmax cross-entropy with a running maximum m and sum s per row:
// m' = max(m, max_v l[v]), factor = exp(m - m'), s' = s factor + sum_v exp(l[v] - m'), l[v] <- exp(l[v] - m').
// The caller then does sum_v exp(l - m') W[v] with the earlier sum times factor: no (C, V) array exists.
// One workgroup walks the chunk of one trained token.
// grid: 1, rows
// use: step, reduce, running
struct Params {
  rows: u32,
  first: u32, // vocabulary index of the chunk's first column; the chunk at 0 starts the running values
  columns: u32,
  stride: u32, // of logits
}
@group(0) @binding(0) var<storage, read> targets: array<u32>; // (C,) vocabulary index
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> running: array<Running>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.y;
  let base = row * params.stride;
  var state = running[row];
  if params.first == 0u {
    state = Running(-1e30, 0.0, 0.0, 1.0);
  }
  let column = targets[row] - params.first;
  if column < params.columns {
    state.target_logit = logits[base + column];
  }
  var chunk_highest = -1e30;
  for (var i = lane; i < params.columns; i += LANES) {
    chunk_highest = max(chunk_highest, logits[base + i]);
  }
  let above = max(state.highest, workgroup_max(lane, chunk_highest));
  storageBarrier();
  var total = 0.0;
  for (var i = lane; i < params.columns; i += LANES) {
    let p = exp(logits[base + i] - above);
    logits[base + i] = p;
    total += p;
  }
  total = workgroup_sum(lane, total);
  if lane == 0u {
    let factor = exp(state.highest - above);
    running[row] = Running(above, state.total * factor + total, state.target_logit, factor);
  }
}
