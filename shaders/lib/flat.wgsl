// The element of an invocation where a grid has one for each: FLAT a workgroup, whatever the length of a
// row, so that none is idle; the second dimension begins where the first one ends.
const FLAT: u32 = 256u;

fn flat_index(group: vec3<u32>, lane: u32) -> u32 {
  return (group.y * 65535u + group.x) * FLAT + lane;
}
