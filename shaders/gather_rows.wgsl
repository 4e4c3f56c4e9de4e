// Y[i] = X[index[i]], zero where the index is negative. With the inverse index it scatters.
// One invocation copies four values.
// grid: min(ceil_div(rows * d4, FLAT), 65535), ceil_div(rows * d4, 65535 * FLAT)
// use: step, flat
struct Params {
  rows: u32, // of Y
  d4: u32,
}
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> index: array<i32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(FLAT)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let at = flat_index(group, lane);
  if at >= step.counts[params.rows] * params.d4 {
    return;
  }
  let from_row = index[at / params.d4];
  var value = vec4<f32>(0.0);
  if from_row >= 0 {
    value = x[u32(from_row) * params.d4 + at % params.d4];
  }
  y[at] = value;
}
