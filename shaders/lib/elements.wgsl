// What kernels that compute one vec4 of (rows, 4 d4) values an invocation share: each gives `element`, which
// computes vec4 `at` of all rows.
// grid: min(ceil_div(rows * d4, FLAT), 65535), ceil_div(rows * d4, 65535 * FLAT)
@compute @workgroup_size(FLAT)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let at = flat_index(group, lane);
  if at < step.counts[params.rows] * params.d4 {
    element(at);
  }
}
