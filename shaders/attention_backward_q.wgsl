// O = P V, P = softmax(score(scale Q K^T))  =>  dQ[t,h] = scale sum_s P[t,s] (dO[t,h] . V[s] - delta[t,h]) slope K[s]
// over the keys that t sees, with slope that of the score and P recomputed from the kept log-sum-exp.
// One invocation owns QUERIES neighbouring queries of one head and walks their keys. Neighbouring invocations
// are heads, which walk the same keys.
// use: step, attention_backward_q_io, score=score_plain
// grid: ceil_div(ceil_div(rows, QUERIES) * heads, WORKGROUP)
const QUERIES: u32 = min(max(48u / E4, 2u), 8u);
const WORKGROUP: u32 = 8u;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let rows = step.counts[params.rows];
  let head = id.x % params.heads;
  let t0 = id.x / params.heads * QUERIES;
  if t0 >= rows {
    return;
  }
  let kv = head / (params.heads / params.kv_heads);
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
  var key: array<vec4<f32>, E4>;
  for (var s = range[0].x; s < range[QUERIES - 1u].y; s++) {
    let at = (s * params.kv_heads + kv) * E4;
    var products: array<vec4<f32>, QUERIES>;
    var values: array<vec4<f32>, QUERIES>;
    for (var i = 0u; i < QUERIES; i++) { // unroll
      products[i] = vec4<f32>(0.0);
      values[i] = vec4<f32>(0.0);
    }
    for (var e = 0u; e < E4; e++) { // unroll
      key[e] = k[at + e];
      let value = v[at + e];
      for (var i = 0u; i < QUERIES; i++) { // unroll
        products[i] += query[i][e] * key[e];
        values[i] += upstream[i][e] * value;
      }
    }
    for (var i = 0u; i < QUERIES; i++) { // unroll
      let seen = s >= range[i].x && s < range[i].y;
      let score = to_score(dot(products[i], vec4<f32>(1.0)));
      let p = select(0.0, exp(score - kept[i].x), seen);
      let ds = score_back(score, p * (dot(values[i], vec4<f32>(1.0)) - kept[i].y)) * params.scale;
      for (var e = 0u; e < E4; e++) { // unroll
        gradient[i][e] += ds * key[e];
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
