// Where repacked weights go: one buffer of the planes of a format, one after the other; rows of
// plane `weight` are whole packs of 16 bytes, those of `weight_side` whole words.
struct Params {
  slice_rows: u32, // rows in this slice of the file
  first_row: u32, // where they begin in the buffer
  columns: u32, // values in a row
  weight_stride: u32, // packs in a row
  weight_side_stride: u32, // words of the second plane in a row; 0 = there is none
  weight_side_at: u32, // word at which it begins
  raw_offset: u32, // byte of `raw` at which the slice begins
  raw_row: u32, // bytes of a row in the file
}
const NOT_FINITE: u32 = 1u; // marks of a tensor: an infinite or NaN value or scale
const BEYOND_F16: u32 = 2u;
@group(0) @binding(1) var<storage, read_write> planes: array<u32>;
@group(0) @binding(2) var<storage, read_write> marks: array<atomic<u32>>;
@group(0) @binding(15) var<uniform> params: Params;

// The byte of `raw` at which a row of the slice begins.
fn raw_start(row: u32) -> u32 {
  return params.raw_offset + row * params.raw_row;
}

// Pack `pack` of a row of the slice.
fn store_pack(row: u32, pack: u32, words: vec4<u32>) {
  let at = ((params.first_row + row) * params.weight_stride + pack) * 4u;
  planes[at] = words.x;
  planes[at + 1u] = words.y;
  planes[at + 2u] = words.z;
  planes[at + 3u] = words.w;
}

// Word `word` of the second plane of a row of the slice.
fn store_side(row: u32, word: u32, value: u32) {
  planes[params.weight_side_at + (params.first_row + row) * params.weight_side_stride + word] = value;
}

fn mark(found: u32) {
  atomicOr(&marks[0], found);
}
