// Running values of one trained token's softmax over vocabulary chunks; its logits are scores (score_*.wgsl).
struct Running {
  highest: f32, // largest logit so far
  total: f32, // sum of exp(logit - highest)
  target_logit: f32,
  factor: f32, // what earlier sums have to be multiplied by after the last chunk
}
