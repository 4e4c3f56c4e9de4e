// Raw F32 or BF16 rows -> f16 rows of eight, padded with zeros (lib/weight_f16). Values beyond f16
// and those that are not finite are marked.
// One invocation makes one pack of one row.
// grid: ceil_div(weight_stride, 64), slice_rows
// use: raw, planes, pack_f16
const BF16: bool = false;

fn value(row: u32, column: u32) -> f32 {
  if column >= params.columns {
    return 0.0;
  }
  if BF16 {
    return bitcast<f32>(raw_u16(row + 2u * column) << 16u);
  }
  return bitcast<f32>(raw_u32(row + 4u * column));
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= params.weight_stride {
    return;
  }
  let row = raw_start(id.y);
  var words = vec4<u32>();
  for (var i = 0u; i < 4u; i++) {
    let column = id.x * 8u + i * 2u;
    let pair = vec2<f32>(value(row, column), value(row, column + 1u));
    let magnitude = bitcast<vec2<u32>>(pair) & vec2<u32>(0x7FFFFFFFu);
    if any(magnitude >= vec2<u32>(0x7F800000u)) {
      mark(NOT_FINITE);
    } else if any(magnitude > vec2<u32>(0x477FE000u)) { // 65504
      mark(BEYOND_F16);
    }
    words[i] = f16_bits(pair.x) | (f16_bits(pair.y) << 16u);
  }
  store_pack(id.y, id.x, words);
}
