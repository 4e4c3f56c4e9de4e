// Y[i] = X[index[i]], zero where the index is negative. With the inverse index it scatters.
// One invocation copies four values.
// grid: ceil_div(d4, 64), rows
// use: step
struct Params {
  rows: u32, // of Y
  d4: u32,
}
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> index: array<i32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= params.d4 || id.y >= step.counts[params.rows] {
    return;
  }
  let from_row = index[id.y];
  var value = vec4<f32>(0.0);
  if from_row >= 0 {
    value = x[u32(from_row) * params.d4 + id.x];
  }
  y[id.y * params.d4 + id.x] = value;
}
