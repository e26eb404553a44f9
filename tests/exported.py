"""Models that are exported in tests, and the programs that are made of them."""

import shutil
import subprocess

import numpy as np

import elman
from elman import export

COMPILERS = [compiler for compiler in ("gcc", "clang") if shutil.which(compiler)]

PROGRAM = """
#include "amp.h"
#include <stdio.h>
#define SPACE (1 << 18)
int main(int count, char **arguments) {
  static amp_state s;
  static float x[SPACE], y[SPACE];
  int steps, some, i;
  (void)count;
  (void)arguments;
#ifdef FILES
  if (!freopen("in", "rb", stdin) || !freopen("out", "wb", stdout)) return 1;
#endif
  INIT;
  steps = (int)(fread(x, sizeof *x, SPACE, stdin) / AMP_INPUTS);
  some = steps / 3;
  amp_run(&s, x, y, some);
  for (i = some; i < steps; ++i) amp_step(&s, x + i * AMP_INPUTS, y + i * AMP_OUTPUTS);
  fwrite(y, sizeof *y, (size_t)(steps * AMP_OUTPUTS), stdout);
  return 0;
}
"""
INIT = {
    False: "amp_init(&s)",
    True: """FILE *file = fopen(arguments[1], "rb");
  static float w[AMP_WEIGHTS];
  if (!file || fread(w, sizeof *w, AMP_WEIGHTS, file) != AMP_WEIGHTS) return 1;
  amp_init(&s, w)""",
}
STRICT = ["-Wall", "-Wextra", "-Werror"]


def linear(D, P, seed=0):
    rng = np.random.default_rng(seed)
    return export.Linear(rng.uniform(-0.7, 0.7, (P, D)).astype("f"), rng.standard_normal(P, "f"))


def conv1d(D, P, kernel, dilation):
    rng = np.random.default_rng(1)
    weight, bias = rng.standard_normal((P, D, kernel), "f"), rng.standard_normal(P, "f")
    return export.Conv1d(weight, bias, dilation)


def every_layer():
    rng = np.random.default_rng(2)
    initial = [
        None,
        rng.standard_normal((1, 13), "f"),
        None,
        tuple(rng.standard_normal((2, 1, 4), "f")),
    ]
    layers = [
        conv1d(2, 6, 3, 4),
        export.ReLU(),
        elman.GRU(6, 15, 2, seed=1),
        elman.GRU(15, 13, reset_after=False, seed=2),
        export.Tanh(),
        elman.RNN(13, 11, nonlinearity="relu", seed=3),
        linear(11, 5),
        export.Sigmoid(),
        elman.LSTM(5, 4, seed=4),
        linear(4, 3),
        export.Softmax(),
    ]
    return export.Model(layers, initial)


#: Sizes across the edges of vectors, tiles and chains.
MODELS = {
    "gru": lambda: export.Model([elman.GRU(3, 29, seed=0)]),
    "gru-reset-before": lambda: export.Model(
        [elman.GRU(1, 22, bias=False, reset_after=False, seed=0)]
    ),
    "lstm": lambda: export.Model([elman.LSTM(1, 20, seed=0), linear(20, 1)]),
    "lstm-projected": lambda: export.Model([elman.LSTM(70, 33, proj_size=9, seed=0)]),
    "rnn": lambda: export.Model([elman.RNN(2, 130, seed=0), linear(130, 3)]),
    "all": every_layer,
}


def draw(model, steps):
    """Input, of which some is large, and some 0."""
    rng = np.random.default_rng(steps)
    shape = (steps, model.input_size)
    x = rng.standard_normal(shape, "f") * np.float32(10.0) ** rng.integers(-3, 3, shape)
    x[steps // 2] = 0
    return x.astype("f")


def bits(a):
    return np.ascontiguousarray(a).tobytes()


def source(model, folder, weights_apart=False):
    """Write the header and the program into a folder; the program's path."""
    (folder / "amp.h").write_text(export.header(model, "amp", weights_apart))
    (folder / "main.c").write_text(PROGRAM.replace("INIT", INIT[weights_apart]))
    return folder / "main.c"


def program(model, command, folder, weights_apart=False):
    """Compile a model's program; the compiler's words are in the error."""
    main, made = source(model, folder, weights_apart), folder / "main"
    subprocess.run([*command, *STRICT, main, "-o", made], check=True, capture_output=True)
    return made


def run(program, x, *arguments):
    """The bytes of a program's output."""
    command = [*(program if isinstance(program, list) else [program]), *arguments]
    return subprocess.run(command, input=bits(x), stdout=subprocess.PIPE, check=True).stdout
