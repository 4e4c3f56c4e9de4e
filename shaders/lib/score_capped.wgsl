// The score that softmax sees of scale Q . K: CAP tanh(scale Q . K / CAP), whose slope is 1 - (s / CAP)^2.
const CAP: f32 = 50.0;
const SATURATED: f32 = 10.0; // tanh is 1 from 9.1 on; large arguments overflow within some drivers' tanh

fn to_score(product: f32) -> f32 {
  return CAP * tanh(clamp(product / CAP, -SATURATED, SATURATED));
}

fn to_score4(product: vec4<f32>) -> vec4<f32> {
  return CAP * tanh(clamp(product / CAP, vec4<f32>(-SATURATED), vec4<f32>(SATURATED)));
}

fn score_back(s: f32, d: f32) -> f32 {
  return d * (1.0 - s / CAP) * (1.0 + s / CAP);
}

fn score_back4(s: vec4<f32>, d: vec4<f32>) -> vec4<f32> {
  return d * (1.0 - s / CAP) * (1.0 + s / CAP);
}
