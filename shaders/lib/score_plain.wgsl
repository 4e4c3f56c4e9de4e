// The score that softmax sees of scale Q . K, or of a logit: itself.
// Every score_*.wgsl gives the same, for one score and for four: `to_score` makes it, and `score_back` takes
// a gradient d of the score s back to scale Q . K.
fn to_score(product: f32) -> f32 {
  return product;
}

fn to_score4(product: vec4<f32>) -> vec4<f32> {
  return product;
}

fn score_back(s: f32, d: f32) -> f32 {
  return d;
}

fn score_back4(s: vec4<f32>, d: vec4<f32>) -> vec4<f32> {
  return d;
}
