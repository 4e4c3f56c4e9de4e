// Y <- score(Y): the soft-cap of logits that are read, CAP tanh(Y / CAP).
// One invocation caps four values.
// use: step, flat, elements, rows, score=score_capped
@group(0) @binding(0) var<storage, read_write> y: array<vec4<f32>>;

fn element(at: u32) {
  y[at] = to_score4(y[at]);
}
