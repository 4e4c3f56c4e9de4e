// O = P V, P = softmax(scale Q K^T)  =>  dQ[t,h] = scale sum_s P[t,s] (dO[t,h] . V[s] - delta[t,h]) K[s],
// with P recomputed from the kept log-sum-exp.
// One invocation owns one query of one head and walks its keys.
// grid: ceil_div(rows, WORKGROUP), heads
// use: step
struct Params {
  rows: u32,
  heads: u32,
  kv_heads: u32,
  scale: f32,
}
const E4: u32 = 2u; // head size / 4
const WORKGROUP: u32 = 32u;
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
  let t = id.x;
  let head = id.y;
  if t >= step.counts[params.rows] {
    return;
  }
  let kv = head / (params.heads / params.kv_heads);
  let at = (t * params.heads + head) * E4;
  let kept = stats[t * params.heads + head];
  var query: array<vec4<f32>, E4>;
  var upstream: array<vec4<f32>, E4>;
  var gradient: array<vec4<f32>, E4>;
  for (var e = 0u; e < E4; e++) { // unroll
    query[e] = q[at + e] * params.scale;
    upstream[e] = dout[at + e];
    gradient[e] = vec4<f32>(0.0);
  }
  for (var s = spans[t].x; s <= t; s++) {
    let key = (s * params.kv_heads + kv) * E4;
    var products = vec4<f32>(0.0);
    var values = vec4<f32>(0.0);
    for (var e = 0u; e < E4; e++) { // unroll
      products += query[e] * k[key + e];
      values += upstream[e] * v[key + e];
    }
    let p = exp(dot(products, vec4<f32>(1.0)) - kept.x);
    let ds = p * (dot(values, vec4<f32>(1.0)) - kept.y) * params.scale;
    for (var e = 0u; e < E4; e++) { // unroll
      gradient[e] += ds * k[key + e];
    }
  }
  for (var e = 0u; e < E4; e++) { // unroll
    dq[at + e] = gradient[e];
  }
}
