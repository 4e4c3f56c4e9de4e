// QUERIES neighbouring queries of one head in an invocation's registers, which meet keys one by one: after
// `start_key` each vec4 of the key is given to `meet_key`, `weigh` makes the weight of the whole key under a running
// maximum, and each vec4 of its value is given to `take_value`.
var<private> range: array<vec2<u32>, QUERIES>;
var<private> query: array<array<vec4<f32>, E4>, QUERIES>;
var<private> sum_v: array<array<vec4<f32>, E4>, QUERIES>;
var<private> highest: array<f32, QUERIES>;
var<private> total: array<f32, QUERIES>;
var<private> products: array<vec4<f32>, QUERIES>;
var<private> weights: array<f32, QUERIES>;

fn begin(t0: u32, head: u32, rows: u32) {
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
}

fn start_key() {
  for (var i = 0u; i < QUERIES; i++) { // unroll
    products[i] = vec4<f32>(0.0);
  }
}

fn meet_key(e: u32, key: vec4<f32>) {
  for (var i = 0u; i < QUERIES; i++) { // unroll
    products[i] += query[i][e] * key;
  }
}

fn weigh(s: u32) {
  for (var i = 0u; i < QUERIES; i++) { // unroll
    let seen = s >= range[i].x && s < range[i].y;
    let score = to_score(dot(products[i], vec4<f32>(1.0)));
    let above = select(highest[i], max(highest[i], score), seen);
    let shrink = exp(highest[i] - above);
    weights[i] = select(0.0, exp(score - above), seen);
    highest[i] = above;
    total[i] = total[i] * shrink + weights[i];
    for (var e = 0u; e < E4; e++) { // unroll
      sum_v[i][e] *= shrink;
    }
  }
}

fn take_value(e: u32, value: vec4<f32>) {
  for (var i = 0u; i < QUERIES; i++) { // unroll
    sum_v[i][e] += weights[i] * value;
  }
}

fn finish(t0: u32, head: u32, rows: u32) {
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
