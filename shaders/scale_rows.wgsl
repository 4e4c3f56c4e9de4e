// Y[c] *= running[c].factor: brings an accumulated sum to the new running maximum.
// One invocation scales four values.
// use: step, flat, elements, rows, running
@group(0) @binding(0) var<storage, read> running: array<Running>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

fn element(at: u32) {
  y[at] *= running[at / params.d4].factor;
}
