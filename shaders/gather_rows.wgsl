// Y[i] = X[index[i]], zero where the index is negative. With the inverse index it scatters.
// One invocation copies four values.
// use: step, flat, elements, rows
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> index: array<i32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

fn element(at: u32) {
  let from_row = index[at / params.d4];
  var value = vec4<f32>(0.0);
  if from_row >= 0 {
    value = x[u32(from_row) * params.d4 + at % params.d4];
  }
  y[at] = value;
}
