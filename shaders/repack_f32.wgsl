// Raw F32 rows -> rows of vec4, padded with zeros (lib/weight_f32).
// One invocation makes one pack of one row.
// grid: ceil_div(weight_stride, 64), slice_rows
// use: raw, planes, finite
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= params.weight_stride {
    return;
  }
  let at = raw_start(id.y);
  var words = vec4<u32>();
  for (var i = 0u; i < 4u; i++) {
    let column = id.x * 4u + i;
    words[i] = select(0u, raw_u32(at + column * 4u), column < params.columns);
    if !is_finite(bitcast<f32>(words[i])) {
      mark(NOT_FINITE);
    }
  }
  store_pack(id.y, id.x, words);
}
