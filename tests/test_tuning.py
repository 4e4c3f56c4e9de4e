"""Which kernel runs with which constants: the default tables, and that a graph obeys its table."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import oracles
import pytest
from kernel_check import workgroup

from wgtrain import gpu
from wgtrain.engine import candidates, tuning
from wgtrain.engine.graph import Graph
from wgtrain.engine.kernel import load_kernel, read_shader
from wgtrain.engine.linear import Linear, linear
from wgtrain.engine.probe import find_subgroup_size, subgroup_size
from wgtrain.engine.tables import from_json, of_this_version, to_json
from wgtrain.engine.tuning import DEFAULT_CPU, DEFAULT_GPU, DEFAULT_SWIFTSHADER, Choice, Tuning
from wgtrain.engine.weight import FORMATS, plan_weight
from wgtrain.gpu import AdapterInfo, Device, Limits


def adapter(type_: str = "CPU", subgroup_size: int = 0, *features: str, name: str = "fake") -> Any:
    """As much of a device as a table is chosen by."""
    info = AdapterInfo(0, name, type_, "Vulkan", "")
    return SimpleNamespace(
        info=info, subgroup_size=subgroup_size, features=frozenset(features), limits=Limits()
    )


def tables() -> list[Tuning]:
    kinds = [(), ("subgroups",), ("subgroups", "f16")]
    return [
        tuning.default_tuning(adapter(type_, 8 if features else 0, *features))
        for type_ in ("CPU", "DiscreteGPU")
        for features in kinds
    ]


@pytest.mark.parametrize("table", tables())
def test_defaults_are_kernels_with_constants_they_have(table: Tuning) -> None:
    for choice in table.table.values():
        load_kernel(choice.kernel, dict(choice.constants))


def test_chromes_software_adapter_has_a_table_of_its_own() -> None:
    table = tuning.default_tuning(adapter(name="SwiftShader Device (Subzero)"))
    assert table == DEFAULT_SWIFTSHADER
    assert table.choice("tn 8x16") != DEFAULT_CPU.choice("tn 8x16")


@pytest.mark.parametrize("family", ["nt", "nt small", "nt small 8", "nn", "nn small 8", "tn 8x16"])
def test_it_compiles_one_store_for_all_sums_of_a_tile(family: str) -> None:
    store = {"nt": "store(row0", "nn": "store(row0", "tn": "partial[("}[family[:2]]
    counts = []
    for table in (DEFAULT_SWIFTSHADER, DEFAULT_CPU):
        choice = table.choice(family)
        counts.append(load_kernel(choice.kernel, dict(choice.constants)).code.count(store))
    assert counts[0] == 1 < counts[1]


def test_defaults_without_subgroups_need_nothing() -> None:
    for table in (DEFAULT_CPU, DEFAULT_SWIFTSHADER, DEFAULT_GPU):
        for choice in table.table.values():
            assert not load_kernel(choice.kernel).features


@pytest.mark.parametrize("columns", [1, 4, 5, 8, 9, 16, 17, 300])
def test_every_shape_has_a_family(columns: int) -> None:
    for rows in (1, 8, 9):
        assert DEFAULT_CPU.choice(tuning.tn_small(rows, columns))
    assert DEFAULT_CPU.choice(tuning.nt_small(columns))
    assert DEFAULT_CPU.choice(tuning.nn_small(columns))


@pytest.mark.parametrize("type_", sorted(FORMATS))
def test_formats_without_a_choice_of_their_own_take_that_of_all(type_: str) -> None:
    own = Choice("matmul_nt", (("TILE_ROWS", 8),))
    library = FORMATS[type_].library
    table = Tuning({**DEFAULT_CPU.table, f"nt/{library}": own}, "test")
    assert table.choice(f"nt/{library}") == own
    assert table.choice(f"nn/{library}") == DEFAULT_CPU.choice("nn")


def test_a_graph_records_the_choice_of_its_table() -> None:
    weight = plan_weight("w", "F32", 32, 16, Limits())
    chosen = Choice("matmul_nt", (("TILE_ROWS", 4), ("TILE_COLS", 8)))
    table = replace(DEFAULT_CPU, table={**DEFAULT_CPU.table, "nt/weight_f32": chosen})
    for choice, tile in ((DEFAULT_CPU, (16, 16)), (table, (4, 8))):
        g = Graph(tuning=choice)
        linear(g, g.tensor("x", "T", 16), Linear(weight))
        (launch,) = g.launches
        constants = launch.kernel.constants
        assert (constants["TILE_ROWS"], constants["TILE_COLS"]) == tile
        assert launch.family == "nt/weight_f32"


def test_a_choice_runs_where_it_fits() -> None:
    plain, sized = Choice("matmul_nt"), Choice("probe_subgroup", (("LANES", 8),))
    assert tuning.runs_on(plain, "nt/weight_f32", adapter())
    for family, choice in (
        ("nn", plain),
        ("no family", plain),
        ("nt", sized),
        ("nt", Choice("no_kernel")),
        ("nt", Choice("matmul_nt", (("NO_CONSTANT", 8),))),
    ):
        assert not tuning.runs_on(choice, family, adapter("CPU", 8, "subgroups"))


def test_a_choice_made_for_other_subgroups_does_not_run(shaders: dict[str, str]) -> None:
    text = read_shader("matmul_nt").replace("sum[i][j] +=", "sum[i][j] += 0.0 * subgroupAdd(1.0) +")
    shaders["matmul_subgroup"] = text + "\nconst SUBGROUP: u32 = 8u;\n"
    sized = Choice("matmul_subgroup", (("SUBGROUP", 8),))
    assert tuning.runs_on(sized, "nt", adapter("CPU", 8, "subgroups"))
    assert not tuning.runs_on(sized, "nt", adapter("CPU", 4, "subgroups"))
    assert not tuning.runs_on(sized, "nt", adapter())


def test_lavapipe_takes_the_products_over_subgroups() -> None:
    for size in (8, 16):
        table = tuning.default_tuning(adapter("CPU", size, "subgroups"))
        for product in ("nt", "nn"):
            chosen = table.choice(f"{product}/weight_q8_0")
            assert chosen == Choice(f"matmul_{product}_subgroup", (("SUBGROUP", size),))
            assert tuning.runs_on(chosen, product, adapter("CPU", size, "subgroups"))
    assert tuning.default_tuning(adapter()) == DEFAULT_CPU


def test_subgroups_of_no_certain_size_are_not_used() -> None:
    """The adapter has the feature, but the probe saw sizes that differ."""
    uncertain = adapter("CPU", 0, "subgroups")
    assert tuning.default_tuning(uncertain) == DEFAULT_CPU
    assert not tuning.runs_on(Choice("matmul_nt_subgroup"), "nt", uncertain)
    names = {choice.kernel for choice in candidates.candidates("nt", uncertain)}
    assert "matmul_nt_subgroup" not in names


def test_candidates_begin_with_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Choice("matmul_nt", (("TILE_ROWS", 8),))
    monkeypatch.setitem(candidates.CANDIDATES, "nt", (small, Choice("matmul_nt")))
    found = candidates.candidates("nt/weight_q8_0", adapter())
    assert found == [Choice("matmul_nt"), small]
    assert candidates.candidates("tn 8x8", adapter()) == [DEFAULT_CPU.choice("tn 8x8")]


def test_a_table_is_plain_data() -> None:
    table = Tuning({"nt": Choice("matmul_nt", (("TILE_ROWS", 8),))}, "test")
    data = to_json(table)
    assert data == {"origin": "test", "table": {"nt": {"kernel": "matmul_nt", "TILE_ROWS": 8}}}
    assert from_json(data) == table
    for wrong in (None, [], {}, {"table": {}, "origin": 1}, {**data, "table": {"nt": "matmul_nt"}}):
        with pytest.raises(ValueError, match="not a"):
            from_json(wrong)


def test_this_version_has_its_defaults_and_candidates_alone() -> None:
    for device in (adapter(), adapter("CPU", 8, "subgroups"), adapter("DiscreteGPU", 32, "f16")):
        table = tuning.default_tuning(device)
        assert of_this_version(table) == table
        for family in [*table.table, "nt/weight_q8_0", "nn/weight_bf16"]:
            for choice in candidates.candidates(family, device):
                assert candidates.is_listed(choice, family), (family, choice)
    for family, choice in (
        ("tn 8x8", Choice("matmul_tn", (("TILE_ROWS", 8), ("TILE_COLS4", 2), ("LANES", 3)))),
        ("tn 8x4", DEFAULT_CPU.choice("tn 8x8")),
        ("nn/weight_q8_0", Choice("matmul_nn_subgroup", (("TILE_PACKS", 16),))),
        ("no family", Choice("matmul_nt")),
    ):
        assert not candidates.is_listed(choice, family)
    mixed = Tuning({"nt": Choice("matmul_nt"), "nn": Choice("matmul_nt")}, "a file")
    assert of_this_version(mixed) == Tuning(
        {"nt": Choice("matmul_nt")},
        "a file; 1 kernels not of this version are replaced: numbers may differ",
    )


def test_candidates_of_gpus_fit_every_adapter() -> None:
    """Workgroups of at most 256 invocations and 16 KiB, for every weight library."""
    discrete, limits = adapter("DiscreteGPU"), Limits()
    libraries = [entry.library for entry in FORMATS.values()]
    families = [f"{product}/{library}" for product in ("nt", "nn") for library in libraries]
    families += [family for family in DEFAULT_GPU.table if "/" not in family]
    assert set(candidates.GPU_CANDIDATES) <= {family.partition("/")[0] for family in families}
    for family in families:
        library = family.partition("/")[2]
        for choice in candidates.candidates(family, discrete):
            roles = {"weight": library} if library else {}
            kernel = load_kernel(choice.kernel, dict(choice.constants), roles)
            invocations, memory = workgroup(kernel)
            assert invocations <= limits.invocations, (family, choice)
            assert memory <= limits.workgroup_memory, (family, choice)


def test_a_cpu_tries_no_choice_of_gpus() -> None:
    assert len(candidates.candidates("tn 8x16", adapter("DiscreteGPU"))) > 1
    kernels = {choice.kernel for choice in candidates.candidates("nt/weight_f32", adapter())}
    assert not {"matmul_nt_tiled", "matmul_nt_split"} & kernels


@pytest.mark.gpu
def test_the_size_of_subgroups_is_measured(device: Device, full_device: Device) -> None:
    assert device.subgroup_size == gpu.run(find_subgroup_size(device)) == 0
    assert ("subgroups" in full_device.features) == (full_device.subgroup_size > 1)
    assert gpu.run(find_subgroup_size(full_device)) == full_device.subgroup_size


@pytest.mark.parametrize("size", [2, 4, 8, 32, 64])
def test_subgroups_have_to_be_consecutive_and_alike(size: int) -> None:
    seen = oracles.probe_subgroup(64, size)["seen"]
    assert subgroup_size(seen) == size
    for group, lane, word in ((0, 0, 0), (1, 5, 0), (1, 63, 1), (0, 9, 2), (0, 40, 3)):
        other = seen.copy()
        other[group, lane, word] += 1
        assert subgroup_size(other) == 0
    swapped = seen.copy()
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    assert subgroup_size(swapped) == 0
    assert subgroup_size(oracles.probe_subgroup(64, 1)["seen"]) == 0
