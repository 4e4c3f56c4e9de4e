// Y[t] = table[positions[t]] X[t].
// One invocation scales four values.
// use: step, flat, elements, rows
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> positions: array<u32>; // of each token in its row
@group(0) @binding(2) var<storage, read> table: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

fn element(at: u32) {
  y[at] = table[positions[at / params.d4]] * x[at];
}
