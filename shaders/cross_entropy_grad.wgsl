// Second pass for a trained head: l[v] <- exp(l[v] - m) / total - (v == target), the gradient of cross-entropy.
// One invocation rewrites one value of the chunk; the padding of a row becomes zero.
// grid: ceil_div(stride, 64), rows
// use: step, running
struct Params {
  rows: u32,
  first: u32, // vocabulary index of the chunk's first column
  columns: u32,
  stride: u32, // of logits
}
@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read> running: array<Running>;
@group(0) @binding(2) var<storage, read_write> logits: array<f32>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= params.stride || id.y >= step.counts[params.rows] {
    return;
  }
  let at = id.y * params.stride + id.x;
  if id.x >= params.columns {
    logits[at] = 0.0;
    return;
  }
  let state = running[id.y];
  let p = exp(logits[at] - state.highest) / state.total;
  logits[at] = p - select(0.0, 1.0, targets[id.y] == params.first + id.x);
}
