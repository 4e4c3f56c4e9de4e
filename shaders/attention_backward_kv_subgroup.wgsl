// dV[s] = sum_t P[t,s] dO[t] and dK[s] = scale sum_t P[t,s] (dO[t] . V[s] - delta[t]) slope Q[t] as
// attention_backward_kv, for small subgroups: lanes own neighbouring keys of one key-value head, and each
// loads another part of a query and its dO, which it hands to the others.
// One invocation owns KEYS keys, a workgroup is one subgroup, whose true size SUBGROUP must be, and walks all
// queries that see its keys.
// use: step, attention_io, attention_backward_kv_io, attention_backward_kv_walk, score=score_plain
// grid: ceil_div(rows, KEYS * SUBGROUP), kv_heads
const SUBGROUP: u32 = 8u;
const KEYS: u32 = min(max(32u / E4, 2u), 8u);
const LOADS: u32 = (E4 + SUBGROUP - 1u) / SUBGROUP; // of a query by a lane

@compute @workgroup_size(SUBGROUP)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let rows = step.counts[params.rows];
  let kv = group.y;
  let shared_by = params.heads / params.kv_heads;
  let first = group.x * SUBGROUP * KEYS;
  let start = query_range[first].x;
  let after = query_range[min(first + SUBGROUP * KEYS, rows) - 1u].y;
  let s0 = first + lane * KEYS;
  begin(s0, kv, rows);
  var query_parts: array<vec4<f32>, LOADS>;
  var dout_parts: array<vec4<f32>, LOADS>;
  for (var head = kv * shared_by; head < (kv + 1u) * shared_by; head++) {
    for (var t = start; t < after; t++) {
      let row = t * params.heads + head;
      for (var l = 0u; l < LOADS; l++) { // unroll
        query_parts[l] = q[row * E4 + min(l * SUBGROUP + lane, E4 - 1u)];
        dout_parts[l] = dout[row * E4 + min(l * SUBGROUP + lane, E4 - 1u)];
      }
      let kept = stats[row];
      start_query();
      for (var e = 0u; e < E4; e++) { // unroll
        let query_part = subgroupBroadcast(query_parts[e / SUBGROUP], e % SUBGROUP);
        meet(e, query_part, subgroupBroadcast(dout_parts[e / SUBGROUP], e % SUBGROUP));
      }
      weigh(t, kept);
    }
  }
  finish(s0, kv, rows);
}
