"""Exported models: the C program has the bits of Python's, and those of the engine."""

import shutil
import subprocess

import numpy as np
import pytest
from exported import COMPILERS, MODELS, bits, draw, program, run

import elman
from elman import cli, export
from elman.export import arithmetic, layers


def test_a_compiler_is_there():
    """What follows would else be skipped whole."""
    assert COMPILERS, "make test needs a C compiler"


@pytest.mark.parametrize("name", MODELS)
def test_the_bits_of_python(name, tmp_path):
    """By one compiler without the processor's own instructions, and by the other one with them."""
    model = MODELS[name]()
    x = draw(model, 70)
    output, _ = model(x)
    for compiler, flags in ((COMPILERS[0], []), (COMPILERS[-1], ["-march=native"])):
        assert run(program(model, [compiler, "-O2", *flags], tmp_path), x) == bits(output)


FLAGS = {
    "O0": ["-O0"],
    "O3-native": ["-O3", "-march=native"],
    "O3-fma": ["-O3", "-mavx2", "-mfma", "-ffp-contract=fast"],
    "O3-c++": ["-O3", "-march=native", "-xc++", "-std=c++11"],
    "c99": ["-O1", "-std=c99", "-pedantic"],
}


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_whatever_the_flags(flags, compiler, tmp_path):
    model = MODELS["all"]()
    x = draw(model, 40)
    output, _ = model(x)
    assert run(program(model, [compiler, *FLAGS[flags]], tmp_path), x) == bits(output)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_flag_that_reorders_sums_is_an_error(compiler, tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as failed:
        program(MODELS["gru"](), [compiler, "-O2", "-ffast-math"], tmp_path)
    assert b"-ffast-math" in failed.value.stderr


NUMBERS = np.concatenate(
    [
        np.arange(0, 2**32, 65521, dtype=np.uint64).astype(np.uint32).view(np.float32),
        np.float32([0.0, -0.0, 87.0, -87.0, 88.1, -88.1, 0.5493061, 1e-45, -1e-45]),
    ]
)


def engine_rnn(x, nonlinearity):
    """tanh or relu of numbers, by the engine."""
    rnn = elman.RNN(1, 1, nonlinearity=nonlinearity, bias=False)
    weights = {"weight_ih_l0": np.ones((1, 1), "f"), "weight_hh_l0": np.zeros((1, 1), "f")}
    rnn.load_state_dict(weights)
    return rnn(x[None, :, None])[0].ravel()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_numpys_functions_are_the_engines(name):
    x = NUMBERS[np.isfinite(NUMBERS)]
    assert bits(getattr(arithmetic, name)(x) + np.float32(0)) == bits(engine_rnn(x, name))


def test_numpys_sigmoid_is_the_engines():
    """Of an LSTM whose c is 1e-30: h' = o * c' to the bit, with f = 1 and i * g = 0."""
    x = NUMBERS[np.isfinite(NUMBERS)]
    lstm = elman.LSTM(1, 1)
    b = np.float32([0, 100, 0, 0])
    w = np.float32([[0], [0], [0], [1]])
    zeros = np.zeros((4, 1), "f")
    lstm.load_state_dict(
        {"weight_ih_l0": w, "weight_hh_l0": zeros, "bias_ih_l0": b, "bias_hh_l0": zeros[:, 0]}
    )
    c = np.full((1, len(x), 1), 2.0**-20, "f")
    output, _ = lstm(x[None, :, None], (np.zeros_like(c), c))
    expected = arithmetic.sigmoid(x) * arithmetic.tanh(c.ravel())
    assert bits(output) == bits(expected)


def test_products_are_the_engines():
    """Of 200 terms: W x + b by a relu of W and of -W."""
    rng = np.random.default_rng(0)
    w, b, x = (rng.standard_normal(shape, "f") for shape in ((9, 200), 9, (50, 200)))
    rnn = elman.RNN(200, 18, nonlinearity="relu")
    both = {"weight_ih_l0": np.concatenate([w, -w]), "bias_ih_l0": np.concatenate([b, -b])}
    zeros = {"weight_hh_l0": np.zeros((18, 18), "f"), "bias_hh_l0": np.zeros(18, "f")}
    rnn.load_state_dict({**both, **zeros})
    output = rnn(x)[0]
    assert bits(export.Linear(w, b)(x)) == bits(output[:, :9] - output[:, 9:])


HARD = """
#include "amp.h"
#include <stdio.h>
int main(void) {
  float x[3], y;
  while (fread(x, 4, 3, stdin) == 3) {
    y = elman_fma(x[0], x[1], x[2]);
    fwrite(&y, 4, 1, stdout);
  }
  return 0;
}
"""


def hard_numbers():
    """Of any exponents; and sums next to half-way between two floats, subnormal ones too."""
    rng = np.random.default_rng(1)
    any_ = rng.integers(0, 2**32, (100_000, 3), dtype=np.uint32).view(np.float32)
    near = np.ldexp(rng.integers(2**23, 2**24, (50_000, 3)).astype("f"), [-23, -23, 24])
    small = np.ldexp(rng.integers(1, 2**24, (50_000, 3)).astype("f"), [-90, -90, -149])
    # 2^-24 + 2^-60 beside 1, and the like among subnormal numbers: as doubles both are ties.
    tie = np.ldexp(np.float32([1774001, 38737, 1]), [[-30, -30, 0], [-100, -86, -132]])
    tie = np.concatenate([tie, tie * np.float32([-1, 1, -1]), tie * np.float32([-1, 1, 1])])
    c = near[:, :1] * near[:, 1:2] * np.float32(-1)
    cancelling = np.concatenate([near[:, :2], c], 1)
    return np.concatenate([tie, any_, near, -near, small, cancelling]).astype("f")


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("flags", [["-O2"], ["-O3", "-march=native"]], ids=["emulated", "native"])
def test_one_rounding_of_a_product_and_a_sum(compiler, flags, tmp_path):
    numbers = hard_numbers()
    (tmp_path / "hard.c").write_text(HARD)
    (tmp_path / "amp.h").write_text(export.header(MODELS["gru"](), "amp"))
    command = [compiler, *flags, str(tmp_path / "hard.c"), "-o", str(tmp_path / "hard")]
    subprocess.run(command, check=True)
    done = subprocess.run([tmp_path / "hard"], input=numbers.tobytes(), stdout=subprocess.PIPE)
    given = np.frombuffer(done.stdout, np.float32)
    with np.errstate(all="ignore"):
        some = np.append(np.arange(6), np.arange(6, len(numbers), 50))
        exact = np.array([exact_fma(*row) for row in numbers[some].astype(float)], "f")
        emulated = arithmetic.fma(*numbers.T)
    known = ~np.isnan(given)
    assert known.mean() > 0.9
    np.testing.assert_array_equal(known, ~np.isnan(emulated))
    assert bits(given[known]) == bits(emulated[known])
    known = known[some]
    assert bits(given[some][known]) == bits(exact[known])


def exact_fma(a, b, c):
    """By fractions, rounded once."""
    from fractions import Fraction

    if not np.isfinite([a, b, c]).all() or 0 in (a, b):
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c
    nearest = np.float32(float(exact))
    if not np.isfinite(nearest):
        return nearest
    around = [np.nextafter(nearest, np.float32(s)) for s in (-np.inf, np.inf)] + [nearest]
    finite = [f for f in around if np.isfinite(f)]
    # The even one where two are as near.
    return min(
        finite,
        key=lambda f: (abs(Fraction(float(f)) - exact), int(np.float32(f).view(np.uint32)) & 1),
    )


def test_chunks_and_batches_have_the_bits_of_the_whole():
    model = MODELS["all"]()
    x = draw(model, 60)
    whole, _ = model(x)
    states, parts = None, []
    for part in np.split(x, [1, 7, 40]):
        output, states = model(part, states)
        parts.append(output)
    assert bits(np.concatenate(parts)) == bits(whole)
    batch, _ = model(np.stack([x, 0.5 * x], 1))
    assert bits(batch[:, 0]) == bits(whole)


def test_a_model_keeps_the_weights_of_its_making():
    gru = elman.GRU(1, 3, seed=0)
    model, x = export.Model([gru]), np.ones((5, 1), "f")
    before, _ = model(x)
    gru.load_state_dict(elman.GRU(1, 3, seed=1).state_dict())
    assert bits(model(x)[0]) == bits(before)
    assert export.header(model, "amp") == export.header(
        export.Model([elman.GRU(1, 3, seed=0)]), "amp"
    )


def test_a_model_beside_torch():
    """Every layer that there is, in float64."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    nn = torch.nn
    conv = nn.Conv1d(2, 6, 3, dilation=2, padding=4)
    head = nn.Sequential(nn.Linear(7, 5), nn.Sigmoid(), nn.Linear(5, 4), nn.Softmax(-1))
    gru, lstm = nn.GRU(6, 8, 2), nn.LSTM(8, 9, proj_size=7)
    module = nn.Sequential(conv, nn.ReLU(), nn.Dropout(), gru, lstm, nn.Tanh(), head)
    x = torch.randn(30, 2)
    output, _ = export.from_torch(module)(x.numpy())
    wide = module.double().eval()
    seen = wide[0](x.double().T)[:, :30].T
    expected = wide[6](torch.tanh(wide[4](wide[3](torch.relu(seen))[0])[0]))
    np.testing.assert_allclose(output, expected.detach().numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda nn: nn.Sequential(nn.Linear(1, 2), nn.ELU()), "1: ELU is not known"),
        (lambda nn: nn.GRU(1, 2, bidirectional=True), "GRU: a model has one direction"),
        (lambda nn: nn.Conv1d(1, 2, 3, padding=1), "padding must be 0 or 2, got (1,)"),
        (lambda nn: nn.Conv1d(2, 2, 3, groups=2), "stride and groups must be 1"),
        (lambda nn: nn.Sequential(nn.Linear(1, 2), nn.Softmax(0)), "dim must be -1"),
    ],
)
def test_modules_that_are_refused(make, said):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    with pytest.raises(ValueError, match=r"from_torch: ") as refused:
        export.from_torch(make(torch.nn))
    assert said in str(refused.value)


def test_elmans_own_modules_are_known():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import elman.torch

    module = elman.torch.GRU(2, 3, reset_after=False, batch_first=True)
    model = export.from_torch(module)
    x = torch.randn(1, 9, 2)
    output, _ = model(x[0].numpy())
    assert repr(model) == "Model([GRU(2, 3, reset_after=False)])"
    assert bits(output) == bits(module(x)[0].detach().numpy())


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: [elman.GRU(1, 2, bidirectional=True)], ValueError, "one direction"),
        (lambda: [elman.GRU(1, 2, dtype="float64")], TypeError, "must be float32, got float64"),
        (lambda: [elman.GRU(1, 2), elman.GRU(3, 2)], ValueError, "reads 3 features"),
        (lambda: [export.Tanh()], ValueError, "a layer with weights"),
        (lambda: ["gru"], TypeError, "a layer must be one of RNN, GRU, LSTM"),
        (lambda: [export.Linear(np.ones(3, "f"))], ValueError, r"weight must be \(P, D\)"),
        (lambda: [export.Linear(np.ones((3, 2)))], TypeError, "must be float32, got float64"),
        (lambda: [export.Linear(np.ones((3, 2), "f"), np.ones(2, "f"))], ValueError, "bias must"),
        (lambda: [export.Conv1d(np.ones((3, 2), "f"))], ValueError, "weight must be"),
        (lambda: [export.Conv1d(np.ones((3, 2, 1), "f"), dilation=0)], ValueError, "at least 1"),
    ],
)
def test_models_that_are_none(make, error, said):
    with pytest.raises(error, match=said):
        export.Model(make())


def test_initial_states_that_do_not_fit():
    lstm = elman.LSTM(1, 2)
    with pytest.raises(ValueError, match=r"one of each of 1 recurrent layers, got 2"):
        export.Model([lstm], [None, None])
    zeros = np.zeros((1, 2), "f")
    with pytest.raises(ValueError, match=r"c_0 must have shape \(1, 2\), got \(2,\)"):
        export.Model([lstm], [(zeros, zeros[0])])


@pytest.mark.parametrize("name", ["", "3d", "a-b", "int", "ä", "a b"])
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match="a C identifier"):
        export.header(MODELS["gru"](), name)


def test_weights_that_c_cannot_write():
    linear = export.Linear(np.full((1, 1), np.inf, "f"))
    with pytest.raises(ValueError, match="finite"):
        export.header(export.Model([linear]), "amp")


def test_every_float_is_written_exactly(tmp_path):
    rng = np.random.default_rng(2)
    numbers = rng.integers(0, 2**32, 3000, dtype=np.uint32).view(np.float32)
    numbers = np.append(numbers[np.isfinite(numbers)], np.float32([0.0, -0.0, 1e-45, 3.4028235e38]))
    model = export.Model([export.Linear(numbers[None])])
    source = '#include "amp.h"\n#include <stdio.h>\nint main(void) {'
    source += " fwrite(amp_weights, 4, AMP_WEIGHTS, stdout); return 0; }"
    (tmp_path / "amp.h").write_text(export.header(model, "amp"))
    (tmp_path / "main.c").write_text(source)
    subprocess.run([COMPILERS[0], "main.c", "-o", "main"], cwd=tmp_path, check=True)
    written = subprocess.run([tmp_path / "main"], stdout=subprocess.PIPE, check=True).stdout
    assert written == numbers.tobytes() + bytes(4) == export.weights(model)


def test_weights_apart(tmp_path):
    model = MODELS["gru"]()
    x = draw(model, 20)
    (tmp_path / "weights").write_bytes(export.weights(model))
    made = program(model, [COMPILERS[0], "-O1"], tmp_path, weights_apart=True)
    assert run(made, x, tmp_path / "weights") == bits(model(x)[0])


def test_reset_states_in_place_and_two_models_in_one_program(tmp_path):
    """amp begins with states of its own, and is run twice over one buffer, where its input was."""
    rng = np.random.default_rng(3)
    h, c = rng.standard_normal((2, 1, 5), "f")
    amp = export.Model([elman.LSTM(1, 5, seed=1), export.Linear(np.ones((1, 5), "f"))], [(h, c)])
    vad = MODELS["gru"]()
    for name, model in (("amp", amp), ("vad", vad)):
        (tmp_path / f"{name}.h").write_text(export.header(model, name))
    (tmp_path / "main.c").write_text("""
#include "amp.h"
#include "vad.h"
#include <stdio.h>
int main(void) {
  static float x[90], y[30];
  static amp_state s;
  static vad_state v;
  (void)v; (void)vad_run;
  fread(x, 4, 90, stdin);
  amp_init(&s);
  amp_run(&s, x, x, 30);
  fwrite(s.h0, 4, 5, stdout);
  fwrite(s.c0, 4, 5, stdout);
  amp_reset(&s);
  amp_run(&s, x + 30, y, 30);
  s.h0[0] = 0.5f;
  amp_run(&s, x + 60, x + 60, 30);
  fwrite(x, 4, 30, stdout);
  fwrite(y, 4, 30, stdout);
  fwrite(x + 60, 4, 30, stdout);
  return 0;
}
""")
    subprocess.run([COMPILERS[0], "main.c", "-o", "main"], cwd=tmp_path, check=True)
    x = rng.standard_normal((90, 1), "f")
    done = subprocess.run([tmp_path / "main"], input=x.tobytes(), stdout=subprocess.PIPE)
    first, states = amp(x[:30])
    second, others = amp(x[30:60])
    others[0][0][0, 0, 0] = 0.5
    third, _ = amp(x[60:], others)
    expected = [*states[0], first, second, third]
    assert done.stdout == b"".join(map(bits, expected))


def test_fast_tanh_gives_the_bits_up_and_says_by_how_much(tmp_path):
    model = export.Model([export.Linear(np.ones((1, 1), "f")), export.Tanh()])
    x = np.linspace(-12, 12, 100_001, dtype="f")[:, None]
    fast = run(program(model, [COMPILERS[0], "-O2", "-DELMAN_FAST_TANH"], tmp_path), x)
    error = np.abs(np.frombuffer(fast, "f") - np.tanh(x.ravel().astype(float))).max()
    assert 5e-5 < error < 1e-4


def test_the_command(tmp_path, capsys, monkeypatch):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    monkeypatch.chdir(tmp_path)
    lstm = elman.LSTM(1, 4, seed=0)
    lstm.save("lstm.safetensors")
    assert cli.main(["export", "lstm.safetensors", "amp.h"]) == 0
    assert (tmp_path / "amp.h").read_text() == export.header(export.Model([lstm]), "amp")
    assert cli.main(["export", "lstm.safetensors", "amp.h"]) == 1
    assert "is there already" in capsys.readouterr().err
    arguments = ["lstm.safetensors", "b.h", "--name=vad", "--weights=b.bin"]
    assert cli.main(["export", *arguments]) == 0
    model = export.Model([lstm])
    assert (tmp_path / "b.bin").read_bytes() == export.weights(model)
    assert (tmp_path / "b.h").read_text() == export.header(model, "vad", weights_apart=True)


def test_the_command_takes_any_frameworks_weights(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    from elman.weights import convert
    from elman.weights.files import write_safetensors

    monkeypatch.chdir(tmp_path)
    gru = elman.GRU(2, 3, seed=0)
    for target in ("mlx", "keras", "equinox"):
        tensors = convert(gru.state_dict(), "torch", target)
        write_safetensors("gru.safetensors", {**tensors, "head": np.ones((2, 3), "f")})
        assert cli.main(["export", "gru.safetensors", "a.h", "--from", target, "--force"]) == 0
        moved = elman.weights.build(tensors, target, cell=False)
        assert (tmp_path / "a.h").read_text() == export.header(export.Model([moved]), "a")


def test_the_command_says_what_weights_do_not_tell(tmp_path, capsys, monkeypatch):
    """And takes what it is told in its place."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    from elman.weights import convert
    from elman.weights.files import write_safetensors

    monkeypatch.chdir(tmp_path)
    gru = elman.GRU(2, 3, bias=False, reset_after=False, seed=0)
    write_safetensors("gru.safetensors", convert(gru.state_dict(), "torch", "keras"))
    asked = ["export", "gru.safetensors", "a.h", "--from=keras"]
    assert cli.main(asked) == 0
    assert "note   keras GRU: taken for reset_after=True, which" in capsys.readouterr().out
    assert cli.main([*asked, "--no-reset-after", "--force"]) == 0
    assert "note" not in capsys.readouterr().out
    assert (tmp_path / "a.h").read_text() == export.header(export.Model([gru]), "a")


def test_what_the_command_refuses(tmp_path, capsys, monkeypatch):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    monkeypatch.chdir(tmp_path)
    elman.GRU(1, 4, dtype="float64").save("wide.safetensors")
    elman.GRU(1, 4, bidirectional=True).save("both.safetensors")
    for file, said in (("wide", "must be float32, got float64"), ("both", "one direction")):
        assert cli.main(["export", f"{file}.safetensors", "amp.h"]) == 1
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["export", "wide.safetensors", "amp.c"])


def test_the_header_is_packed():
    """Where a wheel is made, headers of the kernels are left out, and these are not."""
    from importlib.resources import files

    assert files("elman.export").joinpath("layers.h").is_file()
    assert layers.ACTIVATIONS.keys() == {"tanh", "sigmoid", "relu", "softmax"}
    assert shutil.which(COMPILERS[0])
