// norm = sqrt(sum partials) / count; the step's loss, norm and count go to its slot of the report ring, and
// control.factor = min(1, max_grad_norm / (norm + 1e-6)) / count is what AdamW multiplies gradients by.
// Where loss or norm is not finite, control.latched is set and stays: AdamW then writes nothing, in this step and
// in every one already queued behind it.
// One workgroup does it all, in a fixed order.
// grid: 1
// use: step, reduce, finite, control
struct Params {
  partial_count: u32,
}
@group(0) @binding(0) var<storage, read> partials: array<f32>;
@group(0) @binding(1) var<storage, read_write> totals: Totals;
@group(0) @binding(2) var<storage, read_write> control: Control;
@group(0) @binding(3) var<storage, read_write> ring: array<Report>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
  var squares = 0.0;
  for (var i = lane; i < params.partial_count; i += LANES) {
    squares += partials[i];
  }
  squares = workgroup_sum(lane, squares);
  if lane != 0u {
    return;
  }
  let count = f32(max(totals.count, 1u));
  let norm = sqrt(squares) / count;
  let loss = totals.loss / count;
  if !is_finite(norm) || !is_finite(loss) {
    control.latched = 1u;
  }
  var factor = 1.0 / count;
  if step.max_grad_norm > 0.0 {
    factor *= min(1.0, step.max_grad_norm / (norm + 1e-6));
  }
  control.factor = factor;
  ring[step.slot] = Report(loss, norm, totals.count, 1u - control.latched);
  totals.loss = 0.0;
  totals.count = 0u;
}
