// Y = act(X).
// One invocation computes four values.
// use: step, flat, elements, rows, activation=activation_silu
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

fn element(at: u32) {
  y[at] = activate(x[at]);
}
