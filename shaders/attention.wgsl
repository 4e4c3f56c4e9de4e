// O[t,h] = sum_s p[s] V[s,k], p = softmax_s(scale Q[t,h] . K[s,k]) over row start <= s <= t, k = h / group.
// Keeps stats[t,h].x = log sum_s exp(scale Q . K) for the backward pass; no T x T matrix exists.
// One invocation owns one query of one head and walks its keys four at a time with a running maximum.
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
@group(0) @binding(3) var<storage, read> spans: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> stats: array<vec2<f32>>;
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
  var query: array<vec4<f32>, E4>;
  var sum_v: array<vec4<f32>, E4>;
  for (var e = 0u; e < E4; e++) { // unroll
    query[e] = q[at + e] * params.scale;
    sum_v[e] = vec4<f32>(0.0);
  }
  var highest = -1e30;
  var total = 0.0;
  for (var s = spans[t].x; s <= t; s += 4u) {
    var score: vec4<f32>;
    for (var j = 0u; j < 4u; j++) { // unroll
      let key = (min(s + j, t) * params.kv_heads + kv) * E4;
      var products = vec4<f32>(0.0);
      for (var e = 0u; e < E4; e++) { // unroll
        products += query[e] * k[key + e];
      }
      score[j] = select(-1e30, dot(products, vec4<f32>(1.0)), s + j <= t);
    }
    let above = max(highest, max(max(score.x, score.y), max(score.z, score.w)));
    let shrink = exp(highest - above);
    let p = exp(score - above);
    total = total * shrink + dot(p, vec4<f32>(1.0));
    for (var e = 0u; e < E4; e++) { // unroll
      sum_v[e] *= shrink;
    }
    for (var j = 0u; j < 4u; j++) { // unroll
      let value = (min(s + j, t) * params.kv_heads + kv) * E4;
      for (var e = 0u; e < E4; e++) { // unroll
        sum_v[e] += p[j] * v[value + e];
      }
    }
    highest = above;
  }
  for (var e = 0u; e < E4; e++) { // unroll
    o[at + e] = sum_v[e] / total;
  }
  stats[t * params.heads + head] = vec2<f32>(highest + log(total), 0.0);
}
