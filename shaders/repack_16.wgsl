// Raw F16 or BF16 rows -> rows of eight, padded with zeros (lib/weight_f16, lib/weight_bf16).
// One invocation makes one pack of one row.
// grid: ceil_div(packs, 64), slice_rows
// use: raw, planes
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= params.packs {
    return;
  }
  let at = params.raw_offset + id.y * params.raw_row;
  let pack = ((params.first_row + id.y) * params.packs + id.x) * 4u;
  for (var i = 0u; i < 4u; i++) {
    let column = id.x * 8u + i * 2u;
    let low = select(0u, raw_u16(at + column * 2u), column < params.columns);
    let high = select(0u, raw_u16(at + column * 2u + 2u), column + 1u < params.columns);
    planes[pack + i] = low | (high << 16u);
  }
}
