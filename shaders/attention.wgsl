// O[t,h] = sum_s p[s] V[s,k], p = softmax_s(score(scale Q[t,h] . K[s,k])) over the keys s that t sees, k = h / group.
// Keeps stats[t,h].x = log sum_s exp(score) for the backward pass; no T x T matrix exists.
// One invocation owns QUERIES neighbouring queries of one head and walks their keys with a running
// maximum. Neighbouring invocations are heads, which walk the same keys.
// use: step, attention_io, score=score_plain
// grid: ceil_div(ceil_div(rows, QUERIES) * heads, WORKGROUP)
const QUERIES: u32 = min(max(64u / E4, 2u), 8u);
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
  var sum_v: array<array<vec4<f32>, E4>, QUERIES>;
  var range: array<vec2<u32>, QUERIES>;
  var highest: array<f32, QUERIES>;
  var total: array<f32, QUERIES>;
  for (var i = 0u; i < QUERIES; i++) { // unroll
    let t = min(t0 + i, rows - 1u);
    range[i] = key_range[t];
    highest[i] = -1e30;
    total[i] = 0.0;
    for (var e = 0u; e < E4; e++) { // unroll
      query[i][e] = q[(t * params.heads + head) * E4 + e] * params.scale;
      sum_v[i][e] = vec4<f32>(0.0);
    }
  }
  for (var s = range[0].x; s < range[QUERIES - 1u].y; s++) {
    let at = (s * params.kv_heads + kv) * E4;
    var products: array<vec4<f32>, QUERIES>;
    for (var i = 0u; i < QUERIES; i++) { // unroll
      products[i] = vec4<f32>(0.0);
    }
    for (var e = 0u; e < E4; e++) { // unroll
      let key = k[at + e];
      for (var i = 0u; i < QUERIES; i++) { // unroll
        products[i] += query[i][e] * key;
      }
    }
    var p: array<f32, QUERIES>;
    for (var i = 0u; i < QUERIES; i++) { // unroll
      let seen = s >= range[i].x && s < range[i].y;
      let score = to_score(dot(products[i], vec4<f32>(1.0)));
      let above = select(highest[i], max(highest[i], score), seen);
      let shrink = exp(highest[i] - above);
      p[i] = select(0.0, exp(score - above), seen);
      highest[i] = above;
      total[i] = total[i] * shrink + p[i];
      for (var e = 0u; e < E4; e++) { // unroll
        sum_v[i][e] *= shrink;
      }
    }
    for (var e = 0u; e < E4; e++) { // unroll
      let value = v[at + e];
      for (var i = 0u; i < QUERIES; i++) { // unroll
        sum_v[i][e] += p[i] * value;
      }
    }
  }
  for (var i = 0u; i < QUERIES; i++) { // unroll
    if t0 + i < rows {
      let row = (t0 + i) * params.heads + head;
      for (var e = 0u; e < E4; e++) { // unroll
        o[row * E4 + e] = sum_v[i][e] / total[i];
      }
      stats[row] = vec2<f32>(highest[i] + log(total[i]), 0.0);
    }
  }
}
