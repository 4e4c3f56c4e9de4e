// What changes from step to step. counts: x = T tokens, y = C trained tokens.
struct Step {
  counts: vec4<u32>,
  dropout_key: u32,
  slot: u32, // of the report ring
  learning_rate: f32,
  keep: f32, // 1 - learning_rate * weight_decay
  max_grad_norm: f32, // 0 = no clipping
  beta1: f32,
  beta2: f32,
  rest1: f32, // 1 - beta1, rounded once
  rest2: f32,
  correction1: f32, // 1 - beta1^number
  correction2: f32, // 1 - beta2^number
  epsilon: f32,
}
@group(0) @binding(14) var<uniform> step: Step;
