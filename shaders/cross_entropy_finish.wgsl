// dX[c] = sum[c] / total[c] - W[target[c]], where sum[c] = sum_v exp(l[v] - m) W[v]: the gradient of
// log sum_v exp(l[v]) - l[target]. Several segments of W: the first DIVIDEs, each subtracts the rows it holds.
// One invocation finishes four values.
// grid: ceil_div(d4, 64), rows
// use: step, weight=weight_f32, running
struct Params {
  rows: u32,
  d4: u32,
  row_start: u32, // first vocabulary row of this segment
  row_count: u32,
  weight_stride: u32, // packs in a row of W
  scale_stride: u32, // words in a row of W's scales
}
const DIVIDE: bool = true;
@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read> running: array<Running>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= params.d4 || id.y >= step.counts[params.rows] {
    return;
  }
  let at = id.y * params.d4 + id.x;
  var value = dx[at];
  if DIVIDE {
    value /= running[id.y].total;
  }
  let row = targets[id.y] - params.row_start;
  if row < params.row_count {
    value -= weight_at(weight_load(row, 0u, id.x / WEIGHT_STEPS), id.x % WEIGHT_STEPS);
  }
  dx[at] = value;
}
