// Raw Q8_0 rows (blocks of an f16 scale and 32 int8) -> planes of quants and scales (lib/weight_q8_0).
// One invocation makes one pack of sixteen values of one row, and every fourth one a pair of scales.
// grid: ceil_div(packs, 64), slice_rows
// use: raw, planes
const BLOCK: u32 = 34u; // bytes
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= params.packs {
    return;
  }
  let row = params.raw_offset + id.y * params.raw_row;
  let at = row + (id.x / 2u) * BLOCK + 2u + (id.x & 1u) * 16u;
  var words = vec4<u32>(0u);
  for (var s = 0u; s < 4u; s++) {
    let four = (vec4<u32>(raw_u32(at + 4u * s)) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xFFu);
    words |= four << vec4<u32>(8u * s);
  }
  let out_row = params.first_row + id.y;
  let pack = (out_row * params.packs + id.x) * 4u;
  for (var i = 0u; i < 4u; i++) {
    planes[pack + i] = words[i];
  }
  if id.x % 4u == 0u {
    let low = raw_u16(row + (id.x / 2u) * BLOCK);
    var high = 0u;
    if id.x + 2u < params.packs {
      high = raw_u16(row + (id.x / 2u + 1u) * BLOCK);
    }
    planes[params.scales_at + out_row * params.scale_stride + id.x / 4u] = low | (high << 16u);
  }
}
