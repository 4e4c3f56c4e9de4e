// Raw F16 or BF16 rows -> rows of eight, padded with zeros (lib/weight_f16, lib/weight_bf16).
// One invocation makes one pack of one row.
// grid: ceil_div(weight_stride, 64), slice_rows
// use: raw, planes
const EXPONENT: u32 = 31744u; // its bits, all of which are set where a value is not finite: those of f16
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= params.weight_stride {
    return;
  }
  let at = raw_start(id.y);
  var words = vec4<u32>();
  for (var i = 0u; i < 4u; i++) {
    let column = id.x * 8u + i * 2u;
    let low = select(0u, raw_u16(at + column * 2u), column < params.columns);
    let high = select(0u, raw_u16(at + column * 2u + 2u), column + 1u < params.columns);
    if (low & EXPONENT) == EXPONENT || (high & EXPONENT) == EXPONENT {
      mark(NOT_FINITE);
    }
    words[i] = low | (high << 16u);
  }
  store_pack(id.y, id.x, words);
}
