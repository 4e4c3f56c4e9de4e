// Raw Q8_0 rows (blocks of an f16 scale and 32 int8) -> planes of quants and scales (lib/weight_q8_0).
// One invocation makes one pack of sixteen values of one row, and every fourth one a pair of scales.
// grid: ceil_div(weight_stride, 64), slice_rows
// use: raw, planes
const BLOCK: u32 = 34u; // bytes
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= params.weight_stride {
    return;
  }
  let row = raw_start(id.y);
  let at = row + (id.x / 2u) * BLOCK + 2u + (id.x & 1u) * 16u;
  var words = vec4<u32>(0u);
  for (var s = 0u; s < 4u; s++) {
    let four = (vec4<u32>(raw_u32(at + 4u * s)) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xFFu);
    words |= four << vec4<u32>(8u * s);
  }
  store_pack(id.y, id.x, words);
  if id.x % 4u == 0u {
    let low = raw_u16(row + (id.x / 2u) * BLOCK);
    var high = 0u;
    if id.x + 2u < params.weight_stride {
      high = raw_u16(row + (id.x / 2u + 1u) * BLOCK);
    }
    store_side(id.y, id.x / 4u, low | (high << 16u));
  }
}
