// Y += s z B^T, what loaded adapters add where the product with the base weight does not take it along:
// over outputs of B from `lora_row` on, padding stays as it is.
// One invocation adds four values.
// use: step, flat, elements, lora_stacked
struct Params {
  rows: u32,
  d4: u32, // vec4s in a row of y
  n: u32,  // outputs
  lora_row: u32,
  lora_first: u32, // as in product_nt
  lora_stride: u32,
  lora_outputs: u32,
}
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

fn element(at: u32) {
  let row = at / params.d4;
  let col = 4u * (at % params.d4);
  var sum = y[at];
  for (var r = 0u; r < lora_steps(); r++) {
    let z = lora_input(row, r);
    for (var c = 0u; c < 4u; c++) {
      if (col + c < params.n) {
        sum[c] += dot(z, lora_weight(params.lora_row + col + c, 0u, r));
      }
    }
  }
  y[at] = sum;
}
