// Y[t] = W[tokens[t]], for the tokens whose row lies in this segment of W.
// One invocation copies four columns of one token.
// grid: ceil_div(d4, 64), rows
// use: step, weight=weight_f32
struct Params {
  rows: u32,
  d4: u32, // row length / 4
  row_start: u32, // first vocabulary row of this segment
  row_count: u32,
  weight_stride: u32, // packs in a row of W
  scale_stride: u32, // words in a row of W's scales
}
@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let column = id.x;
  let t = id.y;
  if column >= params.d4 || t >= step.counts[params.rows] {
    return;
  }
  let row = tokens[t] - params.row_start;
  if row < params.row_count {
    y[t * params.d4 + column] = weight_at(weight_load(row, 0u, column / WEIGHT_STEPS), column % WEIGHT_STEPS);
  }
}
