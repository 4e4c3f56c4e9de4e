// Y = A + B.
// One invocation adds four values.
// use: step, flat, elements, rows
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

fn element(at: u32) {
  y[at] = a[at] + b[at];
}
