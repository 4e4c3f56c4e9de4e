// Second pass for a trained head: l[v] <- exp(l[v] - m) / total - (v == target), the gradient of cross-entropy,
// where l[v] is the score of the logit and the gradient is taken back to the logit by the score's slope.
// One invocation rewrites four values of the chunk; the padding of a row becomes zero.
// grid: min(ceil_div(rows * stride // 4, FLAT), 65535), ceil_div(rows * stride // 4, 65535 * FLAT)
// use: step, flat, running, score=score_plain
struct Params {
  rows: u32,
  first: u32, // vocabulary index of the chunk's first column
  columns: u32,
  stride: u32, // of logits
}
@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read> running: array<Running>;
@group(0) @binding(2) var<storage, read_write> logits: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(FLAT)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let at = flat_index(group, lane);
  let d4 = params.stride / 4u;
  if at >= step.counts[params.rows] * d4 {
    return;
  }
  let row = at / d4;
  let column = vec4<u32>(4u * (at % d4)) + vec4<u32>(0u, 1u, 2u, 3u);
  let state = running[row];
  let score = to_score4(logits[at]);
  let p = exp(score - state.highest) / state.total;
  let one = select(vec4<f32>(0.0), vec4<f32>(1.0), column + params.first == vec4<u32>(targets[row]));
  logits[at] = select(vec4<f32>(0.0), score_back4(score, p - one), column < vec4<u32>(params.columns));
}
