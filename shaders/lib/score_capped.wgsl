// The score that softmax sees of p = scale Q . K, or of a logit p: CAP tanh(p / CAP), whose slope is 1 - (s / CAP)^2.
const CAP: f32 = 50.0;
const SATURATED: f32 = 10.0; // tanh is 1 from 9.1 on; large arguments overflow within some drivers' tanh

// What is not finite stays so, or nobody would notice: no float operation can be trusted to tell (finite.wgsl).
fn to_score(product: f32) -> f32 {
  let capped = CAP * tanh(clamp(product / CAP, -SATURATED, SATURATED));
  return select(capped, product, (bitcast<u32>(product) & 0x7F800000u) == 0x7F800000u);
}

fn to_score4(product: vec4<f32>) -> vec4<f32> {
  let capped = CAP * tanh(clamp(product / CAP, vec4<f32>(-SATURATED), vec4<f32>(SATURATED)));
  let exponent = bitcast<vec4<u32>>(product) & vec4<u32>(0x7F800000u);
  return select(capped, product, exponent == vec4<u32>(0x7F800000u));
}

fn score_back(s: f32, d: f32) -> f32 {
  return d * (1.0 - s / CAP) * (1.0 + s / CAP);
}

fn score_back4(s: vec4<f32>, d: vec4<f32>) -> vec4<f32> {
  return d * (1.0 - s / CAP) * (1.0 + s / CAP);
}
