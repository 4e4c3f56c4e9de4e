// O[t,h] = sum_s p[s] V[s,k], p = softmax_s(score(scale Q[t,h] . K[s,k])) over the keys s that t sees, k = h / group.
// Keeps stats[t,h].x = log sum_s exp(score) for the backward pass; no T x T matrix exists.
// One invocation owns QUERIES neighbouring queries of one head and walks their keys with a running
// maximum. Neighbouring invocations are heads, which walk the same keys.
// use: step, attention_io, attention_forward_io, attention_forward_walk, score=score_plain
// grid: ceil_div(ceil_div(rows, QUERIES) * heads, WORKGROUP)
const QUERIES: u32 = min(max(64u / E4, 2u), 8u);
const WORKGROUP: u32 = 8u;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let rows = step.counts[params.rows];
  let head = id.x % params.heads;
  let kv = head / (params.heads / params.kv_heads);
  let t0 = id.x / params.heads * QUERIES;
  if t0 >= rows {
    return;
  }
  begin(t0, head, rows);
  for (var s = range[0].x; s < range[QUERIES - 1u].y; s++) {
    let at = (s * params.kv_heads + kv) * E4;
    start_key();
    for (var e = 0u; e < E4; e++) { // unroll
      meet_key(e, k[at + e]);
    }
    weigh(s);
    for (var e = 0u; e < E4; e++) { // unroll
      take_value(e, v[at + e]);
    }
  }
  finish(t0, head, rows);
}
