// Which columns of z = x A^T are made, ranks of several linears, lora_stride vec4s of each: those that
// count for none of the loaded adapters in use are left as they are. A workgroup asks for all its own.
@group(0) @binding(12) var<storage, read> lora_list: array<vec2<u32>>; // as in lora_stacked, and its end

fn columns_idle(first: u32, count: u32) -> bool {
  for (var at = first / 4u; at < (first + count) / 4u; at++) {
    if (lora_list[1u + params.lora_stride + at % params.lora_stride].x != 0u) {
      return false;
    }
  }
  return true;
}
