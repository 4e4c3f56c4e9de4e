// O[t,h] = sum_s p[s] V[s,k], p = softmax_s(score(scale Q[t,h] . K[s,k])) over the keys s that t sees, k = h / GROUP:
// attention of few queries, each of which meets many keys alone.
// One workgroup owns one query of up to four heads that share their keys, and walks these, KEYS at a time, with a
// running maximum: first lanes are keys, for scores; then columns of O, and parts of the keys where there are
// lanes enough. What lanes made is added up in a fixed order.
// use: step, attention_io, score=score_plain
// grid: kv_heads * ceil_div(GROUP, HEADS), rows
const GROUP: u32 = 1u; // heads of queries to one of keys
const MOST_HEADS: u32 = 4u; // of a workgroup, at most 4
const LANES: u32 = 64u;
const STEPS: u32 = 4u; // keys of a lane at once

const HEADS: u32 = min(GROUP, MOST_HEADS);
const BLOCKS: u32 = (GROUP + HEADS - 1u) / HEADS;
const KEYS: u32 = LANES * STEPS;
const ACROSS: u32 = min(E4, LANES);
const PARTS: u32 = LANES / ACROSS;
const COLS4: u32 = (E4 + ACROSS - 1u) / ACROSS;
@group(0) @binding(3) var<storage, read> key_range: array<vec2<u32>>; // (first, after) that a query sees, at least one
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>;

var<workgroup> query: array<vec4<f32>, HEADS * E4>;
var<workgroup> weights: array<vec4<f32>, KEYS>; // of each head
var<workgroup> partial: array<vec4<f32>, LANES>; // a maximum or a sum of each head
var<workgroup> sums: array<vec4<f32>, HEADS * COLS4 * LANES>;

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let t = group.y;
  let kv = group.x / BLOCKS;
  let head = group.x % BLOCKS * HEADS; // of the group
  let row = t * params.heads + kv * GROUP;
  let range = key_range[t];
  let part = lane / ACROSS;
  let col = lane % ACROSS;
  for (var load = lane; load < HEADS * E4; load += LANES) {
    query[load] = q[(row + min(head + load / E4, GROUP - 1u)) * E4 + load % E4] * params.scale;
  }
  workgroupBarrier();
  var highest = vec4<f32>(-1e30);
  var total = vec4<f32>(); // of this lane's keys
  var sum: array<array<vec4<f32>, COLS4>, HEADS>;
  for (var first = range.x; first < range.y; first += KEYS) {
    var at: array<u32, STEPS>;
    var product: array<array<vec4<f32>, HEADS>, STEPS>;
    var score: array<vec4<f32>, STEPS>;
    for (var i = 0u; i < STEPS; i++) { // unroll
      at[i] = (min(first + i * LANES + lane, range.y - 1u) * params.kv_heads + kv) * E4;
      for (var h = 0u; h < HEADS; h++) { // unroll
        product[i][h] = vec4<f32>();
      }
    }
    for (var e = 0u; e < E4; e++) {
      for (var h = 0u; h < HEADS; h++) { // unroll
        let a = query[h * E4 + e];
        for (var i = 0u; i < STEPS; i++) { // unroll
          product[i][h] += a * k[at[i] + e];
        }
      }
    }
    var above = highest;
    for (var i = 0u; i < STEPS; i++) { // unroll
      score[i] = vec4<f32>();
      for (var h = 0u; h < HEADS; h++) { // unroll
        score[i][h] = to_score(dot(product[i][h], vec4<f32>(1.0)));
      }
      above = select(above, max(above, score[i]), first + i * LANES + lane < range.y);
    }
    partial[lane] = above;
    workgroupBarrier();
    for (var l = 0u; l < LANES; l++) {
      above = max(above, partial[l]);
    }
    let shrink = exp(highest - above);
    highest = above;
    total *= shrink;
    for (var i = 0u; i < STEPS; i++) { // unroll
      let seen = first + i * LANES + lane < range.y;
      let weight = select(vec4<f32>(), exp(score[i] - above), seen);
      weights[i * LANES + lane] = weight;
      total += weight;
    }
    for (var h = 0u; h < HEADS; h++) { // unroll
      for (var c = 0u; c < COLS4; c++) { // unroll
        sum[h][c] *= shrink[h];
      }
    }
    workgroupBarrier();
    let count = select(0u, min(KEYS, range.y - first), part < PARTS);
    for (var key = part; key < count; key += PARTS) {
      let weight = weights[key];
      let from_row = ((first + key) * params.kv_heads + kv) * E4;
      for (var c = 0u; c < COLS4; c++) { // unroll
        let value = v[from_row + min(col + c * ACROSS, E4 - 1u)];
        for (var h = 0u; h < HEADS; h++) { // unroll
          sum[h][c] += weight[h] * value;
        }
      }
    }
    workgroupBarrier();
  }
  partial[lane] = total;
  for (var h = 0u; h < HEADS; h++) { // unroll
    for (var c = 0u; c < COLS4; c++) { // unroll
      sums[(h * COLS4 + c) * LANES + lane] = sum[h][c];
    }
  }
  workgroupBarrier();
  var all = vec4<f32>();
  for (var l = 0u; l < LANES; l++) {
    all += partial[l];
  }
  for (var h = 0u; h < HEADS; h++) { // unroll
    for (var e = lane; e < E4 && head + h < GROUP; e += LANES) {
      var found = vec4<f32>();
      for (var p = 0u; p < PARTS; p++) {
        found += sums[(h * COLS4 + e / ACROSS) * LANES + p * ACROSS + e % ACROSS];
      }
      o[(row + head + h) * E4 + e] = found / all[h];
    }
  }
}
