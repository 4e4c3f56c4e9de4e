// Raw Q4_0 rows (blocks of an f16 scale and 32 nibbles, the low ones first) -> planes of quants and scales
// (lib/weight_q4_0): nibble s of word c is value 4 s + c, as two's complement.
// One invocation makes one pack of 32 values of one row, and every second one a pair of scales.
// grid: ceil_div(weight_stride, 64), slice_rows
// use: raw, planes
const BLOCK: u32 = 18u; // bytes
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= params.weight_stride {
    return;
  }
  let at = raw_start(id.y) + id.x * BLOCK;
  var words = vec4<u32>(0u);
  for (var s = 0u; s < 4u; s++) {
    let four = (vec4<u32>(raw_u32(at + 2u + 4u * s)) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xFFu);
    words |= (four & vec4<u32>(15u)) << vec4<u32>(4u * s);
    words |= (four >> vec4<u32>(4u)) << vec4<u32>(4u * s + 16u);
  }
  store_pack(id.y, id.x, words ^ vec4<u32>(0x88888888u));
  if id.x % 2u == 0u {
    var high = 0u;
    if id.x + 1u < params.weight_stride {
      high = raw_u16(at + BLOCK);
    }
    store_side(id.y, id.x / 2u, raw_u16(at) | (high << 16u));
  }
}
