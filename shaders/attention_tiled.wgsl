// O[t,h] = sum_s p[s] V[s,k], p = softmax_s(score(scale Q[t,h] . K[s,k])) over the keys s that t sees, k = h / group:
// attention for GPUs. Keeps stats[t,h].x = log sum_s exp(score) for the backward pass.
// One workgroup owns QUERIES neighbouring queries of one head and walks their keys, KEYS at a time: scores
// from slices of Q and K staged in workgroup memory, TILE_QUERIES x 4 an invocation; a running maximum; then
// P, staged, times V, which is read along its rows.
// use: step, attention_io, attention_forward_io, score=score_plain
// grid: ceil_div(rows, QUERIES), heads
const TILE_QUERIES: u32 = 2u;
const LANE_ROWS: u32 = 8u; // of queries
const LANE_COLS: u32 = 8u; // of keys, four each, and of columns of O
const MOST_SLICE4: u32 = 16u; // vec4s of a head staged at once

const LANES: u32 = LANE_ROWS * LANE_COLS;
const QUERIES: u32 = TILE_QUERIES * LANE_ROWS;
const KEYS: u32 = 4u * LANE_COLS;
const SLICES: u32 = (E4 + MOST_SLICE4 - 1u) / MOST_SLICE4;
const SLICE4: u32 = (E4 + SLICES - 1u) / SLICES;
const COLS4: u32 = (E4 + LANE_COLS - 1u) / LANE_COLS; // of O, an invocation
// Odd, so that neighbouring lanes, which read neighbouring keys, meet different banks.
const K_STRIDE: u32 = SLICE4 + 1u - SLICE4 % 2u;

var<workgroup> q_tile: array<vec4<f32>, QUERIES * SLICE4>;
var<workgroup> k_tile: array<vec4<f32>, KEYS * K_STRIDE>; // key 4 c + j lies at j LANE_COLS + c
var<workgroup> p_tile: array<vec4<f32>, QUERIES * LANE_COLS>; // four keys each
var<workgroup> partial: array<f32, QUERIES * LANE_COLS>; // of a maximum or a sum along keys

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let rows = step.counts[params.rows];
  let head = group.y;
  let kv = head / (params.heads / params.kv_heads);
  let t0 = group.x * QUERIES;
  let last = min(t0 + QUERIES, rows) - 1u;
  let after = key_range[last].y;
  let row0 = lane / LANE_COLS * TILE_QUERIES;
  let col = lane % LANE_COLS;
  var range: array<vec2<u32>, TILE_QUERIES>;
  var highest: array<f32, TILE_QUERIES>;
  var total: array<f32, TILE_QUERIES>; // over this invocation's keys
  var sum_v: array<array<vec4<f32>, COLS4>, TILE_QUERIES>;
  var score: array<vec4<f32>, TILE_QUERIES>;
  var seen: array<vec4<bool>, TILE_QUERIES>;
  for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
    range[i] = key_range[min(t0 + row0 + i, last)];
    highest[i] = -1e30;
  }
  for (var first = key_range[t0].x; first < after; first += KEYS) {
    for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
      score[i] = vec4<f32>(0.0);
    }
    for (var slice = 0u; slice < E4; slice += SLICE4) {
      if (slice > 0u) {
        workgroupBarrier();
      }
      for (var load = lane; load < QUERIES * SLICE4; load += LANES) {
        let e = slice + load % SLICE4;
        let row = min(t0 + load / SLICE4, last) * params.heads + head;
        q_tile[load] = select(vec4<f32>(), q[row * E4 + min(e, E4 - 1u)] * params.scale, e < E4);
      }
      for (var load = lane; load < KEYS * SLICE4; load += LANES) {
        let e = slice + load % SLICE4;
        let key = load / SLICE4;
        let row = min(first + key, after - 1u) * params.kv_heads + kv;
        k_tile[(key % 4u * LANE_COLS + key / 4u) * K_STRIDE + load % SLICE4] =
          select(vec4<f32>(), k[row * E4 + min(e, E4 - 1u)], e < E4);
      }
      workgroupBarrier();
      for (var e = 0u; e < SLICE4; e++) {
        let k0 = k_tile[col * K_STRIDE + e];
        let k1 = k_tile[(LANE_COLS + col) * K_STRIDE + e];
        let k2 = k_tile[(2u * LANE_COLS + col) * K_STRIDE + e];
        let k3 = k_tile[(3u * LANE_COLS + col) * K_STRIDE + e];
        for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
          let a = q_tile[(row0 + i) * SLICE4 + e];
          score[i] += vec4<f32>(dot(a, k0), dot(a, k1), dot(a, k2), dot(a, k3));
        }
      }
    }
    let keys = vec4<u32>(first + 4u * col) + vec4<u32>(0u, 1u, 2u, 3u);
    for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
      seen[i] = (keys >= vec4<u32>(range[i].x)) & (keys < vec4<u32>(range[i].y));
      score[i] = to_score4(score[i]);
      let masked = select(vec4<f32>(-1e30), score[i], seen[i]);
      partial[(row0 + i) * LANE_COLS + col] = max(max(masked.x, masked.y), max(masked.z, masked.w));
    }
    workgroupBarrier();
    for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
      var above = highest[i];
      for (var c = 0u; c < LANE_COLS; c++) {
        above = max(above, partial[(row0 + i) * LANE_COLS + c]);
      }
      let shrink = exp(highest[i] - above);
      let p = select(vec4<f32>(), exp(score[i] - above), seen[i]);
      highest[i] = above;
      total[i] = total[i] * shrink + dot(p, vec4<f32>(1.0));
      for (var c = 0u; c < COLS4; c++) { // unroll
        sum_v[i][c] *= shrink;
      }
      p_tile[(row0 + i) * LANE_COLS + col] = p;
    }
    workgroupBarrier();
    for (var at = 0u; at < LANE_COLS && first + 4u * at < after; at++) {
      for (var j = 0u; j < 4u; j++) { // unroll
        let row = (min(first + 4u * at + j, after - 1u) * params.kv_heads + kv) * E4;
        for (var c = 0u; c < COLS4; c++) { // unroll
          let value = v[row + min(col + c * LANE_COLS, E4 - 1u)];
          for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
            sum_v[i][c] += p_tile[(row0 + i) * LANE_COLS + at][j] * value;
          }
        }
      }
    }
  }
  for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
    partial[(row0 + i) * LANE_COLS + col] = total[i];
  }
  workgroupBarrier();
  for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
    let t = t0 + row0 + i;
    if (t <= last) {
      var all = 0.0;
      for (var c = 0u; c < LANE_COLS; c++) {
        all += partial[(row0 + i) * LANE_COLS + c];
      }
      let row = t * params.heads + head;
      for (var c = 0u; c < COLS4; c++) { // unroll
        if (col + c * LANE_COLS < E4) {
          o[row * E4 + col + c * LANE_COLS] = sum_v[i][c] / all;
        }
      }
      if (col == 0u) {
        stats[row] = vec2<f32>(highest[i] + log(all), 0.0);
      }
    }
  }
}
