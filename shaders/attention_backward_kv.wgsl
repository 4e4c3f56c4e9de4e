// O = P V, P = softmax(score(scale Q K^T))  =>  dV[s] = sum_t P[t,s] dO[t] and
// dK[s] = scale sum_t P[t,s] (dO[t] . V[s] - delta[t]) slope Q[t], over the queries t that see s, of every head that
// shares this key head, with slope that of the score; P is recomputed from the kept log-sum-exp.
// One invocation owns KEYS neighbouring keys of one key-value head and walks their queries. Neighbouring
// invocations are heads, which walk the same queries.
// use: step, attention_backward_kv_io, score=score_plain
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
  var query: array<vec4<f32>, E4>;
  var upstream: array<vec4<f32>, E4>;
  for (var head = kv * group; head < (kv + 1u) * group; head++) {
    for (var t = range[0].x; t < range[KEYS - 1u].y; t++) {
      let row = t * params.heads + head;
      var products: array<vec4<f32>, KEYS>;
      var values: array<vec4<f32>, KEYS>;
      for (var j = 0u; j < KEYS; j++) { // unroll
        products[j] = vec4<f32>(0.0);
        values[j] = vec4<f32>(0.0);
      }
      for (var e = 0u; e < E4; e++) { // unroll
        query[e] = q[row * E4 + e];
        upstream[e] = dout[row * E4 + e];
        for (var j = 0u; j < KEYS; j++) { // unroll
          products[j] += key[j][e] * query[e];
          values[j] += value[j][e] * upstream[e];
        }
      }
      let kept = stats[row];
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
