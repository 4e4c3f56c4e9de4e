// Raw F32 rows -> rows of vec4, padded with zeros (lib/weight_f32).
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
    let column = id.x * 4u + i;
    planes[pack + i] = select(0u, raw_u32(at + column * 4u), column < params.columns);
  }
}
