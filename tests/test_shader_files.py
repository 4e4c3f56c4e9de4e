"""Every shader file follows the conventions of `engine.kernel`; the loader tells which does not."""

import re
from pathlib import Path

import numpy as np
import oracles
import pytest
from kernel_check import nbytes, plain, workgroup
from needs import ROOT

from wgtrain.engine.graph import Graph
from wgtrain.engine.kernel import (
    Kernel,
    expand,
    kernel_names,
    load_kernel,
    read_shader,
    shader_paths,
)
from wgtrain.engine.structs import step_bytes, struct_type
from wgtrain.engine.weight import ALL_FORMATS, FORMATS
from wgtrain.errors import ShaderError
from wgtrain.gpu import Device, Limits, Slot, run

LIBRARIES = sorted(path.stem for path in (ROOT / "shaders" / "lib").glob("*.wgsl"))


def compile_kernel(device: Device, kernel: Kernel, code: str | None = None) -> None:
    slots = [Slot(slot.number, slot.access) for slot in kernel.slots]
    run(device.pipeline(kernel.name, kernel.code if code is None else code, slots))


def used(text: str) -> list[str]:
    """Libraries a file's header names, each role by its default, and those that they name."""
    line = re.search(r"^// use:(.*)$", text, re.MULTILINE)
    names = [item.strip().rpartition("=")[2] for item in line.group(1).split(",")] if line else []
    theirs = [used(read_shader(f"lib/{name}")) for name in names]
    return list(dict.fromkeys([*names, *(name for found in theirs for name in found)]))


@pytest.mark.gpu
@pytest.mark.parametrize("name", kernel_names())
def test_compiles(device: Device, full_device: Device, name: str) -> None:
    """As the loader makes it, and as it stands: unexpanded, with the libraries appended."""
    kernel, text = load_kernel(name), read_shader(name)
    if kernel.features:
        device = full_device
    if missing := kernel.features - device.features:
        pytest.skip(f"the adapter has no {', '.join(missing)}")
    compile_kernel(device, kernel)
    # Products take seconds unexpanded; a lane to broadcast from must be a literal.
    if "// unroll" in text and not name.startswith("matmul") and not kernel.features:
        libraries = [read_shader(f"lib/{library}") for library in used(text)]
        compile_kernel(device, kernel, "\n".join([text, *libraries]))


@pytest.mark.parametrize("name", kernel_names())
def test_bindings(name: str) -> None:
    """The loader sees every binding; each has its own number; no more than every adapter grants."""
    kernel = load_kernel(name)
    assert len(kernel.slots) == plain(kernel.code).count("@binding") > 0
    assert len({slot.number for slot in kernel.slots}) == len(kernel.slots)
    assert len({slot.name for slot in kernel.slots}) == len(kernel.slots)
    storage = [slot for slot in kernel.slots if slot.access != "uniform"]
    assert len(storage) <= Limits().storage_buffers
    assert any(slot.access == "read_write" for slot in storage)


@pytest.mark.parametrize("name", kernel_names())
def test_workgroup_limits(name: str) -> None:
    kernel = load_kernel(name)
    invocations, memory = workgroup(kernel)
    assert 1 <= invocations <= Limits().invocations
    assert memory <= Limits().workgroup_memory
    assert bool(memory) == ("workgroupBarrier" in plain(kernel.code))


def test_workgroup_memory_is_counted() -> None:
    assert nbytes("array<array<vec4<f32>, N>, 2 * N>", {"N": 3}) == 3 * 6 * 16


@pytest.mark.parametrize("path", shader_paths())
def test_loops_end(path: str) -> None:
    """Each steps through a range, since natively nothing else need bound it (native_library)."""
    code = plain(read_shader(path))
    assert not re.search(r"\b(while|loop)\b", code)
    loops = re.findall(r"\bfor\s*\(([^{]*)\)\s*\{", code)
    assert len(loops) == len(re.findall(r"\bfor\b", code))
    for loop in loops:
        start, condition, step = (part.strip() for part in loop.split(";"))
        name = re.match(r"var (\w+) =", start)
        assert name, loop
        up = re.fullmatch(
            rf"{name[1]} (\+\+|\+= .+)", step.replace(f"{name[1]}++", f"{name[1]} ++")
        )
        assert re.match(rf"{name[1]} <=? " if up else rf"{name[1]} >=? ", condition), loop
        assert up or step == f"{name[1]} /= 2u", loop


@pytest.mark.parametrize("name", kernel_names())
def test_header(name: str) -> None:
    """A formula, who does what, the grid, an oracle; no loop that meant to be unrolled is left."""
    text, kernel = read_shader(name), load_kernel(name)
    header = text[: text.index("\n@") if "\n@" in text else None]
    assert text.startswith("// ")
    assert re.search(r"^// .*One (invocation|workgroup)", header, re.MULTILINE), "who does what?"
    assert callable(getattr(oracles, name, None)), f"tests/oracles.py has no {name}"
    assert not re.search(r"// unroll *$", kernel.code, re.MULTILINE)
    params = {field: "T" if field == "rows" else 8 for field, _ in kernel.params}
    counts = kernel.grid_function(params)(65, 0)
    assert len(counts) == 3 and all(1 <= n <= Limits().workgroups for n in counts)
    assert kernel.work(params, 65) > 0


def test_every_library_is_used() -> None:
    roles = {entry.library for entry in ALL_FORMATS.values()}
    roles |= {
        "tile_f16",
        "lora",
        "lora_stacked",
        "columns_used",
        "score_capped",
        "bias",
        *oracles.ACTIVATIONS,
    }
    assert {library for name in kernel_names() for library in used(read_shader(name))} <= set(
        LIBRARIES
    )
    theirs = [used(read_shader(f"lib/{role}")) for role in roles]
    own = [used(read_shader(name)) for name in kernel_names()]
    assert set(LIBRARIES) == roles.union(*own, *theirs)
    assert {entry.repack for entry in FORMATS.values()} <= set(kernel_names())


@pytest.mark.parametrize("name", kernel_names())
def test_each_constant_is_rewritten_once(name: str) -> None:
    """Rewritten to another value a constant changes its own line, and unrolled loops."""
    kernel = load_kernel(name)
    declared = re.findall(r"^const (\w+): (\w+) = ([^;]+);", kernel.code, re.MULTILINE)
    for constant, kind, value in declared:
        if not re.fullmatch(r"\d+u?|true|false", value):
            continue  # made of others
        other = value == "false" if kind == "bool" else 2 * int(value.rstrip("u")) + 1
        changed = load_kernel(name, {constant: other})
        line = f"const {constant}: {kind} = {str(other).lower()}{'u' if kind == 'u32' else ''};"
        assert line in changed.code and line not in kernel.code
        assert changed.constants[constant] == other
        before, after = kernel.code.split("\n"), changed.code.split("\n")
        assert len(before) == len(after)
        if "// unroll" not in read_shader(name):
            (line,) = [a for a, b in zip(before, after, strict=True) if a != b]
            assert line.startswith(f"const {constant}: {kind} = {value};")


def test_constants_by_kind(shaders: dict[str, str]) -> None:
    shaders["made"] = (
        "// grid: 1\nconst A: u32 = 2u;\nconst B: u32 = A * 3u;\nconst C: i32 = -1;\n"
        "const D: f32 = 0.5; // kept\nconst E: bool = false;\n"
    )
    kernel = load_kernel("made", {"A": 5, "C": -7, "D": 1e-6, "E": True})
    assert kernel.code.split("\n")[1:6] == [
        "const A: u32 = 5u;",
        "const B: u32 = A * 3u;",
        "const C: i32 = -7;",
        "const D: f32 = 1e-06; // kept",
        "const E: bool = true;",
    ]
    assert [kernel.constants[n] for n in "ABCE"] == [5, 15, -7, 1]


def test_unknown_names_are_refused(shaders: dict[str, str]) -> None:
    with pytest.raises(KeyError, match="'add' has 0 constants named 'ADD'"):
        load_kernel("add", {"ADD": True})
    with pytest.raises(KeyError, match=r"'add' has no library role \['weight'\]"):
        load_kernel("add", libraries={"weight": "weight_f16"})
    kernel = load_kernel("add")
    for params in ({"rows": "T"}, {"rows": "T", "d4": 1, "scale": 1.0}):
        with pytest.raises(KeyError, match="'add' takes parameters"):
            kernel.pack_params(params)
    graph = Graph()
    tensors = {name: graph.tensor(name, "T", 4) for name in ("a", "b", "y", "z")}
    for names in ("ab", "abz", "abyz"):
        with pytest.raises(KeyError, match=r"'add' binds \['a', 'b', 'y'\]"):
            graph.launch("add", {n: tensors[n] for n in names}, {"rows": "T", "d4": 1})
    shaders["twice"] = "// grid: 1\nconst A: u32 = 1u;\nconst A: u32 = 1u;\n"
    with pytest.raises(KeyError, match="'twice' has 2 constants named 'A'"):
        load_kernel("twice", {"A": 2})


def test_files_off_the_conventions_are_refused(shaders: dict[str, str]) -> None:
    shaders["bare"] = read_shader("copy").replace("// grid:", "// size:")
    with pytest.raises(ValueError, match="'bare' has no '// grid:' line"):
        load_kernel("bare")
    shaders["wide"] = read_shader("copy").replace("n4: u32,", "n4: u32,\n  v: vec4<f32>,")
    with pytest.raises(ValueError, match=r"'wide': Params holds .* not \['v: vec4<f32>'\]"):
        load_kernel("wide")
    shaders["open"] = "// grid: 1\nfor (var i = 0u; i < 2u; i++) { // unroll\n a[i]\n"
    with pytest.raises(ValueError, match="unclosed loop at line 2"):
        load_kernel("open")
    shaders["lost"] = "// grid: 1\nconst A: u32 = B;\n"
    with pytest.raises(ValueError, match=r"constants \['A'\] have no constant value"):
        load_kernel("lost")


def test_signature(shaders: dict[str, str]) -> None:
    """Bindings and parameters in order; comments are no code; parameters are padded to 16 bytes."""
    shaders["made"] = """// grid: ceil_div(n * 2, max(TILE, 3)), rows
        const TILE: u32 = 4u;
        struct Params {
          rows: u32, // first: u32,
          n: u32,
          shift: i32, scale: f32, last: f32
        }
        // @group(0) @binding(9) var<storage, read> old: array<u32>;
        @group(0) @binding(3) var<storage,read_write> y : array<f32>;
        @group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
        @group(0) @binding(15) var<uniform> params: Params;
    """.replace("\n        ", "\n")
    kernel = load_kernel("made")
    slots = [(slot.number, slot.name, slot.access, slot.type) for slot in kernel.slots]
    assert slots == [
        (3, "y", "read_write", "array<f32>"),
        (1, "x", "read", "array<vec4<f32>>"),
        (15, "params", "uniform", "Params"),
    ]
    values = {"rows": "C", "n": 9, "shift": -1, "scale": 1.0, "last": 0.0}
    words = "01000000 09000000 ffffffff 0000803f" + "00000000" * 4
    assert kernel.pack_params(values) == bytes.fromhex(words)
    assert kernel.grid_function(values)(7, 5) == (5, 5, 1)


def test_structs_lie_in_memory_as_wgsl_lays_them_out() -> None:
    code = """struct Other { x: u32 }
        struct Made { // of: f32,
          a: u32, pair: vec2<f32>, b: i32,
          four: vec4<u32>, // last: u32,
          c: f32
        }"""
    made = struct_type(code, "Made")
    assert made.itemsize == 64 and made.fields
    assert [
        (name, kind.base.str, kind.shape, at) for name, (kind, at, *_) in made.fields.items()
    ] == [
        ("a", "<u4", (), 0),
        ("pair", "<f4", (2,), 8),
        ("b", "<i4", (), 16),
        ("four", "<u4", (4,), 32),
        ("c", "<f4", (), 48),
    ]
    with pytest.raises(ValueError, match="no struct Mad"):
        struct_type(code, "Mad")
    with pytest.raises(ValueError, match="struct Bad: 'm: mat2x2<f32>' is neither"):
        struct_type("struct Bad { a: u32, m: mat2x2<f32> }", "Bad")


def test_step_by_names() -> None:
    """Fields where the shader has them, zero where none is given; no field is invented."""
    words = np.frombuffer(step_bytes(5, 3, slot=7, epsilon=0.5, learning_rate=1e300), np.uint32)
    floats = words.view(np.float32)
    assert words[:6].tolist() == [5, 3, 0, 0, 0, 7]
    assert floats[6] == np.inf and floats[15] == 0.5 and not words[7:15].any()
    with pytest.raises(ValueError, match="no field of name rate"):
        step_bytes(1, rate=0.1)


UNROLLED = [
    ("a loop", "for (var i = 0u; i < 3u; i++) { // unroll\n  a[i] += i;\n}", "a[{i}u] += {i}u;"),
    ("with a limit", "for (var i = 0u; i < 3u; i++) { // unroll 3\n a[i];\n}", "a[{i}u];"),
    ("no field", "for (var x = 0u; x < 3u; x++) { // unroll\n  v.x += max(x, xx);\n}",
     "v.x += max({i}u, xx);"),
]  # fmt: skip


@pytest.mark.parametrize(("loop", "copy"), [case[1:] for case in UNROLLED])
def test_unroll(loop: str, copy: str) -> None:
    text = expand(f"before\n  {loop}\nafter", {})
    copies = [copy.format(i=i) for i in range(3)]
    assert words(text) == words("before", *("{ " + c + " }" for c in copies), "after")
    assert text.split("\n")[0] == "before" and text.split("\n")[-1] == "after"
    assert text.count("\n") == loop.count("\n") + 2


def words(*texts: str) -> list[str]:
    return " ".join(texts).split()


def test_unroll_nested_with_bounds_from_constants() -> None:
    loop = """
for (var i = 1u; i < N / 2u; i++) { // unroll
  if x { // a brace in a comment }
    for (var j = i; j < N - 1u; j++) { // unroll
      a[i][j];
    }
  }
}
last"""
    text = expand(loop, {"N": 6})
    first = "{ if x { { a[1u][1u]; } { a[1u][2u]; } { a[1u][3u]; } { a[1u][4u]; } } }"
    second = "{ if x { { a[2u][2u]; } { a[2u][3u]; } { a[2u][4u]; } } }"
    assert words(re.sub("//.*", "", text)) == words(first, second, "last")
    assert len(text.split("\n")) == len(loop.split("\n"))


def test_unroll_leaves_the_rest() -> None:
    """Loops without the mark stay, and those with too many turns, though not the loops in them;
    one that has no turn goes away, and its lines stay."""
    loop = "for (var i = 0u; i < N; i++) {\n  a[i];\n}"
    assert expand(loop, {"N": 2}) == loop
    long = "for (var i = 0u; i < N; i++) { // unroll 2\n%s\n}"
    inner = "for (var j = 0u; j < 1u; j++) { // unroll\na[i][j];\n}"
    assert expand(long % inner, {"N": 3}) == long % "{\na[i][0u];\n}"
    assert "for" not in expand(long % inner, {"N": 2})
    named = long.replace("unroll 2", "unroll MOST")
    assert expand(named % "a[i];", {"N": 3, "MOST": 2}) == named % "a[i];"
    assert "for" not in expand(named % "a[i];", {"N": 2, "MOST": 2})
    none = "for (var i = 0u; i < N; i++) { // unroll\n  a[i];\n  b[i];\n}\nlast"
    assert expand(none, {"N": 0}) == "{\n\n\n}\nlast"


BROKEN = [
    ("let n4 = ", "let n4 = nope + "),  # before any loop
    ("let w_row = ", "let w_row = nope * "),  # within two loops
    ("let a = lora_input(", "let a = lora_input(,"),  # after others
    ("let a = dy[", "let a: f32 = dy["),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("old", "new"), BROKEN)
def test_broken_shader(device: Device, shaders: dict[str, str], old: str, new: str) -> None:
    """The error names kernel, line of the file and message."""
    text = read_shader("matmul_nn")
    assert text.count(old) == 1
    shaders["broken"] = text.replace(old, new)
    line = text[: text.index(old)].count("\n") + 1
    with pytest.raises(ShaderError, match=rf"kernel 'broken', line {line}: ") as caught:
        compile_kernel(device, load_kernel("broken"))
    message = str(caught.value)
    assert new.strip() in message
    if "nope" in new:
        assert "no definition in scope for identifier: `nope`" in message


def test_shaders_are_found(tmp_path: Path) -> None:
    names = kernel_names()
    assert names == sorted(path.stem for path in (ROOT / "shaders").glob("*.wgsl"))
    with pytest.raises(FileNotFoundError):
        read_shader("none")
