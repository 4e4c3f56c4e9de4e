// dQ[t,h] = scale sum_s P[t,s] (dO[t,h] . V[s] - delta[t,h]) slope K[s] as attention_backward_q, for small
// subgroups: lanes own neighbouring queries of one head, and each loads another part of a key and a
// value, which it hands to the others.
// One invocation owns QUERIES queries, a workgroup is one subgroup, whose true size SUBGROUP must be, and
// walks all keys that its queries see.
// use: step, attention_io, attention_backward_q_io, attention_backward_q_walk, score=score_plain
// grid: ceil_div(rows, QUERIES * SUBGROUP), heads
const SUBGROUP: u32 = 8u;
const QUERIES: u32 = min(max(32u / E4, 2u), 8u);
const LOADS: u32 = (E4 + SUBGROUP - 1u) / SUBGROUP; // of a key by a lane

@compute @workgroup_size(SUBGROUP)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let rows = step.counts[params.rows];
  let head = group.y;
  let kv = head / (params.heads / params.kv_heads);
  let first = group.x * SUBGROUP * QUERIES;
  let after = key_range[min(first + SUBGROUP * QUERIES, rows) - 1u].y;
  let t0 = first + lane * QUERIES;
  begin(t0, head, rows);
  var key_parts: array<vec4<f32>, LOADS>;
  var value_parts: array<vec4<f32>, LOADS>;
  for (var s = key_range[first].x; s < after; s++) {
    let at = (s * params.kv_heads + kv) * E4;
    for (var l = 0u; l < LOADS; l++) { // unroll
      key_parts[l] = k[at + min(l * SUBGROUP + lane, E4 - 1u)];
      value_parts[l] = v[at + min(l * SUBGROUP + lane, E4 - 1u)];
    }
    start_key();
    for (var e = 0u; e < E4; e++) { // unroll
      let key_part = subgroupBroadcast(key_parts[e / SUBGROUP], e % SUBGROUP);
      meet(e, key_part, subgroupBroadcast(value_parts[e / SUBGROUP], e % SUBGROUP));
    }
    weigh(s);
  }
  finish(t0, head, rows);
}
