// KEYS neighbouring keys of one key-value head in an invocation's registers, which meet queries one by one:
// after `start_query` each vec4 of the query and of its dO is given to `meet`, and `weigh` adds what the whole
// query brings to the gradients.
var<private> range: array<vec2<u32>, KEYS>;
var<private> key: array<array<vec4<f32>, E4>, KEYS>;
var<private> value: array<array<vec4<f32>, E4>, KEYS>;
var<private> key_gradient: array<array<vec4<f32>, E4>, KEYS>;
var<private> value_gradient: array<array<vec4<f32>, E4>, KEYS>;
var<private> products: array<vec4<f32>, KEYS>;
var<private> values: array<vec4<f32>, KEYS>;
var<private> query: array<vec4<f32>, E4>;
var<private> upstream: array<vec4<f32>, E4>;

fn begin(s0: u32, kv: u32, rows: u32) {
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
}

fn start_query() {
  for (var j = 0u; j < KEYS; j++) { // unroll
    products[j] = vec4<f32>(0.0);
    values[j] = vec4<f32>(0.0);
  }
}

fn meet(e: u32, query_part: vec4<f32>, dout_part: vec4<f32>) {
  query[e] = query_part;
  upstream[e] = dout_part;
  for (var j = 0u; j < KEYS; j++) { // unroll
    products[j] += key[j][e] * query_part;
    values[j] += value[j][e] * dout_part;
  }
}

fn weigh(t: u32, kept: vec2<f32>) {
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

fn finish(s0: u32, kv: u32, rows: u32) {
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
