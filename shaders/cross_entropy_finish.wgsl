// dX[c] = sum[c] / total[c] - W[target[c]], where sum[c] = sum_v exp(l[v] - m) W[v]: the gradient of
// log sum_v exp(l[v]) - l[target]; W[target] times the slope of the score that l[target] is. Several segments of W: the first DIVIDEs, each subtracts the rows it holds.
// One invocation finishes four values.
// use: step, flat, elements, weight=weight_f32, running, score=score_plain
struct Params {
  rows: u32,
  d4: u32,
  row_start: u32, // first vocabulary row of this segment
  row_count: u32,
  weight_stride: u32, // packs in a row of W
  weight_side_stride: u32, // words in a row of its second plane
}
const DIVIDE: bool = true;
@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read> running: array<Running>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

fn element(at: u32) {
  let c = at / params.d4;
  let column = at % params.d4;
  var value = dx[at];
  if DIVIDE {
    value /= running[c].total;
  }
  let row = targets[c] - params.row_start;
  if row < params.row_count {
    let target_row = weight_at(weight_load(row, 0u, column / WEIGHT_STEPS), column % WEIGHT_STEPS);
    value -= score_back4(vec4<f32>(running[c].target_logit), target_row);
  }
  dx[at] = value;
}
