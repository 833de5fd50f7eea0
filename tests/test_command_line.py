"""``python -m aadl_ext``: what runs here, how fast, and clear refusals."""

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import aadl_ext
from aadl_ext import info
from aadl_ext.__main__ import main
from aadl_ext.ops import library


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_info_tells_versions_and_what_to_do_about_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "missing", "not built")
    monkeypatch.delenv("AADL_EXT_NATIVE", raising=False)
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert aadl_ext.__version__ in text
    assert torch.__version__ in text
    assert "no   compiled kernels for CPUs: not built" in text
    assert "-> install g++ or clang" in text


def gpu_parts(monkeypatch: pytest.MonkeyPatch, count: int) -> list[info.Part]:
    """What info says of GPUs where torch is built for them and finds so many."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (7 + 2 * i, 0))
    monkeypatch.setattr(library, "cuda_missing", None)
    return [part for part in info.parts() if "GPU" in part.name]


def test_a_gpu_without_fitting_code_is_named_with_the_reason_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusals = {0: "no kernels run on CUDA device 0: no kernel image is available", 1: None}
    monkeypatch.setattr(library, "refusal", lambda device: refusals[device.index])
    gpu, kernels = gpu_parts(monkeypatch, 2)
    assert gpu.what == "GPU 0, GPU 1"
    assert not kernels.works
    assert kernels.what.startswith(str(refusals[0]))
    assert 'AADL_EXT_CUDA_ARCHS="70"' in kernels.remedy
    refusals[0] = None
    assert gpu_parts(monkeypatch, 2)[1].works


def test_no_gpu_is_put_down_to_the_list_of_visible_ones_or_the_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for visible in ("", "MIG-41b35014"):  # a slice that is not there
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        gpu, _ = gpu_parts(monkeypatch, 0)
        assert f"among CUDA_VISIBLE_DEVICES={visible!r}" in gpu.what
        assert gpu.remedy.startswith("unset CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    gpu_parts(monkeypatch, 0)

    def too_old() -> bool:
        warnings.warn("The NVIDIA driver is too old (Triggered internally)", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    gpu, _ = (part for part in info.parts() if "GPU" in part.name)
    assert gpu.what.endswith("but finds no device: The NVIDIA driver is too old")


def test_a_device_that_no_kernel_runs_on_is_asked_for_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    assert library.refusal(cpu) is None

    def refuse(tensors: object) -> None:
        raise RuntimeError("no kernels run on CUDA device 3: no kernel image\nmore")

    monkeypatch.setattr(torch.ops.aadl_ext, "squared_norm", refuse)
    assert library.refusal(cpu) == "no kernels run on CUDA device 3: no kernel image"


def test_each_part_works_or_has_a_reason_and_mostly_a_remedy() -> None:
    for part in info.parts():
        assert part.what
        assert not (part.works and part.remedy)
    content = info.as_dict()
    assert content["versions"]["torch"] == torch.__version__
    assert {part["name"] for part in content["parts"]} == {part.name for part in info.parts()}


def test_json_is_all_there_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(info.as_dict()))


def test_bench_times_each_pass_beside_its_floor(
    capsys: pytest.CaptureFixture[str], threads: None
) -> None:
    arguments = ["bench", "--size", "10000", "--depth", "3", "--seconds", "0.001"]
    assert main([*arguments, "--threads", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"push_secant", "extrapolate_", "add_sample_"} <= {row["op"] for row in rows}
    for row in rows:
        assert row["size"] == 10000
        assert min(row["seconds"], row["floor"], row["definition"]) > 0
        assert 1e8 < row["read_rate"] < 1e13  # bytes per second


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["info", "--no-such-option"], "info --help"),
        (["demo", "--only", "nothing"], "invalid choice"),
        (["demo", "--seeds", "0"], "not a positive number"),
        (["bench", "--size", "-3"], "not a positive number"),
        (["reproduce", "nothing"], "invalid choice"),
    ],
)
def test_wrong_arguments_end_with_status_2_and_what_is_wrong(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert said in capsys.readouterr().err


def test_without_a_command_it_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "reproduce" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "demo", "bench"])
def test_commands_explain_themselves(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "--json" in capsys.readouterr().out


def test_reproduce_names_the_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--help"]) == 0
    assert "burgers100d" in capsys.readouterr().out
    assert main(["reproduce"]) == 2


def test_missing_demo_packages_are_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert 'pip install "aadl_ext[demo]"' in capsys.readouterr().err


def test_module_runs_from_the_shell_without_the_demo_packages() -> None:
    # The library itself must not import what only the demo needs.
    code = (
        "import sys\n"
        "for name in ('sklearn', 'matplotlib', 'tqdm', 'rich', 'scipy'): sys.modules[name] = None\n"
        "import aadl_ext, runpy\n"
        "sys.argv = ['aadl_ext', 'bench', '--size', '1000', '--seconds', '0.001']\n"
        "runpy.run_module('aadl_ext', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of floor" in done.stdout
