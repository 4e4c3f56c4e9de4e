// O = P V, P = softmax(score(scale Q K^T))  =>  dV[s] = sum_t P[t,s] dO[t] and
// dK[s] = scale sum_t P[t,s] (dO[t] . V[s] - delta[t]) slope Q[t], over the queries t that see s, of every head that
// shares this key head, with slope that of the score; P is recomputed from the kept log-sum-exp.
// One invocation owns KEYS neighbouring keys of one key-value head and walks their queries. Neighbouring
// invocations are heads, which walk the same queries.
// use: step, attention_io, attention_backward_kv_io, attention_backward_kv_walk, score=score_plain
// grid: ceil_div(ceil_div(rows, KEYS) * kv_heads, WORKGROUP)
const KEYS: u32 = min(max(48u / E4, 2u), 8u);
const WORKGROUP: u32 = 8u;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let rows = step.counts[params.rows];
  let kv = id.x % params.kv_heads;
  let s0 = id.x / params.kv_heads * KEYS;
  if s0 >= rows {
    return;
  }
  let group = params.heads / params.kv_heads;
  begin(s0, kv, rows);
  for (var head = kv * group; head < (kv + 1u) * group; head++) {
    for (var t = range[0].x; t < range[KEYS - 1u].y; t++) {
      let row = t * params.heads + head;
      start_query();
      for (var e = 0u; e < E4; e++) { // unroll
        meet(e, q[row * E4 + e], dout[row * E4 + e]);
      }
      weigh(t, stats[row]);
    }
  }
  finish(s0, kv, rows);
}
