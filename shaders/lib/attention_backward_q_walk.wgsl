// QUERIES neighbouring queries of one head in an invocation's registers, which meet keys one by one: after
// `start_key` each vec4 of the key and of its value is given to `meet`, and `weigh` adds what the whole key
// brings to the gradients.
var<private> range: array<vec2<u32>, QUERIES>;
var<private> query: array<array<vec4<f32>, E4>, QUERIES>;
var<private> upstream: array<array<vec4<f32>, E4>, QUERIES>;
var<private> gradient: array<array<vec4<f32>, E4>, QUERIES>;
var<private> kept: array<vec2<f32>, QUERIES>;
var<private> products: array<vec4<f32>, QUERIES>;
var<private> values: array<vec4<f32>, QUERIES>;
var<private> key: array<vec4<f32>, E4>;

fn begin(t0: u32, head: u32, rows: u32) {
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
}

fn start_key() {
  for (var i = 0u; i < QUERIES; i++) { // unroll
    products[i] = vec4<f32>(0.0);
    values[i] = vec4<f32>(0.0);
  }
}

fn meet(e: u32, key_part: vec4<f32>, value_part: vec4<f32>) {
  key[e] = key_part;
  for (var i = 0u; i < QUERIES; i++) { // unroll
    products[i] += query[i][e] * key_part;
    values[i] += upstream[i][e] * value_part;
  }
}

fn weigh(s: u32) {
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

fn finish(t0: u32, head: u32, rows: u32) {
  for (var i = 0u; i < QUERIES; i++) { // unroll
    if t0 + i < rows {
      for (var e = 0u; e < E4; e++) { // unroll
        dq[((t0 + i) * params.heads + head) * E4 + e] = gradient[i][e];
      }
    }
  }
}
