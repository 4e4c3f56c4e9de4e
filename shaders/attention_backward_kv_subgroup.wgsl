// dV[s] = sum_t P[t,s] dO[t] and dK[s] = scale sum_t P[t,s] (dO[t] . V[s] - delta[t]) slope Q[t] as
// attention_backward_kv, for small subgroups: lanes own neighbouring keys of one key-value head, and each
// loads another part of a query and its dO, which it hands to the others.
// One invocation owns KEYS keys, a workgroup is one subgroup, whose true size SUBGROUP must be, and walks all
// queries that see its keys.
// use: step, attention_backward_kv_io, score=score_plain
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
  let s0 = first + lane * KEYS;
  var key: array<array<vec4<f32>, E4>, KEYS>;
  var value: array<array<vec4<f32>, E4>, KEYS>;
  var key_gradient: array<array<vec4<f32>, E4>, KEYS>;
  var value_gradient: array<array<vec4<f32>, E4>, KEYS>;
  var range: array<vec2<u32>, KEYS>;
  for (var j = 0u; j < KEYS; j++) { // unroll
    let s = min(s0 + j, rows - 1u);
    range[j] = query_range[s];
    for (var e = 0u; e < E4; e++) { // unroll
      key[j][e] = k[(s * params.kv_heads + kv) * E4 + e] * params.scale;
      value[j][e] = v[(s * params.kv_heads + kv) * E4 + e];
      key_gradient[j][e] = vec4<f32>(0.0);
      value_gradient[j][e] = vec4<f32>(0.0);
    }
  }
  let start = query_range[first].x;
  let after = query_range[min(first + SUBGROUP * KEYS, rows) - 1u].y;
  var mine_q: array<vec4<f32>, LOADS>;
  var mine_d: array<vec4<f32>, LOADS>;
  var query: array<vec4<f32>, E4>;
  var upstream: array<vec4<f32>, E4>;
  for (var head = kv * shared_by; head < (kv + 1u) * shared_by; head++) {
    for (var t = start; t < after; t++) {
      let row = t * params.heads + head;
      for (var l = 0u; l < LOADS; l++) { // unroll
        mine_q[l] = q[row * E4 + min(l * SUBGROUP + lane, E4 - 1u)];
        mine_d[l] = dout[row * E4 + min(l * SUBGROUP + lane, E4 - 1u)];
      }
      let kept = stats[row];
      var products: array<vec4<f32>, KEYS>;
      var values: array<vec4<f32>, KEYS>;
      for (var j = 0u; j < KEYS; j++) { // unroll
        products[j] = vec4<f32>(0.0);
        values[j] = vec4<f32>(0.0);
      }
      for (var e = 0u; e < E4; e++) { // unroll
        query[e] = subgroupBroadcast(mine_q[e / SUBGROUP], e % SUBGROUP);
        upstream[e] = subgroupBroadcast(mine_d[e / SUBGROUP], e % SUBGROUP);
        for (var j = 0u; j < KEYS; j++) { // unroll
          products[j] += key[j][e] * query[e];
          values[j] += value[j][e] * upstream[e];
        }
      }
      for (var j = 0u; j < KEYS; j++) { // unroll
        let seen = t >= range[j].x && t < range[j].y;
        let score = to_score(dot(products[j], vec4<f32>(1.0)));
        let p = select(0.0, exp(score - kept.x), seen);
        let ds = score_back(score, p * (dot(values[j], vec4<f32>(1.0)) - kept.y)) * params.scale;
        for (var e = 0u; e < E4; e++) { // unroll
          key_gradient[j][e] += ds * query[e];
          value_gradient[j][e] += p * upstream[e];
        }
      }
    }
  }
  for (var j = 0u; j < KEYS; j++) { // unroll
    if s0 + j < rows {
      for (var e = 0u; e < E4; e++) { // unroll
        let at = ((s0 + j) * params.kv_heads + kv) * E4 + e;
        dk[at] = key_gradient[j][e];
        dv[at] = value_gradient[j][e];
      }
    }
  }
}
