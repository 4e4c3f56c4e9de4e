// One vocabulary chunk of softmax cross-entropy with a running maximum m and sum s per row:
// m' = max(m, max_v l[v]), factor = exp(m - m'), s' = s factor + sum_v exp(l[v] - m'), l[v] <- exp(l[v] - m'),
// where l[v] is the score of the logit and the result is taken back to the logit by the score's slope.
// The caller then does sum_v exp(l - m') W[v] with the earlier sum times factor: no (C, V) array exists.
// One workgroup walks the chunk of one trained token.
// grid: 1, rows
// use: reduce, running, score=score_plain
struct Params {
  rows: u32,
  first: u32, // vocabulary index of the chunk's first column; the chunk at 0 starts the running values
  columns: u32,
  stride: u32, // of logits
}
@group(0) @binding(0) var<storage, read> targets: array<u32>; // (C,) vocabulary index
@group(0) @binding(1) var<storage, read_write> logits: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> running: array<Running>;
@group(0) @binding(15) var<uniform> params: Params;

// What lies past the last column is padding: it counts as no logit and stays zero.
fn inside(i: u32) -> vec4<bool> {
  return vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.columns);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.y;
  let base = row * (params.stride / 4u);
  let count = (params.columns + 3u) / 4u;
  var state = running[row];
  if params.first == 0u {
    state = Running(-1e30, 0.0, 0.0, 1.0);
  }
  let column = targets[row] - params.first;
  if column < params.columns {
    state.target_logit = to_score(logits[base + column / 4u][column % 4u]);
  }
  var highest = vec4<f32>(-1e30);
  for (var i = lane; i < count; i += LANES) {
    highest = max(highest, select(vec4<f32>(-1e30), to_score4(logits[base + i]), inside(i)));
  }
  let chunk_highest = max(max(highest.x, highest.y), max(highest.z, highest.w));
  let above = max(state.highest, workgroup_max(lane, chunk_highest));
  storageBarrier();
  var sums = vec4<f32>(0.0);
  for (var i = lane; i < count; i += LANES) {
    let score = to_score4(logits[base + i]);
    let p = select(vec4<f32>(0.0), exp(score - above), inside(i));
    logits[base + i] = score_back4(score, p);
    sums += p;
  }
  let total = workgroup_sum(lane, dot(sums, vec4<f32>(1.0)));
  if lane == 0u {
    let factor = exp(state.highest - above);
    running[row] = Running(above, state.total * factor + total, state.target_logit, factor);
  }
}
