// O = P V, P = softmax(scale Q K^T)  =>  dQ[t,h] = scale sum_s P[t,s] (dO[t,h] . V[s] - delta[t,h]) K[s],
// with P recomputed from the kept log-sum-exp.
// One invocation owns QUERIES neighbouring queries of one head and walks their keys. Neighbouring invocations
// are heads, which walk the same keys.
// use: step
// grid: ceil_div(ceil_div(rows, QUERIES) * heads, WORKGROUP)
struct Params {
  rows: u32,
  heads: u32,
  kv_heads: u32,
  scale: f32,
}
const E4: u32 = 2u; // head size / 4
const QUERIES: u32 = min(max(48u / E4, 2u), 8u);
const WORKGROUP: u32 = 8u;
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> stats: array<vec2<f32>>; // log-sum-exp, delta
@group(0) @binding(5) var<storage, read> spans: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read_write> dq: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

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
  var start: array<u32, QUERIES>;
  var kept: array<vec2<f32>, QUERIES>;
  for (var i = 0u; i < QUERIES; i++) { // unroll
    let t = min(t0 + i, rows - 1u);
    let row = t * params.heads + head;
    start[i] = spans[t].x;
    kept[i] = stats[row];
    for (var e = 0u; e < E4; e++) { // unroll
      query[i][e] = q[row * E4 + e] * params.scale;
      upstream[i][e] = dout[row * E4 + e];
      gradient[i][e] = vec4<f32>(0.0);
    }
  }
  let last = min(t0 + QUERIES, rows) - 1u;
  var key: array<vec4<f32>, E4>;
  for (var s = start[0]; s <= last; s++) {
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
      let seen = s >= start[i] && s <= t0 + i;
      let p = select(0.0, exp(dot(products[i], vec4<f32>(1.0)) - kept[i].x), seen);
      let ds = p * (dot(values[i], vec4<f32>(1.0)) - kept[i].y) * params.scale;
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
