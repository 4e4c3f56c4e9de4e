// Y[t] = FACTOR W[tokens[t]], for the tokens whose row lies in this segment of W.
// One invocation copies four columns of one token.
// use: step, flat, elements, weight=weight_f32
struct Params {
  rows: u32,
  d4: u32, // row length / 4
  row_start: u32, // first vocabulary row of this segment
  row_count: u32,
  weight_stride: u32, // packs in a row of W
  weight_side_stride: u32, // words in a row of its second plane
}
const FACTOR: f32 = 1.0;
@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

fn element(at: u32) {
  let column = at % params.d4;
  let row = tokens[at / params.d4] - params.row_start;
  if row < params.row_count {
    y[at] = FACTOR * weight_at(weight_load(row, 0u, column / WEIGHT_STEPS), column % WEIGHT_STEPS);
  }
}
