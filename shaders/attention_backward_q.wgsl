// O = P V, P = softmax(score(scale Q K^T))  =>  dQ[t,h] = scale sum_s P[t,s] (dO[t,h] . V[s] - delta[t,h]) slope K[s]
// over the keys that t sees, with slope that of the score and P recomputed from the kept log-sum-exp.
// One invocation owns QUERIES neighbouring queries of one head and walks their keys. Neighbouring invocations
// are heads, which walk the same keys.
// use: step, attention_io, attention_backward_q_io, attention_backward_q_walk, score=score_plain
// grid: ceil_div(ceil_div(rows, QUERIES) * heads, WORKGROUP)
const QUERIES: u32 = min(max(48u / E4, 2u), 8u);
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
      meet(e, k[at + e], v[at + e]);
    }
    weigh(s);
  }
  finish(t0, head, rows);
}
