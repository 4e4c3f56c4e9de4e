// The parameters of kernels that need no more than the size of what they work on.
struct Params {
  rows: u32, // which of step.counts
  d4: u32, // vec4s in a row
}
@group(0) @binding(15) var<uniform> params: Params;
