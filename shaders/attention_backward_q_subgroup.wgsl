// dQ[t,h] = scale sum_s P[t,s] (dO[t,h] . V[s] - delta[t,h]) slope K[s] as attention_backward_q, for small
// subgroups: lanes own neighbouring queries of one head, and each loads another part of a key and a
// value, which it hands to the others.
// One invocation owns QUERIES queries, a workgroup is one subgroup, whose true size SUBGROUP must be, and
// walks all keys that its queries see.
// use: step, attention_backward_q_io, score=score_plain
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
  var query: array<array<vec4<f32>, E4>, QUERIES>;
  var upstream: array<array<vec4<f32>, E4>, QUERIES>;
  var gradient: array<array<vec4<f32>, E4>, QUERIES>;
  var range: array<vec2<u32>, QUERIES>;
  var kept: array<vec2<f32>, QUERIES>;
  for (var i = 0u; i < QUERIES; i++) { // unroll
    let t = min(t0 + i, rows - 1u);
    let row = t * params.heads + head;
    range[i] = key_range[t];
    kept[i] = stats[row];
    for (var e = 0u; e < E4; e++) { // unroll
      query[i][e] = q[row * E4 + e] * params.scale;
      upstream[i][e] = dout[row * E4 + e];
      gradient[i][e] = vec4<f32>(0.0);
    }
  }
  var key: array<vec4<f32>, LOADS>;
  var value: array<vec4<f32>, LOADS>;
  var parts: array<vec4<f32>, E4>; // of the key
  for (var s = key_range[first].x; s < after; s++) {
    let at = (s * params.kv_heads + kv) * E4;
    for (var l = 0u; l < LOADS; l++) { // unroll
      key[l] = k[at + min(l * SUBGROUP + lane, E4 - 1u)];
      value[l] = v[at + min(l * SUBGROUP + lane, E4 - 1u)];
    }
    var products: array<vec4<f32>, QUERIES>;
    var values: array<vec4<f32>, QUERIES>;
    for (var i = 0u; i < QUERIES; i++) { // unroll
      products[i] = vec4<f32>(0.0);
      values[i] = vec4<f32>(0.0);
    }
    for (var e = 0u; e < E4; e++) { // unroll
      parts[e] = subgroupBroadcast(key[e / SUBGROUP], e % SUBGROUP);
      let part = subgroupBroadcast(value[e / SUBGROUP], e % SUBGROUP);
      for (var i = 0u; i < QUERIES; i++) { // unroll
        products[i] += query[i][e] * parts[e];
        values[i] += upstream[i][e] * part;
      }
    }
    for (var i = 0u; i < QUERIES; i++) { // unroll
      let seen = s >= range[i].x && s < range[i].y;
      let score = to_score(dot(products[i], vec4<f32>(1.0)));
      let p = select(0.0, exp(score - kept[i].x), seen);
      let ds = score_back(score, p * (dot(values[i], vec4<f32>(1.0)) - kept[i].y)) * params.scale;
      for (var e = 0u; e < E4; e++) { // unroll
        gradient[i][e] += ds * parts[e];
      }
    }
  }
  for (var i = 0u; i < QUERIES; i++) { // unroll
    if t0 + i < rows {
      for (var e = 0u; e < E4; e++) { // unroll
        dq[((t0 + i) * params.heads + head) * E4 + e] = gradient[i][e];
      }
    }
  }
}
