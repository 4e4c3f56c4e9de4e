// O = P V, P = softmax(scale Q K^T)  =>  dV[s] = sum_t P[t,s] dO[t] and
// dK[s] = scale sum_t P[t,s] (dO[t] . V[s] - delta[t]) Q[t], over the queries t >= s of the row and of every head
// that shares this key head; P is recomputed from the kept log-sum-exp.
// One invocation owns one key of one key-value head and walks its queries.
// grid: ceil_div(rows, WORKGROUP), kv_heads
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
@group(0) @binding(6) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> dv: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let s = id.x;
  let kv = id.y;
  if s >= step.counts[params.rows] {
    return;
  }
  let group = params.heads / params.kv_heads;
  let at = (s * params.kv_heads + kv) * E4;
  var key: array<vec4<f32>, E4>;
  var value: array<vec4<f32>, E4>;
  var key_gradient: array<vec4<f32>, E4>;
  var value_gradient: array<vec4<f32>, E4>;
  for (var e = 0u; e < E4; e++) { // unroll
    key[e] = k[at + e] * params.scale;
    value[e] = v[at + e];
    key_gradient[e] = vec4<f32>(0.0);
    value_gradient[e] = vec4<f32>(0.0);
  }
  let end = spans[s].y;
  for (var head = kv * group; head < (kv + 1u) * group; head++) {
    for (var t = s; t < end; t++) {
      let row = t * params.heads + head;
      var products = vec4<f32>(0.0);
      var values = vec4<f32>(0.0);
      for (var e = 0u; e < E4; e++) { // unroll
        products += key[e] * q[row * E4 + e];
        values += value[e] * dout[row * E4 + e];
      }
      let kept = stats[row];
      let p = exp(dot(products, vec4<f32>(1.0)) - kept.x);
      let ds = p * (dot(values, vec4<f32>(1.0)) - kept.y) * params.scale;
      for (var e = 0u; e < E4; e++) { // unroll
        key_gradient[e] += ds * q[row * E4 + e];
        value_gradient[e] += p * dout[row * E4 + e];
      }
    }
  }
  for (var e = 0u; e < E4; e++) { // unroll
    dk[at + e] = key_gradient[e];
    dv[at + e] = value_gradient[e];
  }
}
