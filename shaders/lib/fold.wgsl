// Adds up vec4s that LANES invocations hold, TILE each: afterwards partial[t * LANES + place], place <
// PLACES, is the sum over the lanes congruent to `place`. In a fixed order, by halves; LANES / PLACES
// is a power of two.
var<workgroup> partial: array<vec4<f32>, TILE * LANES>;

fn fold(lane: u32) {
  workgroupBarrier();
  for (var half = LANES / 2u; half >= PLACES; half /= 2u) {
    for (var e = lane; e < TILE * half; e += LANES) {
      let at = (e / half) * LANES + e % half;
      partial[at] += partial[at + half];
    }
    workgroupBarrier();
  }
}
